//! Gaussian differential privacy: exact without subsampling, and an approximation that underestimates with it.

use crate::error::AccountingError;
use crate::gaussian;
use crate::segment::{Segment, check_delta, merge};

/// mu of a composition of plain Gaussians: `sqrt(sum steps / sigma^2)`, exactly.
///
/// # Errors
/// No segments, or a segment with a sampling rate other than 1 (or 0, which loses nothing).
pub fn mu(segments: &[Segment]) -> Result<f64, AccountingError> {
    let mut total = 0.0;
    for s in merge(segments)? {
        if s.sampling_rate() == 1.0 {
            total += s.steps() as f64 / (s.noise_multiplier() * s.noise_multiplier());
        } else if s.sampling_rate() != 0.0 {
            return Err(AccountingError::Subsampled {
                sampling_rate: s.sampling_rate(),
            });
        }
    }
    if f64::is_finite(total) {
        Ok(total.sqrt())
    } else {
        Err(AccountingError::Overflow)
    }
}

/// epsilon of a mu-GDP mechanism at `delta`, exactly.
///
/// # Guarantee
/// A mu-GDP mechanism is (returned, delta)-DP.
///
/// # Errors
/// A mu that is negative or not finite, delta outside (0, 1), or an overflow.
pub fn epsilon_upper(mu: f64, delta: f64) -> Result<f64, AccountingError> {
    check_delta(delta)?;
    if !(mu >= 0.0 && mu.is_finite()) {
        return Err(AccountingError::NotPositive {
            name: "mu",
            value: mu,
        });
    }
    if mu == 0.0 {
        Ok(0.0)
    } else {
        Ok(gaussian::epsilon_for_mu(mu, delta)? * (1.0 + 1e-12))
    }
}

/// The central-limit epsilon of subsampled Gaussians (Bu et al. 2020). **Not a bound**: it is too small, by a factor of up to
/// 20 in ordinary runs. For comparison with other software only.
///
/// # Errors
/// No segments, delta outside (0, 1), or an overflow.
pub fn clt_epsilon_underestimate(segments: &[Segment], delta: f64) -> Result<f64, AccountingError> {
    check_delta(delta)?;
    let mut total = 0.0;
    for s in merge(segments)? {
        let inverse = 1.0 / (s.noise_multiplier() * s.noise_multiplier());
        total += s.sampling_rate() * s.sampling_rate() * s.steps() as f64 * inverse.exp_m1();
    }
    if !f64::is_finite(total) {
        return Err(AccountingError::Overflow);
    }
    if total == 0.0 {
        Ok(0.0)
    } else {
        gaussian::epsilon_for_mu(total.sqrt(), delta)
    }
}
