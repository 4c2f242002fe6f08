//! Cross-entropy straight from hidden states.
//!
//! The logits of a batch are its largest tensor by far (a 128,000-word vocabulary makes half a
//! gigabyte of a thousand tokens). While the output projection is frozen, as in every LoRA run,
//! they need not exist at once, nor in the autodiff graph: rows are taken in chunks that fit the
//! processor's cache, and the gradient with respect to the hidden states is computed along with
//! the loss, in closed form, and handed to autodiff as a constant.

use burn::tensor::activation::log_softmax;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData, module::linear};

use rldp_lora::frozen::widen;

use crate::Batch;
use crate::fused::{head_losses, with_slope};

/// Logits per chunk: 4 MB of f32.
const CHUNK: usize = 1 << 20;

/// Sums and counts of token losses, per example.
#[derive(Debug, Clone)]
pub struct TokenLosses {
    /// Sum over the example's counted targets of `-ln p(target)`.
    pub sums: Tensor<1>,
    /// Number of counted targets; a constant.
    pub counts: Tensor<1>,
}

impl TokenLosses {
    /// Each example's mean loss; zero for an example without counted targets.
    pub fn means(self) -> Tensor<1> {
        self.sums / self.counts.clamp_min(1.0)
    }
}

/// Token losses from `[examples, time, hidden]` states and the `[vocabulary, hidden]` projection.
pub(crate) fn token_losses(hidden: Tensor<3>, head: Tensor<2>, batch: &Batch) -> TokenLosses {
    // One f32 copy of the projection while the loss is computed, if it is held in half precision.
    let head = widen(head);
    let sums = if head.is_tracked() {
        through_autodiff(hidden, head, batch)
    } else {
        in_closed_form(hidden, head, batch)
    };
    TokenLosses {
        sums,
        counts: batch.counts(),
    }
}

/// All logits at once, every gradient by autodiff: for training the projection itself.
fn through_autodiff(hidden: Tensor<3>, head: Tensor<2>, batch: &Batch) -> Tensor<1> {
    let examples = batch.examples();
    let logits = linear(hidden, head.swap_dims(0, 1), None);
    let targets = batch.targets.clone().unsqueeze_dim::<3>(2);
    let [rows, time] = batch.mask.dims();
    let picked = log_softmax(logits, 2)
        .gather(2, targets)
        .reshape([rows, time]);
    (picked.neg() * batch.mask.clone())
        .sum_dim(1)
        .reshape([examples])
}

fn in_closed_form(hidden: Tensor<3>, head: Tensor<2>, batch: &Batch) -> Tensor<1> {
    let [examples, time, width] = hidden.dims();
    let tracked = hidden.is_tracked();
    let head = head.without_autodiff();
    let constant = hidden.clone().without_autodiff();
    let device = constant.device();

    let mask: Vec<f32> = batch.mask.to_data().iter::<f32>().collect();
    let rows = constant.reshape([examples * time, width]);
    let targets = batch.targets.clone().without_autodiff();
    let targets = targets.reshape([examples * time]);
    let weights = batch.mask.clone().without_autodiff();
    let weights = weights.reshape([examples * time, 1]);

    // Padding and prompts cost nothing: only counted rows go through the projection.
    let counted: Vec<i64> = (0..mask.len() as i64)
        .zip(&mask)
        .filter_map(|(index, weight)| (*weight != 0.0).then_some(index))
        .collect();
    let count = counted.len();
    if count == 0 {
        return (hidden * 0.0).sum_dim(2).sum_dim(1).reshape([examples]);
    }
    let all = count == mask.len();
    let example_of_row: Vec<usize> = counted.iter().map(|row| *row as usize / time).collect();
    let counted: Tensor<1, Int> = Tensor::from_data(TensorData::new(counted, [count]), &device);
    let (rows, targets, weights) = if all {
        (rows, targets, weights)
    } else {
        (
            rows.select(0, counted.clone()),
            targets.select(0, counted.clone()),
            weights.select(0, counted.clone()),
        )
    };

    let spread = |values: Tensor<2>, width: usize| {
        if all {
            values
        } else {
            Tensor::zeros([examples * time, width], &device).select_assign(
                0,
                counted.clone(),
                values,
                IndexingUpdateOp::Add,
            )
        }
    };
    let words: Vec<u32> = targets.to_data().iter::<u32>().collect();
    let factors: Vec<f32> = weights.to_data().iter::<f32>().collect();
    let (losses, gradient) = match head_losses(&rows, &head, &words, &factors, tracked) {
        Some((losses, gradient)) => {
            let losses = sums_in_order(&losses, &example_of_row, examples);
            (losses, gradient)
        }
        None => {
            let (losses, gradient) = in_chunks(rows, &head, targets, weights, tracked);
            let losses = spread(losses, 1).reshape([examples, time]);
            (losses.sum_dim(1).reshape([examples]), gradient)
        }
    };
    match gradient {
        Some(gradient) => {
            let gradient = spread(gradient, width).reshape([examples, time, width]);
            with_slope(hidden, gradient, losses)
        }
        None => losses,
    }
}

/// Each example's sum, token by token: uncounted rows are not there, so padding changes no bit.
fn sums_in_order(losses: &Tensor<1>, example_of_row: &[usize], examples: usize) -> Tensor<1> {
    let mut sums = vec![0.0f64; examples];
    let values = losses.to_data();
    for (example, loss) in example_of_row.iter().zip(values.iter::<f32>()) {
        sums[*example] += f64::from(loss);
    }
    let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
    Tensor::from_data(TensorData::new(sums, [examples]), &losses.device())
}

/// Some rows at a time, by Burn's operations.
pub(crate) fn in_chunks(
    rows: Tensor<2>,
    head: &Tensor<2>,
    targets: Tensor<1, Int>,
    weights: Tensor<2>,
    tracked: bool,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let [count, _] = rows.dims();
    let chunk = (CHUNK / head.dims()[0]).clamp(1, count);
    let mut losses = Vec::new();
    let mut gradients = Vec::new();
    for start in (0..count).step_by(chunk) {
        let length = chunk.min(count - start);
        let (loss, gradient) = chunk_losses(
            rows.clone().narrow(0, start, length),
            head,
            targets.clone().narrow(0, start, length),
            weights.clone().narrow(0, start, length),
            tracked,
        );
        losses.push(loss);
        gradients.extend(gradient);
    }
    let gradient = tracked.then(|| Tensor::cat(gradients, 0));
    (Tensor::cat(losses, 0), gradient)
}

/// Weighted losses, `[rows, 1]`, and, if wanted, their gradient by the rows, `[rows, hidden]`.
fn chunk_losses(
    rows: Tensor<2>,
    head: &Tensor<2>,
    targets: Tensor<1, Int>,
    weights: Tensor<2>,
    with_gradient: bool,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let logits = rows.matmul(head.clone().swap_dims(0, 1));
    let [count, _] = logits.dims();
    let maximum = logits.clone().max_dim(1);
    let picked = logits
        .clone()
        .gather(1, targets.clone().reshape([count, 1]));
    let powers = (logits - maximum.clone()).exp();
    let total = powers.clone().sum_dim(1);
    let loss = (total.clone().log() + maximum - picked) * weights.clone();
    let gradient = with_gradient.then(|| {
        let probabilities = powers * (weights.clone() / total);
        probabilities.matmul(head.clone()) - head.clone().select(0, targets) * weights
    });
    (loss, gradient)
}
