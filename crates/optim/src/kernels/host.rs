//! Native loops over `[rows, width]` gradients in memory.

use rayon::prelude::*;

use crate::gradients::RowMap;

/// Coordinates per task of the sum: its accumulators stay in the first-level cache.
const COLUMNS: usize = 1024;

/// Gradients of at most this many values are not worth waking other threads for.
const SMALL: usize = 1 << 14;

/// Squared norm of each unit, in double precision: relative error at most about `width * 2^-53`.
pub(super) fn squared_norms(values: &[f32], width: usize, rows: &RowMap) -> Vec<f64> {
    let of_unit = |unit: usize| match rows.unit(unit) {
        &[(row, weight)] => {
            f64::from(weight).powi(2) * sum_of_squares(&values[row * width..(row + 1) * width])
        }
        members => {
            let mut block = [0.0; COLUMNS];
            let mut total = 0.0;
            for start in (0..width).step_by(COLUMNS) {
                let block = &mut block[..COLUMNS.min(width - start)];
                combine(values, width, members, start, block);
                total += block.iter().map(|value| value * value).sum::<f64>();
            }
            total
        }
    };
    if values.len() <= SMALL {
        (0..rows.units()).map(of_unit).collect()
    } else {
        (0..rows.units()).into_par_iter().map(of_unit).collect()
    }
}

/// Sum over units of `trunc(scale * gradient)`: integers, so their sum is the same in any order.
///
/// The caller's scales put every unit's norm at or below 2^30, so each term fits 32 bits, and sums of up to 2^23 units are
/// exact in f64.
pub(super) fn scaled_sum(values: &[f32], width: usize, rows: &RowMap, scales: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    let add = |(chunk, sum): (usize, &mut [f64])| {
        let start = chunk * COLUMNS;
        let mut block = [0.0; COLUMNS];
        for (unit, &scale) in scales.iter().enumerate() {
            if scale == 0.0 {
                continue;
            }
            match rows.unit(unit) {
                &[(row, weight)] => {
                    let factor = scale * f64::from(weight);
                    let row = &values[row * width + start..][..sum.len()];
                    for (sum, &value) in sum.iter_mut().zip(row) {
                        *sum += truncated(f64::from(value) * factor);
                    }
                }
                members => {
                    let block = &mut block[..sum.len()];
                    combine(values, width, members, start, block);
                    for (sum, &value) in sum.iter_mut().zip(block.iter()) {
                        *sum += truncated(value * scale);
                    }
                }
            }
        }
    };
    if values.len() <= SMALL {
        sum.chunks_mut(COLUMNS).enumerate().for_each(add);
    } else {
        sum.par_chunks_mut(COLUMNS).enumerate().for_each(add);
    }
    sum
}

/// The integer part. Scaled gradients are below 2^30 in size, so that the limits never bind; they are what makes the
/// conversion sound whatever comes. A saturating `as` cast takes twice the time, since it does not vectorise as well.
#[inline(always)]
#[allow(
    clippy::manual_clamp,
    reason = "in this form a NaN becomes a limit, and each line is one vector instruction"
)]
fn truncated(value: f64) -> f64 {
    const LIMIT: f64 = 2_147_483_520.0;
    let value = if value > -LIMIT { value } else { -LIMIT };
    let value = if value < LIMIT { value } else { LIMIT };
    // SAFETY: the value is a number (a NaN fails the first comparison) within [-LIMIT, LIMIT], inside the range of i32.
    f64::from(unsafe { value.to_int_unchecked::<i32>() })
}

/// Weighted sum of a unit's rows over the coordinates from `start`.
fn combine(
    values: &[f32],
    width: usize,
    members: &[(usize, f32)],
    start: usize,
    block: &mut [f64],
) {
    block.fill(0.0);
    for &(row, weight) in members {
        let weight = f64::from(weight);
        for (sum, &value) in block.iter_mut().zip(&values[row * width + start..]) {
            *sum += weight * f64::from(value);
        }
    }
}

/// Sum of squares with eight accumulators, so that the loop vectorises.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let chunks = values.chunks_exact(8);
    let rest: f64 = chunks
        .remainder()
        .iter()
        .map(|&value| f64::from(value).powi(2))
        .sum();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    lanes.iter().sum::<f64>() + rest
}
