//! The replay buffer of transitions whose n-step returns are formed.
//!
//! burn-rl's `TransitionBuffer` keeps its storage private, has no record, and draws from the device's global generator, so
//! a run that uses it can neither be checkpointed nor resumed. This buffer stores on the host, draws from the agent's own
//! generator, and [hands out](ReplayBuffer::to_burn_rl) a burn-rl buffer or batch where one is wanted.

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::error::SacError;
use crate::learner::check_size;
use crate::normalize::RunningNormalizer;
use crate::rng::AgentRng;
use crate::tensors::TensorMap;

/// One stored transition: sums of n rewards are already formed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredTransition {
    /// `agents * obs_dim` values.
    pub observation: Vec<f32>,
    /// `agents * act_dim` values.
    pub action: Vec<f32>,
    /// `agents * obs_dim` values.
    pub next_observation: Vec<f32>,
    /// Sum of discounted rewards.
    pub reward: f32,
    /// Weight of the next observation's value; 0 after a terminal state.
    pub discount: f32,
}

/// Shape of what a buffer stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayShape {
    /// Agents of every transition.
    pub agents: usize,
    /// Observation features of one agent.
    pub obs_dim: usize,
    /// Action dimensions of one agent.
    pub act_dim: usize,
}

/// A ring of transitions, all of the same shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayBuffer {
    shape: ReplayShape,
    capacity: usize,
    /// Where the next transition goes.
    head: usize,
    observations: Vec<f32>,
    actions: Vec<f32>,
    next_observations: Vec<f32>,
    rewards: Vec<f32>,
    discounts: Vec<f32>,
}

/// The part of a buffer that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReplayState {
    shape: ReplayShape,
    capacity: usize,
    head: usize,
    len: usize,
}

impl ReplayBuffer {
    /// An empty buffer.
    #[must_use]
    pub fn new(capacity: usize, shape: ReplayShape) -> Self {
        Self {
            shape,
            capacity: capacity.max(1),
            head: 0,
            observations: Vec::new(),
            actions: Vec::new(),
            next_observations: Vec::new(),
            rewards: Vec::new(),
            discounts: Vec::new(),
        }
    }

    /// What it stores.
    #[must_use]
    pub fn shape(&self) -> ReplayShape {
        self.shape
    }

    /// Transitions held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rewards.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rewards.is_empty()
    }

    /// Adds a transition, over the oldest one if full.
    ///
    /// # Errors
    ///
    /// [`SacError::Shape`] where a size differs from the buffer's.
    pub fn push(&mut self, transition: &StoredTransition) -> Result<(), SacError> {
        let ReplayShape {
            agents,
            obs_dim,
            act_dim,
        } = self.shape;
        check_size(
            "observation values",
            transition.observation.len(),
            agents * obs_dim,
        )?;
        check_size("action values", transition.action.len(), agents * act_dim)?;
        check_size(
            "next observation values",
            transition.next_observation.len(),
            agents * obs_dim,
        )?;
        let at = self.head;
        put(&mut self.observations, at, &transition.observation);
        put(&mut self.actions, at, &transition.action);
        put(
            &mut self.next_observations,
            at,
            &transition.next_observation,
        );
        put(&mut self.rewards, at, &[transition.reward]);
        put(&mut self.discounts, at, &[transition.discount]);
        self.head = (at + 1) % self.capacity;
        Ok(())
    }

    /// The transition in slot `index` (slots are reused in order once the buffer is full).
    #[must_use]
    pub fn get(&self, index: usize) -> Option<StoredTransition> {
        let ReplayShape {
            agents,
            obs_dim,
            act_dim,
        } = self.shape;
        Some(StoredTransition {
            reward: *self.rewards.get(index)?,
            discount: *self.discounts.get(index)?,
            observation: row(&self.observations, index, agents * obs_dim).to_vec(),
            action: row(&self.actions, index, agents * act_dim).to_vec(),
            next_observation: row(&self.next_observations, index, agents * obs_dim).to_vec(),
        })
    }

    /// A batch drawn uniformly with replacement, normalised on the way out so that stored values stay as they came.
    ///
    /// # Errors
    ///
    /// [`SacError::EmptyReplay`] where nothing is held.
    pub fn sample(
        &self,
        size: usize,
        normalizer: Option<(&RunningNormalizer, f64)>,
        reward_scale: Option<(f64, f64)>,
        rng: &mut AgentRng,
        device: &Device,
    ) -> Result<Batch, SacError> {
        if self.is_empty() {
            return Err(SacError::EmptyReplay);
        }
        let picks: Vec<usize> = (0..size).map(|_| rng.below(self.len())).collect();
        let mut batch = self.gather(&picks);
        if let Some((normalizer, limit)) = normalizer {
            normalizer.apply(&mut batch.observations, limit);
            normalizer.apply(&mut batch.next_observations, limit);
        }
        if let Some((divisor, limit)) = reward_scale {
            for reward in &mut batch.rewards {
                *reward = (f64::from(*reward) / divisor).clamp(-limit, limit) as f32;
            }
        }
        Ok(batch.into_batch(self.shape, device))
    }

    fn gather(&self, picks: &[usize]) -> HostBatch {
        let ReplayShape {
            agents,
            obs_dim,
            act_dim,
        } = self.shape;
        let rows = |source: &[f32], width: usize| {
            picks
                .iter()
                .flat_map(|&index| row(source, index, width))
                .copied()
                .collect()
        };
        HostBatch {
            observations: rows(&self.observations, agents * obs_dim),
            actions: rows(&self.actions, agents * act_dim),
            next_observations: rows(&self.next_observations, agents * obs_dim),
            rewards: rows(&self.rewards, 1),
            discounts: rows(&self.discounts, 1),
        }
    }

    /// Everything held, oldest first.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = StoredTransition> + '_ {
        let start = if self.len() < self.capacity {
            0
        } else {
            self.head
        };
        (0..self.len()).filter_map(move |offset| self.get((start + offset) % self.len()))
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn export(&self, map: &mut TensorMap) -> ReplayState {
        let ReplayShape {
            agents,
            obs_dim,
            act_dim,
        } = self.shape;
        let len = self.len();
        map.insert(
            "replay.observations",
            vec![len, agents, obs_dim],
            self.observations.clone(),
        );
        map.insert(
            "replay.actions",
            vec![len, agents, act_dim],
            self.actions.clone(),
        );
        map.insert(
            "replay.next_observations",
            vec![len, agents, obs_dim],
            self.next_observations.clone(),
        );
        map.insert("replay.rewards", vec![len], self.rewards.clone());
        map.insert("replay.discounts", vec![len], self.discounts.clone());
        ReplayState {
            shape: self.shape,
            capacity: self.capacity,
            head: self.head,
            len,
        }
    }

    pub(crate) fn restore(state: &ReplayState, map: &TensorMap) -> Result<Self, SacError> {
        let ReplayState {
            shape,
            capacity,
            head,
            len,
        } = *state;
        let ReplayShape {
            agents,
            obs_dim,
            act_dim,
        } = shape;
        Ok(Self {
            shape,
            capacity: capacity.max(1),
            head: head % capacity.max(1),
            observations: map
                .get("replay.observations", &[len, agents, obs_dim])?
                .to_vec(),
            actions: map.get("replay.actions", &[len, agents, act_dim])?.to_vec(),
            next_observations: map
                .get("replay.next_observations", &[len, agents, obs_dim])?
                .to_vec(),
            rewards: map.get("replay.rewards", &[len])?.to_vec(),
            discounts: map.get("replay.discounts", &[len])?.to_vec(),
        })
    }
}

struct HostBatch {
    observations: Vec<f32>,
    actions: Vec<f32>,
    next_observations: Vec<f32>,
    rewards: Vec<f32>,
    discounts: Vec<f32>,
}

impl HostBatch {
    fn into_batch(self, shape: ReplayShape, device: &Device) -> Batch {
        let ReplayShape {
            agents,
            obs_dim,
            act_dim,
        } = shape;
        let size = self.rewards.len();
        let cube = |values, width| {
            Tensor::from_data(
                TensorData::new::<f32, _>(values, [size, agents, width]),
                device,
            )
        };
        let line = |values| Tensor::from_data(TensorData::new::<f32, _>(values, [size]), device);
        Batch {
            observations: cube(self.observations, obs_dim),
            actions: cube(self.actions, act_dim),
            next_observations: cube(self.next_observations, obs_dim),
            rewards: line(self.rewards),
            discounts: line(self.discounts),
        }
    }
}

fn row(source: &[f32], index: usize, width: usize) -> &[f32] {
    &source[index * width..(index + 1) * width]
}

/// Writes a row at its slot, growing the storage by one row where the slot is the next new one.
fn put(target: &mut Vec<f32>, at: usize, values: &[f32]) {
    match target.get_mut(at * values.len()..(at + 1) * values.len()) {
        Some(slot) => slot.copy_from_slice(values),
        None => target.extend_from_slice(values),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_oldest_goes_first() {
        let shape = ReplayShape {
            agents: 1,
            obs_dim: 1,
            act_dim: 1,
        };
        let mut buffer = ReplayBuffer::new(3, shape);
        for step in [0.0, 1.0, 2.0, 3.0, 4.0] {
            let stored = StoredTransition {
                observation: vec![step],
                action: vec![step],
                next_observation: vec![step + 1.0],
                reward: step,
                discount: 0.5,
            };
            buffer.push(&stored).unwrap();
        }
        assert_eq!(buffer.len(), 3);
        let kept: Vec<f32> = buffer.in_order().map(|s| s.action[0]).collect();
        assert_eq!(kept, [2.0, 3.0, 4.0]);
        let mut map = TensorMap::default();
        let state = buffer.export(&mut map);
        assert_eq!(ReplayBuffer::restore(&state, &map).unwrap(), buffer);
    }
}
