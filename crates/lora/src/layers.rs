use burn::module::{Module, Param};

use crate::config::matches_target;
use crate::{AdapterRef, Adapters, LoraAdapter, LoraConfig, LoraError, LoraLinear};

/// A model that can show its linear layers under the names they have in Hugging Face checkpoints.
///
/// The order of the visit is the model's own and never changes: everything that lists adapters
/// (gradients, clipping groups, files) follows it.
pub trait LinearLayers {
    /// Calls `visit` with every linear layer that may carry an adapter.
    fn visit_linears(&self, visit: &mut dyn FnMut(&str, &LoraLinear));
    /// The same with mutable access, in the same order.
    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&str, &mut LoraLinear));
    /// Whether the model's checkpoints store these weights as `[in, out]` (GPT-2's Conv1D). Only
    /// the header of PEFT files depends on it.
    fn fan_in_fan_out(&self) -> bool {
        false
    }
}

/// A single layer is a model whose only layer is called `linear`.
impl LinearLayers for LoraLinear {
    fn visit_linears(&self, visit: &mut dyn FnMut(&str, &LoraLinear)) {
        visit("linear", self);
    }

    fn visit_linears_mut(&mut self, visit: &mut dyn FnMut(&str, &mut LoraLinear)) {
        visit("linear", self);
    }
}

/// The adapters of a model in the stable order of its layers.
pub fn adapter_parameters<M: LinearLayers>(model: &M) -> Vec<AdapterRef> {
    let mut list = Vec::new();
    model.visit_linears(&mut |_, layer| list.extend(layer.adapter.as_ref().map(|a| a.reference())));
    list
}

/// The adapters as a module of their own, for an optimizer to step or a record to hold.
///
/// Tensors are shared, not copied, and enter autodiff, since Burn's optimizers step nothing else.
/// Give the changed module back with [`set_adapters`].
pub fn adapters<M: LinearLayers>(model: &M) -> Adapters {
    let mut layers = Vec::new();
    model.visit_linears(&mut |_, layer| layers.extend(layer.adapter.clone()));
    Adapters { layers }.train()
}

/// Puts adapters taken with [`adapters`] back in their places, out of autodiff again.
///
/// # Errors
///
/// [`LoraError::AdapterMismatch`] when the list is not this model's; the model is then unchanged.
pub fn set_adapters<M: LinearLayers>(model: &mut M, adapters: Adapters) -> Result<(), LoraError> {
    let mut expected = Vec::new();
    model.visit_linears(&mut |_, layer| {
        expected.extend(layer.adapter.as_ref().map(|a| a.name.clone()));
    });
    let found: Vec<&str> = adapters.layers.iter().map(|a| a.name.as_str()).collect();
    let missing = "nothing";
    for index in 0..expected.len().max(found.len()) {
        let (expected, found) = (
            expected.get(index).map_or(missing, String::as_str),
            found.get(index).copied().unwrap_or(missing),
        );
        if expected != found {
            return Err(LoraError::AdapterMismatch {
                expected: expected.to_owned(),
                found: found.to_owned(),
            });
        }
    }
    let mut given = adapters.valid().layers.into_iter();
    model.visit_linears_mut(&mut |_, layer| {
        if layer.adapter.is_some() {
            layer.adapter = given.next();
        }
    });
    Ok(())
}

/// Gives every target layer a new adapter that changes nothing yet.
///
/// The random factor depends on `seed` and the layer's name only. Other layers stay as they are.
///
/// # Errors
///
/// [`LoraError::InvalidSetting`], [`LoraError::UnmatchedTarget`] for a target no layer answers to,
/// [`LoraError::AlreadyAdapted`]; in every case the model is unchanged.
pub fn add_lora<M: LinearLayers>(
    model: &mut M,
    config: &LoraConfig,
    seed: u64,
) -> Result<(), LoraError> {
    check_targets(model, config)?;
    model.visit_linears_mut(&mut |name, layer| {
        if config.targets(name) {
            let device = layer.weight.val().device().without_autodiff();
            let adapter = LoraAdapter::init(name, layer.shape(), config, seed, &device);
            layer.adapter = Some(adapter);
        }
    });
    Ok(())
}

/// Takes all adapters out, leaving the base model.
///
/// # Errors
///
/// [`LoraError::MergeState`] if an adapter is merged: the base weights would be lost.
pub fn remove_lora<M: LinearLayers>(model: &mut M) -> Result<(), LoraError> {
    let mut merged = None;
    model.visit_linears(&mut |name, layer| {
        if layer.is_merged() {
            merged.get_or_insert_with(|| name.to_owned());
        }
    });
    if let Some(layer) = merged {
        return Err(LoraError::MergeState {
            layer,
            problem: "its adapter is merged; unmerge it before removing it",
        });
    }
    model.visit_linears_mut(&mut |_, layer| layer.adapter = None);
    Ok(())
}

/// Marks every parameter but the adapters as frozen, whatever it was before.
///
/// Needed only after a full-parameter run (`unfreeze().train()`): loaded models start frozen.
pub fn freeze_base<M: LinearLayers + Module>(model: M) -> M {
    let mut model = model.freeze();
    model.visit_linears_mut(&mut |_, layer| {
        if let Some(adapter) = &mut layer.adapter {
            adapter.a = set_active(&adapter.a, !adapter.freeze_a);
            adapter.b = set_active(&adapter.b, true);
        }
    });
    model
}

fn set_active<const D: usize>(
    param: &Param<burn::tensor::Tensor<D>>,
    active: bool,
) -> Param<burn::tensor::Tensor<D>> {
    param.clone().set_require_grad(active)
}

/// Every target must match a layer, and no matched layer may have an adapter.
pub(crate) fn check_targets<M: LinearLayers>(
    model: &M,
    config: &LoraConfig,
) -> Result<(), LoraError> {
    config.validate()?;
    let mut names = Vec::new();
    let mut adapted = None;
    model.visit_linears(&mut |name, layer| {
        if layer.adapter.is_some() && config.targets(name) {
            adapted.get_or_insert_with(|| name.to_owned());
        }
        names.push(name.to_owned());
    });
    if let Some(layer) = adapted {
        return Err(LoraError::AlreadyAdapted { layer });
    }
    let unmatched = config
        .target_modules
        .iter()
        .find(|target| !names.iter().any(|name| matches_target(target, name)));
    if let Some(target) = unmatched {
        let mut available: Vec<String> = names
            .iter()
            .filter_map(|name| name.rsplit('.').next().map(str::to_owned))
            .collect();
        available.sort();
        available.dedup();
        return Err(LoraError::UnmatchedTarget {
            target: target.clone(),
            available,
        });
    }
    Ok(())
}
