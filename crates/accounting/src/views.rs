//! What a guarantee means: what a membership attacker can gain from it.
//!
//! All bounds hold for the strongest attacker, who knows every other unit's data and all of the algorithm.

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;
use crate::pld::PldAccountant;
use crate::segment::{check_delta, check_epsilon};

/// An attacker's advantage (true positive rate minus false positive rate) under an (epsilon, delta) guarantee:
/// at most `(e^epsilon - 1 + 2 delta) / (e^epsilon + 1)`.
///
/// # Errors
/// Bad epsilon or delta.
pub fn advantage_upper(epsilon: f64, delta: f64) -> Result<f64, AccountingError> {
    check(epsilon, delta)?;
    let t = (-epsilon).exp();
    Ok(((1.0 - t + 2.0 * delta * t) / (1.0 + t)).min(1.0))
}

/// The false negative rate that any attacker of this false positive rate must suffer under an (epsilon, delta) guarantee
/// (the trade-off function of Kairouz, Oh and Viswanath 2015).
///
/// # Errors
/// Bad epsilon or delta, or a rate outside [0, 1].
pub fn false_negative_rate_lower(
    false_positive_rate: f64,
    epsilon: f64,
    delta: f64,
) -> Result<f64, AccountingError> {
    check(epsilon, delta)?;
    check_rate(false_positive_rate)?;
    let a = false_positive_rate;
    Ok((1.0 - delta - epsilon.exp() * a)
        .max((-epsilon).exp() * (1.0 - delta - a))
        .max(0.0))
}

/// The smallest possible probability of error of an attacker whose prior of membership is `prior`.
///
/// # Errors
/// Bad epsilon or delta, or a prior outside [0, 1].
pub fn bayes_risk_lower(prior: f64, epsilon: f64, delta: f64) -> Result<f64, AccountingError> {
    check(epsilon, delta)?;
    check_rate(prior)?;
    // The trade-off curve is piecewise linear: its least weighted error is at a corner.
    let knee = (1.0 - delta) / (1.0 + epsilon.exp());
    let risk = |fpr: f64, fnr: f64| (1.0 - prior) * fpr + prior * fnr;
    let corners = [(0.0, 1.0 - delta), (knee, knee), (1.0 - delta, 0.0)];
    Ok(corners
        .iter()
        .map(|&(a, b)| risk(a, b))
        .fold(f64::INFINITY, f64::min))
}

/// What an attacker can gain from a composition, from its whole privacy curve: tighter than any one (epsilon, delta).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttackerView {
    /// Points (epsilon, certified delta) of the privacy curve.
    pub privacy_curve: Vec<(f64, f64)>,
    /// The largest advantage: delta at epsilon 0.
    pub advantage_upper: f64,
    /// The smallest error probability at prior 1/2.
    pub bayes_risk_lower: f64,
    /// Points (false positive rate, smallest false negative rate) of the trade-off curve.
    pub trade_off: Vec<(f64, f64)>,
}

/// The view of a composition. `epsilons` are the points of the privacy curve to certify; more points, tighter curve.
///
/// # Guarantee
/// No attacker does better than the returned bounds: each point of the privacy curve is a certified (epsilon, delta), and a
/// trade-off curve is at least the maximum of the ones its points give.
///
/// # Errors
/// As for [`PldAccountant::delta_upper`].
pub fn attacker_view(
    accountant: &PldAccountant,
    epsilons: &[f64],
) -> Result<AttackerView, AccountingError> {
    let advantage_upper = accountant.delta_upper(0.0)?;
    let mut privacy_curve = vec![(0.0, advantage_upper)];
    for &epsilon in epsilons {
        if epsilon > 0.0 {
            privacy_curve.push((epsilon, accountant.delta_upper(epsilon)?));
        }
    }
    privacy_curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut trade_off = Vec::new();
    let decades = (-60..0).map(|i| 10f64.powf(f64::from(i) / 10.0));
    for rate in std::iter::once(0.0)
        .chain(decades)
        .chain((2..=10).map(|i| f64::from(i) / 10.0))
    {
        trade_off.push((rate, lower_envelope(&privacy_curve, rate)));
    }
    trade_off.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(AttackerView {
        privacy_curve,
        advantage_upper,
        bayes_risk_lower: 0.5 * (1.0 - advantage_upper),
        trade_off,
    })
}

fn lower_envelope(curve: &[(f64, f64)], rate: f64) -> f64 {
    curve
        .iter()
        .map(|&(e, d)| (1.0 - d - e.exp() * rate).max((-e).exp() * (1.0 - d - rate)))
        .fold(0.0, f64::max)
}

fn check(epsilon: f64, delta: f64) -> Result<(), AccountingError> {
    check_epsilon(epsilon)?;
    if delta == 0.0 {
        Ok(())
    } else {
        check_delta(delta)
    }
}

fn check_rate(value: f64) -> Result<(), AccountingError> {
    if (0.0..=1.0).contains(&value) {
        Ok(())
    } else {
        Err(AccountingError::NotPositive {
            name: "a rate in [0, 1]",
            value,
        })
    }
}
