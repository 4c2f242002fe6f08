//! The accumulator of n-step returns.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::replay::StoredTransition;

/// Forms n-step returns: every action is credited with the rewards from its own step on, and with no earlier one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepAccumulator {
    horizon: usize,
    discount: f64,
    pending: VecDeque<PendingStep>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PendingStep {
    observation: Vec<f32>,
    action: Vec<f32>,
    reward: f64,
}

impl StepAccumulator {
    /// Sums up to `horizon` rewards with discount `discount`.
    #[must_use]
    pub fn new(horizon: usize, discount: f64) -> Self {
        Self {
            horizon: horizon.max(1),
            discount,
            pending: VecDeque::new(),
        }
    }

    /// Takes in a step and returns the transitions that it completes: one once `horizon` steps are there, and all the
    /// remaining shorter ones where the episode ends.
    pub fn push(
        &mut self,
        observation: Vec<f32>,
        action: Vec<f32>,
        reward: f64,
        next_observation: &[f32],
        terminated: bool,
        truncated: bool,
    ) -> Vec<StoredTransition> {
        self.pending.push_back(PendingStep {
            observation,
            action,
            reward,
        });
        let mut done = Vec::new();
        while self.pending.len() >= self.horizon
            || ((terminated || truncated) && !self.pending.is_empty())
        {
            let steps = self.pending.len();
            let sum = self
                .pending
                .iter()
                .rev()
                .fold(0.0, |sum, step| step.reward + self.discount * sum);
            let Some(first) = self.pending.pop_front() else {
                break;
            };
            let bootstrap = if terminated {
                0.0
            } else {
                self.discount.powi(steps as i32)
            };
            done.push(StoredTransition {
                observation: first.observation,
                action: first.action,
                next_observation: next_observation.to_vec(),
                reward: sum as f32,
                discount: bootstrap as f32,
            });
        }
        done
    }

    /// Forgets the steps of an unfinished episode.
    pub fn clear(&mut self) {
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(horizon: usize, steps: usize, terminated: bool) -> Vec<StoredTransition> {
        let mut accumulator = StepAccumulator::new(horizon, 0.5);
        (0..steps)
            .flat_map(|step| {
                let last = step + 1 == steps;
                let here = vec![step as f32];
                let (ends, cut) = (last && terminated, last && !terminated);
                accumulator.push(
                    here.clone(),
                    here,
                    (step + 1) as f64,
                    &[step as f32 + 1.0],
                    ends,
                    cut,
                )
            })
            .collect()
    }

    #[test]
    fn one_step_keeps_each_reward_with_its_action() {
        for (step, stored) in run(1, 4, true).iter().enumerate() {
            assert_eq!(stored.action, [step as f32]);
            assert_eq!(stored.reward, step as f32 + 1.0);
            assert_eq!(stored.next_observation, [step as f32 + 1.0]);
            assert_ne!(stored.next_observation, stored.observation);
            assert_eq!(stored.discount, if step == 3 { 0.0 } else { 0.5 });
        }
    }

    #[test]
    fn three_steps_sum_and_end_shorter() {
        let stored = run(3, 4, false);
        let rewards: Vec<f32> = stored.iter().map(|s| s.reward).collect();
        assert_eq!(rewards, [1.0 + 1.0 + 0.75, 2.0 + 1.5 + 1.0, 3.0 + 2.0, 4.0]);
        let discounts: Vec<f32> = stored.iter().map(|s| s.discount).collect();
        assert_eq!(
            discounts,
            [0.125, 0.125, 0.25, 0.5],
            "cut off, so bootstrapped"
        );
        assert!(
            run(3, 4, true).iter().skip(1).all(|s| s.discount == 0.0),
            "terminal, so nothing follows"
        );
        let actions: Vec<f32> = stored.iter().map(|s| s.action[0]).collect();
        assert_eq!(actions, [0.0, 1.0, 2.0, 3.0]);
    }
}
