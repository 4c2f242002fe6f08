//! Per-example gradients of full parameters, without one copy of the weights per example.
//!
//! A linear layer's gradient for one example is `A^T G`, with `A` its input and `G` its output's gradient (Goodfellow 2015;
//! Li et al. 2022; Bu et al. 2023). A [`Tape`] keeps `A` and has autodiff keep `G`, in one backward pass that computes no
//! weight gradient at all; [`FactoredGradients`] then are the per-example gradients of every recorded parameter:
//! linear layers, norms, embeddings, positions, biases, and heads tied to an embedding.
//!
//! Nothing here knows of language models: any module whose forward pass can call the tape is trained this way.

mod factor;
mod norm;
mod normalisation;
mod tap;
mod tape;

pub use factor::Factor;
pub use norm::NormBound;
pub use normalisation::Normalisation;
pub use tape::{FactoredGradients, Tape};
