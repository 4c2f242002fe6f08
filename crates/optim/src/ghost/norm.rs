//! Norms of per-example gradients that are never multiplied out.

use std::collections::HashMap;

use burn::tensor::{Int, Tensor};

use super::factor::Factor;
use crate::error::OptimError;
use crate::row_map::RowMap;

/// Half the distance between 1 and the next single-precision number.
const UNIT: f64 = 1.0 / 16_777_216.0;

/// Columns per matrix product: the shorter the sums, the smaller their rounding error.
const BLOCK: usize = 256;

/// Above the sum of everything that underflow can take away.
const UNDERFLOW: f64 = 1e-30;

/// A unit's gradient norm as computed, and a number that it is proven not to exceed. Raw: no `Debug`.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct NormBound {
    /// The squared norm as computed. Rounding can leave it off, to either side, by the difference to `bound^2`.
    pub square: f64,
    /// Not below the norm of the gradient as it is multiplied out. Not finite if the gradient is not.
    pub bound: f64,
}

/// The norm of every unit's gradient by one parameter, from Gram matrices (`docs/proofs/ghost-norms.md`).
///
/// With `A` and `G` a unit's inputs and output gradients, all its positions one below the other,
/// `|A^T G|^2 = <A A^T, G G^T>`; rows of an embedding are added up token by token, and a parameter that is both (a tied head)
/// has the cross term `2 sum_ts A[t, id_s] <G_t, E_s>`.
///
/// Nothing if the parameter has uses of another kind.
pub(super) fn bounds(
    factors: &[Factor],
    rows: &RowMap,
) -> Result<Option<Vec<NormBound>>, OptimError> {
    let known = |factor: &Factor| matches!(factor, Factor::Outer { .. } | Factor::Rows { .. });
    if !factors.iter().all(known) {
        return Ok(None);
    }
    if rows.units() == 0 {
        return Ok(Some(Vec::new()));
    }
    let mut list = Vec::with_capacity(rows.units());
    if rows.is_plain() {
        // One sequence per unit already; padding follows the units.
        let own: Vec<Factor> = factors
            .iter()
            .map(|factor| factor.first(rows.units()))
            .collect();
        list = sequences(&own, 1)?;
    } else {
        for unit in 0..rows.units() {
            let members = rows.unit(unit);
            let own: Vec<Factor> = factors.iter().map(|factor| factor.unit(members)).collect();
            list.extend(sequences(&own, members.len())?);
        }
    }
    Ok(Some(list))
}

/// The norms of the units' gradients by one parameter, multiplied out: `[rows, coordinates]`.
pub(super) fn dense(tensor: Tensor<2>, rows: &RowMap) -> Result<Vec<NormBound>, OptimError> {
    let [count, width] = tensor.dims();
    let values = read(tensor.reshape([1, count, width]))?;
    let of_unit = |unit| {
        let mut sum = vec![0.0; width];
        for &(row, weight) in rows.unit(unit) {
            for (sum, value) in sum.iter_mut().zip(&values[row * width..]) {
                *sum += f64::from(weight) * f64::from(*value);
            }
        }
        let square: f64 = sum.iter().map(|value| value * value).sum();
        NormBound {
            square,
            bound: square.sqrt() * (1.0 + 1e-6),
        }
    };
    Ok((0..rows.units()).map(of_unit).collect())
}

/// The same for factors whose examples are whole units, of `rows` rows each.
fn sequences(factors: &[Factor], rows: usize) -> Result<Vec<NormBound>, OptimError> {
    let (mut left, mut right, mut ids, mut errors) = (vec![], vec![], vec![], vec![]);
    for factor in factors.iter().cloned() {
        match factor {
            Factor::Outer { left: a, right: b } => {
                left.push(a);
                right.push(b);
            }
            Factor::Rows { ids: i, error, .. } => {
                ids.push(i);
                errors.push(error);
            }
            _ => {}
        }
    }
    let count = factors.first().map_or(0, Factor::examples);
    let outer = match left.is_empty() {
        true => None,
        false => Some((Tensor::cat(left, 1), Tensor::cat(right, 1))),
    };
    let table = match ids.is_empty() {
        true => None,
        false => Some((Tensor::cat(ids, 1), Tensor::cat(errors, 1))),
    };
    let mut sums = vec![Sums::default(); count];
    let mut terms = 0;
    let mut lengths = None;
    if let Some((left, right)) = &outer {
        let time = left.dims()[1];
        terms += time;
        let gamma = gamma(left.dims()[2]) + gamma(right.dims()[2]);
        let (p, q) = (read(gram(left, left))?, read(gram(right, right))?);
        let mut right_norms = vec![vec![0.0; time]; count];
        for (index, sum) in sums.iter_mut().enumerate() {
            let matrix = index * time * time..(index + 1) * time * time;
            let (p, q) = (&p[matrix.clone()], &q[matrix]);
            sum.square = dot(p, q);
            for t in 0..time {
                let square = |gram: &[f32]| f64::from(gram[t * time + t]).max(0.0);
                right_norms[index][t] = square(q).sqrt() * (1.0 + gamma);
                sum.lengths += (square(p) * square(q)).sqrt() * (1.0 + gamma);
            }
            sum.margin = gamma * sum.lengths * sum.lengths;
        }
        lengths = Some(right_norms);
    }
    if let Some((ids, errors)) = table {
        let [_, time, width] = errors.dims();
        terms += time;
        let tokens: Vec<i64> = ids.to_data().iter::<i64>().collect();
        let values = read(errors.clone())?;
        let norms: Vec<f64> = values
            .chunks(width)
            .map(|row| dot(row, row).sqrt())
            .collect();
        for (index, sum) in sums.iter_mut().enumerate() {
            let range = index * time..(index + 1) * time;
            sum.square += table_square(
                &tokens[range.clone()],
                &values[range.start * width..range.end * width],
                width,
            );
            sum.lengths += norms[range].iter().sum::<f64>();
        }
        if let (Some((left, right)), Some(lengths)) = (&outer, lengths) {
            let [_, long, _] = left.dims();
            let gamma = gamma(width);
            let picked = ids.reshape([count, 1, time]).expand([count, long, time]);
            let picked: Tensor<3, Int> = picked;
            let p = read(left.clone().gather(2, picked))?;
            let q = read(gram(right, &errors))?;
            for (index, sum) in sums.iter_mut().enumerate() {
                let matrix = index * long * time..(index + 1) * long * time;
                let (p, q) = (&p[matrix.clone()], &q[matrix]);
                sum.square += 2.0 * dot(p, q);
                for t in 0..long {
                    let row = p[t * time..(t + 1) * time]
                        .iter()
                        .zip(&norms[index * time..]);
                    let sizes: f64 = row.map(|(p, norm)| f64::from(*p).abs() * norm).sum();
                    sum.margin += 2.0 * gamma * sizes * lengths[index][t];
                }
            }
        }
    }
    // Multiplying out adds at most so many products to a coordinate.
    let multiplied = (terms + rows + 4) as f64 * UNIT * 1.01;
    Ok(sums.into_iter().map(|sum| sum.bound(multiplied)).collect())
}

#[derive(Clone, Copy, Default)]
struct Sums {
    square: f64,
    /// What rounding can have taken from `square`.
    margin: f64,
    /// Sum over positions of the norms of what each adds.
    lengths: f64,
}

impl Sums {
    fn bound(self, multiplied: f64) -> NormBound {
        // A NaN must come out as a NaN: `max` would swallow it.
        let square = match self.square {
            square if square < 0.0 => 0.0,
            square => square,
        };
        let norm = (square + self.margin).sqrt() + multiplied * self.lengths;
        NormBound {
            square: self.square,
            bound: norm * (1.0 + 1e-10) + UNDERFLOW,
        }
    }
}

/// Relative to the sum of the terms' sizes, the largest rounding error of a dot product of `length` terms in [`gram`], in whatever
/// order a block is added up.
fn gamma(length: usize) -> f64 {
    let longest = length.min(BLOCK) + length.div_ceil(BLOCK) + 4;
    longest as f64 * UNIT * 1.01
}

/// `left[i] right[i]^T`, `[examples, left time, right time]`, with the inner dimension cut into blocks.
fn gram(left: &Tensor<3>, right: &Tensor<3>) -> Tensor<3> {
    let width = left.dims()[2];
    let block = |start: usize| {
        let length = BLOCK.min(width - start);
        let right = right.clone().narrow(2, start, length).swap_dims(1, 2);
        left.clone().narrow(2, start, length).matmul(right)
    };
    let mut sum = block(0);
    for start in (BLOCK..width).step_by(BLOCK) {
        sum = sum + block(start);
    }
    sum
}

/// Squared norm of an embedding's gradient: errors of equal tokens are added up first.
fn table_square(tokens: &[i64], errors: &[f32], width: usize) -> f64 {
    let mut rows: HashMap<i64, Vec<f64>> = HashMap::new();
    for (token, error) in tokens.iter().zip(errors.chunks(width)) {
        let row = rows.entry(*token).or_insert_with(|| vec![0.0; width]);
        for (sum, value) in row.iter_mut().zip(error) {
            *sum += f64::from(*value);
        }
    }
    rows.values().flatten().map(|value| value * value).sum()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

fn read(tensor: Tensor<3>) -> Result<Vec<f32>, OptimError> {
    let count = tensor.shape().num_elements();
    tensor
        .reshape([count])
        .try_into_vec_as::<f32>()
        .map_err(|error| OptimError::Device {
            what: "Gram matrices",
            message: error.to_string(),
        })
}
