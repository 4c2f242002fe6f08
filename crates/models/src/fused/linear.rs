//! `x W + bias + residual + s (x A) B` and its gradients, on slices.

use rayon::prelude::*;

use super::product::{
    Buffer, Left, Low, Panels, Shared, Span, View, blocks, multiply_block, multiply_transposed,
};

/// The factors of an adapter: one copy, or one per example.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    /// `[copies, inputs, rank]`.
    pub(crate) a: &'a [f32],
    /// `[copies, rank, outputs]`.
    pub(crate) b: &'a [f32],
    pub(crate) copies: usize,
    pub(crate) rank: usize,
    pub(crate) scaling: f32,
}

/// The sizes of a linear layer's inputs and outputs.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) examples: usize,
    pub(crate) time: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl Factors<'_> {
    fn of(&self, example: usize) -> usize {
        if self.copies == 1 { 0 } else { example }
    }

    fn a(&self, copy: usize, inputs: usize) -> View<'_> {
        let size = inputs * self.rank;
        View::rows(&self.a[copy * size..][..size], inputs, self.rank, self.rank)
    }

    fn b(&self, copy: usize, outputs: usize) -> View<'_> {
        let size = outputs * self.rank;
        View::rows(&self.b[copy * size..][..size], self.rank, outputs, outputs)
    }

    fn panels<'a>(&'a self, view: impl Fn(usize) -> View<'a> + Sync) -> Vec<Panels> {
        let copies = (0..self.copies).into_par_iter();
        copies.map(|copy| Panels::small(view(copy))).collect()
    }
}

/// Writes the outputs to `y` (every element) and `s x A` to `low`, if there is an adapter.
pub(crate) fn forward(
    sizes: Sizes,
    x: &[f32],
    weight: View<'_>,
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    factors: Option<Factors<'_>>,
    (y, low): (Shared, &mut [f32]),
) {
    let Sizes {
        inputs, outputs, ..
    } = sizes;
    let panels = Panels::new(weight);
    let rank = factors.map_or(0, |factors| factors.rank);
    let a = factors.map(|f| f.panels(|copy| f.a(copy, inputs)));
    let b = factors.map(|f| f.panels(|copy| f.b(copy, outputs)));
    let low = Shared::new(low);
    blocks(sizes.examples, sizes.time)
        .into_par_iter()
        .for_each(|block| {
            let rows = block.first..block.first + block.rows;
            let x = &x[rows.start * inputs..rows.end * inputs];
            // SAFETY: blocks do not overlap.
            let (y, low) = unsafe {
                (
                    y.slice(rows.start * outputs..rows.end * outputs),
                    low.slice(rows.start * rank..rows.end * rank),
                )
            };
            match (residual, bias) {
                (Some(residual), bias) => {
                    y.copy_from_slice(&residual[rows.start * outputs..rows.end * outputs]);
                    for row in y.chunks_exact_mut(outputs) {
                        let bias = bias.unwrap_or(&[]);
                        row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                    }
                }
                (None, Some(bias)) => y
                    .chunks_exact_mut(outputs)
                    .for_each(|row| row.copy_from_slice(bias)),
                (None, None) => {}
            }
            let add = bias.is_some() || residual.is_some();
            if let (Some(f), Some(a)) = (factors, &a) {
                for (example, rows) in &block.spans {
                    let span = Span {
                        rows: rows.clone(),
                        low: None,
                    };
                    let left = Left {
                        values: x,
                        stride: inputs,
                    };
                    // SAFETY: the block's own rows.
                    unsafe {
                        let to = (low.as_mut_ptr(), rank, false);
                        multiply_block(left, &a[f.of(*example)], &[span], None, to);
                    }
                }
                low.iter_mut().for_each(|value| *value *= f.scaling);
            }
            let spans: Vec<Span<'_>> = block
                .spans
                .iter()
                .map(|(example, rows)| Span {
                    rows: rows.clone(),
                    low: factors.zip(b.as_ref()).map(|(f, b)| &b[f.of(*example)]),
                })
                .collect();
            let left = Left {
                values: x,
                stride: inputs,
            };
            let extra = factors.map(|_| Low {
                rows: low,
                inner: rank,
            });
            // SAFETY: the block's own rows.
            unsafe {
                multiply_block(left, &panels, &spans, extra, (y.as_mut_ptr(), outputs, add));
            }
        });
}

/// Where the gradients of the factors go, every element: as many copies as the factors have.
pub(crate) struct FactorGradients<'a> {
    /// `[copies, inputs, rank]`; not wanted if `A` is frozen.
    pub(crate) a: Option<&'a mut [f32]>,
    /// `[copies, rank, outputs]`.
    pub(crate) b: Option<&'a mut [f32]>,
}

/// The gradient by the input, if wanted, from that by the output.
///
/// With an adapter, `x` and `low` are those of the forward pass.
pub(crate) fn backward(
    sizes: Sizes,
    grad: &[f32],
    weight: View<'_>,
    adapter: Option<(Factors<'_>, &[f32], &[f32])>,
    x_grad: Option<Shared>,
    factor_grads: FactorGradients<'_>,
) {
    let Sizes {
        examples,
        time,
        inputs,
        outputs,
    } = sizes;
    let panels = x_grad.map(|_| Panels::new(weight.transposed()));
    let factors = adapter.map(|(factors, ..)| factors);
    let rank = factors.map_or(0, |factors| factors.rank);
    let b = factors.map(|f| f.panels(|copy| f.b(copy, outputs).transposed()));
    let a = factors
        .filter(|_| x_grad.is_some())
        .map(|f| f.panels(|copy| f.a(copy, inputs).transposed()));
    let mut low_grad = Buffer::take(examples * time * rank);
    let low_shared = Shared::new(low_grad.values());
    if factors.is_some() || x_grad.is_some() {
        blocks(examples, time).into_par_iter().for_each(|block| {
            let rows = block.first..block.first + block.rows;
            let left = Left {
                values: &grad[rows.start * outputs..rows.end * outputs],
                stride: outputs,
            };
            // SAFETY: blocks do not overlap.
            let low = unsafe { low_shared.slice(rows.start * rank..rows.end * rank) };
            if let (Some(f), Some(b)) = (factors, &b) {
                for (example, rows) in &block.spans {
                    let span = Span {
                        rows: rows.clone(),
                        low: None,
                    };
                    let to = (low.as_mut_ptr(), rank, false);
                    // SAFETY: the block's own rows.
                    unsafe { multiply_block(left, &b[f.of(*example)], &[span], None, to) };
                }
                low.iter_mut().for_each(|value| *value *= f.scaling);
            }
            let (Some(x_grad), Some(panels)) = (x_grad, &panels) else {
                return;
            };
            let spans: Vec<Span<'_>> = block
                .spans
                .iter()
                .map(|(example, rows)| Span {
                    rows: rows.clone(),
                    low: factors.zip(a.as_ref()).map(|(f, a)| &a[f.of(*example)]),
                })
                .collect();
            let extra = factors.map(|_| Low {
                rows: low,
                inner: rank,
            });
            // SAFETY: blocks do not overlap.
            unsafe {
                let to = x_grad.slice(rows.start * inputs..rows.end * inputs);
                multiply_block(
                    left,
                    panels,
                    &spans,
                    extra,
                    (to.as_mut_ptr(), inputs, false),
                );
            }
        });
    }
    let Some((factors, x, low)) = adapter else {
        return;
    };
    // d B = (s x A)^T g and (d A)^T = (s g B^T)^T x, example by example.
    let per_example = |left: &[f32], right: &[f32], width: usize, swap: bool, out: &mut [f32]| {
        let size = rank * width;
        let one = |example: usize, out: &mut [f32]| {
            let rows = example * time..(example + 1) * time;
            let left = View::rows(&left[rows.start * rank..rows.end * rank], time, rank, rank);
            let right = View::rows(
                &right[rows.start * width..rows.end * width],
                time,
                width,
                width,
            );
            if !swap {
                return multiply_transposed(left, right, (out, width, false));
            }
            let mut turned = vec![0.0; size];
            multiply_transposed(left, right, (&mut turned, width, false));
            for (column, values) in turned.chunks_exact(width).enumerate() {
                for (row, value) in values.iter().enumerate() {
                    out[row * rank + column] = *value;
                }
            }
        };
        if factors.copies == examples {
            out.par_chunks_mut(size)
                .enumerate()
                .for_each(|(example, out)| one(example, out));
            return;
        }
        let mut all = Buffer::take(examples * size);
        all.values()
            .par_chunks_mut(size)
            .enumerate()
            .for_each(|(example, out)| one(example, out));
        out.fill(0.0);
        for part in all.values().chunks_exact(size) {
            out.iter_mut()
                .zip(part)
                .for_each(|(sum, part)| *sum += part);
        }
    };
    if let Some(out) = factor_grads.b {
        per_example(low, grad, outputs, false, out);
    }
    if let Some(out) = factor_grads.a {
        per_example(low_grad.values(), x, inputs, true, out);
    }
}
