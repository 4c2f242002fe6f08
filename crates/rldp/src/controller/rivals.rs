//! The agent's rivals, each under a name of the field, and the arm that acts at random.
//!
//! What a rival looks at, it pays for: [`Decision::clip_counts`] is part of the step's own mechanism, and so of its
//! effective noise multiplier. Nothing else reaches it but public numbers and what was released anyway.

mod adaclip;
mod automatic;
mod decaying;
mod global_adapt;
mod options;
mod quantile;
#[cfg(test)]
mod tests;

pub use adaclip::AdaClipController;
pub use automatic::AutomaticController;
pub use decaying::DecayingController;
pub use global_adapt::GlobalAdaptController;
pub use options::{
    AdaClipRivalOptions, Allocation, AutomaticOptions, DecayOptions, GlobalAdaptOptions,
    PerAdapterQuantileOptions, QuantileOptions, RivalOptions,
};
pub use quantile::{PerAdapterQuantileController, QuantileController};

use std::path::Path;

use rand::rngs::ChaCha20Rng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::actions::{ACTION, ActionSpace};
use super::{ClipCounts, Controller, Decision, Observation, Outcome, WarmUpRule};
use super::{from_state, stateless, to_state};
use crate::error::RldpError;

/// Range that adaptive clipping norms may reach.
const NORM_RANGE: (f64, f64) = (1e-6, 1e6);

/// Refuses a number that is not positive and finite.
fn positive(what: &'static str, value: f64) -> Result<f64, RldpError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(RldpError::OutOfRange {
            what,
            value,
            range: "(0, infinity)",
        })
    }
}

/// Equal weights for `count` groups.
fn even(count: usize) -> Vec<f64> {
    vec![1.0 / count.max(1) as f64; count]
}

/// Constant clipping (Abadi et al. 2016), flat or at one norm for every adapter with an even noise split.
#[derive(Clone, Debug)]
pub struct ConstantController {
    clipping_norm: f64,
    flat: bool,
}

impl ConstantController {
    /// One norm over all adapters: the original method. It looks at nothing and pays for nothing.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] for a clipping norm that is not positive and finite.
    pub fn flat(clipping_norm: f64) -> Result<Self, RldpError> {
        Ok(Self {
            clipping_norm: positive("clipping norm", clipping_norm)?,
            flat: true,
        })
    }

    /// One norm for each adapter ("per layer" in Abadi et al. 2016, appendix).
    ///
    /// # Errors
    /// As [`ConstantController::flat`].
    pub fn per_adapter(clipping_norm: f64) -> Result<Self, RldpError> {
        Ok(Self {
            flat: false,
            ..Self::flat(clipping_norm)?
        })
    }
}

impl Controller for ConstantController {
    fn name(&self) -> &'static str {
        if self.flat {
            "constant"
        } else {
            "constant-per-adapter"
        }
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        let adapters = observation.adapters.len();
        if adapters == 0 {
            return Err(RldpError::NoAdapters);
        }
        let decision = if self.flat {
            Decision::flat(self.clipping_norm)
        } else {
            Decision::per_adapter(vec![self.clipping_norm; adapters], even(adapters))
        };
        Ok(Decision {
            clip_counts: ClipCounts::None,
            ..decision
        })
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    stateless!();
}

/// Draws the agent's actions uniformly: the arm that shows whether learning is the cause.
#[derive(Debug)]
pub struct RandomController {
    rule: WarmUpRule,
    actions: ActionSpace,
    random: ChaCha20Rng,
    last_factor: f64,
}

impl RandomController {
    /// A random policy around the warm-up rule. Its draws need no secrecy.
    ///
    /// # Errors
    /// As [`WarmUpRule::new`].
    pub fn new(
        dimensions: &[usize],
        clipping_norm: f64,
        batch_size: f64,
        actions: ActionSpace,
        seed: u64,
    ) -> Result<Self, RldpError> {
        Ok(Self {
            rule: WarmUpRule::new(dimensions, clipping_norm)?.following_descent(batch_size),
            actions,
            random: ChaCha20Rng::seed_from_u64(seed),
            last_factor: 1.0,
        })
    }
}

/// What a [`RandomController`] remembers.
#[derive(Serialize, Deserialize)]
struct RandomState {
    rule: WarmUpRule,
    last_factor: f64,
    seed: [u8; 32],
    /// Position in the stream in 32-bit words, as text: JSON has no 128-bit integers.
    position: String,
}

impl Controller for RandomController {
    fn name(&self) -> &'static str {
        "random"
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        let action: Vec<Vec<f32>> = self
            .actions
            .features(observation)
            .iter()
            .map(|_| {
                (0..ACTION)
                    .map(|_| self.random.random_range(-1.0..1.0))
                    .collect()
            })
            .collect();
        let decision = self.actions.apply(&self.rule, &action, self.last_factor);
        self.last_factor = decision.learning_rate_factor / self.rule.learning_rate_factor();
        Ok(decision)
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError> {
        self.rule.follow(&outcome.next);
        Ok(())
    }

    fn save_state(&self, _folder: &Path) -> Result<serde_json::Value, RldpError> {
        to_state(&RandomState {
            rule: self.rule.clone(),
            last_factor: self.last_factor,
            seed: self.random.get_seed(),
            position: self.random.get_word_pos().to_string(),
        })
    }

    fn restore_state(&mut self, state: &serde_json::Value, folder: &Path) -> Result<(), RldpError> {
        let state: RandomState = from_state(state, folder)?;
        let position = state.position.parse().map_err(|_| RldpError::Damaged {
            path: folder.to_owned(),
            reason: "the controller's random position is no number".to_owned(),
        })?;
        self.rule = state.rule;
        self.last_factor = state.last_factor;
        self.random = ChaCha20Rng::from_seed(state.seed);
        self.random.set_word_pos(position);
        Ok(())
    }
}
