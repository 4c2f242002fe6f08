//! Causal language models on Burn that agree with Hugging Face: GPT-2, Llama and Mistral.
//!
//! Checkpoints, tokenizers and adapters are read and written in the formats people have. Every
//! linear layer can carry a LoRA adapter whose per-example gradients are exact (`rldp-lora`). Base
//! weights never require gradients unless asked for, so memory grows with the adapters.
//!
//! # Example
//!
//! ```
//! use rldp_lora::{LoraConfig, add_lora, expand_adapters, per_example_gradients};
//! use rldp_models::{Batch, Gpt2, Gpt2Config, LanguageModel, Row};
//!
//! let device = Default::default();
//! let mut model = Gpt2::random(&Gpt2Config::new(50, 16, 1, 8, 2), 7, &device)?;
//! let config = LoraConfig::new(2, model.default_targets());
//! add_lora(&mut model, &config, 7)?;
//! let rows = [Row::new(vec![1, 2, 3]), Row::new(vec![4, 5])]; // padded on the right
//! let batch = Batch::from_rows(&rows, &device)?;
//! let expanded = expand_adapters(&model, 2)?;
//! let mut gradients = expanded.per_example_loss(&batch).sum().backward();
//! assert_eq!(per_example_gradients(&expanded, &mut gradients)?.len(), 4);
//! # Ok::<(), rldp_models::ModelError>(())
//! ```

mod activation;
mod attention;
/// Tokenised examples.
pub mod batch;
mod cache;
/// Any built-in architecture behind one type.
pub mod causal_lm;
/// Reading checkpoints.
pub mod checkpoint;
/// Reading `config.json`.
pub mod config;
mod device_cache;
/// The error type of this crate.
pub mod error;
/// Every parameter of a model, layer by layer, for training all of them.
pub mod full;
mod fused;
/// Sampling.
pub mod generate;
/// GPT-2.
pub mod gpt2;
/// Finding models.
pub mod hub;
mod linear;
/// Llama and Mistral.
pub mod llama;
mod loss;
mod model;
/// Normalisation layers.
pub mod norm;
mod per_example;
/// The type a model's matrices are held in.
pub mod precision;
/// Random weights.
pub mod random;
/// Which architectures can be loaded.
pub mod registry;
/// Rotary positions.
pub mod rotary;
/// Text and token ids.
pub mod tokenizer;

pub use activation::Activation;
pub use batch::{Batch, Row};
pub use cache::KvCache;
pub use causal_lm::CausalLm;
pub use config::SpecialTokens;
pub use error::ModelError;
pub use full::{FullParameters, LayerKind, LayerSlot, Normalisation, ProjectionPass};
pub use generate::{GenerationOptions, generate};
pub use gpt2::{Gpt2, Gpt2Config};
pub use llama::{Llama, LlamaConfig};
pub use loss::TokenLosses;
pub use model::LanguageModel;
pub use per_example::{Activations, PerExample, per_example_pass};
pub use precision::WeightPrecision;
pub use registry::{LoadedModel, Registry};
pub use tokenizer::Tokenizer;
