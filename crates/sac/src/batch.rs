//! What goes into an update and what comes out.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::actor::Sample;

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
