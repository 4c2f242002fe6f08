//! The update rule alone: networks, targets, temperature and optimizers, fed with batches by the caller.

mod io;

use burn::tensor::{Device, Int, Tensor, TensorData};

pub(crate) use io::LearnerState;

use crate::actor::{Actor, Gaussian, Sample};
use crate::adam::{FlatAdam, ScalarAdam};
use crate::batch::{Batch, Noise, Targets, UpdateReport};
use crate::config::{ActorObjective, SacConfig};
use crate::critic::{Critics, DropoutMasks};
use crate::error::SacError;
use crate::net::{assign, flatten, gradients, scalar};
use crate::rng::AgentRng;

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
        Ok(Self::assemble(
            config,
            obs_dim,
            act_dim,
            device,
            actor,
            critics,
            target_critics,
        ))
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
    pub fn frozen_actor(&self) -> &Actor {
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
    pub fn targets(
        &self,
        batch: &Batch,
        noise: Tensor<3>,
        alpha: f64,
        rng: &mut AgentRng,
    ) -> Targets {
        let next = batch.next_observations.clone();
        let sample = self
            .frozen_actor
            .forward(next.clone())
            .sample(noise, self.config.joint_log_prob);
        let masks = self.masks(&next, rng);
        let values = self.target_critics.forward(
            next,
            sample.action.clone(),
            &masks,
            self.config.joint_log_prob,
        );
        let considered = if self.config.target_critics < self.config.critics {
            let chosen = rng.subset(self.config.target_critics, self.config.critics);
            let chosen: Vec<i64> = chosen.into_iter().map(|index| index as i64).collect();
            let count = chosen.len();
            values.clone().select(
                0,
                Tensor::<1, Int>::from_data(TensorData::new(chosen, [count]), &self.device),
            )
        } else {
            values.clone()
        };
        let batch_size = values.dims()[1];
        let lowest = considered.min_dim(0).reshape([batch_size]);
        let soft = lowest - sample.log_prob.clone().mul_scalar(alpha);
        let targets = batch.rewards.clone() + batch.discounts.clone() * soft;
        Targets {
            sample,
            values,
            targets,
        }
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
        let noise = Noise {
            current: draw(),
            next: draw(),
        };
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
        let values = self.critics.forward(
            batch.observations.clone(),
            batch.actions.clone(),
            &masks,
            self.config.joint_log_prob,
        );
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
        let averaged =
            flatten(&self.target_critics).mul_scalar(1.0 - tau) + critics.mul_scalar(tau);
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
        let values = constant.forward(
            batch.observations.clone(),
            sample.action,
            &masks,
            self.config.joint_log_prob,
        );
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
            false => Err(SacError::NonFiniteLoss {
                name,
                value,
                update: self.updates,
            }),
        }
    }
}

pub(crate) fn check_size(
    what: &'static str,
    actual: usize,
    expected: usize,
) -> Result<(), SacError> {
    match actual == expected {
        true => Ok(()),
        false => Err(SacError::Shape {
            what,
            actual,
            expected,
        }),
    }
}

fn check_sizes(config: &SacConfig, obs_dim: usize, act_dim: usize) -> Result<(), SacError> {
    config.validate()?;
    for (name, value) in [("obs_dim", obs_dim), ("act_dim", act_dim)] {
        if value == 0 {
            return Err(SacError::Config {
                name,
                value: "0".to_owned(),
                expected: "at least 1",
            });
        }
    }
    Ok(())
}
