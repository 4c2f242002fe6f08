use burn::module::ParamId;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use rldp_lora::{ForwardHook, LoraLinear};

use crate::norm::{LayerNorm, RmsNorm};
use crate::{Batch, LanguageModel};

/// Logits per chunk: 4 MB of f32.
const CHUNK: usize = 1 << 20;

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

impl Normalisation {
    /// Normalises.
    pub fn apply(self, x: Tensor<3>) -> Tensor<3> {
        let (x, epsilon) = match self {
            Self::Layer { epsilon } => (x.clone() - x.mean_dim(2), epsilon),
            Self::RootMeanSquare { epsilon } => (x, epsilon),
        };
        let mean_square = (x.clone() * x.clone()).mean_dim(2);
        x * (mean_square + epsilon).sqrt().recip()
    }
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
    let spread = |parts: Vec<Tensor<2>>, width: usize| match (all, used) {
        (true, _) => Tensor::cat(parts, 0),
        (false, 0) => Tensor::zeros([count, width], &device),
        (false, _) => Tensor::zeros([count, width], &device).select_assign(
            0,
            counted.clone(),
            Tensor::cat(parts, 0),
            IndexingUpdateOp::Add,
        ),
    };
    let (rows, weights) = (select(rows), select(weights));
    let targets = match all {
        true => targets,
        false => targets.select(0, counted.clone()),
    };

    let (mut losses, mut errors, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    let chunk = (CHUNK / vocabulary).max(1);
    for start in (0..used).step_by(chunk) {
        let length = chunk.min(used - start);
        let weights = weights.clone().narrow(0, start, length);
        let targets = targets
            .clone()
            .narrow(0, start, length)
            .reshape([length, 1]);
        let logits = rows
            .clone()
            .narrow(0, start, length)
            .matmul(head.clone().swap_dims(0, 1));
        let maximum = logits.clone().max_dim(1);
        let picked = logits.clone().gather(1, targets.clone());
        let powers = (logits - maximum.clone()).exp();
        let total = powers.clone().sum_dim(1);
        losses.push((total.clone().log() + maximum - picked) * weights.clone());
        let error = (powers * (weights.clone() / total)).scatter(
            1,
            targets,
            weights.neg(),
            IndexingUpdateOp::Add,
        );
        gradients.push(error.clone().matmul(head.clone()));
        errors.push(error);
    }

    let losses = spread(losses, 1)
        .reshape([examples, time])
        .sum_dim(1)
        .reshape([examples]);
    let gradient = spread(gradients, width).reshape([examples, time, width]);
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
