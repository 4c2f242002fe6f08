//! Clipping norm and noise that fall over the run by a schedule fixed before it.

use super::{DecayOptions, positive};
use crate::controller::{
    ClipCounts, Controller, Decision, NoiseWish, Observation, Outcome, StepView, stateless,
};
use crate::error::RldpError;

/// Dynamic DP-SGD (Du et al. 2021): before step t of T, from one, `C_t = C_0 rho_c^(-t/T)` and
/// `sigma_t = sigma_0 rho_mu^(-t/T)`. The budget sets sigma_0: a deck of [`DecayOptions::ratios`] holds the schedule's levels
/// at the run's epsilon; a fixed budget leaves the noise as it is, and a filter lets it fall within its range.
#[derive(Clone, Debug)]
pub struct DecayingController {
    options: DecayOptions,
    norm: f64,
}

impl DecayOptions {
    /// The noise levels of a deck for this schedule, relative to their geometric middle, from the largest down; each is
    /// for an equal share of the steps.
    #[must_use]
    pub fn ratios(&self) -> Vec<f64> {
        let levels = self.levels.max(1);
        (0..levels)
            .map(|level| self.ratio((level as f64 + 0.5) / levels as f64))
            .collect()
    }

    /// The noise multiplier at a share of the run, relative to that at its middle.
    fn ratio(&self, progress: f64) -> f64 {
        self.noise.powf(0.5 - progress)
    }
}

impl DecayingController {
    /// The rival, starting at a norm over all adapters. It looks at nothing and pays for nothing.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] for a norm or a decay that is not positive.
    pub fn new(norm: f64, options: DecayOptions) -> Result<Self, RldpError> {
        positive("clipping norm", norm)?;
        positive("the decay of the clipping norm", options.clipping)?;
        positive("the decay of the noise", options.noise)?;
        Ok(Self { options, norm })
    }

    /// The decision for the step that comes after `taken` of `steps`.
    fn at(&self, progress: f64) -> Decision {
        Decision {
            noise: NoiseWish(self.options.ratio(progress)),
            clip_counts: ClipCounts::None,
            ..Decision::flat(self.norm * self.options.clipping.powf(-progress))
        }
    }
}

impl Controller for DecayingController {
    fn name(&self) -> &'static str {
        "decay"
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        Ok(self.at(observation.progress))
    }

    fn step(&mut self, step: &StepView<'_>, decision: &mut Decision) -> Result<(), RldpError> {
        *decision = self.at(step.step as f64 / step.steps.max(1) as f64);
        Ok(())
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    stateless!();
}
