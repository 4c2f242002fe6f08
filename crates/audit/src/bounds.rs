//! Lower bounds on what a mechanism reveals, from how often an attack is right.
//!
//! # Precision
//! Clopper-Pearson limits are found by bisection of the regularised incomplete beta function, whose own error is about 1e-13,
//! and rounded outward by 1e-12: the stated confidence is met, never approximated.

use rldp_accounting::gaussian;
use statrs::distribution::{ContinuousCDF, Normal};
use statrs::function::beta::beta_reg;

use crate::error::{AuditError, open_unit};

/// How often an attack said "in" over trials without and with the canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttackCounts {
    /// Trials without the canary.
    pub negatives: u64,
    /// Of these, trials in which the attack said "in".
    pub false_positives: u64,
    /// Trials with the canary.
    pub positives: u64,
    /// Of these, trials in which the attack said "out".
    pub false_negatives: u64,
}

/// The largest probability under which `events` or fewer of `trials` still have probability `alpha`.
///
/// # Guarantee
/// With probability at least `1 - alpha` the true probability is at most this (Clopper and Pearson 1934).
///
/// # Errors
/// No trials, more events than trials, `alpha` outside (0, 1).
pub fn probability_upper(events: u64, trials: u64, alpha: f64) -> Result<f64, AuditError> {
    open_unit("alpha", alpha)?;
    if trials == 0 || events > trials {
        return Err(AuditError::Counts { events, trials });
    }
    if events == trials {
        return Ok(1.0);
    }
    // P(X <= k) = I_(1-p)(n - k, k + 1) falls with p; the limit is where it reaches alpha.
    let (a, b) = ((trials - events) as f64, events as f64 + 1.0);
    let (mut low, mut high) = (0.0_f64, 1.0_f64);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if beta_reg(a, b, 1.0 - middle) > alpha {
            low = middle
        } else {
            high = middle
        }
    }
    Ok((high + 1e-12).min(1.0))
}

/// The smallest probability under which `events` or more of `trials` still have probability `alpha`.
///
/// # Guarantee
/// With probability at least `1 - alpha` the true probability is at least this.
///
/// # Errors
/// As for [`probability_upper`].
pub fn probability_lower(events: u64, trials: u64, alpha: f64) -> Result<f64, AuditError> {
    if events > trials {
        return Err(AuditError::Counts { events, trials });
    }
    Ok(1.0 - probability_upper(trials - events, trials, alpha)?)
}

impl AttackCounts {
    /// Upper limits of the false-positive and false-negative rates that hold together with this confidence.
    fn error_rates_upper(&self, confidence: f64) -> Result<(f64, f64), AuditError> {
        let alpha = (1.0 - open_unit("the confidence", confidence)?) / 2.0;
        Ok((
            probability_upper(self.false_positives, self.negatives, alpha)?,
            probability_upper(self.false_negatives, self.positives, alpha)?,
        ))
    }

    /// A lower bound on epsilon at this delta, with no assumption on the mechanism.
    ///
    /// # Guarantee
    /// If the attack was fixed before these trials, a mechanism that is (epsilon, delta)-DP gives a bound above its epsilon
    /// with probability at most `1 - confidence` (Kairouz, Oh, Viswanath 2015).
    ///
    /// # Errors
    /// No trials, impossible counts, delta or confidence out of range.
    pub fn epsilon_lower(&self, delta: f64, confidence: f64) -> Result<f64, AuditError> {
        open_unit("delta", delta)?;
        let (fpr, fnr) = self.error_rates_upper(confidence)?;
        let bound = |caught: f64, error: f64| {
            if caught > error {
                (caught / error).ln()
            } else {
                0.0
            }
        };
        Ok(bound(1.0 - delta - fnr, fpr).max(bound(1.0 - delta - fpr, fnr)))
    }

    /// A lower bound on mu for a mechanism that is claimed to be mu-Gaussian-DP.
    ///
    /// # Guarantee
    /// If the attack was fixed before these trials, a mu-GDP mechanism gives a bound above its mu with probability at most
    /// `1 - confidence`. For Gaussian mechanisms this is far tighter than [`AttackCounts::epsilon_lower`] (Nasr et al. 2023).
    ///
    /// # Errors
    /// As for [`AttackCounts::epsilon_lower`].
    pub fn mu_lower(&self, confidence: f64) -> Result<f64, AuditError> {
        let (fpr, fnr) = self.error_rates_upper(confidence)?;
        if fpr + fnr >= 1.0 {
            return Ok(0.0);
        }
        let normal = Normal::standard();
        Ok((-normal.inverse_cdf(fpr) - normal.inverse_cdf(fnr)).max(0.0))
    }
}

/// Epsilon of a mu-GDP mechanism at this delta.
///
/// # Errors
/// Delta out of range.
pub fn epsilon_of_mu(mu: f64, delta: f64) -> Result<f64, AuditError> {
    open_unit("delta", delta)?;
    // Below this the Gaussian's delta at epsilon 0, about 0.4 mu, is under any delta worth asking for.
    if mu <= 1e-12 {
        Ok(0.0)
    } else {
        Ok(gaussian::epsilon_for(1.0 / mu, delta)?)
    }
}
