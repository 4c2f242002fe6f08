//! Paired comparisons over seeds.

use rand::rngs::ChaCha20Rng;
use rand::{RngExt as _, SeedableRng as _};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// Up to so many pairs all sign flips are tried; beyond, as many as these have, at random.
const EXACT: usize = 16;

/// A mean with its 95 % confidence interval by Student's t.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Half the interval; not a number for a single value.
    pub half_width: f64,
    /// Number of values.
    pub count: usize,
}

/// The mean of values, with its interval; `None` for no value.
#[must_use]
pub fn mean(values: &[f64]) -> Option<Mean> {
    let (mean, error) = moments(values)?;
    let freedom = values.len() as f64 - 1.0;
    let half_width = StudentsT::new(0.0, 1.0, freedom.max(1.0))
        .map_or(f64::NAN, |t| t.inverse_cdf(0.975) * error);
    Some(Mean {
        mean,
        half_width: if values.len() < 2 {
            f64::NAN
        } else {
            half_width
        },
        count: values.len(),
    })
}

/// Mean and standard error.
fn moments(values: &[f64]) -> Option<(f64, f64)> {
    if values.is_empty() {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / (count - 1.0).max(1.0);
    Some((mean, (variance / count).sqrt()))
}

/// A paired comparison: differences that are zero on average if both arms are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Mean difference.
    pub mean: f64,
    /// Two-sided p-value of the paired t-test.
    pub t_test: f64,
    /// Two-sided p-value of the sign-flip permutation test on the mean: exact up to 16 pairs. With n pairs it is at least
    /// `2^(1-n)`.
    pub sign_flip: f64,
    /// Pairs.
    pub pairs: usize,
}

/// Compares by differences, one per seed; `None` for fewer than two.
#[must_use]
pub fn paired(differences: &[f64]) -> Option<Paired> {
    let pairs = differences.len();
    if pairs < 2 {
        return None;
    }
    let (mean, error) = moments(differences)?;
    let t_test = if error > 0.0 {
        StudentsT::new(0.0, 1.0, pairs as f64 - 1.0)
            .map_or(f64::NAN, |t| 2.0 * t.cdf(-(mean / error).abs()))
    } else if mean == 0.0 {
        1.0
    } else {
        0.0
    };
    Some(Paired {
        mean,
        t_test,
        sign_flip: sign_flip(differences),
        pairs,
    })
}

fn sign_flip(differences: &[f64]) -> f64 {
    let observed = differences.iter().sum::<f64>().abs();
    // Sums that differ by rounding alone are ties.
    let limit = observed * (1.0 - 1e-12);
    let extreme = |signs: u64| {
        let sum: f64 = differences
            .iter()
            .enumerate()
            .map(|(index, value)| {
                if (signs >> (index % 64)) & 1 == 1 {
                    -value
                } else {
                    *value
                }
            })
            .sum();
        sum.abs() >= limit
    };
    if differences.len() <= EXACT {
        let all = 1_u64 << differences.len();
        let count = (0..all).filter(|signs| extreme(*signs)).count();
        count as f64 / all as f64
    } else {
        let draws = 1_u64 << EXACT;
        let mut random = ChaCha20Rng::seed_from_u64(1);
        let count = (0..draws).filter(|_| extreme(random.random())).count();
        // The observed signs are one of the draws.
        (count as f64 + 1.0) / (draws as f64 + 1.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// By R: `t.test(c(1, 2, 3, 4))` gives 2.5, interval 0.4457397 to 4.5542603, p = 0.03045.
    #[test]
    fn known_intervals_and_p_values() {
        let values = [1.0, 2.0, 3.0, 4.0];
        let found = mean(&values).unwrap();
        assert!((found.mean - 2.5).abs() < 1e-12 && (found.half_width - 2.054_260_3).abs() < 1e-6);
        let test = paired(&values).unwrap();
        assert!((test.t_test - 0.030_466).abs() < 1e-5, "{test:?}");
        // All of one sign: only the observed signs and their opposites are as extreme.
        assert_eq!(test.sign_flip, 2.0 / 16.0);
        assert_eq!(paired(&[1.0, -1.0]).unwrap().sign_flip, 1.0);
    }

    #[test]
    fn many_pairs_are_sampled_and_single_ones_are_no_test() {
        let clear: Vec<f64> = (0..20).map(|index| 1.0 + 0.1 * f64::from(index)).collect();
        assert!(paired(&clear).unwrap().sign_flip < 1e-3);
        let none: Vec<f64> = (0..20).map(|index| f64::from(index % 2) - 0.5).collect();
        assert_eq!(paired(&none).unwrap().sign_flip, 1.0);
        assert!(paired(&[1.0]).is_none());
        assert!(mean(&[]).is_none() && mean(&[1.0]).unwrap().half_width.is_nan());
    }
}
