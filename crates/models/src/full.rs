use burn::module::ParamId;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};
use rayon::prelude::*;
use rldp_lora::{ForwardHook, LoraLinear};

use crate::fused::math;
use crate::norm::{LayerNorm, RmsNorm};
use crate::{Batch, LanguageModel};

/// A language model that shows every parameter it has, layer by layer.
///
/// What full-parameter training with per-example gradients needs: with a hook on every layer, all that a per-example
/// gradient is made of passes through the hooks and [`FullParameters::projection_pass`].
pub trait FullParameters: LanguageModel {
    /// Calls `visit` with every layer that has parameters, the output projection excepted, always in the same order.
    ///
    /// Together with [`Self::head_parameter`] they hold every parameter of a model without adapters.
    fn visit_layers_mut(&mut self, visit: &mut dyn FnMut(LayerSlot<'_>));

    /// Layer and parameter of the output projection, `[vocabulary, hidden]`; that of the token embedding if it is tied.
    fn head_parameter(&self) -> (&'static str, ParamId);

    /// Each example's loss from the last hidden states, with the gradient by the logits.
    ///
    /// The loss is [`LanguageModel::per_example_loss`]'s. Autodiff sees the projection as a constant.
    fn projection_pass(&self, hidden: Tensor<3>, batch: &Batch) -> ProjectionPass {
        projection_pass(hidden, self.head(), batch)
    }
}

/// A layer with parameters, and the place for a hook on it.
#[derive(Debug)]
pub struct LayerSlot<'a> {
    /// The layer's name in the Hugging Face checkpoint.
    pub name: String,
    /// What it computes.
    pub kind: LayerKind,
    /// The hook that its forward pass calls with its input and its output.
    pub hook: &'a mut Option<ForwardHook>,
}

/// What a layer computes, and from which parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum LayerKind {
    /// `x W + bias`, `W` being `[in, out]`.
    Linear {
        /// `W`.
        weight: ParamId,
        /// The bias.
        bias: Option<ParamId>,
    },
    /// `weight * normalise(x) + bias`.
    Norm {
        /// The scale.
        weight: ParamId,
        /// The shift.
        bias: Option<ParamId>,
        /// What comes before scale and shift.
        normalisation: Normalisation,
    },
    /// `tokens[id] + positions[t]`; its hook gets the sum as input, too.
    Embedding {
        /// The table of tokens.
        tokens: ParamId,
        /// Its rows.
        vocabulary: usize,
        /// The table of positions and its rows.
        positions: Option<(ParamId, usize)>,
    },
}

/// A normalisation over the last dimension, before scale and shift.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Normalisation {
    /// `(x - mean) / sqrt(variance + epsilon)`.
    Layer {
        /// Added to the variance.
        epsilon: f64,
    },
    /// `x / sqrt(mean square + epsilon)`.
    RootMeanSquare {
        /// Added to the mean square.
        epsilon: f64,
    },
}

pub(crate) fn linear_slot(name: String, linear: &mut LoraLinear) -> LayerSlot<'_> {
    LayerSlot {
        name,
        kind: LayerKind::Linear {
            weight: linear.weight.id,
            bias: linear.bias.as_ref().map(|bias| bias.id),
        },
        hook: &mut linear.hook,
    }
}

impl LayerNorm {
    pub(crate) fn slot(&mut self, name: String) -> LayerSlot<'_> {
        LayerSlot {
            name,
            kind: LayerKind::Norm {
                weight: self.weight.id,
                bias: Some(self.bias.id),
                normalisation: Normalisation::Layer {
                    epsilon: self.epsilon,
                },
            },
            hook: &mut self.hook,
        }
    }
}

impl RmsNorm {
    pub(crate) fn slot(&mut self, name: String) -> LayerSlot<'_> {
        LayerSlot {
            name,
            kind: LayerKind::Norm {
                weight: self.weight.id,
                bias: None,
                normalisation: Normalisation::RootMeanSquare {
                    epsilon: self.epsilon,
                },
            },
            hook: &mut self.hook,
        }
    }
}

/// Losses and what the output projection's gradient is made of.
pub struct ProjectionPass {
    /// Each example's loss, `[examples]`; backward, it gives the hidden states their gradient.
    pub losses: Tensor<1>,
    /// The hidden states, `[examples, time, hidden]`, without autodiff.
    pub hidden: Tensor<3>,
    /// Gradient of each example's loss by its logits, `[examples, time, vocabulary]`, without autodiff; zero where no
    /// target counts. The projection's gradient for example `i` is `errors[i]^T hidden[i]`.
    pub errors: Tensor<3>,
}

fn projection_pass(hidden: Tensor<3>, head: Tensor<2>, batch: &Batch) -> ProjectionPass {
    let [examples, time, width] = hidden.dims();
    let head = head.without_autodiff();
    let vocabulary = head.dims()[0];
    let constant = hidden.clone().without_autodiff();
    let device = constant.device();
    let count = examples * time;

    let rows = constant.clone().reshape([count, width]);
    let targets = batch.targets.clone().without_autodiff().reshape([count]);
    let weights = batch.mask.clone().without_autodiff();
    let weights = weights.clone() / weights.sum_dim(1).clamp_min(1.0);
    let mask: Vec<f32> = weights.to_data().iter::<f32>().collect();
    let weights = weights.reshape([count, 1]);

    // Padding and prompts cost nothing: only counted rows go through the projection.
    let counted: Vec<i64> = (0..count as i64)
        .zip(&mask)
        .filter_map(|(index, weight)| (*weight != 0.0).then_some(index))
        .collect();
    let used = counted.len();
    let all = used == count;
    let counted = Tensor::<1, Int>::from_data(TensorData::new(counted, [used]), &device);
    let select = |tensor: Tensor<2>| match all {
        true => tensor,
        false => tensor.select(0, counted.clone()),
    };
    let spread = |values: Tensor<2>, width: usize| match (all, used) {
        (true, _) => values,
        (false, 0) => Tensor::zeros([count, width], &device),
        (false, _) => Tensor::zeros([count, width], &device).select_assign(
            0,
            counted.clone(),
            values,
            IndexingUpdateOp::Add,
        ),
    };
    let (rows, weights) = (select(rows), select(weights));
    let targets = match all {
        true => targets,
        false => targets.select(0, counted.clone()),
    };

    let logits = rows.matmul(head.clone().swap_dims(0, 1));
    let (losses, errors) = match used {
        0 => (Tensor::zeros([0, 1], &device), logits),
        _ => errors_of(logits, targets, weights),
    };
    let gradient = match used {
        0 => Tensor::zeros([count, width], &device),
        _ => spread(errors.clone().matmul(head), width),
    };
    let losses = spread(losses, 1).reshape([examples, time]);
    let losses = losses.sum_dim(1).reshape([examples]);
    let gradient = gradient.reshape([examples, time, width]);
    let errors = spread(errors, vocabulary).reshape([examples, time, vocabulary]);
    // Linear in the hidden states with the right slope; its own value cancels out.
    let slope = (hidden * gradient)
        .sum_dim(2)
        .sum_dim(1)
        .reshape([examples]);
    ProjectionPass {
        losses: slope.clone() - slope.detach() + losses,
        hidden: constant,
        errors,
    }
}

/// Weighted losses, `[rows, 1]`, and their gradient by the logits, `[rows, vocabulary]`.
fn errors_of(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    weights: Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    let [count, words] = logits.dims();
    if on_host(&logits) {
        let device = logits.device();
        let targets: Vec<usize> = targets
            .to_data()
            .iter::<u64>()
            .map(|t| t as usize)
            .collect();
        let weights: Vec<f32> = weights.to_data().iter::<f32>().collect();
        let mut losses = vec![0.0_f32; count];
        let mut data = logits.into_data();
        if let Ok(values) = data.as_mut_slice::<f32>() {
            values
                .par_chunks_mut(words)
                .zip(&mut losses)
                .zip(targets.par_iter().zip(&weights))
                .for_each(|((row, loss), (target, weight))| {
                    *loss = softmax_error(row, *target, *weight);
                });
            return (
                Tensor::from_data(TensorData::new(losses, [count, 1]), &device),
                Tensor::from_data(data, &device),
            );
        }
        let logits = Tensor::from_data(data, &device);
        let targets: Vec<i64> = targets.into_iter().map(|target| target as i64).collect();
        let targets = Tensor::from_data(TensorData::new(targets, [count]), &device);
        let weights = Tensor::from_data(TensorData::new(weights, [count, 1]), &device);
        return composed_errors(logits, targets, weights);
    }
    composed_errors(logits, targets, weights)
}

/// The same by Burn's operations.
fn composed_errors(
    logits: Tensor<2>,
    targets: Tensor<1, Int>,
    weights: Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    let targets = targets.unsqueeze_dim::<2>(1);
    let maximum = logits.clone().max_dim(1);
    let picked = logits.clone().gather(1, targets.clone());
    let powers = (logits - maximum.clone()).exp();
    let total = powers.clone().sum_dim(1);
    let losses = (total.clone().log() + maximum - picked) * weights.clone();
    let errors = (powers * (weights.clone() / total)).scatter(
        1,
        targets,
        weights.neg(),
        IndexingUpdateOp::Add,
    );
    (losses, errors)
}

/// Turns a row of logits into the gradient of its weighted loss, and gives the loss.
fn softmax_error(row: &mut [f32], target: usize, weight: f32) -> f32 {
    const LANES: usize = 16;
    let logit = row.get(target).copied().unwrap_or(f32::NAN);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*value);
        }
    }
    let maximum = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0_f32; LANES];
    for chunk in row.chunks_mut(LANES) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *value = math::exp(*value - maximum);
            *sum += *value;
        }
    }
    let total: f32 = sums.into_iter().sum();
    let factor = weight / total;
    row.iter_mut().for_each(|value| *value *= factor);
    if let Some(value) = row.get_mut(target) {
        *value -= weight;
    }
    (total.ln() + maximum - logit) * weight
}

/// Whether a tensor's elements can be worked on where they are.
fn on_host(tensor: &Tensor<2>) -> bool {
    tensor.dtype() == DType::F32 && crate::fused::supports(&tensor.device())
}
