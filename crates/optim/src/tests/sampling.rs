use super::statistics::FALSE_ALARM;
use crate::{PoissonSampler, Random, SecureRandom, SeededRandom};
use statrs::distribution::{Binomial, ChiSquared, ContinuousCDF, DiscreteCDF};

#[test]
fn every_unit_is_included_with_the_sampling_rate() {
    let (population, rate, batches) = (300, 0.07, 20_000);
    let sampler = PoissonSampler::new(population, rate).unwrap();
    let mut random = SecureRandom::new().unwrap();
    let mut counts = vec![0_u32; population];
    let mut together = 0_u64;
    for _ in 0..batches {
        let batch = sampler.sample(&mut random);
        assert!(batch.is_sorted_by(|a, b| a < b));
        together += u64::from(batch.contains(&3) && batch.contains(&250));
        for unit in batch {
            counts[unit] += 1;
        }
    }
    let expected = f64::from(batches) * rate;
    let statistic: f64 = counts
        .iter()
        .map(|&count| (f64::from(count) - expected).powi(2) / (expected * (1.0 - rate)))
        .sum();
    let law = ChiSquared::new(population as f64).unwrap();
    assert!(
        statistic < law.inverse_cdf(1.0 - FALSE_ALARM),
        "chi-square {statistic}"
    );
    assert!(
        statistic > law.inverse_cdf(FALSE_ALARM),
        "chi-square {statistic}: too even for independent draws"
    );
    // Two units come together as often as independence says: a shuffled pass over the data would not.
    let pairs = Binomial::new(rate * rate, batches as u64).unwrap();
    assert!(
        pairs.cdf(together) > FALSE_ALARM && pairs.sf(together) > FALSE_ALARM,
        "{together} pairs"
    );
}

#[test]
fn batch_sizes_vary_as_poisson_sampling_says() {
    let (population, rate, batches) = (400_u32, 0.01, 20_000_usize);
    let sampler = PoissonSampler::new(population as usize, rate).unwrap();
    let mut random = SecureRandom::new().unwrap();
    let mut empty = 0_u64;
    for _ in 0..batches {
        empty += u64::from(sampler.sample(&mut random).is_empty());
    }
    let law = Binomial::new((1.0 - rate).powi(population as i32), batches as u64).unwrap();
    assert!(
        law.cdf(empty) > FALSE_ALARM && law.sf(empty) > FALSE_ALARM,
        "{empty} empty batches"
    );
}

#[test]
fn rate_one_takes_everyone_and_seeds_repeat() {
    let everyone = PoissonSampler::new(50, 1.0)
        .unwrap()
        .sample(&mut SecureRandom::new().unwrap());
    assert_eq!(everyone, (0..50).collect::<Vec<_>>());
    let sampler = PoissonSampler::new(1000, 0.1).unwrap();
    assert_eq!(
        sampler.sample(&mut SeededRandom::new(7)),
        sampler.sample(&mut SeededRandom::new(7))
    );
    assert_ne!(
        sampler.sample(&mut SeededRandom::new(7)),
        sampler.sample(&mut SeededRandom::new(8))
    );
}

#[test]
fn bad_rates_are_refused() {
    for rate in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert!(PoissonSampler::new(10, rate).is_err(), "{rate}");
    }
}

#[test]
fn secure_streams_differ_and_only_they_are_private() {
    let (mut one, mut two) = (SecureRandom::new().unwrap(), SecureRandom::new().unwrap());
    assert_ne!(one.child_key(), two.child_key());
    assert!(one.is_private() && !SeededRandom::new(1).is_private());
}
