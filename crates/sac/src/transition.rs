//! What the environment and the agent exchange.

use serde::{Deserialize, Serialize};

use crate::error::SacError;
use crate::learner::check_size;

/// What the agents see: one row of features per agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// `agents` rows of `obs_dim` features.
    pub agents: Vec<Vec<f32>>,
}

impl Observation {
    /// An observation of one agent.
    #[must_use]
    pub fn single(features: Vec<f32>) -> Self {
        Self {
            agents: vec![features],
        }
    }
}

impl From<Vec<Vec<f32>>> for Observation {
    fn from(agents: Vec<Vec<f32>>) -> Self {
        Self { agents }
    }
}

/// One step of an environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// What the agents saw.
    pub observation: Observation,
    /// What they then did: `agents` rows of `act_dim` values in [-1, 1].
    pub action: Vec<Vec<f32>>,
    /// What that action earned (not what an earlier one did).
    pub reward: f64,
    /// What they saw next.
    pub next_observation: Observation,
    /// The episode ended in a state without future: nothing is earned after it.
    pub terminated: bool,
    /// The episode was cut off (a time limit): the next state still has a value, which is bootstrapped.
    pub truncated: bool,
}

/// Flat rows, checked: `agents` of them, each `width` finite values.
pub(crate) fn flatten_rows(
    what: &'static str,
    width_name: &'static str,
    rows: &[Vec<f32>],
    width: usize,
) -> Result<Vec<f32>, SacError> {
    let mut flat = Vec::with_capacity(rows.len() * width);
    for (agent, row) in rows.iter().enumerate() {
        check_size(width_name, row.len(), width)?;
        if let Some(feature) = row.iter().position(|value| !value.is_finite()) {
            return Err(SacError::NonFinite {
                what,
                value: f64::from(row[feature]),
                agent,
                feature,
            });
        }
        flat.extend_from_slice(row);
    }
    Ok(flat)
}

/// A reward that fits `f32`.
pub(crate) fn check_reward(reward: f64) -> Result<(), SacError> {
    match (reward as f32).is_finite() {
        true => Ok(()),
        false => Err(SacError::NonFinite {
            what: "reward",
            value: reward,
            agent: 0,
            feature: 0,
        }),
    }
}

/// Action components within [-1, 1].
pub(crate) fn check_action_range(action: &[f32], act_dim: usize) -> Result<(), SacError> {
    match action.iter().position(|value| value.abs() > 1.0) {
        None => Ok(()),
        Some(index) => Err(SacError::ActionRange {
            value: f64::from(action[index]),
            agent: index / act_dim,
            dimension: index % act_dim,
        }),
    }
}
