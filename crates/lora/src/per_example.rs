use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

use crate::{AdapterRef, LinearLayers, LoraError};

/// The gradients of one adapter, one slice per example.
#[derive(Debug, Clone)]
pub struct AdapterGradients {
    /// The adapted layer's name.
    pub name: String,
    /// `[examples, in, rank]`; absent when `A` is frozen.
    pub a: Option<Tensor<3>>,
    /// `[examples, rank, out]`.
    pub b: Tensor<3>,
}

/// The model with one copy of every adapter per example, each copy a leaf of the autodiff graph.
///
/// Base weights are shared with `model` and get no gradients. `model` itself is not changed.
///
/// # Guarantee
///
/// With `L_i` a loss that depends on example `i` alone, the backward pass of `sum_i L_i` through
/// the returned model leaves in slice `i` of each adapter exactly the gradient of `L_i`: slice `i`
/// of the factors takes part in example `i`'s computation only.
///
/// # Errors
///
/// [`LoraError::EmptyBatch`], [`LoraError::NoAdapters`], or [`LoraError::MergeState`] if an adapter
/// is merged (its copies would have no effect on the loss).
pub fn expand_adapters<M: LinearLayers + Clone>(
    model: &M,
    examples: usize,
) -> Result<M, LoraError> {
    if examples == 0 {
        return Err(LoraError::EmptyBatch);
    }
    let mut expanded = model.clone();
    let mut count = 0;
    let mut merged = None;
    expanded.visit_linears_mut(&mut |name, layer| {
        if let Some(adapter) = &mut layer.adapter {
            *adapter = adapter.expanded(examples);
            count += 1;
            if layer.merged {
                merged.get_or_insert_with(|| name.to_owned());
            }
        }
    });
    match merged {
        Some(layer) => Err(LoraError::MergeState {
            layer,
            problem: "its adapter is merged; unmerge it before training",
        }),
        None if count == 0 => Err(LoraError::NoAdapters),
        None => Ok(expanded),
    }
}

/// Takes the per-example gradients out of `gradients`, in the order of the model's layers.
///
/// `expanded` is the model from [`expand_adapters`] that computed the loss. The tensors returned
/// carry no autodiff association.
///
/// # Errors
///
/// [`LoraError::MissingGradient`] when the loss does not depend on an adapter.
pub fn per_example_gradients<M: LinearLayers>(
    expanded: &M,
    gradients: &mut Gradients,
) -> Result<Vec<AdapterGradients>, LoraError> {
    let mut list = Vec::new();
    let mut missing = None;
    expanded.visit_linears(&mut |_, layer| {
        let Some(adapter) = &layer.adapter else {
            return;
        };
        let a = match adapter.freeze_a {
            true => Some(None),
            false => adapter.a.val().grad_remove(gradients).map(Some),
        };
        match (a, adapter.b.val().grad_remove(gradients)) {
            (Some(a), Some(b)) => list.push(AdapterGradients {
                name: adapter.name.clone(),
                a,
                b,
            }),
            _ => {
                missing.get_or_insert_with(|| adapter.name.clone());
            }
        }
    });
    match missing {
        Some(adapter) => Err(LoraError::MissingGradient { adapter }),
        None => Ok(list),
    }
}

/// Gradients of the resting adapters, `[1, in, rank]` and `[1, rank, out]`, for a Burn optimizer.
///
/// `gradients` come in the order of `adapters`. A gradient for a frozen `A` is left out.
///
/// # Errors
///
/// [`LoraError::AdapterMismatch`] when the names differ.
pub fn adapter_gradients_params(
    adapters: &[AdapterRef],
    gradients: Vec<AdapterGradients>,
) -> Result<GradientsParams, LoraError> {
    let mut container = GradientsParams::new();
    let missing = "nothing";
    for index in 0..adapters.len().max(gradients.len()) {
        let expected = adapters.get(index).map_or(missing, |a| a.name.as_str());
        let found = gradients.get(index).map_or(missing, |g| g.name.as_str());
        if expected != found {
            return Err(LoraError::AdapterMismatch {
                expected: expected.to_owned(),
                found: found.to_owned(),
            });
        }
    }
    for (adapter, gradient) in adapters.iter().zip(gradients) {
        if let Some(a) = gradient.a.filter(|_| !adapter.freeze_a) {
            container.register(adapter.a_id, a);
        }
        container.register(adapter.b_id, gradient.b);
    }
    Ok(container)
}
