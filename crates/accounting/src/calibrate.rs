//! The smallest noise, the smallest scale of a deck, or the most steps that meet a target.
//!
//! What is returned was itself put through [`epsilon_upper`]: it never exceeds the target.

use crate::error::AccountingError;
use crate::gaussian;
use crate::pld::epsilon_upper;
use crate::segment::{PrivacyTarget, Segment};
use crate::special::decreasing_root;

/// Relative accuracy of a calibrated noise multiplier or scale.
const RELATIVE: f64 = 1e-7;
/// Noise multipliers searched.
const SIGMAS: (f64, f64) = (0.01, 1e7);

/// The smallest noise multiplier whose certified epsilon meets the target.
///
/// # Guarantee
/// `epsilon_upper` of the returned noise multiplier is at most `target.epsilon`.
///
/// # Errors
/// Bad parameters, or no noise multiplier in [0.01, 1e7] that meets the target.
pub fn noise_multiplier(
    target: &PrivacyTarget,
    sampling_rate: f64,
    steps: u64,
) -> Result<f64, AccountingError> {
    target.check()?;
    Segment::new(sampling_rate, 1.0, steps)?;
    if sampling_rate == 1.0 {
        return gaussian_queries(target, steps);
    }
    smallest(target, "noise multiplier", SIGMAS, |sigma| {
        epsilon_upper(&[Segment::new(sampling_rate, sigma, steps)?], target.delta)
    })
}

/// The smallest factor by which to multiply every noise multiplier of a deck so that all of it meets the target.
///
/// # Guarantee
/// `epsilon_upper` of the scaled deck is at most `target.epsilon`.
///
/// # Errors
/// Bad parameters, no cards, or no factor that meets the target.
pub fn deck_scale(target: &PrivacyTarget, shape: &[Segment]) -> Result<f64, AccountingError> {
    target.check()?;
    let least = shape
        .iter()
        .map(Segment::noise_multiplier)
        .fold(f64::INFINITY, f64::min);
    if shape.is_empty() {
        return Err(AccountingError::NoSegments);
    }
    smallest(
        target,
        "scale of the deck",
        (SIGMAS.0 / least, SIGMAS.1 / least),
        |scale| {
            let scaled: Vec<Segment> = shape
                .iter()
                .map(|s| s.scaled(scale))
                .collect::<Result<_, _>>()?;
            epsilon_upper(&scaled, target.delta)
        },
    )
}

/// The most steps of this mechanism that meet the target; 0 if not even one does.
///
/// # Guarantee
/// `epsilon_upper` of the returned number of steps, if any, is at most `target.epsilon`.
///
/// # Errors
/// Bad parameters, or a mechanism that loses nothing (any number of steps meets the target).
pub fn max_steps(
    target: &PrivacyTarget,
    sampling_rate: f64,
    noise_multiplier: f64,
) -> Result<u64, AccountingError> {
    target.check()?;
    if Segment::new(sampling_rate, noise_multiplier, 1)?.sampling_rate() == 0.0 {
        return Err(AccountingError::StepsOverflow);
    }
    let fits = |steps: u64| -> Result<bool, AccountingError> {
        match epsilon_upper(
            &[Segment::new(sampling_rate, noise_multiplier, steps)?],
            target.delta,
        ) {
            Ok(epsilon) => Ok(epsilon <= target.epsilon),
            Err(AccountingError::Overflow) => Ok(false),
            Err(other) => Err(other),
        }
    };
    if !fits(1)? {
        return Ok(0);
    }
    let mut low = 1u64;
    let mut high = 2u64;
    while fits(high)? {
        low = high;
        high = high
            .checked_mul(2)
            .filter(|h| *h < 1 << 53)
            .ok_or(AccountingError::StepsOverflow)?;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle)? {
            low = middle
        } else {
            high = middle
        }
    }
    Ok(low)
}

/// The smallest noise multiplier of each of `queries` plain Gaussian queries that together meet the target.
///
/// # Guarantee
/// `epsilon_upper` of the queries is at most `target.epsilon`.
///
/// # Errors
/// Bad parameters or no queries.
pub fn gaussian_queries(target: &PrivacyTarget, queries: u64) -> Result<f64, AccountingError> {
    target.check()?;
    if queries == 0 {
        return Err(AccountingError::ZeroSteps);
    }
    let mut sigma = gaussian::sigma_for(target.epsilon, target.delta)? * (queries as f64).sqrt();
    // The accountant adds a margin for rounding; step over it.
    for _ in 0..60 {
        if epsilon_upper(&[Segment::new(1.0, sigma, queries)?], target.delta)? <= target.epsilon {
            return Ok(sigma);
        }
        sigma *= 1.0 + 4e-13;
    }
    Err(AccountingError::Unreachable {
        what: "noise multiplier",
        low: 0.0,
        high: sigma,
        epsilon: target.epsilon,
        delta: target.delta,
    })
}

fn smallest(
    target: &PrivacyTarget,
    what: &'static str,
    range: (f64, f64),
    mut epsilon: impl FnMut(f64) -> Result<f64, AccountingError>,
) -> Result<f64, AccountingError> {
    let unreachable = || AccountingError::Unreachable {
        what,
        low: range.0,
        high: range.1,
        epsilon: target.epsilon,
        delta: target.delta,
    };
    // An overflowing loss is too little noise, not a failure. Logarithms make the function nearly straight.
    let mut excess = |x: f64| -> Result<f64, AccountingError> {
        match epsilon(x) {
            Ok(e) => {
                let excess = e.max(1e-12 * target.epsilon).ln() - target.epsilon.ln();
                // The sign is that of the comparison itself: logarithms of neighbouring numbers can be equal.
                Ok(if e <= target.epsilon {
                    excess.min(0.0)
                } else {
                    excess.max(f64::MIN_POSITIVE)
                })
            }
            Err(AccountingError::Overflow) => Ok(f64::INFINITY),
            Err(other) => Err(other),
        }
    };
    let start = 1.0f64.clamp(range.0, range.1);
    let (mut low, mut high);
    let first = excess(start)?;
    if first > 0.0 {
        low = (start, first);
        loop {
            let x = (low.0 * 2.0).min(range.1);
            let f = excess(x)?;
            if f <= 0.0 {
                high = (x, f);
                break;
            }
            if x >= range.1 {
                return Err(unreachable());
            }
            low = (x, f);
        }
    } else {
        high = (start, first);
        loop {
            let x = (high.0 / 1.5).max(range.0);
            let f = excess(x)?;
            if f > 0.0 {
                low = (x, f);
                break;
            }
            high = (x, f);
            if x <= range.0 {
                // Even the least noise searched meets the target.
                return Ok(x);
            }
        }
    }
    let mut failure = None;
    let (_, sigma) = decreasing_root(
        |x| {
            excess(x).unwrap_or_else(|e| {
                failure.get_or_insert(e);
                f64::INFINITY
            })
        },
        low,
        high,
        RELATIVE,
    );
    match failure {
        Some(error) => Err(error),
        None => Ok(sigma),
    }
}
