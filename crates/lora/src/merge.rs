use burn::module::Param;

use crate::{LinearLayers, LoraError, LoraLinear};

/// Folds every adapter into its base weight; the forward pass then costs nothing extra.
///
/// The adapters stay attached, so that [`unmerge_adapters`] can take them out again.
///
/// # Errors
///
/// [`LoraError::NoAdapters`], [`LoraError::MergeState`] when already merged,
/// [`LoraError::Expanded`] during a private step; in every case the model is unchanged.
pub fn merge_adapters<M: LinearLayers>(model: &mut M) -> Result<(), LoraError> {
    check(model, false, "its adapter is already merged")?;
    model.visit_linears_mut(&mut |_, layer| fold(layer, 1.0, true));
    Ok(())
}

/// Takes merged adapters out of the base weights again.
///
/// # Precision
///
/// The base weight comes back up to one rounding of each element, as in PEFT.
///
/// # Errors
///
/// As [`merge_adapters`], with the merge state reversed.
pub fn unmerge_adapters<M: LinearLayers>(model: &mut M) -> Result<(), LoraError> {
    check(model, true, "its adapter is not merged")?;
    model.visit_linears_mut(&mut |_, layer| fold(layer, -1.0, false));
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
        layer.merged = false;
    });
    Ok(())
}

fn fold(layer: &mut LoraLinear, sign: f64, merged: bool) {
    if let Some(adapter) = &layer.adapter {
        let weight = layer.weight.val().without_autodiff() + adapter.delta() * sign;
        layer.weight = Param::initialized(layer.weight.id, weight);
        layer.merged = merged;
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
        if layer.merged != merged {
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
