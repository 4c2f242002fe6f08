//! The plain Gaussian mechanism, exactly (Balle and Wang 2018).
//!
//! # Precision
//! About 1e-13 relative, in the tails too: differences are taken of scaled complementary error functions, or integrated
//! where they would cancel.

use std::f64::consts::FRAC_1_SQRT_2;

use crate::error::AccountingError;
use crate::segment::{PrivacyTarget, check_delta, check_epsilon};
use crate::special::{decreasing_root, erfcx, erfcx_decay, gauss_legendre};

/// Natural log of delta(epsilon) of one Gaussian query with `mu` = sensitivity / standard deviation.
///
/// Any real `epsilon`.
pub(crate) fn ln_delta(epsilon: f64, mu: f64) -> f64 {
    if mu <= 0.0 {
        return f64::NEG_INFINITY;
    }
    let a = (epsilon / mu - 0.5 * mu) * FRAC_1_SQRT_2;
    let b = (epsilon / mu + 0.5 * mu) * FRAC_1_SQRT_2;
    if a < -5.0 {
        // delta is near 1: no relative accuracy to lose, and erfcx(a) would overflow.
        // e^epsilon erfc(b) = exp(-a^2) erfcx(b), which cannot overflow.
        return (0.5 * (libm::erfc(a) - (-a * a).exp() * erfcx(b))).ln();
    }
    -a * a + (0.5 * scaled_difference(a, b, mu)).ln()
}

/// erfcx(a) - erfcx(b) with b - a = mu / sqrt(2), whose digits the difference of b and a would lose where mu is small.
fn scaled_difference(a: f64, b: f64, mu: f64) -> f64 {
    let half = 0.5 * mu * FRAC_1_SQRT_2;
    if half < 0.25 {
        gauss_legendre(a + half, half, erfcx_decay)
    } else {
        erfcx(a) - erfcx(b)
    }
}

/// delta(epsilon) of one Gaussian query with noise multiplier `sigma`.
///
/// # Errors
/// Negative or non-finite epsilon, non-positive sigma.
pub fn delta_for(epsilon: f64, sigma: f64) -> Result<f64, AccountingError> {
    check_epsilon(epsilon)?;
    check_sigma(sigma)?;
    let mu = 1.0 / sigma;
    let a = (epsilon / mu - 0.5 * mu) * FRAC_1_SQRT_2;
    if a.abs() < 5.0 {
        // Same as the log form, without the trip through ln and exp.
        let b = (epsilon / mu + 0.5 * mu) * FRAC_1_SQRT_2;
        return Ok(0.5 * (-a * a).exp() * scaled_difference(a, b, mu));
    }
    Ok(ln_delta(epsilon, mu).exp())
}

/// epsilon(delta) of one Gaussian query with noise multiplier `sigma`; 0 where delta(0) is already below `delta`.
///
/// # Guarantee
/// The mechanism is (returned, delta)-DP: the returned end of the bracket was evaluated, up to the stated precision.
///
/// # Errors
/// Delta outside (0, 1), non-positive sigma, or an overflowing epsilon.
pub fn epsilon_for(sigma: f64, delta: f64) -> Result<f64, AccountingError> {
    check_delta(delta)?;
    check_sigma(sigma)?;
    epsilon_for_mu(1.0 / sigma, delta)
}

/// [`epsilon_for`] by mu = 1/sigma.
pub(crate) fn epsilon_for_mu(mu: f64, delta: f64) -> Result<f64, AccountingError> {
    let target = delta.ln();
    let at_zero = ln_delta(0.0, mu) - target;
    if at_zero <= 0.0 {
        return Ok(0.0);
    }
    // The RDP bound at the best order, mu^2/2 + mu sqrt(2 ln 1/delta), is an upper end.
    let mut high = 0.5 * mu * mu + mu * (2.0 * -target).sqrt() + f64::MIN_POSITIVE;
    let mut at_high = ln_delta(high, mu) - target;
    while at_high > 0.0 {
        high *= 2.0;
        if !high.is_finite() {
            return Err(AccountingError::Overflow);
        }
        at_high = ln_delta(high, mu) - target;
    }
    if !high.is_finite() || at_high.is_nan() {
        return Err(AccountingError::Overflow);
    }
    Ok(decreasing_root(
        |e| ln_delta(e, mu) - target,
        (0.0, at_zero),
        (high, at_high),
        4e-16,
    )
    .1)
}

/// The smallest noise multiplier of one Gaussian query that is (epsilon, delta)-DP.
///
/// # Errors
/// An epsilon that is not positive and finite, or delta outside (0, 1).
pub fn sigma_for(epsilon: f64, delta: f64) -> Result<f64, AccountingError> {
    PrivacyTarget::new(epsilon, delta)?;
    let target = delta.ln();
    let f = |sigma: f64| ln_delta(epsilon, 1.0 / sigma) - target;
    let (mut low, mut high) = (1.0, 1.0);
    while f(low) <= 0.0 {
        low *= 0.5;
        if low < 1e-150 {
            return Err(AccountingError::Overflow);
        }
    }
    while f(high) > 0.0 {
        high *= 2.0;
        if high > 1e150 {
            return Err(AccountingError::Overflow);
        }
    }
    Ok(decreasing_root(f, (low, f(low)), (high, f(high)), 4e-16).1)
}

fn check_sigma(sigma: f64) -> Result<(), AccountingError> {
    if sigma > 0.0 && sigma.is_finite() {
        Ok(())
    } else {
        Err(AccountingError::NoiseMultiplier { value: sigma })
    }
}
