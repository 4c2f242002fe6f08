//! Differentially private optimization for Burn, in parts that are each usable alone.
//!
//! One step: [`PoissonSampler`] draws privacy units; a gradient source yields [`PerExampleGradients`]; an [`Accumulator`]
//! clips each unit's gradient per group, sums exactly, adds the noise that the [`StepPlan`] promises its accountant and
//! divides by the *expected* batch size; a [`DpOptimizer`] hands the release to any Burn optimizer.
//!
//! Raw values travel as [`Private`], which only mechanisms consume; what comes out is [`Released`].
#![doc = include_str!("../README.md")]

mod accumulate;
pub mod clip;
mod error;
pub mod ghost;
mod gradients;
mod kernels;
mod optimizer;
mod plan;
mod private;
pub mod query;
pub mod random;
mod sampling;
mod steered_adam;
#[cfg(test)]
mod tests;

pub use accumulate::{Accumulator, ClippedFractions, MeanLoss, ReleasedGroup, StepRelease};
pub use error::OptimError;
pub use gradients::{GroupGradients, GroupLayout, Layout, PerExampleGradients, RowMap};
pub use kernels::Kernel;
pub use optimizer::{DpOptimizer, ParameterGroups, ParameterSlot, register};
pub use plan::{StepPlan, Telemetry};
pub use private::{Private, Released};
pub use random::{Random, SecureRandom, SeededRandom};
pub use sampling::PoissonSampler;
pub use steered_adam::{Beta1, SteeredAdam, SteeredAdamState};
