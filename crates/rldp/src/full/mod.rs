//! Full-parameter private training of a language model: everything it has, instead of adapters.
//!
//! Beyond the paper's LoRA: every weight, bias, norm and embedding is trained. [`per_example_gradients`] is a source like the
//! adapters' own; sampling, clipping, noise and accounting are the same. [`fine_tune`] is a whole run, [`FullStep`] a step.

mod checkpoint;
mod gradients;
mod run;

pub use gradients::{apply, factored_gradients, parameter_groups, per_example_gradients};
pub use run::{FullStep, fine_tune};
