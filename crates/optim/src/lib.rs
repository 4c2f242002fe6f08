//! Differentially private optimization for Burn, in parts that are each usable alone.
//!
//! One step: [`PoissonSampler`] draws privacy units; a gradient source yields [`PerExampleGradients`]; an [`Accumulator`]
//! clips each unit's gradient per group, sums exactly, adds the noise that the [`StepPlan`] promises its accountant and
//! divides by the *expected* batch size; a [`DpOptimizer`] hands the release to any Burn optimizer.
//!
//! Raw values travel as [`Private`], which only mechanisms consume; what comes out is [`Released`].
#![doc = include_str!("../README.md")]

mod accumulate;
mod adaclip;
mod averaging;
pub mod clip;
mod denoise;
mod error;
mod expand;
pub mod ghost;
mod gradients;
mod grouping;
mod kernels;
mod micro_batch;
mod optimizer;
mod plan;
mod private;
pub mod query;
pub mod random;
mod row_map;
mod sampling;
mod snapshot;
pub mod source;
mod steered_adam;
mod step;
#[cfg(test)]
mod tests;
mod wide;

pub use accumulate::{Accumulator, ClippedFractions, MeanLoss, ReleasedGroup, StepRelease};
pub use adaclip::{AdaClip, AdaClipOptions, AffineTransform};
pub use averaging::{Averaging, WeightAverage};
pub use clip::{Clip, ClipRule};
pub use denoise::GradientFilter;
pub use error::OptimError;
pub use expand::{ExampleGradients, ExampleLinear, Expansion, GradientSource, OneByOne, expand};
pub use gradients::{GroupGradients, GroupLayout, Layout, PerExampleGradients};
pub use grouping::Grouping;
pub use kernels::Kernel;
pub use micro_batch::{MicroBatch, UnitRows};
pub use optimizer::{DpOptimizer, ParameterGroups, ParameterSlot, register};
pub use plan::{StepPlan, Telemetry};
pub use private::{Private, Released};
pub use random::{Random, SecureRandom, SeededRandom};
pub use row_map::RowMap;
pub use sampling::PoissonSampler;
pub use snapshot::Snapshot;
pub use source::UnitGradients;
pub use steered_adam::{Beta1, KnownNoise, SECOND_MOMENT_FLOOR, SteeredAdam, SteeredAdamState};
pub use step::{Accountant, Step};
