use burn::module::Param;

use crate::frozen::{is_half, widen};
use crate::{LinearLayers, LoraError, LoraLinear};

/// Folds every adapter into its base weight; the forward pass then costs nothing extra.
///
/// The adapters stay attached, so that [`unmerge_adapters`] can take them out again. A weight in
/// half precision becomes f32, since rounding the sum would lose most of the update.
///
/// # Errors
///
/// [`LoraError::NoAdapters`], [`LoraError::MergeState`] when already merged,
/// [`LoraError::Expanded`] during a private step; in every case the model is unchanged.
pub fn merge_adapters<M: LinearLayers>(model: &mut M) -> Result<(), LoraError> {
    check(model, false, "its adapter is already merged")?;
    model.visit_linears_mut(&mut |_, layer| fold(layer));
    Ok(())
}

/// Takes merged adapters out of the base weights again.
///
/// # Precision
///
/// The base weight comes back up to one f32 rounding of each element, as in PEFT; one that was in half
/// precision, rounded to that precision again, comes back exactly unless the update was some
/// thousand times larger.
///
/// # Errors
///
/// As [`merge_adapters`], with the merge state reversed.
pub fn unmerge_adapters<M: LinearLayers>(model: &mut M) -> Result<(), LoraError> {
    check(model, true, "its adapter is not merged")?;
    model.visit_linears_mut(&mut |_, layer| unfold(layer));
    Ok(())
}

/// Folds every adapter into its base weight and drops it: an ordinary model remains.
///
/// # Errors
///
/// As [`merge_adapters`].
pub fn merge_and_unload<M: LinearLayers>(model: &mut M) -> Result<(), LoraError> {
    merge_adapters(model)?;
    model.visit_linears_mut(&mut |_, layer| {
        layer.adapter = None;
        layer.merged = None;
    });
    Ok(())
}

fn fold(layer: &mut LoraLinear) {
    if let Some(adapter) = &layer.adapter {
        let weight = layer.weight.val().without_autodiff();
        layer.merged = Some(weight.dtype());
        let weight = widen(weight) + adapter.delta();
        layer.weight = Param::initialized(layer.weight.id, weight);
    }
}

fn unfold(layer: &mut LoraLinear) {
    if let (Some(adapter), Some(dtype)) = (&layer.adapter, layer.merged) {
        let weight = layer.weight.val().without_autodiff() - adapter.delta();
        let weight = match is_half(dtype) {
            true => weight.cast(dtype),
            false => weight,
        };
        layer.weight = Param::initialized(layer.weight.id, weight);
        layer.merged = None;
    }
}

fn check<M: LinearLayers>(model: &M, merged: bool, problem: &'static str) -> Result<(), LoraError> {
    let mut count = 0;
    let mut error = None;
    model.visit_linears(&mut |name, layer| {
        let Some(adapter) = &layer.adapter else {
            return;
        };
        count += 1;
        if layer.is_merged() != merged {
            error.get_or_insert_with(|| LoraError::MergeState {
                layer: name.to_owned(),
                problem,
            });
        } else if adapter.examples() != 1 {
            error.get_or_insert_with(|| LoraError::Expanded {
                adapter: name.to_owned(),
                examples: adapter.examples(),
            });
        }
    });
    match error {
        Some(error) => Err(error),
        None if count == 0 => Err(LoraError::NoAdapters),
        None => Ok(()),
    }
}
