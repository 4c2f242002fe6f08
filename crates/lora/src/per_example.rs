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
    expand(model, examples, None)
}

/// The same with dropout masks that follow from `dropout_seed` and each layer's name, so that a
/// forward pass can be run again with the same result.
///
/// Without autodiff ([`Module::valid`](burn::module::Module::valid)), such a model still drops out.
///
/// # Errors
///
/// As [`expand_adapters`].
pub fn expand_adapters_repeatably<M: LinearLayers + Clone>(
    model: &M,
    examples: usize,
    dropout_seed: u64,
) -> Result<M, LoraError> {
    expand(model, examples, Some(dropout_seed))
}

fn expand<M: LinearLayers + Clone>(
    model: &M,
    examples: usize,
    dropout_seed: Option<u64>,
) -> Result<M, LoraError> {
    if examples == 0 {
        return Err(LoraError::EmptyBatch);
    }
    let mut expanded = model.clone();
    let mut count = 0;
    let mut merged = None;
    expanded.visit_linears_mut(&mut |name, layer| {
        if let Some(adapter) = &mut layer.adapter {
            *adapter = adapter.expanded(examples, dropout_seed);
            count += 1;
            if layer.is_merged() {
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
    let mut collected = CollectedGradients::new(expanded);
    collected.take(expanded, gradients);
    collected.finish()
}

/// Per-example gradients that come from several backward passes, each adapter's from one of them.
#[derive(Debug)]
pub struct CollectedGradients {
    /// By adapter, in the order of the model's layers.
    slots: Vec<(String, Option<AdapterGradients>)>,
}

impl CollectedGradients {
    /// A place for every adapter of `expanded`.
    pub fn new<M: LinearLayers>(expanded: &M) -> Self {
        let mut slots = Vec::new();
        expanded.visit_linears(&mut |_, layer| {
            slots.extend(layer.adapter.as_ref().map(|a| (a.name.clone(), None)));
        });
        Self { slots }
    }

    /// Takes the gradients of the adapters that took part in one backward pass.
    ///
    /// `expanded` is the model given to [`Self::new`].
    pub fn take<M: LinearLayers>(&mut self, expanded: &M, gradients: &mut Gradients) {
        let mut slots = self.slots.iter_mut();
        expanded.visit_linears(&mut |_, layer| {
            let Some(adapter) = &layer.adapter else {
                return;
            };
            let Some((name, slot)) = slots.next() else {
                return;
            };
            let a = match adapter.freeze_a {
                true => Some(None),
                false => adapter.a.val().grad_remove(gradients).map(Some),
            };
            if let (Some(a), Some(b)) = (a, adapter.b.val().grad_remove(gradients)) {
                let name = name.clone();
                *slot = Some(AdapterGradients { name, a, b });
            }
        });
    }

    /// Whether every adapter's gradients are there.
    pub fn is_complete(&self) -> bool {
        self.slots.iter().all(|(_, slot)| slot.is_some())
    }

    /// The gradients, in the order of the model's layers.
    ///
    /// # Errors
    ///
    /// [`LoraError::MissingGradient`] naming an adapter on which no loss depended.
    pub fn finish(self) -> Result<Vec<AdapterGradients>, LoraError> {
        self.slots
            .into_iter()
            .map(|(adapter, slot)| slot.ok_or(LoraError::MissingGradient { adapter }))
            .collect()
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
