#![allow(clippy::unwrap_used)]

use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

use super::{Random, SecureRandom, SeededRandom, add_grid_noise, standard_normals};
use crate::tests::statistics::{FALSE_ALARM, assert_follows, assert_normal_variance};

#[test]
fn normals_are_normal() {
    let sample = standard_normals(&mut SecureRandom::new().unwrap(), 400_001);
    let law = Normal::standard();
    assert_follows("normals", &sample, |x| law.cdf(x));
    assert_normal_variance("normals", &sample, 1.0);
    // The two halves of a pair must be independent, as must neighbouring chunks: products are centred with variance one.
    for lag in [1, 2, 4096] {
        let n = sample.len() - lag;
        let mean = (0..n).map(|i| sample[i] * sample[i + lag]).sum::<f64>() / (n as f64).sqrt();
        assert!(
            mean.abs() < -law.inverse_cdf(FALSE_ALARM / 2.0),
            "lag {lag}: {mean}"
        );
    }
}

#[test]
fn tails_are_not_cut() {
    let sample = standard_normals(&mut SecureRandom::new().unwrap(), 1_000_000);
    for limit in [3.0, 4.0] {
        let beyond = sample.iter().filter(|value| value.abs() > limit).count() as u64;
        let law = Binomial::new(2.0 * Normal::standard().sf(limit), sample.len() as u64).unwrap();
        assert!(
            law.cdf(beyond) > FALSE_ALARM && law.sf(beyond) > FALSE_ALARM,
            "{beyond} beyond {limit}"
        );
    }
}

#[test]
fn grid_noise_has_the_standard_deviation_asked_for() {
    for deviation in [0.7, 1e3, 2_f64.powi(30) * 3.0] {
        let mut sums = vec![5_i64; 100_000];
        add_grid_noise(&mut sums, deviation, &mut SecureRandom::new().unwrap());
        let noise: Vec<f64> = sums.iter().map(|&sum| (sum - 5) as f64).collect();
        // Rounding to integers adds 1/12 to the variance.
        assert_normal_variance(
            "grid noise",
            &noise,
            (deviation * deviation + 1.0 / 12.0).sqrt(),
        );
    }
}

/// Noise of a small deviation takes only whole values, with the probabilities of the rounded normal.
#[test]
fn grid_noise_is_the_rounded_normal() {
    let mut sums = vec![0_i64; 200_000];
    add_grid_noise(&mut sums, 1.0, &mut SecureRandom::new().unwrap());
    let law = Normal::standard();
    for value in -2_i64..=2 {
        let p = law.cdf(value as f64 + 0.5) - law.cdf(value as f64 - 0.5);
        let count = sums.iter().filter(|&&sum| sum == value).count() as u64;
        let law = Binomial::new(p, sums.len() as u64).unwrap();
        assert!(
            law.cdf(count) > FALSE_ALARM && law.sf(count) > FALSE_ALARM,
            "{count} times {value}"
        );
    }
}

/// Noise over the grid of a release: it follows the normal law, not only in its variance.
#[test]
fn grid_noise_follows_the_normal_law() {
    let deviation = 2_f64.powi(30) * 1.1;
    let mut sums = vec![0_i64; 300_001];
    add_grid_noise(&mut sums, deviation, &mut SecureRandom::new().unwrap());
    let noise: Vec<f64> = sums.iter().map(|&sum| sum as f64 / deviation).collect();
    let law = Normal::standard();
    assert_follows("grid noise", &noise, |x| law.cdf(x));
    // All grid points are reached alike: the last bits are fair coins.
    for bit in 0..16 {
        let ones = sums.iter().filter(|&&sum| sum >> bit & 1 == 1).count() as u64;
        let law = Binomial::new(0.5, sums.len() as u64).unwrap();
        assert!(
            law.cdf(ones) > FALSE_ALARM && law.sf(ones) > FALSE_ALARM,
            "bit {bit}: {ones}"
        );
    }
}

#[test]
fn two_calls_never_share_noise() {
    let mut random = SeededRandom::new(3);
    assert_ne!(
        standard_normals(&mut random, 8),
        standard_normals(&mut random, 8)
    );
}

/// Instances (new runs and resumed ones), calls (steps and groups), chunks (threads) and threads that draw at the same time: no two
/// neighbouring values ever come again. By chance they would with probability below 1e-15.
#[test]
fn no_stream_is_ever_repeated() {
    let draw = || {
        let mut random = SecureRandom::new().unwrap();
        let mut values = vec![random.child_key().map(f64::from).iter().sum()];
        for count in [1, 2, 4096, 4097, 3 * 4096, 9000] {
            values.extend(standard_normals(&mut random, count));
            let mut sums = vec![0; count];
            add_grid_noise(&mut sums, 2_f64.powi(45), &mut random);
            values.extend(sums.into_iter().map(|sum| sum as f64));
        }
        values
    };
    let runs: Vec<Vec<f64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(move || [draw(), draw()]))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut pairs: Vec<[u64; 2]> = runs
        .iter()
        .flat_map(|run| {
            run.windows(2)
                .map(|pair| [pair[0].to_bits(), pair[1].to_bits()])
        })
        .collect();
    let count = pairs.len();
    assert!(count > 400_000);
    pairs.sort_unstable();
    pairs.dedup();
    assert_eq!(pairs.len(), count);
}

/// Chunks, not threads, own the streams.
#[test]
fn noise_does_not_depend_on_the_number_of_threads() {
    let noise = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let mut sums = vec![0; 50_000];
            add_grid_noise(&mut sums, 1e9, &mut SeededRandom::new(9));
            sums
        })
    };
    let one = noise(1);
    assert_eq!(one, noise(3));
    assert_eq!(one, noise(7));
}

/// The seeded stream is part of the interface: a change here makes old runs irreproducible and belongs into the changelog.
#[test]
fn seeded_values_are_stable() {
    let mut random = SeededRandom::new(42);
    assert_eq!([random.next_u64(), random.next_u64()], PINNED_BITS);
    let normals = standard_normals(&mut random, 4098);
    for (index, expected) in PINNED_NORMALS {
        assert!(
            (normals[index] - expected).abs() < 1e-14,
            "normal {index}: {}",
            normals[index]
        );
    }
    let mut sums = [0; 3];
    add_grid_noise(&mut sums, 1e6, &mut random);
    assert_eq!(sums, PINNED_NOISE);
}

// From a second implementation (ChaCha20 and Box-Muller written from their definitions in Python), not from this one.
const PINNED_BITS: [u64; 2] = [3_856_321_446_871_323_833, 17_439_852_623_326_880_443];
const PINNED_NORMALS: [(usize, f64); 4] = [
    (0, -0.179_392_681_555_073_76),
    (1, -0.342_594_521_352_576_84),
    (4096, 0.845_044_745_476_654_2),
    (4097, -1.344_431_416_309_081_8),
];
const PINNED_NOISE: [i64; 3] = [-184_435, 1_040_210, -601_915];
