//! The agent: learner, replay, normalisers and random state together.

use burn::tensor::{Device, Tensor, TensorData};

use crate::batch::UpdateReport;
use crate::config::SacConfig;
use crate::error::SacError;
use crate::learner::{Learner, check_size};
use crate::net::host;
use crate::normalize::{RewardScale, RunningNormalizer};
use crate::nstep::StepAccumulator;
use crate::replay::{ReplayBuffer, ReplayShape};
use crate::rng::{AgentRng, Stream};
use crate::transition::{Observation, Transition, check_action_range, check_reward, flatten_rows};

/// Actions handed out stay this far inside (-1, 1), so that their pre-image under tanh is finite.
const ACTION_MARGIN: f32 = 1e-6;

/// A Soft Actor-Critic agent for a set of agents that share their weights.
#[derive(Clone)]
pub struct Sac {
    pub(crate) learner: Learner,
    pub(crate) replay: Option<ReplayBuffer>,
    pub(crate) accumulator: StepAccumulator,
    pub(crate) normalizer: RunningNormalizer,
    pub(crate) reward_scale: RewardScale,
    pub(crate) explore_rng: AgentRng,
    pub(crate) learn_rng: AgentRng,
    pub(crate) steps: u64,
    /// A policy was loaded, so nothing is gained by acting at random first.
    pub(crate) pretrained: bool,
}

impl Sac {
    /// An untrained agent. The number of agents is fixed by the first transition that it observes.
    ///
    /// # Errors
    ///
    /// [`SacError::Config`] for a bad setting or a size of 0.
    pub fn new(
        config: SacConfig,
        obs_dim: usize,
        act_dim: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self, SacError> {
        let mut rng = AgentRng::with_stream(seed, Stream::Initial);
        let accumulator = StepAccumulator::new(config.horizon, config.discount);
        let reward_scale = RewardScale::new(config.discount);
        let learner = Learner::new(config, obs_dim, act_dim, &mut rng, device)?;
        Ok(Self {
            learner,
            replay: None,
            accumulator,
            normalizer: RunningNormalizer::new(obs_dim),
            reward_scale,
            explore_rng: AgentRng::with_stream(seed, Stream::Explore),
            learn_rng: AgentRng::with_stream(seed, Stream::Learn),
            steps: 0,
            pretrained: false,
        })
    }

    /// One action row per agent, each value inside (-1, 1): drawn from the policy (uniformly during the first
    /// [`random_steps`](SacConfig::random_steps)) if `explore`, else the policy's mode. Any number of agents will do.
    ///
    /// # Errors
    ///
    /// [`SacError::Shape`] or [`SacError::NonFinite`] for a bad observation.
    pub fn act(
        &mut self,
        observation: &Observation,
        explore: bool,
    ) -> Result<Vec<Vec<f32>>, SacError> {
        let agents = observation.agents.len();
        let act_dim = self.learner.act_dim();
        if agents == 0 {
            return Err(SacError::Shape {
                what: "number of agents",
                actual: 0,
                expected: 1,
            });
        }
        let input = self.observation_tensor(observation)?;
        let values = if explore && self.is_warming_up() {
            (0..agents * act_dim)
                .map(|_| (2.0 * self.explore_rng.uniform() - 1.0) as f32)
                .collect()
        } else {
            let distribution = self.learner.distribution(input);
            let actions = if explore {
                let noise = TensorData::new(
                    self.explore_rng.normals(agents * act_dim),
                    [1, agents, act_dim],
                );
                let noise = Tensor::from_data(noise, self.learner.device());
                distribution
                    .sample(noise, self.config().joint_log_prob)
                    .action
            } else {
                distribution.mode()
            };
            host(actions)?
        };
        Ok(to_action_rows(&values, act_dim))
    }

    fn observation_tensor(&self, observation: &Observation) -> Result<Tensor<3>, SacError> {
        let obs_dim = self.learner.obs_dim();
        let mut values = flatten_rows(
            "observation",
            "observation features",
            &observation.agents,
            obs_dim,
        )?;
        if self.config().normalize_observations {
            self.normalizer
                .apply(&mut values, self.config().normalized_limit);
        }
        let shape = [1, observation.agents.len(), obs_dim];
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.learner.device(),
        ))
    }

    /// Takes in one step of the environment.
    ///
    /// # Errors
    ///
    /// [`SacError::NonFinite`], [`SacError::ActionRange`] or [`SacError::Shape`] with the offending value; then the agent
    /// is as it was.
    pub fn observe(&mut self, transition: Transition) -> Result<(), SacError> {
        let Transition {
            observation,
            action,
            reward,
            next_observation,
            terminated,
            truncated,
        } = transition;
        let shape = ReplayShape {
            agents: observation.agents.len(),
            obs_dim: self.learner.obs_dim(),
            act_dim: self.learner.act_dim(),
        };
        let expected = self
            .replay
            .as_ref()
            .map_or(shape.agents.max(1), |replay| replay.shape().agents);
        check_size("number of agents", shape.agents, expected)?;
        check_size("number of action rows", action.len(), shape.agents)?;
        check_size(
            "number of agents in the next observation",
            next_observation.agents.len(),
            shape.agents,
        )?;
        let before = flatten_rows(
            "observation",
            "observation features",
            &observation.agents,
            shape.obs_dim,
        )?;
        let action = flatten_rows("action", "action dimensions", &action, shape.act_dim)?;
        check_action_range(&action, shape.act_dim)?;
        let name = "next observation";
        let after = flatten_rows(
            name,
            "next observation features",
            &next_observation.agents,
            shape.obs_dim,
        )?;
        check_reward(reward)?;

        before
            .chunks(shape.obs_dim)
            .for_each(|row| self.normalizer.observe(row));
        self.reward_scale.observe(reward, terminated || truncated);
        let capacity = self.config().replay_capacity;
        let stored = self
            .accumulator
            .push(before, action, reward, &after, terminated, truncated);
        let replay = self
            .replay
            .get_or_insert_with(|| ReplayBuffer::new(capacity, shape));
        for transition in &stored {
            replay.push(transition)?;
        }
        self.steps += 1;
        Ok(())
    }

    /// Makes `updates` updates from the replay buffer and reports their means.
    ///
    /// # Errors
    ///
    /// [`SacError::EmptyReplay`] before the first stored transition, [`SacError::NonFiniteLoss`] on divergence.
    pub fn update(&mut self, updates: usize) -> Result<UpdateReport, SacError> {
        let mut reports = Vec::with_capacity(updates);
        for _ in 0..updates {
            let config = self.learner.config();
            let limit = config.normalized_limit;
            let normalizer = config
                .normalize_observations
                .then_some((&self.normalizer, limit));
            let scale = config
                .normalize_rewards
                .then(|| (self.reward_scale.divisor(), limit));
            let replay = self.replay.as_ref().ok_or(SacError::EmptyReplay)?;
            let device = self.learner.device();
            let batch = replay.sample(
                config.batch_size,
                normalizer,
                scale,
                &mut self.learn_rng,
                device,
            )?;
            reports.push(self.learner.update(&batch, &mut self.learn_rng)?);
        }
        Ok(UpdateReport::mean(
            &reports,
            self.alpha(),
            self.learner.updates(),
        ))
    }

    /// Makes the [configured](SacConfig::updates_per_step) number of updates; `None` while still collecting the first
    /// [`random_steps`](SacConfig::random_steps) or before anything is stored. Call it once after each
    /// [`observe`](Self::observe).
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update).
    pub fn learn(&mut self) -> Result<Option<UpdateReport>, SacError> {
        if self.is_warming_up() || self.replay.as_ref().is_none_or(ReplayBuffer::is_empty) {
            return Ok(None);
        }
        self.update(self.config().updates_per_step).map(Some)
    }

    /// Ends the current episode without a transition: unfinished n-step sums are dropped, since what would have followed
    /// is unknown.
    pub fn abandon_episode(&mut self) {
        self.accumulator.clear();
    }

    /// Whether exploration is still uniform.
    #[must_use]
    pub fn is_warming_up(&self) -> bool {
        !self.pretrained && self.steps < self.config().random_steps
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &SacConfig {
        self.learner.config()
    }

    /// The temperature, alpha.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.learner.alpha()
    }

    /// Transitions observed.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The replay buffer; `None` before the first transition.
    #[must_use]
    pub fn replay(&self) -> Option<&ReplayBuffer> {
        self.replay.as_ref()
    }

    /// Networks and optimizers.
    #[must_use]
    pub fn learner(&self) -> &Learner {
        &self.learner
    }

    /// Networks and optimizers, to be trained on batches from elsewhere.
    pub fn learner_mut(&mut self) -> &mut Learner {
        &mut self.learner
    }
}

impl UpdateReport {
    fn mean(reports: &[Self], alpha: f64, updates: u64) -> Self {
        let mean = |values: Vec<f64>| match values.len() {
            0 => None,
            count => Some(values.iter().sum::<f64>() / count as f64),
        };
        let all =
            |field: fn(&Self) -> f64| mean(reports.iter().map(field).collect()).unwrap_or(0.0);
        let some =
            |field: fn(&Self) -> Option<f64>| mean(reports.iter().filter_map(field).collect());
        Self {
            critic_loss: all(|report| report.critic_loss),
            actor_loss: some(|report| report.actor_loss),
            temperature_loss: some(|report| report.temperature_loss),
            alpha,
            entropy: some(|report| report.entropy),
            mean_value: all(|report| report.mean_value),
            updates,
        }
    }
}

pub(crate) fn to_action_rows(values: &[f32], act_dim: usize) -> Vec<Vec<f32>> {
    let inside = |value: &f32| value.clamp(-1.0 + ACTION_MARGIN, 1.0 - ACTION_MARGIN);
    values
        .chunks(act_dim)
        .map(|row| row.iter().map(inside).collect())
        .collect()
}
