//! The controllers that have a name.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::{
    ActionSpace, AdaClipController, AgentController, AgentOptions, AutomaticController, Bounds,
    ConstantController, Controller, DecayingController, GlobalAdaptController,
    PerAdapterQuantileController, PostProcessing, QuantileController, RandomController,
    RivalOptions, RuleController,
};
use crate::budget::BudgetKind;
use crate::error::RldpError;

/// Optimizer steps between two actions of the published method (Khadangi et al. 2025, the published command).
const PAPER_INTERVAL: u64 = 112;

/// Names kinds, and lists them.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// The controllers that can be named on a command line.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum ControllerKind {
            $($(#[$doc])* $kind,)*
        }

        impl ControllerKind {
            /// All kinds with their names.
            pub const NAMES: &'static [(&'static str, Self)] = &[$(($name, Self::$kind),)*];
        }
    };
}

kinds! {
    /// The Soft Actor-Critic agent, pre-trained, and refined during the run.
    #[default]
    Sac = "sac",
    /// The agent without pre-training.
    SacScratch = "sac-scratch",
    /// The pre-trained policy, acting by its mode and learning nothing.
    SacFrozen = "sac-frozen",
    /// The agent with the clipping norms as its only actions.
    SacRadii = "sac-radii",
    /// The agent with the noise as its only actions: its split over adapters and, where the budget allows, its level.
    SacNoise = "sac-noise",
    /// The agent with learning rate and momentum as its only actions.
    SacLearningRate = "sac-learning-rate",
    /// The published method's action set: clipping norms and noise, learned from scratch, one action every 112 steps.
    Paper = "paper",
    /// The warm-up rule at the scheduled learning rate.
    Rule = "rule",
    /// The warm-up rule with a learning rate that follows the descent: what the agent moves around, frozen.
    RuleDescent = "rule-descent",
    /// A policy that draws the agent's actions uniformly.
    Random = "random",
    /// One clipping norm over all adapters, never changed (Abadi et al. 2016).
    Constant = "constant",
    /// One clipping norm for every adapter, never changed.
    ConstantPerAdapter = "constant-per-adapter",
    /// Automatic clipping (Bu et al. 2023).
    Automatic = "automatic",
    /// Quantile clipping over all adapters (Andrew et al. 2021).
    Quantile = "quantile",
    /// Quantile clipping of every adapter (He et al. 2023).
    QuantilePerAdapter = "quantile-per-adapter",
    /// Decaying clipping norm and noise (Du et al. 2021).
    Decay = "decay",
    /// DPSGD-Global-Adapt (Esipova et al. 2023).
    GlobalAdapt = "global-adapt",
    /// AdaCliP (Pichapati et al. 2019).
    #[serde(rename = "adaclip")]
    AdaClip = "adaclip",
}

impl std::fmt::Display for ControllerKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self);
        formatter.write_str(name.map_or("unnamed", |(name, _)| name))
    }
}

impl std::str::FromStr for ControllerKind {
    type Err = RldpError;

    fn from_str(text: &str) -> Result<Self, RldpError> {
        Self::NAMES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, kind)| *kind)
            .ok_or_else(|| RldpError::UnknownName {
                what: "controller",
                given: text.to_owned(),
                known: Self::NAMES
                    .iter()
                    .map(|(name, _)| *name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

/// What a controller is built from.
#[derive(Clone, Debug)]
pub struct ControllerSetup {
    /// Trainable numbers of every adapter.
    pub dimensions: Vec<usize>,
    /// First clipping norm of every adapter.
    pub clipping_norm: f64,
    /// Expected privacy units in a batch.
    pub batch_size: f64,
    /// The budget that noise is played from.
    pub budget: BudgetKind,
    /// The agent's settings.
    pub agent: AgentOptions,
    /// The rivals' settings.
    pub rivals: RivalOptions,
    /// What the post-processing actions move around.
    pub post_processing: PostProcessing,
}

impl ControllerSetup {
    fn flat_norm(&self) -> f64 {
        let count = self.dimensions.len().max(1) as f64;
        self.rivals
            .flat_clipping_norm
            .unwrap_or(self.clipping_norm * count.sqrt())
    }

    /// The agent's actions within its bounds.
    #[must_use]
    pub fn actions(&self) -> ActionSpace {
        let noise = self.budget != BudgetKind::Fixed;
        ActionSpace::new(self.agent.bounds, noise, self.post_processing)
    }
}

impl ControllerKind {
    /// The interval in steps that this kind always acts at, if it has one.
    #[must_use]
    pub fn interval(self) -> Option<u64> {
        (self == Self::Paper).then_some(PAPER_INTERVAL)
    }

    /// Whether [`AgentOptions`] matter to this kind.
    #[must_use]
    pub fn is_agent(self) -> bool {
        self.has_policy() || self == Self::Random
    }

    /// Whether this kind acts by a policy that [`AgentOptions`] describe.
    #[must_use]
    pub fn has_policy(self) -> bool {
        match self {
            Self::Sac
            | Self::SacScratch
            | Self::SacFrozen
            | Self::SacRadii
            | Self::SacNoise
            | Self::SacLearningRate
            | Self::Paper => true,
            Self::Rule
            | Self::RuleDescent
            | Self::Random
            | Self::Constant
            | Self::ConstantPerAdapter
            | Self::Automatic
            | Self::Quantile
            | Self::QuantilePerAdapter
            | Self::Decay
            | Self::GlobalAdapt
            | Self::AdaClip => false,
        }
    }

    /// The agent's settings under this kind: what the kind's name says, laid over the given ones.
    #[must_use]
    pub fn agent_options(self, given: &AgentOptions) -> AgentOptions {
        let mut options = given.clone();
        let all = given.bounds;
        // An arm that is named for an action has it, also where the given settings leave it to the rule.
        let range = |given: f64, full: f64| if given > 1.0 { given } else { full };
        let clipping_factor = range(all.clipping_factor, Bounds::FULL.clipping_factor);
        let weight_factor = range(all.weight_factor, Bounds::FULL.weight_factor);
        let noise_factor = range(all.noise_factor, Bounds::FULL.noise_factor);
        match self {
            // Learning alone: whatever is heard.
            Self::SacScratch => {
                options.from_scratch = true;
                options.loudest_noise = f64::MAX;
            }
            Self::SacFrozen => options.frozen = true,
            // The shipped policy was trained on the pace alone: what these two move it has never seen.
            Self::SacRadii => {
                options.from_scratch |= given.policy.is_none();
                options.bounds = Bounds {
                    clipping_factor,
                    ..Bounds::NONE
                };
            }
            Self::SacNoise => {
                options.from_scratch |= given.policy.is_none();
                options.bounds = Bounds {
                    weight_factor,
                    noise_factor,
                    ..Bounds::NONE
                };
            }
            Self::SacLearningRate => {
                options.bounds = Bounds {
                    learning_rate_factor: all.learning_rate_factor,
                    learning_rate_step: all.learning_rate_step,
                    beta_1_distance: all.beta_1_distance,
                    ..Bounds::NONE
                };
            }
            Self::Paper => {
                options.from_scratch = true;
                options.loudest_noise = f64::MAX;
                options.warm_up = 1;
                options.bounds = Bounds {
                    clipping_factor,
                    weight_factor,
                    noise_factor,
                    ..Bounds::NONE
                };
            }
            _ => {}
        }
        options
    }

    /// The controller of this kind. `seed` drives what needs no secrecy: initial weights and exploration of the agent.
    ///
    /// # Errors
    /// As the controllers' own constructors.
    pub fn build(
        self,
        setup: &ControllerSetup,
        seed: u64,
        device: &Device,
    ) -> Result<Box<dyn Controller>, RldpError> {
        let (norm, flat_norm) = (setup.clipping_norm, setup.flat_norm());
        let rivals = &setup.rivals;
        Ok(match self {
            Self::Sac
            | Self::SacScratch
            | Self::SacFrozen
            | Self::SacRadii
            | Self::SacNoise
            | Self::SacLearningRate
            | Self::Paper => {
                let mut setup = setup.clone();
                setup.agent = self.agent_options(&setup.agent);
                let name = Self::NAMES
                    .iter()
                    .find(|(_, kind)| *kind == self)
                    .map_or("sac", |(name, _)| name);
                Box::new(AgentController::new(&setup, seed, device)?.named(name))
            }
            Self::Rule => Box::new(RuleController::new(&setup.dimensions, norm)?),
            Self::RuleDescent => Box::new(
                RuleController::new(&setup.dimensions, norm)?.following_descent(setup.batch_size),
            ),
            Self::Random => Box::new(RandomController::new(
                &setup.dimensions,
                norm,
                setup.batch_size,
                setup.actions(),
                seed,
            )?),
            Self::Constant => Box::new(ConstantController::flat(flat_norm)?),
            Self::ConstantPerAdapter => Box::new(ConstantController::per_adapter(norm)?),
            Self::Automatic => Box::new(AutomaticController::new(rivals.automatic.clone())?),
            Self::Quantile => Box::new(QuantileController::new(
                flat_norm,
                setup.batch_size,
                rivals.quantile.clone(),
            )?),
            Self::QuantilePerAdapter => Box::new(PerAdapterQuantileController::new(
                setup.dimensions.len(),
                norm,
                rivals.quantile_per_adapter.clone(),
            )?),
            Self::Decay => Box::new(DecayingController::new(flat_norm, rivals.decay.clone())?),
            Self::AdaClip => Box::new(AdaClipController::new(&setup.dimensions, &rivals.adaclip)?),
            Self::GlobalAdapt => Box::new(GlobalAdaptController::new(
                flat_norm,
                rivals.global_adapt.clone(),
            )?),
        })
    }
}
