//! Low-rank adapters (LoRA, Hu et al. 2021) for Burn whose per-example gradients are exact.
//!
//! A [`LoraLinear`] computes `x W + bias + s (x A) B`. The factors `A` and `B` carry a leading
//! example dimension: 1 at rest, the batch size during a private step. One backward pass of the
//! *sum* of per-example losses then leaves example `i`'s own gradient in slice `i`.
//!
//! The weights of the base model never require gradients, so autodiff neither computes nor stores
//! anything for them.
//!
//! # Example
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use rldp_lora::{LoraConfig, LoraLinear, add_lora, expand_adapters, per_example_gradients};
//!
//! let device = Device::default();
//! let mut layer = LoraLinear::new(Tensor::random([8, 4], Distribution::Default, &device), None);
//! add_lora(&mut layer, &LoraConfig::new(2, ["linear"]), 7)?;
//! let expanded = expand_adapters(&layer, 3)?; // three examples, three copies of each adapter
//! let x = Tensor::random([3, 5, 8], Distribution::Default, &device);
//! let mut gradients = expanded.forward(x).sum().backward();
//! let adapters = per_example_gradients(&expanded, &mut gradients)?;
//! assert_eq!(adapters[0].b.dims(), [3, 2, 4]); // one gradient per example
//! # Ok::<(), rldp_lora::LoraError>(())
//! ```

/// The trainable pair of factors and the module that holds all of a model's pairs.
pub mod adapter;
/// What to adapt and how: rank, scaling, targets.
pub mod config;
/// The error type of this crate.
pub mod error;
/// Reading and writing safetensors files.
pub mod file;
/// Products with frozen matrices, which may be held in half precision.
pub mod frozen;
/// Functions called in a layer's forward pass.
pub mod hook;
/// The walk over a model's linear layers that everything else builds on.
pub mod layers;
/// The linear layer with an optional adapter.
pub mod linear;
/// Folding adapters into the base weights and taking them out again.
pub mod merge;
/// Adapters in the format of Hugging Face PEFT.
pub mod peft;
/// Per-example expansion and per-example gradients.
pub mod per_example;

pub use adapter::{AdapterRef, Adapters, LoraAdapter};
pub use config::LoraConfig;
pub use error::LoraError;
pub use file::{HostTensor, TensorFile, write_tensors};
pub use hook::ForwardHook;
pub use layers::{
    LinearLayers, adapter_parameters, adapters, add_lora, freeze_base, remove_lora, set_adapters,
};
pub use linear::LoraLinear;
pub use merge::{merge_adapters, merge_and_unload, unmerge_adapters};
pub use per_example::{
    AdapterGradients, CollectedGradients, adapter_gradients_params, expand_adapters,
    expand_adapters_repeatably, per_example_gradients,
};
