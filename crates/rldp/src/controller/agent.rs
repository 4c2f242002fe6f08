//! The Soft Actor-Critic agent as a controller.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use rldp_sac::{PolicyContents, Sac, SacConfig, Transition};
use serde::{Deserialize, Serialize};

use super::observation::FEATURES;
use super::{Bounds, Controller, Decision, Observation, Outcome, WarmUpRule, from_state, to_state};
use crate::error::RldpError;

/// Components of a row's action.
const ACTION: usize = 3;
/// The policy's file in a run folder.
const POLICY_FILE: &str = "sac_policy.safetensors";
/// The whole agent's file in a checkpoint.
const AGENT_FILE: &str = "agent.safetensors";

/// One row per adapter, and one for the run.
type Rows = Vec<Vec<f32>>;

/// How the agent learns within a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentOptions {
    /// Decisions that follow the warm-up rule exactly before the policy is asked.
    pub warm_up: usize,
    /// Gradient updates of the agent after every decision: a run gives few transitions, so each is used often.
    pub updates: usize,
    /// Factor on the reward (nats of validation loss fallen), so that rewards are of order one.
    pub reward_scale: f64,
    /// Ranges of the actions.
    pub bounds: Bounds,
    /// A saved policy to start from.
    pub policy: Option<PathBuf>,
    /// The learner itself.
    pub sac: SacConfig,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            warm_up: 2,
            updates: 32,
            reward_scale: 10.0,
            bounds: Bounds::default(),
            policy: None,
            // Few transitions: a short horizon, two-step returns, a fast learner, and a start close to the rule.
            sac: SacConfig::default()
                .with_random_steps(0)
                .with_initial_std(Some(0.3))
                .with_learning_rate(1e-3)
                .with_discount(0.9)
                .with_horizon(2)
                .with_batch_size(32)
                .with_layer_norm(true),
        }
    }
}

/// RLDP's controller: a Soft Actor-Critic policy, shared over adapters, that moves the settings around the warm-up
/// rule and learns during the run (Khadangi et al. 2025; Haarnoja et al. 2018).
pub struct AgentController {
    options: AgentOptions,
    rule: WarmUpRule,
    sac: Sac,
    decisions: usize,
    last_factor: f64,
    /// Observation and action of the decision whose outcome is awaited.
    pending: Option<(Rows, Rows)>,
}

impl AgentController {
    /// An agent for adapters of the given dimensions. `seed` drives initial weights and exploration, which need no
    /// secrecy: all that the agent sees is released already.
    ///
    /// # Errors
    /// As [`WarmUpRule::new`]; [`RldpError::Sac`] for bad options or an unreadable policy file.
    pub fn new(
        dimensions: &[usize],
        clipping_norm: f64,
        options: AgentOptions,
        seed: u64,
        device: &Device,
    ) -> Result<Self, RldpError> {
        let rule = WarmUpRule::new(dimensions, clipping_norm)?;
        let config = options.sac.clone().with_updates_per_step(options.updates);
        let mut sac = Sac::new(config, FEATURES, ACTION, seed, device)?;
        if let Some(path) = &options.policy {
            sac.load_policy(path)?;
        }
        Ok(Self {
            options,
            rule,
            sac,
            decisions: 0,
            last_factor: 1.0,
            pending: None,
        })
    }
}

/// What an [`AgentController`] remembers beside the agent itself.
#[derive(Serialize, Deserialize)]
struct AgentState {
    rule: WarmUpRule,
    decisions: usize,
    last_factor: f64,
    pending: Option<(Rows, Rows)>,
}

impl Controller for AgentController {
    fn name(&self) -> &'static str {
        "sac"
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        let features = observation.features();
        let action = if self.decisions < self.options.warm_up {
            vec![vec![0.0; ACTION]; features.len()]
        } else {
            self.sac.act(&features.clone().into(), true)?
        };
        self.decisions += 1;
        let decision = self
            .rule
            .moved(&action, &self.options.bounds, self.last_factor);
        self.last_factor = decision.learning_rate_factor;
        self.pending = Some((features, action));
        Ok(decision)
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError> {
        self.rule
            .follow(outcome.next.adapters.iter().map(|a| a.clipped_fraction));
        let Some((observation, action)) = self.pending.take() else {
            return Ok(());
        };
        self.sac.observe(Transition {
            observation: observation.into(),
            action,
            reward: self.options.reward_scale * outcome.reward.get(),
            next_observation: outcome.next.features().into(),
            terminated: outcome.finished,
            truncated: false,
        })?;
        // None while multi-step returns wait for their rewards.
        self.sac.learn()?;
        Ok(())
    }

    fn save_state(&self, folder: &Path) -> Result<serde_json::Value, RldpError> {
        self.sac.save(folder.join(AGENT_FILE))?;
        to_state(&AgentState {
            rule: self.rule.clone(),
            decisions: self.decisions,
            last_factor: self.last_factor,
            pending: self.pending.clone(),
        })
    }

    fn restore_state(&mut self, state: &serde_json::Value, folder: &Path) -> Result<(), RldpError> {
        let state: AgentState = from_state(state, folder)?;
        let device = self.sac.learner().device().clone();
        self.sac = Sac::load(folder.join(AGENT_FILE), &device)?;
        self.rule = state.rule;
        self.decisions = state.decisions;
        self.last_factor = state.last_factor;
        self.pending = state.pending;
        Ok(())
    }

    fn save(&self, folder: &Path) -> Result<Vec<String>, RldpError> {
        let description = serde_json::json!({
            "trained_by": "rldp",
            "features": FEATURES,
            "actions": ACTION,
            "decisions": self.decisions,
        });
        let path = folder.join(POLICY_FILE);
        self.sac
            .save_policy(path, PolicyContents::ActorAndCritics, description)?;
        Ok(vec![POLICY_FILE.to_owned()])
    }
}
