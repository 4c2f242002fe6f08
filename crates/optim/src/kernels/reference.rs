//! The passes in plain tensor operations.

use burn::tensor::{Int, Tensor, TensorData};

use super::read;
use crate::error::OptimError;
use crate::gradients::RowMap;

/// Terms per partial sum. Whatever order a backend adds `n` positive terms in, the relative error is at most `(n - 1) 2^-24`;
/// a tree of short sums keeps that small: 32 * levels * 2^-24.
const FAN_IN: usize = 32;

/// Squared norm of each unit. With [`FAN_IN`] and up to 32^5 coordinates the relative error is below 1.1e-5, that of the
/// norm below half of it, which [`crate::clip::SLACK`] covers.
pub(super) fn squared_norms(tensor: Tensor<2>, rows: &RowMap) -> Result<Vec<f64>, OptimError> {
    let units = combined(tensor, rows);
    let mut sums = units.clone() * units;
    loop {
        let [count, width] = sums.dims();
        if width == 1 {
            return read("squared norms", sums.reshape([count]));
        }
        let whole = width / FAN_IN * FAN_IN;
        let tail = || sums.clone().slice([0..count, whole..width]).sum_dim(1);
        sums = if whole == 0 {
            sums.sum_dim(1)
        } else {
            let tree = sums
                .clone()
                .slice([0..count, 0..whole])
                .reshape([count, whole / FAN_IN, FAN_IN])
                .sum_dim(2)
                .reshape([count, whole / FAN_IN]);
            if whole == width {
                tree
            } else {
                Tensor::cat(vec![tree, tail()], 1)
            }
        };
    }
}

/// Sum of the scaled units as one matrix product. Units of scale zero are left out, since 0 * NaN is NaN.
pub(super) fn scaled_sum(
    tensor: Tensor<2>,
    rows: &RowMap,
    scales: &[f64],
) -> Result<Vec<f64>, OptimError> {
    let device = tensor.device();
    let kept: Vec<usize> = (0..scales.len())
        .filter(|&unit| scales[unit] != 0.0)
        .collect();
    let factors: Vec<f32> = kept.iter().map(|&unit| scales[unit] as f32).collect();
    let mut units = combined(tensor, rows);
    if kept.len() < units.dims()[0] {
        let indices: Vec<i64> = kept.iter().map(|&unit| unit as i64).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [kept.len()]), &device);
        units = units.select(0, indices);
    }
    let factors = Tensor::<2>::from_data(TensorData::new(factors, [1, kept.len()]), &device);
    let sum = factors.matmul(units);
    let width = sum.dims()[1];
    read("scaled sums", sum.reshape([width]))
}

/// One row per unit. A matrix product would spread one unit's NaN to all, so rows are gathered instead.
fn combined(tensor: Tensor<2>, rows: &RowMap) -> Tensor<2> {
    let [_, width] = tensor.dims();
    if rows.is_plain() {
        return if rows.units() == rows.rows() {
            tensor
        } else {
            tensor.slice([0..rows.units(), 0..width])
        };
    }
    let device = tensor.device();
    let units: Vec<Tensor<2>> = (0..rows.units())
        .map(|unit| {
            let members = rows.unit(unit);
            let indices: Vec<i64> = members.iter().map(|&(row, _)| row as i64).collect();
            let weights: Vec<f32> = members.iter().map(|&(_, weight)| weight).collect();
            let indices =
                Tensor::<1, Int>::from_data(TensorData::new(indices, [members.len()]), &device);
            let weights =
                Tensor::<2>::from_data(TensorData::new(weights, [1, members.len()]), &device);
            weights.matmul(tensor.clone().select(0, indices))
        })
        .collect();
    Tensor::cat(units, 0)
}
