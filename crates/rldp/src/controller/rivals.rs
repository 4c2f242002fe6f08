//! The agent's rivals and ablation arms.

use std::path::Path;

use rand::rngs::ChaCha20Rng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::{
    Bounds, Controller, Decision, NoiseWish, Observation, Outcome, WarmUpRule, from_state, to_state,
};
use crate::error::RldpError;

/// First-moment decay that Adam is usually run with (Kingma and Ba 2015).
const ADAM_BETA_1: f64 = 0.9;

/// Constant clipping and an even noise split (Abadi et al. 2016), at one norm for every adapter.
#[derive(Clone, Debug)]
pub struct ConstantController {
    clipping_norm: f64,
}

impl ConstantController {
    /// The rival at a total clipping norm, which the adapters share as `C / sqrt(adapters)` each, so that a unit's
    /// whole gradient has norm at most `C`.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] for a clipping norm that is not positive and finite.
    pub fn new(clipping_norm: f64) -> Result<Self, RldpError> {
        if !(clipping_norm.is_finite() && clipping_norm > 0.0) {
            return Err(RldpError::OutOfRange {
                what: "clipping norm",
                value: clipping_norm,
                range: "(0, infinity)",
            });
        }
        Ok(Self { clipping_norm })
    }
}

impl Controller for ConstantController {
    fn name(&self) -> &'static str {
        "constant"
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        let adapters = observation.adapters.len();
        if adapters == 0 {
            return Err(RldpError::NoAdapters);
        }
        let count = adapters as f64;
        Ok(Decision {
            clipping_norms: vec![self.clipping_norm / count.sqrt(); adapters],
            noise_weights: vec![1.0 / count; adapters],
            noise: NoiseWish::default(),
            learning_rate_factor: 1.0,
            beta_1: ADAM_BETA_1,
        })
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    // It remembers nothing.
    fn save_state(&self, _folder: &Path) -> Result<serde_json::Value, RldpError> {
        Ok(serde_json::Value::Null)
    }

    fn restore_state(&mut self, state: &serde_json::Value, folder: &Path) -> Result<(), RldpError> {
        from_state::<()>(state, folder)
    }
}

/// Draws the agent's actions uniformly: the arm that shows whether learning is the cause.
#[derive(Debug)]
pub struct RandomController {
    rule: WarmUpRule,
    bounds: Bounds,
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
        bounds: Bounds,
        seed: u64,
    ) -> Result<Self, RldpError> {
        Ok(Self {
            rule: WarmUpRule::new(dimensions, clipping_norm)?,
            bounds,
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
        let action: Vec<Vec<f32>> = (0..=observation.adapters.len())
            .map(|_| {
                (0..3)
                    .map(|_| self.random.random_range(-1.0..1.0))
                    .collect()
            })
            .collect();
        let decision = self.rule.moved(&action, &self.bounds, self.last_factor);
        self.last_factor = decision.learning_rate_factor;
        Ok(decision)
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError> {
        self.rule
            .follow(outcome.next.adapters.iter().map(|a| a.clipped_fraction));
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
