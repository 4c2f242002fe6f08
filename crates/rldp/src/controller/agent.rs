//! The Soft Actor-Critic agent as a controller.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use rldp_sac::{AgentReduction, PolicyContents, Sac, SacConfig, Transition};
use serde::{Deserialize, Serialize};

use super::{
    ACTION, ActionSpace, Bounds, Controller, ControllerSetup, Decision, FEATURES, Observation,
    Outcome, WarmUpRule, from_state, to_state,
};
use crate::error::RldpError;

mod shipped;

pub use shipped::shipped_policy;

/// The policy's file in a run folder.
const POLICY_FILE: &str = "sac_policy.safetensors";
/// The whole agent's file in a checkpoint.
const AGENT_FILE: &str = "agent.safetensors";

/// Losses below this many nats count as this in the reward: released losses are noisy and can be negative.
const LOSS_FLOOR: f64 = 0.05;

/// One row per adapter, and those for the run.
type Rows = Vec<Vec<f32>>;

/// How the agent learns within a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AgentOptions {
    /// Decisions that follow the warm-up rule exactly before the policy is asked.
    pub warm_up: usize,
    /// Gradient updates of the agent after every decision: a run gives few transitions, so each is used often.
    pub updates: usize,
    /// Factor on the reward (fall of the validation loss's logarithm), so that rewards are of order one.
    pub reward_scale: f64,
    /// Noise in a reward, as a standard deviation, above which the agent acts by its policy's mode and learns nothing: what
    /// is heard there is the noise of the held-out loss, and exploration is not paid back. Public: it follows from the
    /// held-out part's size and budget.
    pub loudest_noise: f64,
    /// Weigh the rows of the run as much as all adapters' rows together; else every row weighs the same.
    pub balanced: bool,
    /// Ranges of the actions.
    pub bounds: Bounds,
    /// A saved policy to start from; `None` for the one that this crate ships, if it ships one.
    pub policy: Option<PathBuf>,
    /// Start from random weights, whatever policy there is.
    pub from_scratch: bool,
    /// Act by the policy's mode and learn nothing.
    pub frozen: bool,
    /// The learner itself.
    pub sac: SacConfig,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            warm_up: 1,
            updates: 32,
            reward_scale: 10.0,
            loudest_noise: 0.5,
            balanced: true,
            bounds: Bounds::default(),
            policy: None,
            from_scratch: false,
            frozen: false,
            // Few transitions: four-step returns, a fast learner, and a start close to the rule. What counts is the loss at the
            // end, so the future is hardly discounted.
            sac: SacConfig::default()
                .with_random_steps(0)
                .with_initial_std(Some(0.3))
                .with_learning_rate(1e-3)
                .with_discount(0.98)
                .with_horizon(4)
                .with_batch_size(32)
                .with_layer_norm(true),
        }
    }
}

/// RLDP's controller: a Soft Actor-Critic policy, shared over adapters, that moves the settings around the warm-up
/// rule and learns during the run (Khadangi et al. 2025; Haarnoja et al. 2018).
pub struct AgentController {
    name: &'static str,
    options: AgentOptions,
    actions: ActionSpace,
    rule: WarmUpRule,
    sac: Sac,
    decisions: usize,
    last_factor: f64,
    /// What is taken off the rewards to come: see [`AgentController::with_baseline`].
    baseline: Vec<f64>,
    /// Observation and action of the decision whose outcome is awaited.
    pending: Option<(Rows, Rows)>,
}

impl AgentController {
    /// An agent for a run. `seed` drives initial weights and exploration, which need no secrecy: all that the agent sees is
    /// released already.
    ///
    /// # Errors
    /// As [`WarmUpRule::new`]; [`RldpError::Sac`] for bad options or an unreadable policy file.
    pub fn new(setup: &ControllerSetup, seed: u64, device: &Device) -> Result<Self, RldpError> {
        let options = &setup.agent;
        let mut config = options.sac.clone().with_updates_per_step(options.updates);
        if config.target_entropy.is_none() {
            config = config.with_target_entropy(Some(setup.actions().target_entropy()));
        }
        if options.balanced {
            let solo = setup.actions().solo_rows();
            config = config.with_joint_log_prob(AgentReduction::Balanced { solo });
        }
        let mut sac = Sac::new(config, FEATURES, ACTION, seed, device)?;
        if !options.from_scratch {
            match &options.policy {
                Some(path) => {
                    sac.load_policy(path)?;
                }
                None => shipped::load(&mut sac)?,
            }
        }
        Self::with_agent(setup, sac)
    }

    /// The controller of a run for an agent that may have learned from other runs already, each of which must have had as
    /// many adapters.
    ///
    /// # Errors
    /// As [`WarmUpRule::new`].
    pub fn with_agent(setup: &ControllerSetup, mut sac: Sac) -> Result<Self, RldpError> {
        sac.abandon_episode();
        Ok(Self {
            name: "sac",
            options: setup.agent.clone(),
            actions: setup.actions(),
            rule: WarmUpRule::new(&setup.dimensions, setup.clipping_norm)?
                .following_descent(setup.batch_size),
            sac,
            decisions: 0,
            last_factor: 1.0,
            baseline: Vec::new(),
            pending: None,
        })
    }

    /// The same controller, whose k-th reward is what it earned beyond what another run earned in the same interval:
    /// `losses` are that run's validation losses, the first one and that after every interval. With the warm-up rule under the
    /// same seed as the other run, all that the two have in common falls out of the reward, and what the agent did is left.
    /// For pre-training on public runs.
    #[must_use]
    pub fn with_baseline(mut self, losses: &[f64]) -> Self {
        let pairs = losses.windows(2);
        self.baseline = pairs.map(|pair| reward(pair[0], pair[1])).collect();
        self
    }

    /// Whether rewards can be told from the noise in them: see [`AgentOptions::loudest_noise`].
    fn hears(&self, seen: &Observation) -> bool {
        let loss = seen.validation_loss.get().max(LOSS_FLOOR);
        let noise = self.options.reward_scale * std::f64::consts::SQRT_2 * seen.loss_noise / loss;
        noise <= self.options.loudest_noise
    }

    /// The same controller under the name of an arm.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// The agent with all that it learned.
    #[must_use]
    pub fn into_agent(self) -> Sac {
        self.sac
    }

    /// The agent.
    #[must_use]
    pub fn agent(&self) -> &Sac {
        &self.sac
    }
}

/// The reward for a fall of the released validation loss: the fall of its logarithm. It adds up to that of the whole run
/// however the run is cut, and a percent is worth the same at the start, where losses fall by nats, as at the end.
fn reward(before: f64, after: f64) -> f64 {
    (before.max(LOSS_FLOOR) / after.max(LOSS_FLOOR)).ln()
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
        self.name
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        let features = self.actions.features(observation);
        let action = if self.decisions < self.options.warm_up {
            vec![vec![0.0; ACTION]; features.len()]
        } else {
            let explore = !self.options.frozen && self.hears(observation);
            self.sac.act(&features.clone().into(), explore)?
        };
        self.decisions += 1;
        let decision = self.actions.apply(&self.rule, &action, self.last_factor);
        self.last_factor = decision.learning_rate_factor / self.rule.learning_rate_factor();
        self.pending = Some((features, action));
        Ok(decision)
    }

    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError> {
        self.rule.follow(&outcome.next);
        let Some((observation, action)) = self.pending.take() else {
            return Ok(());
        };
        if self.options.frozen {
            return Ok(());
        }
        if !self.hears(&outcome.next) {
            // What follows is not the next step of what was stored.
            self.sac.abandon_episode();
            return Ok(());
        }
        let after = outcome.next.validation_loss.get();
        let baseline = self.decisions.checked_sub(1);
        let baseline = baseline.and_then(|index| self.baseline.get(index));
        let reward = reward(after + outcome.reward.get(), after) - baseline.unwrap_or(&0.0);
        self.sac.observe(Transition {
            observation: observation.into(),
            action,
            reward: self.options.reward_scale * reward,
            next_observation: self.actions.features(&outcome.next).into(),
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
            "controller": self.name,
            "actions": ACTION,
            "decisions": self.decisions,
        });
        let path = folder.join(POLICY_FILE);
        self.sac
            .save_policy(path, PolicyContents::ActorAndCritics, description)?;
        Ok(vec![POLICY_FILE.to_owned()])
    }
}
