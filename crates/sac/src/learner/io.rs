//! A learner's parameters and optimizer state, by name.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::Learner;
use crate::actor::Actor;
use crate::adam::{FlatAdam, ScalarAdam};
use crate::config::SacConfig;
use crate::critic::Critics;
use crate::error::SacError;
use crate::net::{assign, flatten};
use crate::rng::AgentRng;
use crate::tensors::TensorMap;

/// The part of a [`Learner`] that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LearnerState {
    log_alpha: f64,
    updates: u64,
    temperature_optimizer: ScalarAdam,
    actor_steps: usize,
    critic_steps: usize,
}

impl Learner {
    /// The actor's parameters by name.
    ///
    /// # Errors
    ///
    /// [`SacError::Backend`] where the backend fails to return them.
    pub fn export_actor(&self, map: &mut TensorMap) -> Result<(), SacError> {
        self.actor.export(map)
    }

    /// Parameters of the critics (`q1`, `q2`, ...) and their targets (`q1_target`, ...) by name.
    ///
    /// # Errors
    ///
    /// [`SacError::Backend`] where the backend fails to return them.
    pub fn export_critics(&self, map: &mut TensorMap) -> Result<(), SacError> {
        self.critics.export(&critic_names(&self.config, ""), map)?;
        self.target_critics
            .export(&critic_names(&self.config, "_target"), map)
    }

    /// Replaces the actor's parameters; its optimizer starts afresh.
    ///
    /// # Errors
    ///
    /// [`SacError::MissingTensor`] or [`SacError::TensorMismatch`]; then nothing changed.
    pub fn import_actor(&mut self, map: &TensorMap) -> Result<(), SacError> {
        self.actor = Actor::import(
            &self.config.hidden,
            self.obs_dim,
            self.act_dim,
            map,
            &self.device,
        )?;
        self.frozen_actor = assign(self.actor.clone(), &flatten(&self.actor), false);
        self.actor_optimizer = FlatAdam::new(self.config.actor_learning_rate);
        Ok(())
    }

    pub(crate) fn set_actor(&mut self, actor: &Actor) {
        let flat = flatten(actor);
        self.actor = assign(self.actor.clone(), &flat, true);
        self.frozen_actor = assign(self.frozen_actor.clone(), &flat, false);
    }

    /// Replaces the parameters of critics and targets; their optimizer starts afresh.
    ///
    /// # Errors
    ///
    /// [`SacError::MissingTensor`] or [`SacError::TensorMismatch`]; then nothing changed.
    pub fn import_critics(&mut self, map: &TensorMap) -> Result<(), SacError> {
        let inputs = self.obs_dim + self.act_dim;
        let load = |suffix| {
            Critics::import(
                &critic_names(&self.config, suffix),
                &self.config,
                inputs,
                map,
                &self.device,
            )
        };
        let critics = load("")?;
        let targets = load("_target")?;
        let flat = flatten(&targets);
        self.critics = critics;
        self.target_critics = assign(targets, &flat, false);
        self.critic_optimizer = FlatAdam::new(self.config.critic_learning_rate);
        Ok(())
    }

    /// Sets the temperature; its optimizer starts afresh.
    ///
    /// # Errors
    ///
    /// [`SacError::Config`] unless it is a positive number.
    pub fn set_alpha(&mut self, alpha: f64) -> Result<(), SacError> {
        if !(alpha.is_finite() && alpha > 0.0) {
            return Err(SacError::Config {
                name: "alpha",
                value: alpha.to_string(),
                expected: "a positive number",
            });
        }
        self.log_alpha = alpha.ln();
        self.temperature_optimizer = ScalarAdam::default();
        Ok(())
    }

    pub(crate) fn export(&self, map: &mut TensorMap) -> Result<LearnerState, SacError> {
        self.export_actor(map)?;
        self.export_critics(map)?;
        self.actor_optimizer.export("adam.actor", map)?;
        self.critic_optimizer.export("adam.critics", map)?;
        Ok(LearnerState {
            log_alpha: self.log_alpha,
            updates: self.updates,
            temperature_optimizer: self.temperature_optimizer.clone(),
            actor_steps: self.actor_optimizer.time(),
            critic_steps: self.critic_optimizer.time(),
        })
    }

    pub(crate) fn restore(
        config: SacConfig,
        obs_dim: usize,
        act_dim: usize,
        state: LearnerState,
        map: &TensorMap,
        device: &Device,
    ) -> Result<Self, SacError> {
        let mut learner = Self::new(config, obs_dim, act_dim, &mut AgentRng::new(0), device)?;
        learner.import_actor(map)?;
        learner.import_critics(map)?;
        let actor_size = flatten(&learner.actor).dims()[0];
        let critic_size = flatten(&learner.critics).dims()[0];
        let device = learner.device.clone();
        learner.actor_optimizer.import(
            "adam.actor",
            state.actor_steps,
            actor_size,
            map,
            &device,
        )?;
        learner.critic_optimizer.import(
            "adam.critics",
            state.critic_steps,
            critic_size,
            map,
            &device,
        )?;
        learner.temperature_optimizer = state.temperature_optimizer;
        learner.log_alpha = state.log_alpha;
        learner.updates = state.updates;
        Ok(learner)
    }
}

fn critic_names(config: &SacConfig, suffix: &str) -> Vec<String> {
    (1..=config.critics)
        .map(|index| format!("q{index}{suffix}"))
        .collect()
}
