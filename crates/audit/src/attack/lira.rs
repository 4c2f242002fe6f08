//! The likelihood-ratio attack (Carlini et al. 2022): a score calibrated by shadow models, unit by unit.
//!
//! A shadow model is trained as the target was, on a set of units drawn by coin flips of its own. How a unit scores under
//! shadows that had it and under shadows that had not are two normal laws; the attack is their likelihood ratio at the target's
//! score. No altered copies ("neighbours") of the unit are made.

use statrs::distribution::{ContinuousCDF, Normal};

use crate::error::AuditError;

/// One shadow model: every unit's score under it, and whether the unit was in its training set.
#[derive(Debug, Clone, PartialEq)]
pub struct Shadow {
    /// A score for each unit, in the target's order.
    pub scores: Vec<f64>,
    /// Whether it was trained on.
    pub included: Vec<bool>,
}

/// Calibrated scores.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelihoodRatios {
    /// Log-likelihood ratio of "in" over "out" for each unit ("online"), for units that some shadow had and some had not; minus
    /// infinity never occurs, and units without both get their offline score.
    pub online: Vec<f64>,
    /// How unlikely the target's score is for a model without the unit, `-ln P(score under "out" is larger)` ("offline").
    pub offline: Vec<f64>,
}

/// Calibrates the target's scores with shadows.
///
/// The two variances are pooled over all units, as the paper does for fewer than 64 shadows. Each mean is a unit's own.
///
/// # Errors
/// Fewer than two shadows; a shadow of another length; a unit that no shadow left out; a score that is not finite.
pub fn likelihood_ratios(
    target: &[f64],
    shadows: &[Shadow],
) -> Result<LikelihoodRatios, AuditError> {
    if shadows.len() < 2 {
        return Err(AuditError::TooFew {
            what: "shadow models",
            found: shadows.len(),
            needed: 2,
        });
    }
    finite("units", target)?;
    for shadow in shadows {
        for length in [shadow.scores.len(), shadow.included.len()] {
            if length != target.len() {
                return Err(AuditError::Observations {
                    expected: target.len(),
                    found: length,
                });
            }
        }
        finite("shadows", &shadow.scores)?;
    }
    let laws = [
        law(target.len(), shadows, false),
        law(target.len(), shadows, true),
    ];
    let (out, inside) = (&laws[0], &laws[1]);
    if out.means.iter().any(Option::is_none) {
        return Err(AuditError::TooFew {
            what: "shadow models without a unit",
            found: 0,
            needed: 1,
        });
    }
    let mut ratios = LikelihoodRatios {
        online: Vec::with_capacity(target.len()),
        offline: Vec::with_capacity(target.len()),
    };
    for (index, &score) in target.iter().enumerate() {
        let out_mean = out.means[index].unwrap_or_default();
        let offline = tail(score, out_mean, out.deviation);
        ratios.offline.push(offline);
        ratios
            .online
            .push(inside.means[index].map_or(offline, |mean| {
                ln_density(score, mean, inside.deviation)
                    - ln_density(score, out_mean, out.deviation)
            }));
    }
    Ok(ratios)
}

/// The scores' law over the shadows with or without each unit.
struct Law {
    means: Vec<Option<f64>>,
    deviation: f64,
}

fn law(units: usize, shadows: &[Shadow], included: bool) -> Law {
    let mut means = Vec::with_capacity(units);
    let (mut squares, mut freedom) = (0.0, 0.0);
    for unit in 0..units {
        let scores: Vec<f64> = shadows
            .iter()
            .filter(|shadow| shadow.included[unit] == included)
            .map(|shadow| shadow.scores[unit])
            .collect();
        if scores.is_empty() {
            means.push(None);
            continue;
        }
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        squares += scores
            .iter()
            .map(|score| (score - mean).powi(2))
            .sum::<f64>();
        freedom += (scores.len() - 1) as f64;
        means.push(Some(mean));
    }
    let variance = if freedom > 0.0 {
        squares / freedom
    } else {
        0.0
    };
    Law {
        means,
        // Shadows that agree to the last bit would divide by zero.
        deviation: variance.sqrt().max(1e-12),
    }
}

fn ln_density(value: f64, mean: f64, deviation: f64) -> f64 {
    -0.5 * ((value - mean) / deviation).powi(2) - deviation.ln()
}

/// `-ln P(N(mean, deviation) > value)`, in the far tail by its leading asymptotic term.
fn tail(value: f64, mean: f64, deviation: f64) -> f64 {
    let z = (value - mean) / deviation;
    if z < 20.0 {
        -Normal::standard().sf(z).ln()
    } else {
        0.5 * z * z + z.ln() + 0.5 * (2.0 * std::f64::consts::PI).ln()
    }
}

fn finite(which: &'static str, scores: &[f64]) -> Result<(), AuditError> {
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(index) => Err(AuditError::NotANumber { which, index }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shadow(scores: &[f64], included: &[bool]) -> Shadow {
        Shadow {
            scores: scores.to_vec(),
            included: included.to_vec(),
        }
    }

    #[test]
    fn a_small_case_is_the_formula() {
        // Unit 0: in 3, 5 and out 1, 3; unit 1: in 0, 2 and out -1, 1. Pooled variances: both 2.
        let shadows = [
            shadow(&[3.0, -1.0], &[true, false]),
            shadow(&[5.0, 1.0], &[true, false]),
            shadow(&[1.0, 0.0], &[false, true]),
            shadow(&[3.0, 2.0], &[false, true]),
        ];
        let ratios = likelihood_ratios(&[3.5, 0.25], &shadows).unwrap();
        // ((x - out)^2 - (x - in)^2) / (2 * 2).
        assert!((ratios.online[0] - (1.5_f64.powi(2) - 0.5_f64.powi(2)) / 4.0).abs() < 1e-12);
        assert!((ratios.online[1] - (0.25_f64.powi(2) - 0.75_f64.powi(2)) / 4.0).abs() < 1e-12);
        let expected = -Normal::standard().sf(1.5 / 2.0_f64.sqrt()).ln();
        assert!((ratios.offline[0] - expected).abs() < 1e-12);
    }

    #[test]
    fn the_far_tail_joins_the_near_one_and_stays_finite() {
        // At 20 standard deviations the leading term is right to 1 / z^2.
        let (below, above) = (tail(19.999_999, 0.0, 1.0), tail(20.000_001, 0.0, 1.0));
        assert!((above - below).abs() < 0.003, "{below} {above}");
        assert!(tail(1e8, 0.0, 1.0).is_finite());
    }

    #[test]
    fn calibration_undoes_what_makes_units_differ() {
        // Hard and easy units by turns: raw scores tell nothing, calibrated ones everything.
        let units = 40;
        let base = |unit: usize| if unit.is_multiple_of(2) { 0.0 } else { 100.0 };
        let score = |unit: usize, included: bool, model: usize| {
            base(unit) + f64::from(u8::from(included)) + 0.01 * ((unit * 7 + model * 3) % 5) as f64
        };
        let shadows: Vec<Shadow> = (0..4)
            .map(|model| {
                let included: Vec<bool> = (0..units).map(|u| (u / 2 + model) % 2 == 0).collect();
                let scores = (0..units).map(|u| score(u, included[u], model)).collect();
                Shadow { scores, included }
            })
            .collect();
        let member = |unit: usize| (unit / 4).is_multiple_of(2);
        let target: Vec<f64> = (0..units).map(|u| score(u, member(u), 9)).collect();
        let ratios = likelihood_ratios(&target, &shadows).unwrap();
        for scores in [&ratios.online, &ratios.offline] {
            let worst_member = (0..units)
                .filter(|u| member(*u))
                .map(|u| scores[u])
                .fold(f64::INFINITY, f64::min);
            let best_other = (0..units)
                .filter(|u| !member(*u))
                .map(|u| scores[u])
                .fold(f64::NEG_INFINITY, f64::max);
            assert!(worst_member > best_other);
        }
    }

    #[test]
    fn what_cannot_be_calibrated_is_refused() {
        let one = shadow(&[1.0], &[false]);
        assert!(likelihood_ratios(&[1.0], std::slice::from_ref(&one)).is_err());
        assert!(likelihood_ratios(&[1.0, 2.0], &[one.clone(), one.clone()]).is_err());
        let always = shadow(&[1.0], &[true]);
        assert!(likelihood_ratios(&[1.0], &[always.clone(), always]).is_err());
        let broken = shadow(&[f64::NAN], &[false]);
        assert!(likelihood_ratios(&[1.0], &[broken.clone(), broken]).is_err());
    }
}
