//! Quantile clipping: clipping norms that follow a quantile of the units' norms, by noisy counts.

use serde::{Deserialize, Serialize};

use super::{Allocation, NORM_RANGE, PerAdapterQuantileOptions, QuantileOptions, even, positive};
use crate::controller::{
    ClipCounts, Controller, Decision, Observation, Outcome, StepView, Visible, whole_state,
};
use crate::error::RldpError;

/// One geometric update, `C <- C exp(-rate (unclipped - target))`, of every norm (Andrew et al. 2021, Algorithm 1; He et al.
/// 2023, Algorithm 1).
fn follow(norms: &mut [f64], clipped: &[Visible], target: f64, rate: f64) {
    for (norm, clipped) in norms.iter_mut().zip(clipped) {
        let unclipped = 1.0 - clipped.get();
        let factor = (-rate * (unclipped - target)).exp();
        if factor.is_finite() {
            *norm = (*norm * factor).clamp(NORM_RANGE.0, NORM_RANGE.1);
        }
    }
}

/// Quantile clipping over all parameters (Andrew et al. 2021). The count's noise is paid for in every step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QuantileController {
    options: QuantileOptions,
    expected_batch: f64,
    norm: f64,
}

impl QuantileController {
    /// The rival at a first norm over all adapters; `expected_batch` sets the counts' noise.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] for a number out of range.
    pub fn new(
        norm: f64,
        expected_batch: f64,
        options: QuantileOptions,
    ) -> Result<Self, RldpError> {
        positive("clipping norm", norm)?;
        positive("the expected batch", expected_batch)?;
        positive("the count's deviation", options.count_deviation)?;
        Ok(Self {
            options,
            expected_batch,
            norm,
        })
    }
}

impl Controller for QuantileController {
    fn name(&self) -> &'static str {
        "quantile"
    }

    fn decide(&mut self, _observation: &Observation) -> Result<Decision, RldpError> {
        Ok(Decision {
            clip_counts: ClipCounts::Deviation(self.options.count_deviation * self.expected_batch),
            ..Decision::flat(self.norm)
        })
    }

    fn step(&mut self, step: &StepView<'_>, decision: &mut Decision) -> Result<(), RldpError> {
        if let Some(clipped) = step.clipped_fractions {
            let mut norms = [self.norm];
            follow(&mut norms, clipped, self.options.target, self.options.rate);
            [self.norm] = norms;
            decision.clipping_norms = norms.to_vec();
        }
        Ok(())
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    whole_state!();
}

/// Quantile clipping per adapter (He et al. 2023). The counts are paid for in every step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PerAdapterQuantileController {
    options: PerAdapterQuantileOptions,
    norms: Vec<f64>,
}

impl PerAdapterQuantileController {
    /// The rival at one first norm for each of `adapters` adapters.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] for a number out of range, [`RldpError::NoAdapters`].
    pub fn new(
        adapters: usize,
        norm: f64,
        options: PerAdapterQuantileOptions,
    ) -> Result<Self, RldpError> {
        positive("clipping norm", norm)?;
        if adapters == 0 {
            return Err(RldpError::NoAdapters);
        }
        Ok(Self {
            options,
            norms: vec![norm; adapters],
        })
    }

    /// The split: even, or in proportion to the squared norms, at which all coordinates' noise is the same.
    fn weights(&self) -> Vec<f64> {
        match self.options.allocation {
            Allocation::EqualBudget => even(self.norms.len()),
            Allocation::Global => {
                let total: f64 = self.norms.iter().map(|norm| norm * norm).sum();
                self.norms.iter().map(|norm| norm * norm / total).collect()
            }
        }
    }
}

impl Controller for PerAdapterQuantileController {
    fn name(&self) -> &'static str {
        "quantile-per-adapter"
    }

    fn decide(&mut self, _observation: &Observation) -> Result<Decision, RldpError> {
        Ok(Decision {
            clip_counts: ClipCounts::Share(self.options.count_share),
            ..Decision::per_adapter(self.norms.clone(), self.weights())
        })
    }

    fn step(&mut self, step: &StepView<'_>, decision: &mut Decision) -> Result<(), RldpError> {
        if let Some(clipped) = step.clipped_fractions {
            follow(
                &mut self.norms,
                clipped,
                self.options.target,
                self.options.rate,
            );
            decision.clipping_norms.clone_from(&self.norms);
            decision.noise_weights = self.weights();
        }
        Ok(())
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    whole_state!();
}
