//! Groups and telemetry folded into one noise multiplier.
//!
//! A step that releases several Gaussian queries of one batch is one Gaussian query: their sensitivities over their noise
//! add in squares. Proof: `docs/proofs/effective-noise.md`.

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;

/// The one noise multiplier of a step with these group noise multipliers: `(sum sigma_l^-2)^(-1/2)`.
///
/// # Guarantee
/// A step that adds noise `sigma_l C_l` to the sum of group l's gradients, clipped to `C_l`, is dominated by the
/// subsampled Gaussian with the returned noise multiplier.
///
/// # Errors
/// No groups, or a noise multiplier that is not positive and finite.
pub fn effective_noise_multiplier(group_noise_multipliers: &[f64]) -> Result<f64, AccountingError> {
    if group_noise_multipliers.is_empty() {
        return Err(AccountingError::NoGroups);
    }
    let mut smallest = f64::INFINITY;
    for &sigma in group_noise_multipliers {
        if !(sigma > 0.0 && sigma.is_finite()) {
            return Err(AccountingError::NoiseMultiplier { value: sigma });
        }
        smallest = smallest.min(sigma);
    }
    // Relative to the smallest, so that nothing overflows.
    let sum: f64 = group_noise_multipliers
        .iter()
        .map(|s| (smallest / s).powi(2))
        .sum();
    Ok(smallest / sum.sqrt())
}

/// Splits an effective noise multiplier over groups: `sigma_l = sigma_eff / sqrt(w_l)`, the weights normalised to sum 1.
///
/// # Errors
/// No groups, a weight or `sigma_eff` that is not positive and finite.
pub fn split(sigma_eff: f64, weights: &[f64]) -> Result<Vec<f64>, AccountingError> {
    if !(sigma_eff > 0.0 && sigma_eff.is_finite()) {
        return Err(AccountingError::NoiseMultiplier { value: sigma_eff });
    }
    if weights.is_empty() {
        return Err(AccountingError::NoGroups);
    }
    for (index, &value) in weights.iter().enumerate() {
        if !(value > 0.0 && value.is_finite()) {
            return Err(AccountingError::Weight { index, value });
        }
    }
    let total: f64 = weights.iter().sum();
    weights
        .iter()
        .enumerate()
        .map(|(index, &w)| {
            let sigma = sigma_eff / (w / total).sqrt();
            if sigma.is_finite() {
                Ok(sigma)
            } else {
                Err(AccountingError::Weight { index, value: w })
            }
        })
        .collect()
}

/// One further query on the same batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Telemetry {
    /// Noisy counts of clipped examples, one per group: centred bits (+1/2 or -1/2) per unit, so the vector of `groups`
    /// counts has sensitivity `sqrt(groups) / 2`; noise of standard deviation `noise` on each count.
    ClipCounts {
        /// Number of counts.
        groups: usize,
        /// Standard deviation of the noise on each count.
        noise: f64,
    },
    /// A sum of per-unit losses clipped to `[-bound, bound]` (or `[0, bound]`), noise of standard deviation `noise`.
    LossSum {
        /// Bound on one unit's clipped loss.
        bound: f64,
        /// Standard deviation of the noise on the sum.
        noise: f64,
    },
}

impl Telemetry {
    /// The query's own noise multiplier: noise over sensitivity.
    ///
    /// # Errors
    /// No groups, or a bound or noise that is not positive and finite.
    pub fn noise_multiplier(&self) -> Result<f64, AccountingError> {
        let positive = |name, value: f64| {
            if value > 0.0 && value.is_finite() {
                Ok(value)
            } else {
                Err(AccountingError::NotPositive { name, value })
            }
        };
        match *self {
            Self::ClipCounts { groups: 0, .. } => Err(AccountingError::NoGroups),
            Self::ClipCounts { groups, noise } => {
                Ok(positive("the noise of clip counts", noise)? / (0.5 * (groups as f64).sqrt()))
            }
            Self::LossSum { bound, noise } => Ok(positive("the noise of a loss sum", noise)?
                / positive("the bound of a loss", bound)?),
        }
    }
}

/// Everything one step releases about its batch: gradient groups and telemetry.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Composite {
    /// Noise multiplier of each gradient group.
    pub group_noise_multipliers: Vec<f64>,
    /// Further queries.
    pub telemetry: Vec<Telemetry>,
}

impl Composite {
    /// A step with these gradient groups and no telemetry.
    pub fn new(group_noise_multipliers: Vec<f64>) -> Self {
        Self {
            group_noise_multipliers,
            telemetry: Vec::new(),
        }
    }

    /// Adds clip-indicator counts: `groups` counts of sensitivity 1/2, noise `noise` each.
    #[must_use]
    pub fn with_clip_counts(mut self, groups: usize, noise: f64) -> Self {
        self.telemetry.push(Telemetry::ClipCounts { groups, noise });
        self
    }

    /// Adds a sum of losses clipped to `bound`, with noise `noise`.
    #[must_use]
    pub fn with_loss_sum(mut self, bound: f64, noise: f64) -> Self {
        self.telemetry.push(Telemetry::LossSum { bound, noise });
        self
    }

    /// The step's one noise multiplier.
    ///
    /// # Guarantee
    /// As [`effective_noise_multiplier`], over groups and telemetry together.
    ///
    /// # Errors
    /// Nothing released, or a parameter that is not positive and finite.
    pub fn noise_multiplier(&self) -> Result<f64, AccountingError> {
        let mut all = self.group_noise_multipliers.clone();
        for query in &self.telemetry {
            all.push(query.noise_multiplier()?);
        }
        effective_noise_multiplier(&all)
    }
}
