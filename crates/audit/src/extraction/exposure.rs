//! Exposure (Carlini et al. 2019): how many bits of a secret's randomness a model gives away.
//!
//! Exposure is `log2 |R| - log2 rank`, where the rank is the secret's among all of its space `R`, ordered by the model's loss. A
//! model that never saw the secret gives 1/ln 2 = 1.44 bits on average, a model that knows it `log2 |R|`.
//!
//! # Precision
//! [`by_sampling`] is exact for what it saw and cannot see beyond `log2` of the number of samples. [`by_extrapolation`] fits a
//! skew normal to the sampled losses, as the paper does, and integrates its density (relative error about 1e-10) to the secret's
//! loss: it is as right as the fit, whose Kolmogorov-Smirnov p-value is given along.

use serde::{Deserialize, Serialize};

use crate::attack::Interval;
use crate::bounds::{probability_lower, probability_upper};
use crate::error::AuditError;

/// A skew normal law: density `2 / scale phi(z) Phi(shape z)` with `z = (x - location) / scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SkewNormal {
    /// Location.
    pub location: f64,
    /// Scale, positive.
    pub scale: f64,
    /// Shape; zero is the normal law.
    pub shape: f64,
}

const SQRT_2: f64 = std::f64::consts::SQRT_2;

impl SkewNormal {
    /// Fits mean, variance and skewness, then climbs the likelihood from there.
    ///
    /// # Errors
    /// Fewer than ten values, a value that is not finite, or values that are all equal.
    pub fn fit(values: &[f64]) -> Result<Self, AuditError> {
        if values.len() < 10 {
            return Err(AuditError::TooFew {
                what: "sampled losses",
                found: values.len(),
                needed: 10,
            });
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(AuditError::NotANumber {
                which: "samples",
                index,
            });
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let moment = |power: i32| {
            values
                .iter()
                .map(|value| (value - mean).powi(power))
                .sum::<f64>()
                / n
        };
        let deviation = moment(2).sqrt();
        if deviation.is_nan() || deviation <= 1e-12 * mean.abs().max(1e-300) {
            return Err(AuditError::OutOfRange {
                what: "the spread of the sampled losses",
                value: deviation,
                range: "positive",
            });
        }
        // No skew normal has a skewness beyond 0.9953.
        let skewness = (moment(3) / deviation.powi(3)).clamp(-0.99, 0.99);
        let start = Self::of_moments(mean, deviation, skewness);
        Ok(start.climbed(values))
    }

    fn of_moments(mean: f64, deviation: f64, skewness: f64) -> Self {
        let pull = skewness.abs().powf(2.0 / 3.0);
        let limit = (0.5 * (4.0 - std::f64::consts::PI)).powf(2.0 / 3.0);
        let delta = (0.5 * std::f64::consts::PI * pull / (pull + limit))
            .sqrt()
            .min(0.999)
            * skewness.signum();
        let scale = deviation / (1.0 - 2.0 * delta * delta / std::f64::consts::PI).sqrt();
        Self {
            location: mean - scale * delta * (2.0 / std::f64::consts::PI).sqrt(),
            scale,
            shape: delta / (1.0 - delta * delta).sqrt(),
        }
    }

    /// Pattern search of the log-likelihood in (location, ln scale, shape): slow, short and without derivatives to get wrong.
    fn climbed(self, values: &[f64]) -> Self {
        let likelihood = |law: &Self| {
            values
                .iter()
                .map(|value| law.ln_density(*value))
                .sum::<f64>()
        };
        let mut best = (likelihood(&self), self);
        let mut step = 0.2;
        while step > 1e-4 {
            let mut improved = false;
            for (location, scale, shape) in [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)] {
                for sign in [1.0, -1.0] {
                    let law = Self {
                        location: best.1.location + sign * location * step * best.1.scale,
                        scale: best.1.scale * (sign * scale * step).exp(),
                        // Beyond 30 the density is a half normal to all purposes.
                        shape: (best.1.shape + sign * shape * step * best.1.shape.abs().max(1.0))
                            .clamp(-30.0, 30.0),
                    };
                    let value = likelihood(&law);
                    if value > best.0 {
                        best = (value, law);
                        improved = true;
                    }
                }
            }
            if !improved {
                step *= 0.5;
            }
        }
        best.1
    }

    fn ln_density(&self, value: f64) -> f64 {
        let z = (value - self.location) / self.scale;
        // ln Phi through erfc, which keeps its relative precision until it underflows at -37.
        let tail = 0.5 * libm::erfc(-self.shape * z / SQRT_2);
        std::f64::consts::LN_2
            - 0.5 * z * z
            - 0.5 * (2.0 * std::f64::consts::PI).ln()
            - self.scale.ln()
            + tail.max(1e-300).ln()
    }

    /// Probability of at most this value.
    #[must_use]
    pub fn probability_at_most(&self, value: f64) -> f64 {
        let z = (value - self.location) / self.scale;
        if z > 12.0 {
            return 1.0;
        }
        // Panels of a tenth from where the rest is 1e-30 of the integral; every term is positive, so nothing cancels.
        let from = z.min(-12.0) - 12.0;
        let panels = ((z - from) / 0.1).ceil();
        let width = (z - from) / panels;
        let density = |t: f64| {
            (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt()
                * libm::erfc(-self.shape * t / SQRT_2)
        };
        // Gauss-Legendre with five points.
        const NODES: [(f64, f64); 3] = [
            (0.0, 0.568_888_888_888_888_9),
            (0.538_469_310_105_683_1, 0.478_628_670_499_366_47),
            (0.906_179_845_938_664, 0.236_926_885_056_189_1),
        ];
        let mut total = 0.0;
        for panel in 0..panels as u64 {
            let middle = from + (panel as f64 + 0.5) * width;
            for (node, weight) in NODES {
                let offset = 0.5 * width * node;
                let sides = if node == 0.0 {
                    density(middle)
                } else {
                    density(middle - offset) + density(middle + offset)
                };
                total += 0.5 * width * weight * sides;
            }
        }
        total.min(1.0)
    }
}

/// A secret's exposure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Exposure {
    /// Bits, from the secret's rank among the samples; the interval is Clopper-Pearson's.
    pub sampled: Interval,
    /// Bits, from a skew normal fitted to the samples' losses; at most the secret's own bits.
    pub extrapolated: f64,
}

/// Exposure by sampling: minus log2 of the share of other secrets that the model finds no less likely.
///
/// The estimate counts the secret itself among the samples, so that a secret below all of N samples has `log2 (N + 1)` bits. Ties
/// count against the secret.
///
/// # Errors
/// No samples, confidence out of range.
pub fn by_sampling(loss: f64, samples: &[f64], confidence: f64) -> Result<Interval, AuditError> {
    let below = samples.iter().filter(|sample| **sample <= loss).count() as u64;
    let trials = samples.len() as u64;
    let alpha = 0.5 * (1.0 - confidence);
    let bits = |probability: f64| -probability.max(f64::MIN_POSITIVE).log2();
    Ok(Interval {
        estimate: bits((below + 1) as f64 / (trials + 1) as f64),
        lower: bits(probability_upper(below, trials, alpha)?),
        // Without a sample below, sampling sets no upper limit.
        upper: if below == 0 {
            f64::MAX
        } else {
            bits(probability_lower(below, trials, alpha)?)
        },
    })
}

/// Exposure by extrapolation: minus log2 of the fitted probability of a loss at most the secret's, at most `bits`.
#[must_use]
pub fn by_extrapolation(loss: f64, law: &SkewNormal, bits: f64) -> f64 {
    (-law.probability_at_most(loss).max(f64::MIN_POSITIVE).log2()).clamp(0.0, bits)
}

/// How well a law fits: the Kolmogorov-Smirnov statistic and its asymptotic p-value.
///
/// The law was fitted to the same values, so the p-value is too large; the paper reads it the same way, as a warning when it is small.
#[must_use]
pub fn goodness_of_fit(values: &[f64], law: &SkewNormal) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let statistic = sorted
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let p = law.probability_at_most(*value);
            (p - index as f64 / n)
                .abs()
                .max(((index + 1) as f64 / n - p).abs())
        })
        .fold(0.0, f64::max);
    let x = (n.sqrt() + 0.12 + 0.11 / n.sqrt()) * statistic;
    let p: f64 = (1..=100)
        .map(|k| {
            let k = f64::from(k);
            let sign = if k as i32 % 2 == 1 { 2.0 } else { -2.0 };
            sign * (-2.0 * k * k * x * x).exp()
        })
        .sum();
    // The series does not converge at zero, where the fit is perfect.
    (statistic, if x < 0.2 { 1.0 } else { p.clamp(0.0, 1.0) })
}

/// Both exposures of secrets that share a space.
///
/// `losses` are the secrets' under the model, `samples` those of other secrets of the space, drawn uniformly.
///
/// # Errors
/// Fewer than ten samples, losses that are not finite, confidence out of range.
pub fn exposures(
    losses: &[f64],
    samples: &[f64],
    bits: f64,
    confidence: f64,
) -> Result<(Vec<Exposure>, SkewNormal), AuditError> {
    let law = SkewNormal::fit(samples)?;
    let exposures = losses
        .iter()
        .map(|loss| {
            if loss.is_nan() {
                return Err(AuditError::NotANumber {
                    which: "secrets",
                    index: 0,
                });
            }
            Ok(Exposure {
                sampled: by_sampling(*loss, samples, confidence)?,
                extrapolated: by_extrapolation(*loss, &law, bits),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok((exposures, law))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rldp_optim::SeededRandom;
    use rldp_optim::random::standard_normals;
    use statrs::distribution::{ContinuousCDF, Normal};

    use super::*;

    #[test]
    fn without_skew_it_is_the_normal_law_far_into_the_tail() {
        let law = SkewNormal {
            location: 1.0,
            scale: 2.0,
            shape: 0.0,
        };
        let normal = Normal::new(1.0, 2.0).unwrap();
        for value in [-19.0, -9.0, -1.0, 1.0, 2.5, 9.0] {
            let (found, expected) = (law.probability_at_most(value), normal.cdf(value));
            assert!(
                (found / expected - 1.0).abs() < 1e-9,
                "{value}: {found} is not {expected}"
            );
        }
    }

    #[test]
    fn with_shape_one_the_probability_is_the_normal_one_squared() {
        let law = SkewNormal {
            location: 0.0,
            scale: 1.0,
            shape: 1.0,
        };
        let normal = Normal::standard();
        for value in [-6.0, -2.0, 0.0, 1.5] {
            let expected = normal.cdf(value).powi(2);
            assert!(
                (law.probability_at_most(value) / expected - 1.0).abs() < 1e-9,
                "{value}"
            );
        }
    }

    #[test]
    fn a_fit_finds_the_law_that_made_the_samples() {
        let law = SkewNormal {
            location: 3.0,
            scale: 0.5,
            shape: 4.0,
        };
        let delta = law.shape / (1.0 + law.shape * law.shape).sqrt();
        let draws = standard_normals(&mut SeededRandom::new(3), 40_000);
        let samples: Vec<f64> = draws
            .chunks_exact(2)
            .map(|pair| {
                law.location
                    + law.scale * (delta * pair[0].abs() + (1.0 - delta * delta).sqrt() * pair[1])
            })
            .collect();
        let found = SkewNormal::fit(&samples).unwrap();
        assert!(
            (found.location - 3.0).abs() < 0.03 && (found.scale - 0.5).abs() < 0.03,
            "{found:?}"
        );
        assert!((found.shape - 4.0).abs() < 0.8, "{found:?}");
        let (statistic, p) = goodness_of_fit(&samples, &found);
        assert!(statistic < 0.02 && p > 0.01, "{statistic} {p}");
        // A uniform law is no skew normal.
        let even: Vec<f64> = (0..2000).map(f64::from).collect();
        let (_, p) = goodness_of_fit(&even, &SkewNormal::fit(&even).unwrap());
        assert!(p < 1e-3, "{p}");
    }

    #[test]
    fn exposure_counts_bits() {
        let samples: Vec<f64> = (1..=1023).map(f64::from).collect();
        assert!((by_sampling(0.0, &samples, 0.95).unwrap().estimate - 10.0).abs() < 1e-12);
        assert!((by_sampling(511.5, &samples, 0.95).unwrap().estimate - 1.0).abs() < 1e-12);
        assert_eq!(by_sampling(2e3, &samples, 0.95).unwrap().estimate, 0.0);
        let interval = by_sampling(15.0, &samples, 0.95).unwrap();
        assert!(interval.lower < interval.estimate && interval.estimate < interval.upper);
        let law = SkewNormal {
            location: 0.0,
            scale: 1.0,
            shape: 0.0,
        };
        assert!((by_extrapolation(0.0, &law, 20.0) - 1.0).abs() < 1e-9);
        assert_eq!(by_extrapolation(-30.0, &law, 20.0), 20.0);
    }

    #[test]
    fn samples_without_spread_or_number_are_refused() {
        assert!(SkewNormal::fit(&[1.0; 50]).is_err());
        assert!(SkewNormal::fit(&[1.0, 2.0]).is_err());
        assert!(SkewNormal::fit(&[f64::NAN; 50]).is_err());
        assert!(by_sampling(1.0, &[], 0.95).is_err());
    }
}
