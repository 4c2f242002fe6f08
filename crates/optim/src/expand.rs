//! Gradient sources for modules of one's own: a copy of every parameter per example, or one example after the other.

use std::collections::HashMap;

use burn::module::{Initializer, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Gradients, Tensor};

use crate::error::{OptimError, same_length};
use crate::gradients::GroupGradients;
use crate::optimizer::ParameterGroups;
use crate::private::Private;

/// Where per-example gradients come from: a model, an input of some rows, one gradient per row.
pub trait GradientSource<M, I> {
    /// The gradients of every row of `input`, and the rows' losses.
    ///
    /// # Guarantee
    /// Row i of every tensor depends on row i of the input alone.
    ///
    /// # Errors
    /// A module that this source cannot differentiate.
    fn per_example(&self, model: &M, input: I, rows: usize)
    -> Result<ExampleGradients, OptimError>;
}

/// The gradients of a micro-batch's rows. Raw: no `Debug`.
pub struct ExampleGradients {
    /// One group for each of the source's parameter groups.
    pub groups: Vec<GroupGradients>,
    /// The rows' losses, `[rows]`.
    pub losses: Private<Tensor<1>>,
}

/// One copy of every trainable parameter per row, one backward pass for all rows.
///
/// For modules whose trainable parameters all have a leading dimension of one at rest, which the forward pass broadcasts, such as
/// [`ExampleLinear`] and LoRA adapters of `rldp-lora`: repeated to the number of rows, copy i serves row i alone, so that the gradient of
/// the sum of the losses is, in slice i, the gradient of row i's loss.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use rldp_optim::{ExampleLinear, Expansion, GradientSource, ParameterGroups};
///
/// let device = Device::default().autodiff();
/// let model = ExampleLinear::new(3, 1, &device);
/// let parameters = ParameterGroups::flat("all", &model);
/// let source = Expansion::new(parameters, |model: &ExampleLinear, (x, y): (Tensor<2>, Tensor<2>)| {
///     let error = model.forward(x) - y;
///     (error.clone() * error).squeeze_dim::<1>(1)
/// });
/// let input = (Tensor::ones([5, 3], &device), Tensor::zeros([5, 1], &device));
/// let gradients = source.per_example(&model, input, 5)?;
/// // Weight and bias, one row per example.
/// assert_eq!(gradients.groups[0].tensors[0].dims(), [5, 3]);
/// assert_eq!(gradients.groups[0].tensors[1].dims(), [5, 1]);
/// # Ok::<(), rldp_optim::OptimError>(())
/// ```
pub struct Expansion<F> {
    parameters: ParameterGroups,
    loss: F,
}

impl<F> Expansion<F> {
    /// A source for these parameters; `loss` gives one loss per row, `[rows]`, each a function of its own row.
    pub fn new(parameters: ParameterGroups, loss: F) -> Self {
        Self { parameters, loss }
    }
}

impl<M, I, F> GradientSource<M, I> for Expansion<F>
where
    M: Module + Clone,
    F: Fn(&M, I) -> Tensor<1>,
{
    fn per_example(
        &self,
        model: &M,
        input: I,
        rows: usize,
    ) -> Result<ExampleGradients, OptimError> {
        let expanded = expand(model, rows)?;
        let losses = (self.loss)(&expanded, input);
        same_length("losses", rows, losses.dims()[0])?;
        let mut gradients = losses.clone().sum().backward();
        let collected = Collected::from(&expanded, &mut gradients);
        Ok(ExampleGradients {
            groups: collected.into_groups(&self.parameters, rows)?,
            losses: Private::new(losses.inner()),
        })
    }
}

/// One backward pass per row: for any module whatever, at the price of a batch of one each. The reference for other sources.
pub struct OneByOne<F> {
    parameters: ParameterGroups,
    loss: F,
}

impl<F> OneByOne<F> {
    /// A source for these parameters; `loss` gives the loss of one row of the input, `[1]`.
    pub fn new(parameters: ParameterGroups, loss: F) -> Self {
        Self { parameters, loss }
    }
}

impl<M, I, F> GradientSource<M, I> for OneByOne<F>
where
    M: Module,
    F: Fn(&M, &I, usize) -> Tensor<1>,
{
    fn per_example(
        &self,
        model: &M,
        input: I,
        rows: usize,
    ) -> Result<ExampleGradients, OptimError> {
        if rows == 0 {
            return Err(OptimError::Empty);
        }
        let mut losses = Vec::with_capacity(rows);
        let mut all: Vec<GroupGradients> = Vec::new();
        for row in 0..rows {
            let loss = (self.loss)(model, &input, row);
            same_length("losses", 1, loss.dims()[0])?;
            let mut gradients = loss.clone().backward();
            losses.push(loss.inner());
            let groups = Collected::from(model, &mut gradients).into_rows(&self.parameters)?;
            if all.is_empty() {
                all = groups;
            } else {
                for (all, group) in all.iter_mut().zip(groups) {
                    all.tensors.extend(group.tensors);
                }
            }
        }
        // Tensors came row by row; put the rows of each parameter together.
        for (group, (_, slots)) in all.iter_mut().zip(self.parameters.iter()) {
            let tensors = std::mem::take(&mut group.tensors);
            group.tensors = (0..slots.len())
                .map(|slot| {
                    let of_slot = tensors.iter().skip(slot).step_by(slots.len());
                    Tensor::cat(of_slot.cloned().collect(), 0)
                })
                .collect();
        }
        Ok(ExampleGradients {
            groups: all,
            losses: Private::new(Tensor::cat(losses, 0)),
        })
    }
}

/// The module with one copy of every trainable float parameter per row, each a leaf of the autodiff graph.
///
/// # Errors
/// [`OptimError::NotExpandable`] for a trainable parameter whose first dimension is not one; [`OptimError::Empty`] without
/// rows or trainable parameters.
pub fn expand<M: Module + Clone>(module: &M, rows: usize) -> Result<M, OptimError> {
    let mut expander = Expander {
        rows,
        expanded: 0,
        refused: None,
    };
    let expanded = module.clone().map(&mut expander);
    match expander.refused {
        Some(shape) => Err(OptimError::NotExpandable { shape }),
        None if expander.expanded == 0 || rows == 0 => Err(OptimError::Empty),
        None => Ok(expanded),
    }
}

struct Expander {
    rows: usize,
    expanded: usize,
    refused: Option<Vec<usize>>,
}

impl ModuleMapper for Expander {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !param.is_require_grad() {
            return param;
        }
        let (id, value, mapper) = param.consume();
        let dims = value.dims();
        if dims.first() != Some(&1) {
            self.refused.get_or_insert_with(|| dims.to_vec());
            return Param::from_mapped_value(id, value, mapper);
        }
        self.expanded += 1;
        let copies = value.without_autodiff().repeat_dim(0, self.rows);
        Param::from_mapped_value(id, copies.autodiff().require_grad(), mapper)
    }
}

/// Gradients of a module's parameters, flattened, by id.
struct Collected<'a> {
    gradients: &'a mut Gradients,
    found: HashMap<ParamId, Tensor<1>>,
}

impl<'a> Collected<'a> {
    fn from<M: Module>(module: &M, gradients: &'a mut Gradients) -> Self {
        let mut collected = Self {
            gradients,
            found: HashMap::new(),
        };
        module.visit(&mut collected);
        collected
    }

    /// Groups of tensors with `rows` rows.
    fn into_groups(
        mut self,
        parameters: &ParameterGroups,
        rows: usize,
    ) -> Result<Vec<GroupGradients>, OptimError> {
        let groups = parameters.iter();
        groups
            .map(|(name, slots)| {
                let mut group = GroupGradients::new(name);
                for slot in slots {
                    let gradient = self.found.remove(&slot.id);
                    let gradient = gradient.ok_or_else(|| OptimError::NoGradient {
                        group: name.to_owned(),
                        shape: slot.shape.clone(),
                    })?;
                    let width: usize = slot.shape.iter().product();
                    same_length(
                        "coordinates of a gradient",
                        rows * width,
                        gradient.dims()[0],
                    )?;
                    group.tensors.push(gradient.reshape([rows, width]));
                }
                Ok(group)
            })
            .collect()
    }

    fn into_rows(self, parameters: &ParameterGroups) -> Result<Vec<GroupGradients>, OptimError> {
        self.into_groups(parameters, 1)
    }
}

impl ModuleVisitor for Collected<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(self.gradients) {
            let length = gradient.dims().iter().product::<usize>();
            self.found.insert(param.id, gradient.reshape([length]));
        }
    }
}

/// A linear layer that can be expanded: its parameters have a leading example dimension, one at rest.
#[derive(Module, Debug)]
pub struct ExampleLinear {
    /// `[1 or rows, in, out]`.
    pub weight: Param<Tensor<3>>,
    /// `[1 or rows, 1, out]`.
    pub bias: Param<Tensor<3>>,
}

impl ExampleLinear {
    /// A layer with weights uniform within `1/sqrt(inputs)` and a bias of zero. Make it on an autodiff device to train it.
    #[must_use]
    pub fn new(inputs: usize, outputs: usize, device: &Device) -> Self {
        let bound = 1.0 / (inputs.max(1) as f64).sqrt();
        let uniform = Initializer::Uniform {
            min: -bound,
            max: bound,
        };
        Self {
            weight: uniform.init([1, inputs, outputs], device),
            bias: Initializer::Zeros.init([1, 1, outputs], device),
        }
    }

    /// `x W + b` for `x` of `[rows, in]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.forward_sequence(x.unsqueeze_dim(1)).squeeze_dim(1)
    }

    /// `x W + b` for `x` of `[rows, time, in]`.
    #[must_use]
    pub fn forward_sequence(&self, x: Tensor<3>) -> Tensor<3> {
        x.matmul(self.weight.val()) + self.bias.val()
    }
}
