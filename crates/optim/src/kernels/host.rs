//! Native loops over `[rows, width]` gradients in memory.

use rayon::prelude::*;

use crate::random::{CHUNK, GridNoise};
use crate::row_map::RowMap;
use crate::wide::widest;

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

/// Adds the sum over units of `trunc(scale * gradient)` to `sums`: integers, so their sum is the same in any order.
///
/// The caller's scales put every unit's norm at or below 2^30, so each term fits 32 bits, and sums of up to 2^23 units are
/// exact in f64.
pub(super) fn add_scaled(
    values: &[f32],
    width: usize,
    rows: &RowMap,
    scales: &[f64],
    sums: &mut [i64],
) {
    let add = |(chunk, sums): (usize, &mut [i64])| {
        let start = chunk * COLUMNS;
        let mut total = [0.0; COLUMNS];
        let mut block = [0.0; COLUMNS];
        let (total, block) = (&mut total[..sums.len()], &mut block[..sums.len()]);
        for (unit, &scale) in scales.iter().enumerate() {
            if scale == 0.0 {
                continue;
            }
            match rows.unit(unit) {
                &[(row, weight)] => {
                    let row = &values[row * width + start..][..total.len()];
                    add_truncated(total, row, scale * f64::from(weight));
                }
                members => {
                    combine(values, width, members, start, block);
                    for (sum, &value) in total.iter_mut().zip(block.iter()) {
                        *sum += truncated(value * scale);
                    }
                }
            }
        }
        add_whole(sums, total);
    };
    if values.len() <= SMALL {
        sums.chunks_mut(COLUMNS).enumerate().for_each(add);
    } else {
        sums.par_chunks_mut(COLUMNS).enumerate().for_each(add);
    }
}

widest! {
    fn add_truncated(sums: &mut [f64], row: &[f32], factor: f64) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += truncated(f64::from(value) * factor);
        }
    }
}

widest! {
    /// Adds whole numbers.
    fn add_whole(sums: &mut [i64], values: &[f64]) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum = sum.saturating_add(value as i64);
        }
    }
}

/// A part of a tensor's sums, and where their release goes.
type Part<'a> = (&'a [i64], &'a mut [f32]);

/// Sums and their noise, times `step`: tensors of these lengths, side by side in the noise. A sum without elements is zero.
///
/// One pass: the noise is drawn for a chunk of coordinates, added and rounded to floats, and never lies in memory as a whole.
pub(super) fn release(
    sums: &[&[i64]],
    widths: &[usize],
    noise: &GridNoise,
    step: f64,
) -> Vec<Vec<f32>> {
    let mut outputs: Vec<Vec<f32>> = widths.iter().map(|&width| vec![0.0; width]).collect();
    // The parts of tensors in each chunk.
    let mut chunks: Vec<Vec<Part<'_>>> = vec![Vec::new()];
    let mut room = CHUNK;
    for (mut sums, output) in sums.iter().copied().zip(&mut outputs) {
        let mut output = &mut output[..];
        while !output.is_empty() {
            if room == 0 {
                chunks.push(Vec::new());
                room = CHUNK;
            }
            let count = room.min(output.len());
            let (own, rest) = output.split_at_mut(count);
            let (part, others) = sums.split_at(count.min(sums.len()));
            if let Some(chunk) = chunks.last_mut() {
                chunk.push((part, own));
            }
            (output, sums, room) = (rest, others, room - count);
        }
    }
    let run = |(index, parts): (usize, Vec<Part<'_>>)| {
        let length = parts.iter().map(|(_, output)| output.len()).sum();
        let mut noisy = [0; CHUNK];
        let mut filled = 0;
        for (sums, output) in &parts {
            noisy[filled..filled + sums.len()].copy_from_slice(sums);
            filled += output.len();
        }
        noise.add(index, &mut noisy[..length]);
        let mut rest = &noisy[..length];
        for (_, output) in parts {
            let (own, others) = rest.split_at(output.len());
            multiply(output, own, step);
            rest = others;
        }
    };
    if chunks.len() == 1 {
        // Waking the pool costs more than the work.
        chunks.into_iter().enumerate().for_each(run);
    } else {
        chunks.into_par_iter().enumerate().for_each(run);
    }
    outputs
}

widest! {
    fn multiply(output: &mut [f32], values: &[i64], step: f64) {
        for (output, &value) in output.iter_mut().zip(values) {
            *output = (value as f64 * step) as f32;
        }
    }
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

widest! {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SeededRandom;

    /// Tensors end and begin within chunks and across them, and some sums are zero without elements.
    #[test]
    fn a_release_is_the_sums_and_the_noise_in_one_pass() {
        let widths = [3, 5_000, 0, 4_096, 1, 9_000];
        let deviation = 2_f64.powi(30) * 0.7;
        let sums: Vec<Vec<i64>> = widths
            .iter()
            .enumerate()
            .map(|(index, &width)| match index {
                3 => Vec::new(),
                _ => (0..width as i64).map(|i| (i - 700) << 25).collect(),
            })
            .collect();
        let views: Vec<&[i64]> = sums.iter().map(|sums| &sums[..]).collect();
        let noise = || GridNoise::new(deviation, &mut SeededRandom::new(7));
        let released = release(&views, &widths, &noise(), 1e-9);

        let mut values: Vec<i64> = sums
            .iter()
            .zip(&widths)
            .flat_map(|(sums, &width)| {
                let mut sums = sums.clone();
                sums.resize(width, 0);
                sums
            })
            .collect();
        noise().add_all(&mut values);
        let expected: Vec<f32> = values
            .iter()
            .map(|&value| (value as f64 * 1e-9) as f32)
            .collect();
        assert_eq!(released.concat(), expected);
        let lengths: Vec<usize> = released.iter().map(Vec::len).collect();
        assert_eq!(lengths, widths);
    }
}
