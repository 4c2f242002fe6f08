//! The update rule alone: networks, targets, temperature and optimizers, fed with batches by the caller.

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::actor::{Actor, Gaussian, Sample};
use crate::adam::{FlatAdam, ScalarAdam};
use crate::config::{ActorObjective, SacConfig};
use crate::critic::{Critics, DropoutMasks};
use crate::error::SacError;
use crate::net::{assign, flatten, gradients, scalar};
use crate::rng::AgentRng;
use crate::tensors::TensorMap;

/// A batch of transitions, outside autodiff.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[batch, agents, obs_dim]`
    pub observations: Tensor<3>,
    /// `[batch, agents, act_dim]`
    pub actions: Tensor<3>,
    /// `[batch, agents, obs_dim]`
    pub next_observations: Tensor<3>,
    /// Sum of the discounted rewards up to the next observation, `[batch]`.
    pub rewards: Tensor<1>,
    /// Weight of the next observation's value: gamma to the number of steps, 0 after a terminal state, `[batch]`.
    pub discounts: Tensor<1>,
}

/// Standard normal draws for one update, `[batch, agents, act_dim]` each.
#[derive(Clone, Debug)]
pub struct Noise {
    /// For the actions at the observations.
    pub current: Tensor<3>,
    /// For the actions at the next observations.
    pub next: Tensor<3>,
}

/// What one or several updates did; means where several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UpdateReport {
    /// Half the sum over critics of the mean squared error.
    pub critic_loss: f64,
    /// Mean of `alpha log_prob - Q`; `None` where no update was the actor's turn.
    pub actor_loss: Option<f64>,
    /// Loss of the log-temperature; `None` where no update was the actor's turn.
    pub temperature_loss: Option<f64>,
    /// Temperature after the last update.
    pub alpha: f64,
    /// Minus the mean log-probability of the policy's actions; `None` where no update was the actor's turn.
    pub entropy: Option<f64>,
    /// Mean value of the batch's actions over all critics.
    pub mean_value: f64,
    /// Updates made since the agent began.
    pub updates: u64,
}

/// What the next value estimate of a batch is made of, for inspection.
#[derive(Clone, Debug)]
pub struct Targets {
    /// The next actions and their log-probabilities.
    pub sample: Sample,
    /// Target critics at the next actions, `[critics, batch]`.
    pub values: Tensor<2>,
    /// `reward + discount (min value - alpha log_prob)`, `[batch]`.
    pub targets: Tensor<1>,
}

/// Networks, targets, temperature and optimizers.
#[derive(Clone)]
pub struct Learner {
    config: SacConfig,
    obs_dim: usize,
    act_dim: usize,
    device: Device,
    actor: Actor,
    frozen_actor: Actor,
    critics: Critics,
    target_critics: Critics,
    actor_optimizer: FlatAdam,
    critic_optimizer: FlatAdam,
    temperature_optimizer: ScalarAdam,
    log_alpha: f64,
    updates: u64,
}

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
    /// Randomly initialised networks; the targets equal the critics.
    ///
    /// # Errors
    ///
    /// [`SacError::Config`] for a bad setting or a size of 0.
    pub fn new(
        config: SacConfig,
        obs_dim: usize,
        act_dim: usize,
        rng: &mut AgentRng,
        device: &Device,
    ) -> Result<Self, SacError> {
        check_sizes(&config, obs_dim, act_dim)?;
        let device = device.clone().without_autodiff();
        let actor = Actor::new(&config, obs_dim, act_dim, rng, &device);
        let critics = Critics::new(&config, obs_dim, act_dim, rng, &device);
        let target_critics = critics.clone();
        Ok(Self::assemble(config, obs_dim, act_dim, device, actor, critics, target_critics))
    }

    fn assemble(
        config: SacConfig,
        obs_dim: usize,
        act_dim: usize,
        device: Device,
        actor: Actor,
        critics: Critics,
        target_critics: Critics,
    ) -> Self {
        let frozen_actor = assign(actor.clone(), &flatten(&actor), false);
        let flat_targets = flatten(&target_critics);
        Self {
            frozen_actor,
            target_critics: assign(target_critics, &flat_targets, false),
            actor,
            critics,
            actor_optimizer: FlatAdam::new(config.actor_learning_rate),
            critic_optimizer: FlatAdam::new(config.critic_learning_rate),
            temperature_optimizer: ScalarAdam::default(),
            log_alpha: config.initial_temperature.ln(),
            updates: 0,
            config,
            obs_dim,
            act_dim,
            device,
        }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &SacConfig {
        &self.config
    }

    /// Observation features of one agent.
    #[must_use]
    pub fn obs_dim(&self) -> usize {
        self.obs_dim
    }

    /// Action dimensions of one agent.
    #[must_use]
    pub fn act_dim(&self) -> usize {
        self.act_dim
    }

    /// The device of all tensors, outside autodiff.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The actor as constants, for acting.
    #[must_use]
    pub fn actor(&self) -> &Actor {
        &self.frozen_actor
    }

    /// The critics.
    #[must_use]
    pub fn critics(&self) -> &Critics {
        &self.critics
    }

    /// The temperature, alpha.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.log_alpha.exp()
    }

    /// Updates made so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The action distribution for observations `[batch, agents, obs_dim]`, outside autodiff.
    #[must_use]
    pub fn distribution(&self, observations: Tensor<3>) -> Gaussian {
        self.frozen_actor.forward(observations)
    }

    /// The regression targets of the critics, at the present parameters.
    #[must_use]
    pub fn targets(&self, batch: &Batch, noise: Tensor<3>, alpha: f64, rng: &mut AgentRng) -> Targets {
        let next = batch.next_observations.clone();
        let sample = self.frozen_actor.forward(next.clone()).sample(noise, self.config.joint_log_prob);
        let masks = self.masks(&next, rng);
        let values = self.target_critics.forward(next, sample.action.clone(), &masks);
        let considered = if self.config.target_critics < self.config.critics {
            let chosen = rng.subset(self.config.target_critics, self.config.critics);
            let chosen: Vec<i64> = chosen.into_iter().map(|index| index as i64).collect();
            let count = chosen.len();
            values.clone().select(0, Tensor::<1, Int>::from_data(TensorData::new(chosen, [count]), &self.device))
        } else {
            values.clone()
        };
        let batch_size = values.dims()[1];
        let lowest = considered.min_dim(0).reshape([batch_size]);
        let soft = lowest - sample.log_prob.clone().mul_scalar(alpha);
        let targets = batch.rewards.clone() + batch.discounts.clone() * soft;
        Targets { sample, values, targets }
    }

    /// One update with fresh noise from `rng`.
    ///
    /// # Errors
    ///
    /// [`SacError::NonFiniteLoss`] where a loss diverged, [`SacError::Shape`] for a batch of other sizes.
    pub fn update(&mut self, batch: &Batch, rng: &mut AgentRng) -> Result<UpdateReport, SacError> {
        let shape = batch.actions.dims();
        let mut draw = || {
            let values = rng.normals(shape.iter().product());
            Tensor::from_data(TensorData::new(values, shape), &self.device)
        };
        let noise = Noise { current: draw(), next: draw() };
        self.update_with_noise(batch, noise, rng)
    }

    /// One update with given noise. `rng` serves dropout and the choice of target critics alone.
    ///
    /// The order is that of stable-baselines3: log-probability and temperature at the old parameters; temperature step;
    /// critic step with the old temperature; actor step with the updated critics and the old temperature; targets.
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update). A loss is looked at before its step, so no parameter ever takes a non-finite one.
    pub fn update_with_noise(
        &mut self,
        batch: &Batch,
        noise: Noise,
        rng: &mut AgentRng,
    ) -> Result<UpdateReport, SacError> {
        let [_, agents, features] = batch.observations.dims();
        check_size("observation features", features, self.obs_dim)?;
        check_size("action dimensions", batch.actions.dims()[2], self.act_dim)?;
        let alpha = self.alpha();
        let mut report = UpdateReport::default();

        // The last critic update of a period comes first to the actor, as in DroQ.
        let actor_turn = (self.updates + 1).is_multiple_of(self.config.actor_period);
        let mut sample = None;
        if actor_turn {
            let drawn = self.actor.forward(batch.observations.clone());
            let drawn = drawn.sample(noise.current, self.config.joint_log_prob);
            let log_prob = scalar(drawn.log_prob.clone().inner().mean())?;
            let gap = log_prob + self.config.joint_target_entropy(agents, self.act_dim);
            let loss = -self.log_alpha * gap;
            self.check_finite("temperature loss", loss)?;
            let rate = self.config.temperature_learning_rate;
            self.log_alpha = self.temperature_optimizer.step(rate, self.log_alpha, -gap);
            report.temperature_loss = Some(loss);
            report.entropy = Some(-log_prob);
            sample = Some(drawn);
        }

        let targets = self.targets(batch, noise.next, alpha, rng).targets;
        let masks = self.masks(&batch.observations, rng);
        let values = self.critics.forward(batch.observations.clone(), batch.actions.clone(), &masks);
        let [members, size] = values.dims();
        let errors = values.clone() - targets.reshape([1, size]);
        let loss = errors.square().mean().mul_scalar(0.5 * members as f64);
        report.mean_value = scalar(values.inner().mean())?;
        report.critic_loss = scalar(loss.clone().inner())?;
        self.check_finite("critic loss", report.critic_loss)?;
        let gradient = gradients(&self.critics, &mut loss.backward());
        let critics = self.critic_optimizer.step(flatten(&self.critics), gradient);
        self.critics = assign(self.critics.clone(), &critics, true);

        if let Some(sample) = sample {
            report.actor_loss = Some(self.step_actor(batch, sample, &critics, alpha, rng)?);
        }

        let tau = self.config.target_rate;
        let averaged = flatten(&self.target_critics).mul_scalar(1.0 - tau) + critics.mul_scalar(tau);
        self.target_critics = assign(self.target_critics.clone(), &averaged, false);
        self.updates += 1;
        report.alpha = self.alpha();
        report.updates = self.updates;
        Ok(report)
    }

    fn step_actor(
        &mut self,
        batch: &Batch,
        sample: Sample,
        critics: &Tensor<1>,
        alpha: f64,
        rng: &mut AgentRng,
    ) -> Result<f64, SacError> {
        let constant = assign(self.critics.clone(), critics, false);
        let masks = self.masks(&batch.observations, rng);
        let values = constant.forward(batch.observations.clone(), sample.action, &masks);
        let size = values.dims()[1];
        let value = match self.config.actor_objective {
            ActorObjective::Minimum => values.min_dim(0),
            ActorObjective::Mean => values.mean_dim(0),
        };
        let loss = (sample.log_prob.mul_scalar(alpha) - value.reshape([size])).mean();
        let reported = scalar(loss.clone().inner())?;
        self.check_finite("actor loss", reported)?;
        let gradient = gradients(&self.actor, &mut loss.backward());
        let actor = self.actor_optimizer.step(flatten(&self.actor), gradient);
        self.actor = assign(self.actor.clone(), &actor, true);
        self.frozen_actor = assign(self.frozen_actor.clone(), &actor, false);
        Ok(reported)
    }

    fn masks(&self, observations: &Tensor<3>, rng: &mut AgentRng) -> DropoutMasks {
        let [batch, agents, _] = observations.dims();
        DropoutMasks::draw(&self.config, batch * agents, rng, &self.device)
    }

    fn check_finite(&self, name: &'static str, value: f64) -> Result<(), SacError> {
        match value.is_finite() {
            true => Ok(()),
            false => Err(SacError::NonFiniteLoss { name, value, update: self.updates }),
        }
    }

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
        self.target_critics.export(&critic_names(&self.config, "_target"), map)
    }

    /// Replaces the actor's parameters; its optimizer starts afresh.
    ///
    /// # Errors
    ///
    /// [`SacError::MissingTensor`] or [`SacError::TensorMismatch`]; then nothing changed.
    pub fn import_actor(&mut self, map: &TensorMap) -> Result<(), SacError> {
        self.actor = Actor::import(&self.config.hidden, self.obs_dim, self.act_dim, map, &self.device)?;
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
            Critics::import(&critic_names(&self.config, suffix), &self.config, inputs, map, &self.device)
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
            return Err(SacError::Config { name: "alpha", value: alpha.to_string(), expected: "a positive number" });
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
        learner.actor_optimizer.import("adam.actor", state.actor_steps, actor_size, map, &device)?;
        learner.critic_optimizer.import("adam.critics", state.critic_steps, critic_size, map, &device)?;
        learner.temperature_optimizer = state.temperature_optimizer;
        learner.log_alpha = state.log_alpha;
        learner.updates = state.updates;
        Ok(learner)
    }
}

fn critic_names(config: &SacConfig, suffix: &str) -> Vec<String> {
    (1..=config.critics).map(|index| format!("q{index}{suffix}")).collect()
}

pub(crate) fn check_size(what: &'static str, actual: usize, expected: usize) -> Result<(), SacError> {
    match actual == expected {
        true => Ok(()),
        false => Err(SacError::Shape { what, actual, expected }),
    }
}

fn check_sizes(config: &SacConfig, obs_dim: usize, act_dim: usize) -> Result<(), SacError> {
    config.validate()?;
    for (name, value) in [("obs_dim", obs_dim), ("act_dim", act_dim)] {
        if value == 0 {
            return Err(SacError::Config { name, value: "0".to_owned(), expected: "at least 1" });
        }
    }
    Ok(())
}
