//! The agent behind burn-rl's traits, for those who drive it with burn-rl's buffer or burn-train's loop.

use burn::tensor::{Device, Int, Tensor, TensorData};
use burn_rl::{
    Batchable, LearnerTransitionBatch, PolicyLearner, PolicyState, RLTrainOutput, SliceAccess,
    TransitionBuffer,
};

use crate::actor::{Actor, Gaussian};
use crate::batch::{Batch, UpdateReport};
use crate::config::AgentReduction;
use crate::error::SacError;
use crate::learner::Learner;
use crate::replay::{ReplayBuffer, ReplayShape};
use crate::rng::AgentRng;

/// Rows of agents, `[batch, agents, features]`: observations or actions, as burn-rl's traits want them.
#[derive(Clone, Debug)]
pub struct AgentRows(pub Tensor<3>);

fn split(tensor: Tensor<3>) -> impl Iterator<Item = Tensor<3>> {
    let rows = tensor.dims()[0];
    (0..rows).map(move |row| tensor.clone().narrow(0, row, 1))
}

impl Batchable for AgentRows {
    fn batch(rows: Vec<Self>) -> Self {
        Self(Tensor::cat(rows.into_iter().map(|row| row.0).collect(), 0))
    }

    fn unbatch(self) -> Vec<Self> {
        split(self.0).map(Self).collect()
    }
}

impl SliceAccess for AgentRows {
    fn zeros_like(sample: &Self, capacity: usize, device: &Device) -> Self {
        let [_, agents, features] = sample.0.dims();
        Self(Tensor::zeros([capacity, agents, features], device))
    }

    fn select(self, dim: usize, indices: Tensor<1, Int>) -> Self {
        Self(self.0.select(dim, indices))
    }

    fn slice_assign_inplace(&mut self, index: usize, value: Self) {
        self.0
            .inplace(|tensor| tensor.slice_assign(index..index + 1, value.0));
    }
}

impl Batchable for Gaussian {
    fn batch(rows: Vec<Self>) -> Self {
        let (mean, log_std) = rows.into_iter().map(|row| (row.mean, row.log_std)).unzip();
        Self {
            mean: Tensor::cat(mean, 0),
            log_std: Tensor::cat(log_std, 0),
        }
    }

    fn unbatch(self) -> Vec<Self> {
        split(self.mean)
            .zip(split(self.log_std))
            .map(|(mean, log_std)| Self { mean, log_std })
            .collect()
    }
}

/// The actor as a burn-rl policy.
#[derive(Clone)]
pub struct SacPolicy {
    actor: Actor,
    reduction: AgentReduction,
    rng: AgentRng,
}

/// The actor's parameters as burn-rl hands them around.
#[derive(Clone)]
pub struct SacPolicyState(Actor);

impl PolicyState for SacPolicyState {
    type Record = Actor;

    fn into_record(self) -> Actor {
        self.0
    }

    fn load_record(&self, record: Actor) -> Self {
        Self(record)
    }
}

impl burn_rl::Policy for SacPolicy {
    type Observation = AgentRows;
    type ActionDistribution = Gaussian;
    type Action = AgentRows;
    type ActionContext = ();
    type PolicyState = SacPolicyState;

    fn forward(&mut self, observations: AgentRows) -> Gaussian {
        self.actor.forward(observations.0)
    }

    fn action(&mut self, observations: AgentRows, deterministic: bool) -> (AgentRows, Vec<()>) {
        let device = observations.0.device();
        let distribution = self.actor.forward(observations.0);
        let shape = distribution.mean.dims();
        let action = if deterministic {
            distribution.mode()
        } else {
            let noise = TensorData::new(self.rng.normals(shape.iter().product()), shape);
            distribution
                .sample(Tensor::from_data(noise, &device), self.reduction)
                .action
        };
        (AgentRows(action), vec![(); shape[0]])
    }

    fn update(&mut self, update: SacPolicyState) {
        self.actor = update.0;
    }

    fn state(&self) -> SacPolicyState {
        SacPolicyState(self.actor.clone())
    }

    fn to_device(self, device: &Device) -> Self {
        let actor = burn::module::Module::to_device(self.actor, device);
        Self { actor, ..self }
    }

    fn load_record(self, record: Actor) -> Self {
        Self {
            actor: record,
            ..self
        }
    }
}

/// A [`Learner`] as a burn-rl learner: it trains on batches of one-step transitions.
#[derive(Clone)]
pub struct SacTrainer {
    learner: Learner,
    rng: AgentRng,
}

impl SacTrainer {
    /// Wraps a learner.
    #[must_use]
    pub fn new(learner: Learner, seed: u64) -> Self {
        Self {
            learner,
            rng: AgentRng::new(seed),
        }
    }

    /// The learner inside.
    #[must_use]
    pub fn learner(&self) -> &Learner {
        &self.learner
    }
}

impl PolicyLearner for SacTrainer {
    type TrainContext = Result<UpdateReport, SacError>;
    type InnerPolicy = SacPolicy;
    type Record = Learner;

    fn train(
        &mut self,
        input: LearnerTransitionBatch<SacPolicy>,
    ) -> RLTrainOutput<Self::TrainContext, SacPolicyState> {
        let device = self.learner.device().clone();
        let size = input.rewards.dims()[0];
        let line = |tensor: Tensor<2>| tensor.to_device(&device).inner().reshape([size]);
        let discount = self.learner.config().discount;
        let batch = Batch {
            observations: input.states.0.to_device(&device).inner(),
            actions: input.actions.0.to_device(&device).inner(),
            next_observations: input.next_states.0.to_device(&device).inner(),
            rewards: line(input.rewards),
            discounts: (line(input.dones).neg() + 1.0).mul_scalar(discount),
        };
        let item = self.learner.update(&batch, &mut self.rng);
        RLTrainOutput {
            policy: SacPolicyState(self.learner.frozen_actor().clone()),
            item,
        }
    }

    fn policy(&self) -> SacPolicy {
        SacPolicy {
            actor: self.learner.frozen_actor().clone(),
            reduction: self.learner.config().joint_log_prob,
            rng: self.rng.clone(),
        }
    }

    fn update_policy(&mut self, update: SacPolicy) {
        self.learner.set_actor(&update.actor);
    }

    fn record(&self) -> Learner {
        self.learner.clone()
    }

    fn load_record(self, record: Learner) -> Self {
        Self {
            learner: record,
            ..self
        }
    }

    fn device(&self) -> Device {
        self.learner.device().clone()
    }
}

impl ReplayBuffer {
    /// A burn-rl buffer with the same transitions, oldest first. Made for a horizon of one step: burn-rl's transition has a
    /// flag for the end, and no discount.
    #[must_use]
    pub fn to_burn_rl(&self, device: &Device) -> TransitionBuffer<AgentRows, AgentRows> {
        let ReplayShape {
            agents,
            obs_dim,
            act_dim,
        } = self.shape();
        let rows = |values, width| {
            AgentRows(Tensor::from_data(
                TensorData::new::<f32, _>(values, [1, agents, width]),
                device,
            ))
        };
        let mut buffer = TransitionBuffer::new(self.capacity(), device);
        for stored in self.in_order() {
            buffer.push(
                rows(stored.observation, obs_dim),
                rows(stored.next_observation, obs_dim),
                rows(stored.action, act_dim),
                stored.reward,
                stored.discount == 0.0,
            );
        }
        buffer
    }
}
