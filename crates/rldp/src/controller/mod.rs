//! Who decides the clipping norms, the noise split, the noise level and the learning rate: the agent and its rivals.
//!
//! Every arm is a [`Controller`], so all run in the same trainer under the same contract. A controller sees an
//! [`Observation`], which holds only released or public numbers, and answers with a [`Decision`], which the trainer
//! and the [`crate::budget::Budget`] bound. Nothing a controller does can change the run's (epsilon, delta).

mod actions;
mod agent;
mod bounds;
mod decision;
mod kinds;
mod observation;
mod rivals;
mod rule;
mod step_view;

pub use actions::{ACTION, ActionSpace};
pub use agent::{AgentController, AgentOptions, shipped_policy};
pub use bounds::Bounds;
pub use decision::{ClipCounts, Clipping, Decision, NoiseWish, PostProcessing};
pub use kinds::{ControllerKind, ControllerSetup};
pub use observation::{AdapterView, FEATURES, Observation, RowKind, Visible};
pub use rivals::{
    AdaClipController, AdaClipRivalOptions, Allocation, AutomaticController, AutomaticOptions,
    ConstantController, DecayOptions, DecayingController, GlobalAdaptController,
    GlobalAdaptOptions, PerAdapterQuantileController, PerAdapterQuantileOptions,
    QuantileController, QuantileOptions, RandomController, RivalOptions,
};
pub use rule::{DescentFollower, RuleController, WarmUpRule};
pub use step_view::StepView;

use std::path::Path;

use rldp_optim::AffineTransform;
use serde::Serialize;

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

    /// Sees what a step released, and may change the decision in force before the next step: for methods that adapt in
    /// every step. Called after every step.
    ///
    /// # Errors
    /// [`RldpError`] when the step cannot be used.
    fn step(&mut self, step: &StepView<'_>, decision: &mut Decision) -> Result<(), RldpError> {
        let _ = (step, decision);
        Ok(())
    }

    /// The coordinates that the next step clips in, one transform for each clipping group, where they are not the gradient's
    /// own. They may follow from releases alone. Asked for before every step.
    ///
    /// # Errors
    /// [`RldpError`] when there are none.
    fn transforms(&self) -> Result<Option<Vec<AffineTransform>>, RldpError> {
        Ok(None)
    }

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

/// The checkpoint of a controller that remembers nothing.
macro_rules! stateless {
    () => {
        fn save_state(&self, _folder: &std::path::Path) -> Result<serde_json::Value, RldpError> {
            Ok(serde_json::Value::Null)
        }

        fn restore_state(
            &mut self,
            state: &serde_json::Value,
            folder: &std::path::Path,
        ) -> Result<(), RldpError> {
            crate::controller::from_state::<()>(state, folder)
        }
    };
}
pub(crate) use stateless;

/// The checkpoint of a controller that is plain data.
macro_rules! whole_state {
    () => {
        fn save_state(&self, _folder: &std::path::Path) -> Result<serde_json::Value, RldpError> {
            crate::controller::to_state(self)
        }

        fn restore_state(
            &mut self,
            state: &serde_json::Value,
            folder: &std::path::Path,
        ) -> Result<(), RldpError> {
            *self = crate::controller::from_state(state, folder)?;
            Ok(())
        }
    };
}
pub(crate) use whole_state;
