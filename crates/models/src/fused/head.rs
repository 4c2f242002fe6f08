//! Cross-entropy through the output projection, without the logits of a batch ever existing.
//!
//! The vocabulary is taken in blocks. Each row keeps its largest logit so far and the sum of powers
//! relative to it (Milakov and Gimelshein 2018, arXiv 1805.02867), and the gradient grows with them,
//! so every weight is read once for the loss and its gradient together.

use rayon::prelude::*;

use super::math::{self, by_lanes};
use super::product::{Buffer, Left, Panels, Shared, Span, View, blocks, multiply_block};

/// Words at a time.
const WORDS: usize = 512;

/// Writes each row's weighted loss to `losses` and, if wanted, its gradient by the row to `grads`.
///
/// `rows` is `[rows, width]`, `projection` `[words, width]`; every target is a word.
pub(crate) fn losses(
    rows: &[f32],
    projection: &[f32],
    width: usize,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
    grads: Option<Shared>,
) {
    let (count, words) = (targets.len(), projection.len() / width);
    let blocks = blocks(1, count);
    let wanted = grads.is_some();
    let grads = grads.unwrap_or(Shared::new(&mut []));
    // Per row: the largest logit, the sum of powers, the target's logit.
    let mut state = vec![[f32::NEG_INFINITY, 0.0, 0.0]; count];
    for start in (0..words).step_by(WORDS) {
        let size = WORDS.min(words - start);
        let part = View::rows(
            &projection[start * width..][..size * width],
            size,
            width,
            width,
        );
        let forward = Panels::new(part.transposed());
        let backward = wanted.then(|| Panels::new(part));
        let mut parts = Vec::with_capacity(blocks.len());
        let mut rest = &mut state[..];
        for block in &blocks {
            let (head, tail) = rest.split_at_mut(block.rows);
            parts.push((block, head));
            rest = tail;
        }
        parts.into_par_iter().for_each(|(block, state)| {
            let all = block.first..block.first + block.rows;
            let span = || Span {
                rows: 0..block.rows,
                low: None,
            };
            let mut logits = Buffer::take(block.rows * size);
            let logits = logits.values();
            let left = Left {
                values: &rows[all.start * width..all.end * width],
                stride: width,
            };
            // SAFETY: the buffer is this task's, and so are its rows of the gradient.
            let grads = unsafe {
                multiply_block(
                    left,
                    &forward,
                    &[span()],
                    None,
                    (logits.as_mut_ptr(), size, false),
                );
                grads.slice(if wanted {
                    all.start * width..all.end * width
                } else {
                    0..0
                })
            };
            for (row, logits) in logits.chunks_exact_mut(size).enumerate() {
                let [largest, sum, target_logit] = &mut state[row];
                let target = targets[all.start + row] as usize;
                if let Some(logit) = target
                    .checked_sub(start)
                    .and_then(|index| logits.get(index))
                {
                    *target_logit = *logit;
                }
                let (maximum, more) = powers(logits, *largest);
                if maximum > *largest && start > 0 {
                    let factor = math::exp(*largest - maximum);
                    *sum *= factor;
                    if wanted {
                        let grad = &mut grads[row * width..(row + 1) * width];
                        grad.iter_mut().for_each(|value| *value *= factor);
                    }
                }
                *largest = maximum;
                *sum += more;
            }
            if let Some(backward) = &backward {
                let left = Left {
                    values: logits,
                    stride: size,
                };
                let to = (grads.as_mut_ptr(), width, start > 0);
                // SAFETY: as above.
                unsafe { multiply_block(left, backward, &[span()], None, to) };
            }
        });
    }
    for (index, (loss, [largest, sum, target_logit])) in losses.iter_mut().zip(&state).enumerate() {
        *loss = (largest + sum.ln() - target_logit) * weights[index];
    }
    if wanted {
        state
            .par_iter()
            .enumerate()
            .for_each(|(index, [_, sum, _])| {
                let target = targets[index] as usize * width;
                let target = &projection[target..target + width];
                let (factor, weight) = (weights[index] / sum, weights[index]);
                // SAFETY: each row once.
                let grad = unsafe { grads.slice(index * width..(index + 1) * width) };
                for (grad, target) in grad.iter_mut().zip(target) {
                    *grad = *grad * factor - target * weight;
                }
            });
    }
}

math::widest! {
    /// Turns logits into powers relative to the largest of them and `largest`; that, and the powers' sum.
    fn powers(logits: &mut [f32], largest: f32) -> (f32, f32) {
        let maximum = by_lanes(logits, largest, f32::max);
        for logit in logits.iter_mut() {
            *logit = math::exp(*logit - maximum);
        }
        (maximum, by_lanes(logits, 0.0, |sum, value| sum + value))
    }
}
