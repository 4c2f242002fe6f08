//! Global scaling with an adaptive ceiling.

use serde::{Deserialize, Serialize};

use super::{GlobalAdaptOptions, NORM_RANGE, positive};
use crate::controller::{
    ClipCounts, Controller, Decision, Observation, Outcome, StepView, whole_state,
};
use crate::error::RldpError;

/// DPSGD-Global-Adapt (Esipova et al. 2023, Algorithm 1): gradients up to the ceiling Z are scaled by `C_0 / Z`, longer ones
/// to norm C_0; after every step `Z <- Z exp(-eta_Z + b)` with b the noisy share of gradients longer than Z (the paper's
/// tolerance tau at 1).
///
/// Scaling by `C_0 / max(Z, norm)` is clipping to Z followed by the public factor `C_0 / Z`, and so it is done here: the
/// noise is that of norm C_0 in either order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GlobalAdaptController {
    options: GlobalAdaptOptions,
    norm: f64,
    ceiling: f64,
}

impl GlobalAdaptController {
    /// The rival with norm C_0 over all adapters. Its counts are paid for in every step.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] for a number out of range.
    pub fn new(norm: f64, options: GlobalAdaptOptions) -> Result<Self, RldpError> {
        positive("clipping norm", norm)?;
        positive("the count's deviation", options.count_deviation)?;
        let ceiling = positive("the ceiling", options.ceiling)? * norm;
        Ok(Self {
            options,
            norm,
            ceiling,
        })
    }
}

impl Controller for GlobalAdaptController {
    fn name(&self) -> &'static str {
        "global-adapt"
    }

    fn decide(&mut self, _observation: &Observation) -> Result<Decision, RldpError> {
        Ok(Decision {
            gradient_factor: self.norm / self.ceiling,
            clip_counts: ClipCounts::Deviation(self.options.count_deviation),
            ..Decision::flat(self.ceiling)
        })
    }

    fn step(&mut self, step: &StepView<'_>, decision: &mut Decision) -> Result<(), RldpError> {
        if let Some([above]) = step.clipped_fractions {
            let factor = (above.get() - self.options.rate).exp();
            if factor.is_finite() {
                self.ceiling = (self.ceiling * factor).clamp(NORM_RANGE.0, NORM_RANGE.1);
            }
            decision.clipping_norms = vec![self.ceiling];
            decision.gradient_factor = self.norm / self.ceiling;
        }
        Ok(())
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    whole_state!();
}
