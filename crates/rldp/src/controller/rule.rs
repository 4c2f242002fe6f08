//! The best rule known before anything is learned: where the agent starts and what it moves around.

use std::path::Path;

use serde::{Deserialize, Serialize};

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
/// first-moment decay 0.8, learning rate as scheduled, or scheduled and following the descent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WarmUpRule {
    clipping_norms: Vec<f64>,
    noise_weights: Vec<f64>,
    /// `None` for a learning rate as scheduled.
    follower: Option<DescentFollower>,
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
            follower: None,
        })
    }

    /// The same rule with a learning rate that follows the descent, for batches of this many expected units: the rule that the
    /// agent moves around.
    #[must_use]
    pub fn following_descent(mut self, batch_size: f64) -> Self {
        self.follower = Some(DescentFollower::new(batch_size));
        self
    }

    /// The factor on the scheduled learning rate now.
    #[must_use]
    pub fn learning_rate_factor(&self) -> f64 {
        self.follower.map_or(1.0, |follower| follower.factor())
    }

    /// Moves the clipping norms towards the aim, and the learning rate if it follows, by what the last interval released.
    pub fn follow(&mut self, seen: &Observation) {
        if let Some(follower) = &mut self.follower {
            follower.follow(seen);
        }
        for (norm, adapter) in self.clipping_norms.iter_mut().zip(&seen.adapters) {
            let surplus = (adapter.clipped_fraction.get() - CLIPPED_AIM).clamp(-1.0, 1.0);
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
            learning_rate_factor: self.learning_rate_factor(),
            ..Decision::per_adapter(self.clipping_norms.clone(), self.noise_weights.clone())
        }
    }
}

/// A factor on the learning rate that follows what the released gradients say of the steps taken
/// ([`Observation::descent`]): longer steps while they gain plainly, shorter ones when they gain too little.
///
/// In the spirit of hypergradient descent (Baydin et al. 2018), whose signal is the same inner product. Aim, width and largest
/// change are ours, found on public text (docs/results/compare/README.md).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DescentFollower {
    batch_size: f64,
    factor: f64,
}

impl DescentFollower {
    /// What a step should gain, for each unit in the batch and for a noise multiplier of one, in deviations of its noise: a
    /// step's signal grows with the units and its noise with the multiplier.
    const AIM: f64 = 0.011;
    /// Distance from the aim, in deviations, at which the answer is three quarters of the largest.
    const WIDTH: f64 = 1.25;
    /// Largest change of the factor's logarithm in a decision.
    const CHANGE: f64 = 0.5;
    /// Largest factor, and divisor.
    const RANGE: f64 = 10.0;

    /// A factor of one, for batches of this many expected units.
    #[must_use]
    pub fn new(batch_size: f64) -> Self {
        Self {
            batch_size,
            factor: 1.0,
        }
    }

    /// The factor now.
    #[must_use]
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Takes in what an interval's steps gained.
    pub fn follow(&mut self, seen: &Observation) {
        let aim = Self::AIM * self.batch_size / seen.noise_multiplier.max(1e-6);
        let change = Self::CHANGE * ((seen.descent() - aim) / Self::WIDTH).tanh();
        if !change.is_nan() {
            self.factor = (self.factor * change.exp()).clamp(1.0 / Self::RANGE, Self::RANGE);
        }
    }
}

/// The warm-up rule as a controller of its own.
#[derive(Clone, Debug)]
pub struct RuleController {
    name: &'static str,
    rule: WarmUpRule,
}

impl RuleController {
    /// See [`WarmUpRule::new`].
    ///
    /// # Errors
    /// As [`WarmUpRule::new`].
    pub fn new(dimensions: &[usize], clipping_norm: f64) -> Result<Self, RldpError> {
        Ok(Self {
            name: "rule",
            rule: WarmUpRule::new(dimensions, clipping_norm)?,
        })
    }

    /// The same with a learning rate that follows the descent, for batches of this many expected units: the agent's warm-up rule.
    #[must_use]
    pub fn following_descent(mut self, batch_size: f64) -> Self {
        self.name = "rule-descent";
        self.rule = self.rule.following_descent(batch_size);
        self
    }
}

impl Controller for RuleController {
    fn name(&self) -> &'static str {
        self.name
    }

    fn decide(&mut self, _observation: &Observation) -> Result<Decision, RldpError> {
        Ok(self.rule.decision())
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError> {
        self.rule.follow(&outcome.next);
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
