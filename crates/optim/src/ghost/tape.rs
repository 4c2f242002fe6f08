//! What a forward and a backward pass leave behind for the per-example gradients.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::ParamId;
use burn::tensor::{Gradients, Int, Tensor};

use super::factor::{Factor, multiplied_out};
use super::norm::{self, NormBound};
use super::normalisation::Normalisation;
use super::tap::{Probe, tap};
use crate::error::{OptimError, same_length};
use crate::gradients::GroupGradients;
use crate::optimizer::{ParameterGroups, ParameterSlot};
use crate::row_map::RowMap;

/// Records the layers of one forward pass.
///
/// Every method takes a layer's output and gives it back; use what it gives back. Clones record onto the same tape, so
/// that a tape can be handed to forward hooks. No parameter needs to require gradients: then autodiff computes none, and
/// the weights' gradients cost what is done here and nothing else.
///
/// A parameter that is used more than once (a tied head, a layer called twice) is recorded once per use, under its one id;
/// its gradient, and its norm, is that of the sum.
#[derive(Clone, Default)]
pub struct Tape {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    probes: Vec<Probe>,
    uses: Vec<(ParamId, Use)>,
}

/// A [`Factor`] whose error is still to come.
enum Use {
    Outer {
        input: Tensor<3>,
        probe: usize,
    },
    Sum {
        probe: usize,
    },
    Product {
        input: Tensor<3>,
        probe: usize,
    },
    Norm {
        input: Tensor<3>,
        normalisation: Normalisation,
        probe: usize,
    },
    Rows {
        ids: Tensor<2, Int>,
        rows: usize,
        probe: usize,
    },
    Positions {
        rows: usize,
        probe: usize,
    },
    Known(Box<Factor>),
}

impl Tape {
    /// An empty tape.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A linear layer `output = input W + bias` with `W` of `[in, out]`; shapes `[examples, time, in]` and `[examples, time, out]`.
    #[must_use = "the layer's output is replaced by what this returns"]
    pub fn linear(
        &self,
        weight: ParamId,
        bias: Option<ParamId>,
        input: Tensor<3>,
        output: Tensor<3>,
    ) -> Tensor<3> {
        let input = input.without_autodiff();
        self.record_layer(weight, bias, output, |probe| Use::Outer { input, probe })
    }

    /// A normalisation layer `output = weight * normalise(input) + bias`; shapes `[examples, time, width]`.
    #[must_use = "the layer's output is replaced by what this returns"]
    pub fn norm(
        &self,
        weight: ParamId,
        bias: Option<ParamId>,
        normalisation: Normalisation,
        input: Tensor<3>,
        output: Tensor<3>,
    ) -> Tensor<3> {
        let input = input.without_autodiff();
        self.record_layer(weight, bias, output, |probe| Use::Norm {
            input,
            normalisation,
            probe,
        })
    }

    /// Any elementwise scale, `output = weight * input + bias`.
    #[must_use = "the layer's output is replaced by what this returns"]
    pub fn scale(
        &self,
        weight: ParamId,
        bias: Option<ParamId>,
        input: Tensor<3>,
        output: Tensor<3>,
    ) -> Tensor<3> {
        let input = input.without_autodiff();
        self.record_layer(weight, bias, output, |probe| Use::Product { input, probe })
    }

    /// An embedding `output[t] = table[ids[t]]` from a table of `rows` rows.
    #[must_use = "the layer's output is replaced by what this returns"]
    pub fn embedding(
        &self,
        table: ParamId,
        rows: usize,
        ids: Tensor<2, Int>,
        output: Tensor<3>,
    ) -> Tensor<3> {
        self.record(output, |probe, uses| {
            let ids = ids.without_autodiff();
            uses.push((table, Use::Rows { ids, rows, probe }));
        })
    }

    /// Learned positions, `output[t] = input[t] + table[t]`, from a table of `rows` rows.
    #[must_use = "the layer's output is replaced by what this returns"]
    pub fn positions(&self, table: ParamId, rows: usize, output: Tensor<3>) -> Tensor<3> {
        self.record(output, |probe, uses| {
            uses.push((table, Use::Positions { rows, probe }));
        })
    }

    /// A use whose factor is known without the backward pass, as that of an output projection whose errors come with the loss.
    pub fn known(&self, parameter: ParamId, factor: Factor) {
        self.with(|state| state.uses.push((parameter, Use::Known(Box::new(factor)))));
    }

    /// A layer with a weight and, maybe, a bias that is added to every position.
    fn record_layer(
        &self,
        weight: ParamId,
        bias: Option<ParamId>,
        output: Tensor<3>,
        used: impl FnOnce(usize) -> Use,
    ) -> Tensor<3> {
        self.record(output, |probe, uses| {
            uses.push((weight, used(probe)));
            uses.extend(bias.map(|bias| (bias, Use::Sum { probe })));
        })
    }

    fn record(
        &self,
        output: Tensor<3>,
        uses: impl FnOnce(usize, &mut Vec<(ParamId, Use)>),
    ) -> Tensor<3> {
        let (output, probe) = tap(output);
        self.with(|state| {
            state.probes.push(probe);
            uses(state.probes.len() - 1, &mut state.uses);
        });
        output
    }

    fn with<R>(&self, action: impl FnOnce(&mut State) -> R) -> R {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes what was recorded together with the backward pass of the SUM of the per-example losses.
    ///
    /// # Guarantee
    /// If the loss of example `i` depends on slice `i` of every recorded tensor only, then slice `i` of every factor, and so
    /// of every gradient made from it, depends on example `i` only, and is the gradient of its loss by each recorded parameter.
    ///
    /// # Errors
    /// [`OptimError::MissingGradient`] if the loss does not depend on a recorded layer.
    pub fn finish(self, gradients: &mut Gradients) -> Result<FactoredGradients, OptimError> {
        let State { probes, uses } = self.with(std::mem::take);
        let errors: Vec<Option<Tensor<3>>> =
            probes.iter().map(|probe| probe.take(gradients)).collect();
        let error = |probe: usize| {
            errors[probe]
                .clone()
                .ok_or(OptimError::MissingGradient { layer: probe })
        };
        let mut parameters: HashMap<ParamId, Vec<Factor>> = HashMap::new();
        for (id, used) in uses {
            let factor = match used {
                Use::Outer { input, probe } => Factor::Outer {
                    left: input,
                    right: error(probe)?,
                },
                Use::Sum { probe } => Factor::Sum {
                    error: error(probe)?,
                },
                Use::Product { input, probe } => Factor::Product {
                    input,
                    error: error(probe)?,
                },
                Use::Norm {
                    input,
                    normalisation,
                    probe,
                } => Factor::Norm {
                    input,
                    error: error(probe)?,
                    normalisation,
                },
                Use::Rows { ids, rows, probe } => Factor::Rows {
                    ids,
                    error: error(probe)?,
                    rows,
                },
                Use::Positions { rows, probe } => Factor::Positions {
                    error: error(probe)?,
                    rows,
                },
                Use::Known(factor) => *factor,
            };
            parameters.entry(id).or_default().push(factor);
        }
        Ok(FactoredGradients { parameters })
    }
}

/// The per-example gradients of all recorded parameters, not multiplied out.
///
/// Raw values: no `Debug`, no `Clone`.
pub struct FactoredGradients {
    parameters: HashMap<ParamId, Vec<Factor>>,
}

impl FactoredGradients {
    /// Multiplies out the gradients of these parameters: one tensor `[examples, coordinates]` for each, in the groups' order.
    ///
    /// Memory: examples times coordinates, in f32; each parameter's factors are let go of as it is done.
    ///
    /// # Errors
    /// [`OptimError::UnrecordedParameter`] for a parameter that no layer was recorded for; another number of coordinates.
    pub fn multiplied_out(
        mut self,
        groups: &ParameterGroups,
    ) -> Result<Vec<GroupGradients>, OptimError> {
        let mut list = Vec::new();
        for (name, slots) in groups.iter() {
            let mut group = GroupGradients::new(name);
            for slot in slots {
                let factors = self.take(name, slot)?;
                group.tensors.extend(multiplied_out(factors));
            }
            list.push(group);
        }
        Ok(list)
    }

    /// The norm of every unit's gradient in every group, `[group][unit]`, as ghost norms: large matrices are not multiplied out.
    ///
    /// # Guarantee
    /// [`NormBound::bound`] is not below the norm of the vector that [`FactoredGradients::multiplied_out`] gives (`docs/proofs/ghost-norms.md`).
    ///
    /// # Errors
    /// As for [`FactoredGradients::multiplied_out`]; another number of rows; a device that cannot be read.
    pub fn norms(
        &self,
        groups: &ParameterGroups,
        rows: &RowMap,
    ) -> Result<Vec<Vec<NormBound>>, OptimError> {
        let zero = NormBound {
            square: 0.0,
            bound: 0.0,
        };
        let mut list = Vec::new();
        for (name, slots) in groups.iter() {
            let mut sums = vec![zero; rows.units()];
            for slot in slots {
                let factors = self.uses(name, slot)?;
                for factor in factors {
                    same_length("examples of a layer", rows.rows(), factor.examples())?;
                }
                let norms = match norm::bounds(factors, rows)? {
                    Some(norms) => norms,
                    None => match multiplied_out(factors.to_vec()) {
                        Some(tensor) => norm::dense(tensor, rows)?,
                        None => continue,
                    },
                };
                for (sum, norm) in sums.iter_mut().zip(norms) {
                    sum.square += norm.square;
                    sum.bound = sum.bound.hypot(norm.bound) * (1.0 + 1e-15);
                }
            }
            list.push(sums);
        }
        Ok(list)
    }

    /// A parameter's uses; at least one.
    fn uses(&self, group: &str, slot: &ParameterSlot) -> Result<&[Factor], OptimError> {
        let missing = || OptimError::UnrecordedParameter {
            group: group.to_owned(),
            shape: slot.shape.clone(),
        };
        let factors = self.parameters.get(&slot.id).ok_or_else(missing)?;
        for factor in factors {
            let width = slot.shape.iter().product();
            same_length("coordinates of a parameter", width, factor.width())?;
        }
        Ok(factors)
    }

    /// Takes a parameter's uses out; at least one.
    pub(super) fn take(
        &mut self,
        group: &str,
        slot: &ParameterSlot,
    ) -> Result<Vec<Factor>, OptimError> {
        self.uses(group, slot)?;
        Ok(self.parameters.remove(&slot.id).unwrap_or_default())
    }
}
