//! Single loops over Flex tensors in f32; other types take the composed passes.
#![cfg(feature = "flex")]

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::DType;
use rayon::prelude::*;

use super::math::{self, by_lanes};
use super::ops::{FusedPasses, composed};

/// Elements a thread takes at a time.
const GRAIN: usize = 1 << 14;

type Primitive = FloatTensor<Flex>;

impl FusedPasses for Flex {
    fn softmax_pass(scores: Primitive, mask: Primitive) -> Primitive {
        let keys = last(&scores);
        if !single(&[&scores, &mask]) || keys == 0 {
            return composed::softmax::<Self>(scores, mask);
        }
        let mask = mask.to_contiguous();
        let mask = elements(&mask);
        let rows = (GRAIN / keys).max(1);
        rewrite(scores, rows * keys, |start, chunk| {
            for (row, values) in chunk.chunks_exact_mut(keys).enumerate() {
                let offset = (start + row * keys) % mask.len();
                softmax_row(values, &mask[offset..offset + keys]);
            }
        })
    }

    fn softmax_backward(output: Primitive, grad: Primitive) -> Primitive {
        let keys = last(&output);
        if !single(&[&output, &grad]) || keys == 0 {
            return composed::softmax_backward::<Self>(output, grad);
        }
        let output = output.to_contiguous();
        let output = elements(&output);
        let rows = (GRAIN / keys).max(1);
        rewrite(grad, rows * keys, |start, chunk| {
            for (row, grad) in chunk.chunks_exact_mut(keys).enumerate() {
                let offset = start + row * keys;
                softmax_backward_row(&output[offset..offset + keys], grad);
            }
        })
    }

    fn gelu_pass(x: Primitive) -> Primitive {
        if !single(&[&x]) {
            return composed::gelu::<Self>(x);
        }
        rewrite(x, GRAIN, |_, chunk| {
            gelu(chunk);
        })
    }

    fn gelu_backward_pass(x: Primitive, grad: Primitive) -> Primitive {
        if !single(&[&x, &grad]) {
            return composed::gelu_backward::<Self>(x, grad);
        }
        let x = x.to_contiguous();
        let x = elements(&x);
        rewrite(grad, GRAIN, |start, chunk| {
            gelu_backward(&x[start..], chunk);
        })
    }

    fn gated_silu_pass(gate: Primitive, up: Primitive) -> Primitive {
        if !single(&[&gate, &up]) {
            return composed::gated_silu::<Self>(gate, up);
        }
        let gate = gate.to_contiguous();
        let gate = elements(&gate);
        rewrite(up, GRAIN, |start, chunk| {
            gate_up(&gate[start..], chunk);
        })
    }

    fn gate_backward(gate: Primitive, up: Primitive, grad: Primitive) -> Primitive {
        if !single(&[&gate, &up, &grad]) {
            return composed::gate_backward::<Self>(gate, up, grad);
        }
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let (gate, up) = (elements(&gate), elements(&up));
        rewrite(grad, GRAIN, |start, chunk| {
            gate_backward(&gate[start..], &up[start..], chunk);
        })
    }
}

fn last(tensor: &Primitive) -> usize {
    let shape = tensor.shape();
    shape[shape.num_dims() - 1]
}

fn single(tensors: &[&Primitive]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// The elements of a contiguous tensor.
pub(super) fn elements(tensor: &Primitive) -> &[f32] {
    tensor.as_slice::<f32>().unwrap_or(&[])
}

/// Rewrites a tensor's elements chunk by chunk, in place if nobody else holds them.
///
/// `change` gets the number of elements before the chunk, and the chunk.
pub(super) fn rewrite(
    tensor: Primitive,
    chunk: usize,
    change: impl Fn(usize, &mut [f32]) + Sync,
) -> Primitive {
    let mut tensor = tensor.to_contiguous();
    let (start, end) = tensor.layout().contiguous_offsets().unwrap_or((0, 0));
    tensor.storage_mut::<f32>()[start..end]
        .par_chunks_mut(chunk)
        .enumerate()
        .for_each(|(index, part)| change(index * chunk, part));
    tensor
}

/// The same over all elements at once.
pub(super) fn rewrite_all(tensor: Primitive, change: impl FnOnce(&mut [f32])) -> Primitive {
    let mut tensor = tensor.to_contiguous();
    let (start, end) = tensor.layout().contiguous_offsets().unwrap_or((0, 0));
    change(&mut tensor.storage_mut::<f32>()[start..end]);
    tensor
}

math::widest! {
    fn gelu(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = math::gelu(*x));
    }
}

math::widest! {
    fn gelu_backward(x: &[f32], grad: &mut [f32]) {
        for (grad, x) in grad.iter_mut().zip(x) {
            *grad *= math::gelu_slope(*x);
        }
    }
}

math::widest! {
    fn gate_up(gate: &[f32], up: &mut [f32]) {
        for (up, gate) in up.iter_mut().zip(gate) {
            *up *= math::silu(*gate);
        }
    }
}

math::widest! {
    fn gate_backward(gate: &[f32], up: &[f32], grad: &mut [f32]) {
        for (grad, (gate, up)) in grad.iter_mut().zip(gate.iter().zip(up)) {
            *grad *= up * math::silu_slope(*gate);
        }
    }
}

fn softmax_row(values: &mut [f32], mask: &[f32]) {
    // Causal masks hide the end of most rows: nothing is computed there.
    let visible = mask.iter().rposition(|mask| *mask != f32::NEG_INFINITY);
    let (values, hidden) = values.split_at_mut(visible.map_or(0, |last| last + 1));
    hidden.fill(0.0);
    for (value, mask) in values.iter_mut().zip(mask) {
        *value += mask;
    }
    let maximum = by_lanes(values, f32::NEG_INFINITY, f32::max);
    for value in values.iter_mut() {
        *value = math::exp(*value - maximum);
    }
    let inverse = 1.0 / by_lanes(values, 0.0, |sum, value| sum + value);
    values.iter_mut().for_each(|value| *value *= inverse);
}

fn softmax_backward_row(output: &[f32], grad: &mut [f32]) {
    for (grad, output) in grad.iter_mut().zip(output) {
        *grad *= output;
    }
    let dot = by_lanes(grad, 0.0, |sum, value| sum + value);
    for (grad, output) in grad.iter_mut().zip(output) {
        *grad -= output * dot;
    }
}
