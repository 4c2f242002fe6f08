//! The privacy loss distribution of a composed sequence, with certified upper and lower bounds.
//!
//! Both directions of add/remove adjacency are composed separately; the larger epsilon counts.

mod accountant;
mod contour;
mod guards;
mod lattice;
mod loss;
mod method;
mod one_step;
mod slot;
mod smoothing;

use serde::{Deserialize, Serialize};

pub use accountant::PldAccountant;

use crate::adjacency::Adjacency;
use crate::error::AccountingError;
use crate::segment::{Segment, check_epsilon};

/// What a [`PldAccountant`] is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PldOptions {
    /// Wanted width of the certified interval of epsilon, where the work for it is bearable. Usually it is far smaller.
    pub epsilon_error: f64,
    /// The neighbouring relation.
    pub adjacency: Adjacency,
}

impl Default for PldOptions {
    fn default() -> Self {
        Self {
            epsilon_error: 1e-3,
            adjacency: Adjacency::AddRemove,
        }
    }
}

/// A certified interval that holds the true epsilon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpsilonInterval {
    /// Certified lower bound.
    pub lower: f64,
    /// Certified upper bound: the guarantee.
    pub upper: f64,
}

/// delta of one subsampled step in both directions of add/remove adjacency, in closed form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OneStepDelta {
    /// The unit is in the first table.
    pub remove: f64,
    /// The unit is in the second table.
    pub add: f64,
}

/// delta of one subsampled step at `epsilon`, in both directions.
///
/// # Precision
/// About 1e-13 relative, in the tails too.
///
/// # Errors
/// A bad segment's figures, or a negative or non-finite epsilon.
pub fn one_step_delta(
    sampling_rate: f64,
    noise_multiplier: f64,
    epsilon: f64,
) -> Result<OneStepDelta, AccountingError> {
    Segment::new(sampling_rate, noise_multiplier, 1)?;
    check_epsilon(epsilon)?;
    Ok(OneStepDelta {
        remove: one_step::ln_delta_remove(sampling_rate, noise_multiplier, epsilon).exp(),
        add: one_step::ln_delta_add(sampling_rate, noise_multiplier, epsilon).exp(),
    })
}

/// The tightest certified epsilon of a sequence fixed in advance (or a deck), add/remove adjacency.
///
/// # Guarantee
/// The composition of the segments is (returned, delta)-DP; both directions, all numerical errors included.
///
/// # Errors
/// No segments, delta outside (0, 1), or a loss too large for the arithmetic.
pub fn epsilon_upper(segments: &[Segment], delta: f64) -> Result<f64, AccountingError> {
    accountant(segments, PldOptions::default())?.epsilon_upper(delta)
}

/// The certified lower bound belonging to [`epsilon_upper`].
///
/// # Guarantee
/// The composition is not (e, delta)-DP for any e below the returned value.
///
/// # Errors
/// As for [`epsilon_upper`].
pub fn epsilon_lower(segments: &[Segment], delta: f64) -> Result<f64, AccountingError> {
    accountant(segments, PldOptions::default())?.epsilon_lower(delta)
}

/// An accountant with all these segments composed.
///
/// # Errors
/// No segments, or as for [`PldAccountant::compose`].
pub fn accountant(
    segments: &[Segment],
    options: PldOptions,
) -> Result<PldAccountant, AccountingError> {
    PldAccountant::from_segments(segments, options)
}
