//! What is accounted for: runs of Poisson-subsampled Gaussian steps, and the target they must meet.

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;

/// `steps` steps of the Poisson-subsampled Gaussian mechanism with one sampling rate and one noise multiplier.
///
/// The noise multiplier is the effective one: all groups and all telemetry of a step folded in (see [`crate::effective`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSegment", into = "RawSegment")]
pub struct Segment {
    sampling_rate: f64,
    noise_multiplier: f64,
    steps: u64,
}

#[derive(Serialize, Deserialize)]
struct RawSegment {
    sampling_rate: f64,
    noise_multiplier: f64,
    steps: u64,
}

impl TryFrom<RawSegment> for Segment {
    type Error = AccountingError;
    fn try_from(raw: RawSegment) -> Result<Self, AccountingError> {
        Self::new(raw.sampling_rate, raw.noise_multiplier, raw.steps)
    }
}

impl From<Segment> for RawSegment {
    fn from(s: Segment) -> Self {
        Self {
            sampling_rate: s.sampling_rate,
            noise_multiplier: s.noise_multiplier,
            steps: s.steps,
        }
    }
}

impl Segment {
    /// A checked segment.
    ///
    /// # Errors
    /// A sampling rate outside [0, 1], a noise multiplier that is not positive and finite, or no steps.
    pub fn new(
        sampling_rate: f64,
        noise_multiplier: f64,
        steps: u64,
    ) -> Result<Self, AccountingError> {
        if !(0.0..=1.0).contains(&sampling_rate) {
            return Err(AccountingError::SamplingRate {
                value: sampling_rate,
            });
        }
        if !(noise_multiplier > 0.0 && noise_multiplier.is_finite()) {
            return Err(AccountingError::NoiseMultiplier {
                value: noise_multiplier,
            });
        }
        if steps == 0 {
            return Err(AccountingError::ZeroSteps);
        }
        Ok(Self {
            sampling_rate,
            noise_multiplier,
            steps,
        })
    }

    /// Probability with which each unit is in the batch.
    pub fn sampling_rate(&self) -> f64 {
        self.sampling_rate
    }

    /// Noise standard deviation over sensitivity.
    pub fn noise_multiplier(&self) -> f64 {
        self.noise_multiplier
    }

    /// Number of steps.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The same mechanism for another number of steps.
    ///
    /// # Errors
    /// No steps.
    pub fn with_steps(&self, steps: u64) -> Result<Self, AccountingError> {
        Self::new(self.sampling_rate, self.noise_multiplier, steps)
    }

    /// The same segment with its noise multiplier scaled.
    ///
    /// # Errors
    /// The scaled noise multiplier is not positive and finite.
    pub fn scaled(&self, scale: f64) -> Result<Self, AccountingError> {
        Self::new(
            self.sampling_rate,
            self.noise_multiplier * scale,
            self.steps,
        )
    }
}

/// An (epsilon, delta) target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PrivacyTarget {
    /// Epsilon, in nats; positive.
    pub epsilon: f64,
    /// Delta, strictly between 0 and 1.
    pub delta: f64,
}

impl PrivacyTarget {
    /// A checked target.
    ///
    /// # Errors
    /// Epsilon not positive and finite, or delta outside (0, 1).
    pub fn new(epsilon: f64, delta: f64) -> Result<Self, AccountingError> {
        let target = Self { epsilon, delta };
        target.check()?;
        Ok(target)
    }

    /// Checks the fields, which are public.
    ///
    /// # Errors
    /// As for [`PrivacyTarget::new`].
    pub fn check(&self) -> Result<(), AccountingError> {
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return Err(AccountingError::Epsilon {
                value: self.epsilon,
            });
        }
        check_delta(self.delta)
    }
}

/// Delta must be strictly between 0 and 1.
pub(crate) fn check_delta(delta: f64) -> Result<(), AccountingError> {
    if delta > 0.0 && delta < 1.0 {
        Ok(())
    } else {
        Err(AccountingError::Delta { value: delta })
    }
}

/// Epsilon must be finite and not negative.
pub(crate) fn check_epsilon(epsilon: f64) -> Result<(), AccountingError> {
    if epsilon >= 0.0 && epsilon.is_finite() {
        Ok(())
    } else {
        Err(AccountingError::Epsilon { value: epsilon })
    }
}

/// Merges equal mechanisms and sorts, so that neither order nor splitting can change any figure.
///
/// # Errors
/// No segments, or an overflowing number of steps.
pub fn merge(segments: &[Segment]) -> Result<Vec<Segment>, AccountingError> {
    if segments.is_empty() {
        return Err(AccountingError::NoSegments);
    }
    let mut sorted = segments.to_vec();
    sorted.sort_by(|a, b| {
        a.sampling_rate
            .total_cmp(&b.sampling_rate)
            .then(a.noise_multiplier.total_cmp(&b.noise_multiplier))
    });
    let mut merged: Vec<Segment> = Vec::new();
    for segment in sorted {
        match merged.last_mut() {
            Some(last)
                if last.sampling_rate == segment.sampling_rate
                    && last.noise_multiplier == segment.noise_multiplier =>
            {
                last.steps = last
                    .steps
                    .checked_add(segment.steps)
                    .ok_or(AccountingError::StepsOverflow)?;
            }
            _ => merged.push(segment),
        }
    }
    Ok(merged)
}
