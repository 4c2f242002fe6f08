//! Tests of distributions, all at one stated false-alarm rate.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Chance that a test fails although the code is right.
pub(crate) const FALSE_ALARM: f64 = 1e-6;

/// Fails unless the sample variance around zero is that of a centred normal of this standard deviation.
pub(crate) fn assert_normal_variance(what: &str, sample: &[f64], deviation: f64) {
    let statistic: f64 = sample.iter().map(|value| (value / deviation).powi(2)).sum();
    let law = ChiSquared::new(sample.len() as f64).unwrap();
    let (low, high) = (
        law.inverse_cdf(FALSE_ALARM / 2.0),
        law.inverse_cdf(1.0 - FALSE_ALARM / 2.0),
    );
    assert!(
        (low..=high).contains(&statistic),
        "{what}: chi-square {statistic} of {} values is outside [{low}, {high}]",
        sample.len()
    );
}

/// Fails unless the sample follows this distribution function (Kolmogorov-Smirnov with the DKW-Massart bound).
pub(crate) fn assert_follows(what: &str, sample: &[f64], cdf: impl Fn(f64) -> f64) {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let distance = sorted
        .iter()
        .enumerate()
        .map(|(index, &value)| {
            let cdf = cdf(value);
            (cdf - index as f64 / n)
                .abs()
                .max(((index + 1) as f64 / n - cdf).abs())
        })
        .fold(0.0, f64::max);
    let limit = ((2.0 / FALSE_ALARM).ln() / (2.0 * n)).sqrt();
    assert!(
        distance <= limit,
        "{what}: distance {distance} exceeds {limit}"
    );
}
