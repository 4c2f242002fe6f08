//! The passes in plain tensor operations: the specification that the kernels are tested against.

use burn::tensor::{Int, Tensor, TensorData};

use super::read;
use crate::error::OptimError;
use crate::row_map::RowMap;

/// Units whose limbs are added at once: `512 * 2^15 = 2^24`, so that every partial sum is a whole number that single precision
/// holds exactly, in whatever order it is made.
const TOGETHER: usize = 512;

/// Grid units of one high limb.
const LIMB: f32 = 32_768.0;

/// Largest size of a scaled coordinate.
const LIMIT: f32 = 1_073_741_824.0;

/// Squared norm of each unit, `[units, width]`. A tree of at most 32 levels up to 2^32 coordinates: with square and scaling the relative
/// error is below 2.1e-6, that of the norm below half of it, which [`crate::clip::SLACK`] covers. Scaled by powers of two, so
/// that no square overflows or vanishes.
pub(super) fn squared_norms(units: Tensor<2>) -> Result<Vec<f64>, OptimError> {
    let [count, width] = units.dims();
    if width == 0 {
        return Ok(vec![0.0; count]);
    }
    let sizes = read(
        "squared norms",
        units.clone().abs().max_dim(1).reshape([count]),
    )?;
    let exponents: Vec<i32> = sizes.iter().map(|&size| exponent(size)).collect();
    let scales: Vec<f32> = exponents
        .iter()
        .map(|&exponent| 2.0_f32.powi(-exponent))
        .collect();
    let scales = Tensor::<2>::from_data(TensorData::new(scales, [count, 1]), &units.device());
    let scaled = units * scales;
    let sums = tree_sum(scaled.clone() * scaled)?;
    Ok(sums
        .into_iter()
        .zip(sizes.iter().zip(exponents))
        .map(|(sum, (size, exponent))| {
            // A largest size that is no number shows in the sum as well, on every backend that has NaN; be sure of infinity.
            if size.is_infinite() {
                f64::INFINITY
            } else {
                sum * 4.0_f64.powi(exponent)
            }
        })
        .collect())
}

/// The power of two at or below a size, within what single precision can divide by.
fn exponent(size: f64) -> i32 {
    if size > 0.0 && size.is_finite() {
        (size.log2().floor() as i32).clamp(-126, 126)
    } else {
        0
    }
}

/// Sums of rows by halving: additions element by element, so that a unit's sum is rounded alike whatever units it shares the
/// tensor with. (A backend's own reduction may add in an order that depends on the number of rows.)
fn tree_sum(mut sums: Tensor<2>) -> Result<Vec<f64>, OptimError> {
    loop {
        let [count, width] = sums.dims();
        if width == 1 {
            return read("squared norms", sums.reshape([count]));
        }
        let half = width / 2;
        let part = |from: usize, to: usize| sums.clone().slice([0..count, from..to]);
        let halves = part(0, half) + part(half, 2 * half);
        sums = if 2 * half == width {
            halves
        } else {
            Tensor::cat(vec![halves, part(2 * half, width)], 1)
        };
    }
}

/// Sum of the integer parts of the scaled units. Units of factor zero are left out, since 0 * NaN is NaN.
///
/// Every integer is split into two limbs, whose sums over [`TOGETHER`] units are exact in single precision.
pub(super) fn scaled_sum(units: Tensor<2>, factors: &[f32]) -> Result<Vec<f64>, OptimError> {
    let (device, width) = (units.device(), units.dims()[1]);
    let kept: Vec<usize> = (0..factors.len())
        .filter(|&unit| factors[unit] != 0.0)
        .collect();
    let mut total = vec![0.0; width];
    for kept in kept.chunks(TOGETHER) {
        let indices: Vec<i64> = kept.iter().map(|&unit| unit as i64).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [kept.len()]), &device);
        let factors: Vec<f32> = kept.iter().map(|&unit| factors[unit]).collect();
        let factors = Tensor::<2>::from_data(TensorData::new(factors, [kept.len(), 1]), &device);
        let whole = (units.clone().select(0, indices) * factors)
            .clamp(-LIMIT, LIMIT)
            .trunc();
        let high = whole.clone().div_scalar(LIMB).trunc();
        let low = whole - high.clone().mul_scalar(LIMB);
        let high = read("scaled sums", high.sum_dim(0).reshape([width]))?;
        let low = read("scaled sums", low.sum_dim(0).reshape([width]))?;
        for (sum, (high, low)) in total.iter_mut().zip(high.into_iter().zip(low)) {
            *sum += high * f64::from(LIMB) + low;
        }
    }
    Ok(total)
}

/// One row per unit: its rows times their weights, added one after the other. (A matrix product would spread one unit's NaN to all, and may
/// round differently from one call to the next.)
pub(super) fn combined(tensor: Tensor<2>, rows: &RowMap) -> Tensor<2> {
    let [_, width] = tensor.dims();
    if rows.is_plain() {
        return if rows.units() == rows.rows() {
            tensor
        } else {
            tensor.slice([0..rows.units(), 0..width])
        };
    }
    let units: Vec<Tensor<2>> = (0..rows.units())
        .map(|unit| {
            let members = rows.unit(unit).iter();
            let weighted = members.map(|&(row, weight)| {
                let row = tensor.clone().slice([row..row + 1, 0..width]);
                row.mul_scalar(weight)
            });
            weighted
                .reduce(|sum, row| sum + row)
                .unwrap_or_else(|| Tensor::zeros([1, width], &tensor.device()))
        })
        .collect();
    Tensor::cat(units, 0)
}
