//! Per-example gradients of all parameters, and the update they end in.

use std::collections::HashMap;

use burn::module::{ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Tensor};
use rldp_lora::ForwardHook;
use rldp_models::{Batch, FullParameters, LayerKind};
use rldp_optim::ghost::{Factor, FactoredGradients, Normalisation, Tape};
use rldp_optim::{
    DpOptimizer, GroupGradients, Grouping, ParameterGroups, ParameterSlot, StepRelease,
};

use crate::error::RldpError;

/// All parameters of a model in clipping groups, of which `grouping` starts with one per layer. A tied output projection
/// belongs to the embedding.
///
/// # Errors
/// [`RldpError::UncoveredParameters`] if the model has parameters outside the layers it shows, such as adapters;
/// [`RldpError::HalfPrecision`] if it holds matrices in half precision; merged names that are not one per layer.
pub fn parameter_groups<M: FullParameters>(
    model: &M,
    grouping: &Grouping,
) -> Result<ParameterGroups, RldpError> {
    let mut shapes = Shapes::default();
    model.visit(&mut shapes);
    if shapes.narrow > 0 {
        return Err(RldpError::HalfPrecision {
            tensors: shapes.narrow,
        });
    }
    let mut shapes = shapes.known;
    let mut layers: Vec<(String, Vec<ParamId>)> = Vec::new();
    model.clone().visit_layers_mut(&mut |slot| {
        let ids = match slot.kind {
            LayerKind::Linear { weight, bias } | LayerKind::Norm { weight, bias, .. } => {
                std::iter::once(weight).chain(bias).collect()
            }
            LayerKind::Embedding {
                tokens, positions, ..
            } => std::iter::once(tokens)
                .chain(positions.map(|(id, _)| id))
                .collect(),
            _ => Vec::new(),
        };
        layers.push((slot.name, ids));
    });
    let (name, head) = model.head_parameter();
    if !layers.iter().any(|(_, ids)| ids.contains(&head)) {
        layers.push((name.to_owned(), vec![head]));
    }

    let mut groups = ParameterGroups::new();
    for (name, ids) in layers {
        let slots = ids
            .into_iter()
            .filter_map(|id| shapes.remove(&id).map(|shape| ParameterSlot { id, shape }));
        groups = groups.with(name, slots.collect());
    }
    if !shapes.is_empty() {
        return Err(RldpError::UncoveredParameters {
            tensors: shapes.len(),
        });
    }
    Ok(grouping.parameters(&groups)?)
}

/// Shapes of all float parameters.
#[derive(Default)]
struct Shapes {
    known: HashMap<ParamId, Vec<usize>>,
    /// How many are not in single precision.
    narrow: usize,
}

impl ModuleVisitor for Shapes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        self.narrow += usize::from(value.dtype() != DType::F32);
        self.known.insert(param.id, value.dims().to_vec());
    }
}

/// Per-example gradients of the loss by all parameters in `groups`, multiplied out, and the losses, `[examples]`.
///
/// # Guarantee
/// Row `i` is the gradient of example `i`'s own loss and depends on no other example: it is made from slice `i` of every
/// layer's input and output gradient ([`rldp_optim::ghost`]). A tied matrix has the sum of its two gradients.
///
/// # Errors
/// Parameters in `groups` that are not the model's.
pub fn per_example_gradients<M: FullParameters>(
    model: &M,
    batch: &Batch,
    groups: &ParameterGroups,
) -> Result<(Vec<GroupGradients>, Tensor<1>), RldpError> {
    let (factored, losses) = factored_gradients(model, batch)?;
    Ok((factored.multiplied_out(groups)?, losses))
}

/// Per-example gradients of the loss by all parameters, as what they are made of, and the losses, `[examples]`.
///
/// One forward and one backward pass, in which no weight's gradient is computed.
///
/// # Errors
/// None for a model that shows its layers; the tape's are passed on.
pub fn factored_gradients<M: FullParameters>(
    model: &M,
    batch: &Batch,
) -> Result<(FactoredGradients, Tensor<1>), RldpError> {
    let tape = Tape::new();
    let mut hooked = model.valid();
    hooked.visit_layers_mut(&mut |slot| {
        *slot.hook = hook(slot.kind, &tape, batch);
    });
    let hidden = hooked.hidden_states(batch.input_ids.clone(), None);
    let pass = hooked.projection_pass(hidden, batch);
    let (_, head) = hooked.head_parameter();
    tape.known(
        head,
        Factor::Outer {
            left: pass.errors,
            right: pass.hidden,
        },
    );
    let losses = pass.losses.clone().without_autodiff();
    let mut gradients = pass.losses.sum().backward();
    Ok((tape.finish(&mut gradients)?, losses))
}

/// Records a layer on the tape.
fn hook(kind: LayerKind, tape: &Tape, batch: &Batch) -> Option<ForwardHook> {
    let tape = tape.clone();
    Some(match kind {
        LayerKind::Linear { weight, bias } => {
            ForwardHook::new(move |input, output| tape.linear(weight, bias, input, output))
        }
        LayerKind::Norm {
            weight,
            bias,
            normalisation,
        } => {
            let normalisation = match normalisation {
                rldp_models::Normalisation::Layer { epsilon } => Normalisation::Layer { epsilon },
                rldp_models::Normalisation::RootMeanSquare { epsilon } => {
                    Normalisation::RootMeanSquare { epsilon }
                }
                _ => return None,
            };
            ForwardHook::new(move |input, output| {
                tape.norm(weight, bias, normalisation, input, output)
            })
        }
        LayerKind::Embedding {
            tokens,
            vocabulary,
            positions,
        } => {
            let ids = batch.input_ids.clone();
            ForwardHook::new(move |_, output| {
                let output = tape.embedding(tokens, vocabulary, ids.clone(), output);
                match positions {
                    Some((table, rows)) => tape.positions(table, rows, output),
                    None => output,
                }
            })
        }
        _ => return None,
    })
}

/// Moves all parameters in the optimizer's groups by one step and gives the model back without autodiff.
///
/// # Errors
/// A release of other groups.
pub fn apply<M: FullParameters>(
    optimizer: &mut DpOptimizer,
    learning_rate: f64,
    model: M,
    release: &StepRelease,
) -> Result<M, RldpError> {
    let trained = optimizer.step(learning_rate, model.unfreeze().train(), release)?;
    Ok(trained.valid().freeze())
}
