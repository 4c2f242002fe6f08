//! Settings of the agent.

use serde::{Deserialize, Serialize};

use crate::error::SacError;

/// How what is said of each agent (log-probabilities, values) becomes what is said of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentReduction {
    /// Mean over agents: temperature and entropy target keep their meaning whatever the number of agents.
    #[default]
    Mean,
    /// Sum over agents for log-probabilities: the exact one of the joint action. Values are averaged.
    Sum,
    /// Weighted mean, for agents of two sorts: the last `solo` agents each weigh as much as all the others together. Under
    /// [`AgentReduction::Mean`] an agent that is one of its kind among dozens of another hardly counts, though what it
    /// decides may matter most.
    Balanced {
        /// Agents at the end of the list that weigh as much as all the others together; without others all weigh the same.
        solo: usize,
    },
}

impl AgentReduction {
    /// Weights of `agents` agents, which sum to one; `None` where all weigh the same.
    pub(crate) fn weights(self, agents: usize) -> Option<Vec<f32>> {
        let Self::Balanced { solo } = self else {
            return None;
        };
        let solo = solo.min(agents);
        let others = agents - solo;
        if solo == 0 || others == 0 {
            return None;
        }
        let share = 1.0 / (solo + 1) as f64;
        let other = share / others as f64;
        let weights = std::iter::repeat_n(other, others).chain(std::iter::repeat_n(share, solo));
        Some(weights.map(|weight| weight as f32).collect())
    }
}

/// What the actor climbs when there are several critics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorObjective {
    /// The smallest of all critics, as in SAC.
    #[default]
    Minimum,
    /// The mean of all critics, as in REDQ and DroQ.
    Mean,
}

/// Settings of a [`Sac`](crate::Sac) agent. The defaults are plain SAC with nets of 64 x 64.
///
/// ```
/// use rldp_sac::SacConfig;
/// let config = SacConfig::default().with_hidden(vec![32, 32]).with_horizon(3);
/// assert_eq!(config.batch_size, 64);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SacConfig {
    /// Widths of the hidden layers of the actor and of every critic.
    pub hidden: Vec<usize>,
    /// Discount per step, gamma.
    pub discount: f64,
    /// Rate of the exponential average that the target critics are, tau.
    pub target_rate: f64,
    /// Adam step size of the actor.
    pub actor_learning_rate: f64,
    /// Adam step size of the critics.
    pub critic_learning_rate: f64,
    /// Adam step size of the log-temperature.
    pub temperature_learning_rate: f64,
    /// Transitions per update, drawn with replacement.
    pub batch_size: usize,
    /// Transitions kept; the oldest go first.
    pub replay_capacity: usize,
    /// Transitions to see before the policy explores and [`learn`](crate::Sac::learn) updates; until then exploration is
    /// uniform. Skipped after a policy was loaded.
    pub random_steps: u64,
    /// Updates that [`learn`](crate::Sac::learn) makes per observed transition (the update-to-data ratio).
    pub updates_per_step: usize,
    /// The actor and the temperature move once in this many critic updates.
    pub actor_period: u64,
    /// Steps of reward summed before bootstrapping (n of n-step returns).
    pub horizon: usize,
    /// Number of critics (2 in SAC and DroQ, 10 in REDQ).
    pub critics: usize,
    /// Critics drawn at random for each target; the smallest of them counts. Equal to `critics`: all of them.
    pub target_critics: usize,
    /// What the actor climbs.
    pub actor_objective: ActorObjective,
    /// Layer normalisation in the critics.
    pub layer_norm: bool,
    /// Dropout probability in the critics; 0 switches it off.
    pub dropout: f64,
    /// Temperature at the start; it is always tuned afterwards.
    pub initial_temperature: f64,
    /// Entropy target of one agent; `None` means minus the number of action dimensions. Multiplied by the number of
    /// agents under [`AgentReduction::Sum`].
    pub target_entropy: Option<f64>,
    /// How per-agent log-probabilities and values become the joint ones.
    pub joint_log_prob: AgentReduction,
    /// Start at actions around 0 with this standard deviation before the squashing (the heads start near zero), instead of
    /// the usual random initial policy. For problems in which action 0 is a good known rule.
    pub initial_std: Option<f64>,
    /// Standardise observations by their running mean and variance.
    pub normalize_observations: bool,
    /// Divide rewards by the running standard deviation of the discounted return.
    pub normalize_rewards: bool,
    /// Normalised values are cut to plus or minus this.
    pub normalized_limit: f64,
}

impl Default for SacConfig {
    fn default() -> Self {
        Self {
            hidden: vec![64, 64],
            discount: 0.99,
            target_rate: 0.005,
            actor_learning_rate: 3e-4,
            critic_learning_rate: 3e-4,
            temperature_learning_rate: 3e-4,
            batch_size: 64,
            replay_capacity: 50_000,
            random_steps: 100,
            updates_per_step: 1,
            actor_period: 1,
            horizon: 1,
            critics: 2,
            target_critics: 2,
            actor_objective: ActorObjective::Minimum,
            layer_norm: false,
            dropout: 0.0,
            initial_temperature: 1.0,
            target_entropy: None,
            joint_log_prob: AgentReduction::Mean,
            initial_std: None,
            normalize_observations: false,
            normalize_rewards: false,
            normalized_limit: 10.0,
        }
    }
}

macro_rules! builders {
    ($($(#[$doc:meta])* $method:ident => $field:ident: $type:ty;)*) => {
        impl SacConfig {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $method(mut self, value: $type) -> Self {
                    self.$field = value;
                    self
                }
            )*
        }
    };
}

builders! {
    /// Sets [`hidden`](Self::hidden).
    with_hidden => hidden: Vec<usize>;
    /// Sets [`discount`](Self::discount).
    with_discount => discount: f64;
    /// Sets [`target_rate`](Self::target_rate).
    with_target_rate => target_rate: f64;
    /// Sets [`batch_size`](Self::batch_size).
    with_batch_size => batch_size: usize;
    /// Sets [`replay_capacity`](Self::replay_capacity).
    with_replay_capacity => replay_capacity: usize;
    /// Sets [`random_steps`](Self::random_steps).
    with_random_steps => random_steps: u64;
    /// Sets [`updates_per_step`](Self::updates_per_step).
    with_updates_per_step => updates_per_step: usize;
    /// Sets [`actor_period`](Self::actor_period).
    with_actor_period => actor_period: u64;
    /// Sets [`horizon`](Self::horizon).
    with_horizon => horizon: usize;
    /// Sets [`layer_norm`](Self::layer_norm).
    with_layer_norm => layer_norm: bool;
    /// Sets [`dropout`](Self::dropout).
    with_dropout => dropout: f64;
    /// Sets [`initial_temperature`](Self::initial_temperature).
    with_initial_temperature => initial_temperature: f64;
    /// Sets [`target_entropy`](Self::target_entropy).
    with_target_entropy => target_entropy: Option<f64>;
    /// Sets [`joint_log_prob`](Self::joint_log_prob).
    with_joint_log_prob => joint_log_prob: AgentReduction;
    /// Sets [`initial_std`](Self::initial_std).
    with_initial_std => initial_std: Option<f64>;
    /// Sets [`normalize_observations`](Self::normalize_observations).
    with_normalize_observations => normalize_observations: bool;
    /// Sets [`normalize_rewards`](Self::normalize_rewards).
    with_normalize_rewards => normalize_rewards: bool;
}

impl SacConfig {
    /// Sets the step sizes of actor, critics and temperature to one value.
    #[must_use]
    pub fn with_learning_rate(mut self, value: f64) -> Self {
        self.actor_learning_rate = value;
        self.critic_learning_rate = value;
        self.temperature_learning_rate = value;
        self
    }

    /// Sets the number of critics, how many of them form a target, and what the actor climbs.
    #[must_use]
    pub fn with_critics(
        mut self,
        critics: usize,
        target_critics: usize,
        objective: ActorObjective,
    ) -> Self {
        self.critics = critics;
        self.target_critics = target_critics;
        self.actor_objective = objective;
        self
    }

    /// DroQ (Hiraoka et al. 2022): few transitions, many updates each, two critics with dropout and layer normalisation.
    #[must_use]
    pub fn droq() -> Self {
        Self {
            updates_per_step: 20,
            actor_period: 20,
            layer_norm: true,
            dropout: 0.01,
            actor_objective: ActorObjective::Mean,
            ..Self::default()
        }
    }

    /// REDQ (Chen et al. 2021): many updates per transition, ten critics, targets from a random two of them.
    #[must_use]
    pub fn redq() -> Self {
        Self {
            updates_per_step: 20,
            actor_period: 20,
            critics: 10,
            target_critics: 2,
            actor_objective: ActorObjective::Mean,
            ..Self::default()
        }
    }

    /// Entropy target of the joint policy of `agents` agents with `act_dim` action dimensions each.
    #[must_use]
    pub fn joint_target_entropy(&self, agents: usize, act_dim: usize) -> f64 {
        let per_agent = self.target_entropy.unwrap_or(-(act_dim as f64));
        match self.joint_log_prob {
            AgentReduction::Mean | AgentReduction::Balanced { .. } => per_agent,
            AgentReduction::Sum => per_agent * agents as f64,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`SacError::Config`] names the first setting outside its range.
    pub fn validate(&self) -> Result<(), SacError> {
        let check = |ok: bool, name: &'static str, value: String, expected: &'static str| match ok {
            true => Ok(()),
            false => Err(SacError::Config {
                name,
                value,
                expected,
            }),
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let layers_ok = !self.hidden.is_empty() && self.hidden.iter().all(|&width| width > 0);
        check(
            layers_ok,
            "hidden",
            format!("{:?}", self.hidden),
            "at least one layer, every width above 0",
        )?;
        check(
            (0.0..=1.0).contains(&self.discount),
            "discount",
            self.discount.to_string(),
            "0 to 1",
        )?;
        let rate_ok = positive(self.target_rate) && self.target_rate <= 1.0;
        check(
            rate_ok,
            "target_rate",
            self.target_rate.to_string(),
            "above 0, at most 1",
        )?;
        for (name, value) in [
            ("actor_learning_rate", self.actor_learning_rate),
            ("critic_learning_rate", self.critic_learning_rate),
            ("temperature_learning_rate", self.temperature_learning_rate),
            ("initial_temperature", self.initial_temperature),
            ("normalized_limit", self.normalized_limit),
            ("initial_std", self.initial_std.unwrap_or(1.0)),
        ] {
            check(
                positive(value),
                name,
                value.to_string(),
                "a positive number",
            )?;
        }
        for (name, value) in [
            ("batch_size", self.batch_size),
            ("replay_capacity", self.replay_capacity),
            ("updates_per_step", self.updates_per_step),
            ("horizon", self.horizon),
            ("critics", self.critics),
        ] {
            check(value > 0, name, value.to_string(), "at least 1")?;
        }
        check(
            self.actor_period > 0,
            "actor_period",
            self.actor_period.to_string(),
            "at least 1",
        )?;
        let subset_ok = (1..=self.critics).contains(&self.target_critics);
        check(
            subset_ok,
            "target_critics",
            self.target_critics.to_string(),
            "1 to `critics`",
        )?;
        check(
            (0.0..1.0).contains(&self.dropout),
            "dropout",
            self.dropout.to_string(),
            "0 or above, below 1",
        )?;
        let entropy = self.target_entropy.unwrap_or(0.0);
        check(
            entropy.is_finite(),
            "target_entropy",
            entropy.to_string(),
            "a finite number",
        )
    }
}
