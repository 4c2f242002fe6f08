//! Who decides the clipping norms, the noise split, the noise level and the learning rate: the agent and its rivals.
//!
//! Every arm is a [`Controller`], so all run in the same trainer under the same contract. A controller sees an
//! [`Observation`], which holds only released or public numbers, and answers with a [`Decision`], which the trainer
//! and the [`crate::budget::Budget`] bound. Nothing a controller does can change the run's (epsilon, delta).

mod agent;
mod bounds;
mod decision;
mod observation;
mod rivals;
mod rule;

pub use agent::{AgentController, AgentOptions};
pub use bounds::Bounds;
pub use decision::{Decision, NoiseWish};
pub use observation::{AdapterView, Observation, Visible};
pub use rivals::{ConstantController, RandomController};
pub use rule::{RuleController, WarmUpRule};

use std::path::Path;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::error::RldpError;

/// What followed a decision.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The reward: the fall of the released validation loss since the last decision, in nats.
    pub reward: Visible,
    /// What the controller will see next.
    pub next: Observation,
    /// Whether the run ends here.
    pub finished: bool,
}

/// The interface between a training run and whoever steers it.
pub trait Controller: Send {
    /// The name in reports and file names.
    fn name(&self) -> &'static str;

    /// Chooses the settings until the next decision.
    ///
    /// # Errors
    /// [`RldpError`] when the observation cannot be used.
    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError>;

    /// Hears what the last decision led to. Called once after every decision's interval.
    ///
    /// # Errors
    /// [`RldpError`] when the outcome cannot be used.
    fn outcome(&mut self, outcome: &Outcome) -> Result<(), RldpError>;

    /// Puts everything that later decisions depend on into a checkpoint: what is small into the value given back, what
    /// is large into files of any name in `folder`, which is empty.
    ///
    /// # Errors
    /// [`RldpError`] when a file cannot be written.
    fn save_state(&self, folder: &Path) -> Result<serde_json::Value, RldpError>;

    /// Takes over what [`Controller::save_state`] of a controller of the same kind and settings wrote: from here on the
    /// two decide alike, bit for bit.
    ///
    /// # Errors
    /// [`RldpError::Damaged`] or the cause, for a state that is not of this controller.
    fn restore_state(&mut self, state: &serde_json::Value, folder: &Path) -> Result<(), RldpError>;

    /// Writes what was learned into `folder`, if there is anything, and names the files written.
    ///
    /// # Errors
    /// [`RldpError`] when a file cannot be written.
    fn save(&self, folder: &Path) -> Result<Vec<String>, RldpError> {
        let _ = folder;
        Ok(Vec::new())
    }
}

/// A controller's state as JSON.
pub(crate) fn to_state<T: Serialize>(state: &T) -> Result<serde_json::Value, RldpError> {
    serde_json::to_value(state).map_err(|source| RldpError::Json {
        what: "a controller's state",
        source,
    })
}

/// A controller's state from JSON.
pub(crate) fn from_state<T: serde::de::DeserializeOwned>(
    state: &serde_json::Value,
    folder: &Path,
) -> Result<T, RldpError> {
    T::deserialize(state).map_err(|error| RldpError::Damaged {
        path: folder.to_owned(),
        reason: format!("the controller's state: {error}"),
    })
}

/// The controllers that can be named on a command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerKind {
    /// The Soft Actor-Critic agent.
    #[default]
    Sac,
    /// The agent's warm-up rule, frozen.
    Rule,
    /// One clipping norm for every adapter, never changed (Abadi et al. 2016).
    Constant,
    /// A policy that draws the agent's actions uniformly.
    Random,
}

impl ControllerKind {
    /// All kinds with their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("sac", Self::Sac),
        ("rule", Self::Rule),
        ("constant", Self::Constant),
        ("random", Self::Random),
    ];
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
                known: Self::NAMES.map(|(name, _)| name).join(", "),
            })
    }
}

impl ControllerKind {
    /// The controller of this kind for adapters of the given dimensions, starting at `clipping_norm` for each.
    /// `seed` drives what needs no secrecy: initial weights and exploration of the agent.
    ///
    /// # Errors
    /// As the controllers' own constructors.
    pub fn build(
        self,
        dimensions: &[usize],
        clipping_norm: f64,
        agent: AgentOptions,
        seed: u64,
        device: &Device,
    ) -> Result<Box<dyn Controller>, RldpError> {
        Ok(match self {
            Self::Sac => Box::new(AgentController::new(
                dimensions,
                clipping_norm,
                agent,
                seed,
                device,
            )?),
            Self::Rule => Box::new(RuleController::new(dimensions, clipping_norm)?),
            Self::Constant => {
                let total = clipping_norm * (dimensions.len().max(1) as f64).sqrt();
                Box::new(ConstantController::new(total)?)
            }
            Self::Random => Box::new(RandomController::new(
                dimensions,
                clipping_norm,
                agent.bounds,
                seed,
            )?),
        })
    }
}
