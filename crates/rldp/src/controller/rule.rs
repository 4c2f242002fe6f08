//! The best rule known before anything is learned: where the agent starts and what it moves around.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::observation::Visible;
use super::{Controller, Decision, Observation, Outcome, from_state, to_state};
use crate::error::RldpError;

/// Share of units that the clipping norms aim to clip: with Adam any smaller norm is the same run, a larger one is
/// ruinous (design.md, section 5).
const CLIPPED_AIM: f64 = 0.95;
/// Step of the geometric update towards the aim, per decision (Andrew et al. 2021 use 0.2 a step).
const CLIPPING_RATE: f64 = 0.6;
/// First-moment decay of the rule.
const BETA_1: f64 = 0.8;
/// Range of the clipping norms that the rule may reach.
const CLIPPING_RANGE: (f64, f64) = (1e-6, 1e4);

/// The warm-up rule: noise split by dimension, clipping norms that follow the released clipped share towards 95 %,
/// first-moment decay 0.8, learning rate as scheduled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WarmUpRule {
    clipping_norms: Vec<f64>,
    noise_weights: Vec<f64>,
}

impl WarmUpRule {
    /// The rule for adapters of the given dimensions, starting at one clipping norm for all.
    ///
    /// # Errors
    /// [`RldpError::NoAdapters`] without adapters, [`RldpError::OutOfRange`] for a clipping norm that is not positive
    /// and finite.
    pub fn new(dimensions: &[usize], clipping_norm: f64) -> Result<Self, RldpError> {
        if dimensions.is_empty() {
            return Err(RldpError::NoAdapters);
        }
        if !(clipping_norm.is_finite() && clipping_norm > 0.0) {
            return Err(RldpError::OutOfRange {
                what: "clipping norm",
                value: clipping_norm,
                range: "(0, infinity)",
            });
        }
        let total: f64 = dimensions.iter().map(|d| (*d).max(1) as f64).sum();
        Ok(Self {
            clipping_norms: vec![clipping_norm; dimensions.len()],
            noise_weights: dimensions
                .iter()
                .map(|d| (*d).max(1) as f64 / total)
                .collect(),
        })
    }

    /// Moves the clipping norms towards the aim, by what the last interval released.
    pub fn follow(&mut self, clipped_fractions: impl Iterator<Item = Visible>) {
        for (norm, fraction) in self.clipping_norms.iter_mut().zip(clipped_fractions) {
            let surplus = (fraction.get() - CLIPPED_AIM).clamp(-1.0, 1.0);
            let surplus = if surplus.is_nan() { 0.0 } else { surplus };
            *norm =
                (*norm * (CLIPPING_RATE * surplus).exp()).clamp(CLIPPING_RANGE.0, CLIPPING_RANGE.1);
        }
    }

    /// The rule's own decision.
    #[must_use]
    pub fn decision(&self) -> Decision {
        Decision {
            beta_1: BETA_1,
            ..Decision::per_adapter(self.clipping_norms.clone(), self.noise_weights.clone())
        }
    }
}

/// The warm-up rule as a controller of its own: what the agent would do if it never learned.
#[derive(Clone, Debug)]
pub struct RuleController {
    rule: WarmUpRule,
}

impl RuleController {
    /// See [`WarmUpRule::new`].
    ///
    /// # Errors
    /// As [`WarmUpRule::new`].
    pub fn new(dimensions: &[usize], clipping_norm: f64) -> Result<Self, RldpError> {
        Ok(Self {
            rule: WarmUpRule::new(dimensions, clipping_norm)?,
        })
    }
}

impl Controller for RuleController {
    fn name(&self) -> &'static str {
        "rule"
    }

    fn decide(&mut self, _observation: &Observation) -> Result<Decision, RldpError> {
        Ok(self.rule.decision())
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError> {
        self.rule
            .follow(outcome.next.adapters.iter().map(|a| a.clipped_fraction));
        Ok(())
    }

    fn save_state(&self, _folder: &Path) -> Result<serde_json::Value, RldpError> {
        to_state(&self.rule)
    }

    fn restore_state(&mut self, state: &serde_json::Value, folder: &Path) -> Result<(), RldpError> {
        self.rule = from_state(state, folder)?;
        Ok(())
    }
}
