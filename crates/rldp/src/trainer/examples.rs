//! Privacy units as token rows, and how they are laid out in micro-batches.

use burn::tensor::Device;
use rldp_models::{Batch, ModelError, Row};

/// A privacy unit ready for the model: the token rows of one person.
///
/// No `Debug`: this is private text.
#[derive(Clone)]
pub struct TokenUnit {
    /// Token ids of every row; each has at least two.
    pub rows: Vec<Vec<u32>>,
}

/// A row of a micro-batch: which unit (its place in the sampled batch) and which of the unit's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    unit: usize,
    row: usize,
}

/// One micro-batch: whole units only, so that a unit's rows can be combined before clipping.
pub struct MicroBatch {
    /// The model's input.
    pub batch: Batch,
    /// For every row, which unit of this micro-batch it belongs to, counted from zero.
    pub unit_of_row: Vec<usize>,
    /// For every row, its weight in its unit's loss: one over the unit's rows.
    pub weight_of_row: Vec<f32>,
    /// Units in this micro-batch.
    pub units: usize,
}

/// What one more micro-batch costs, in positions: the frozen weights are laid out for its matrix products. Measured on two models of
/// width 256 and 768, where it is about 7 % of a step of two micro-batches of 600 positions.
const OVERHEAD: usize = 48;

/// Lays the units out in micro-batches of at most `rows` rows (a unit with more rows makes one of its own), units of
/// like length together, so that positions, padding included, and micro-batches cost the least they can. Which units share a
/// micro-batch changes no result.
///
/// # Errors
/// [`ModelError::InvalidBatch`] for a row without tokens.
pub fn micro_batches(
    units: &[&TokenUnit],
    rows: usize,
    device: &Device,
) -> Result<Vec<MicroBatch>, ModelError> {
    let longest = |unit: &TokenUnit| unit.rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut order: Vec<usize> = (0..units.len())
        .filter(|index| !units[*index].rows.is_empty())
        .collect();
    order.sort_by_key(|index| (longest(units[*index]), *index));
    let sizes: Vec<(usize, usize)> = order
        .iter()
        .map(|index| (units[*index].rows.len(), longest(units[*index])))
        .collect();
    let mut batches = Vec::new();
    let mut start = 0;
    for end in cuts(&sizes, rows) {
        let places = order[start..end].iter().flat_map(|&unit| {
            let rows = 0..units[unit].rows.len();
            rows.map(move |row| Place { unit, row })
        });
        batches.push(collate(units, &places.collect::<Vec<_>>(), device)?);
        start = end;
    }
    Ok(batches)
}

/// Where to end micro-batches of units of these rows and longest rows, shortest first: the cheapest of all ways to cut them, by dynamic
/// programming over the ends.
fn cuts(sizes: &[(usize, usize)], most_rows: usize) -> Vec<usize> {
    // For every end: the least cost up to it, and where the last micro-batch of that way begins.
    let mut best = vec![(0, 0)];
    for end in 1..=sizes.len() {
        let (mut rows, length) = (0, sizes[end - 1].1);
        let mut cheapest = (usize::MAX, end - 1);
        for start in (0..end).rev() {
            rows += sizes[start].0;
            if rows > most_rows && start + 1 < end {
                break;
            }
            let cost = best[start].0 + rows * length + OVERHEAD;
            if cost < cheapest.0 {
                cheapest = (cost, start);
            }
        }
        best.push(cheapest);
    }
    let mut ends = Vec::new();
    let mut end = sizes.len();
    while end > 0 {
        ends.push(end);
        end = best[end].1;
    }
    ends.reverse();
    ends
}

/// Builds one micro-batch.
fn collate(
    units: &[&TokenUnit],
    places: &[Place],
    device: &Device,
) -> Result<MicroBatch, ModelError> {
    let mut rows = Vec::with_capacity(places.len());
    let mut unit_of_row = Vec::with_capacity(places.len());
    let mut weight_of_row = Vec::with_capacity(places.len());
    let mut unit_count = 0;
    let mut last = None;
    for place in places {
        let unit = units[place.unit];
        rows.push(Row::new(unit.rows[place.row].clone()));
        if last != Some(place.unit) {
            unit_count += 1;
            last = Some(place.unit);
        }
        unit_of_row.push(unit_count - 1);
        weight_of_row.push(1.0 / unit.rows.len() as f32);
    }
    Ok(MicroBatch {
        batch: Batch::from_rows(&rows, device)?,
        unit_of_row,
        weight_of_row,
        units: unit_count,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn unit(lengths: &[usize]) -> TokenUnit {
        TokenUnit {
            rows: lengths
                .iter()
                .map(|length| (1..=*length as u32).collect())
                .collect(),
        }
    }

    #[cfg(any(feature = "flex", feature = "ndarray"))]
    fn device() -> Device {
        #[cfg(feature = "flex")]
        return Device::flex();
        #[cfg(all(feature = "ndarray", not(feature = "flex")))]
        #[allow(deprecated)]
        return Device::ndarray();
    }

    #[cfg(any(feature = "flex", feature = "ndarray"))]
    #[test]
    fn units_stay_whole_and_every_row_is_there_once() {
        let units = [unit(&[5, 3]), unit(&[9]), unit(&[4, 4, 4]), unit(&[2])];
        let references: Vec<&TokenUnit> = units.iter().collect();
        let batches = micro_batches(&references, 3, &device()).unwrap();
        let rows: usize = batches.iter().map(|b| b.unit_of_row.len()).sum();
        assert_eq!(rows, 7);
        assert_eq!(batches.iter().map(|b| b.units).sum::<usize>(), 4);
        for batch in &batches {
            let mut weights = vec![0.0; batch.units];
            for (unit, weight) in batch.unit_of_row.iter().zip(&batch.weight_of_row) {
                weights[*unit] += weight;
            }
            assert!(weights.iter().all(|sum| (sum - 1.0_f32).abs() < 1e-6));
        }
        let counted: f32 = batches
            .iter()
            .map(|b| b.batch.mask.clone().sum().into_scalar::<f32>())
            .sum();
        assert_eq!(counted, (4 + 2 + 8 + 9 + 1) as f32);
    }

    #[cfg(any(feature = "flex", feature = "ndarray"))]
    #[test]
    fn uneven_texts_are_hardly_padded() {
        let units: Vec<TokenUnit> = (0..64)
            .map(|index| unit(&[5 + index * index / 20]))
            .collect();
        let references: Vec<&TokenUnit> = units.iter().collect();
        let batches = micro_batches(&references, 64, &device()).unwrap();
        assert!(batches.len() > 1);
        let tokens: usize = units.iter().map(|unit| unit.rows[0].len() - 1).sum();
        let positions: usize = batches
            .iter()
            .map(|b| b.batch.mask.dims().iter().product::<usize>())
            .sum();
        let rows: usize = batches.iter().map(|b| b.unit_of_row.len()).sum();
        assert_eq!(rows, 64);
        assert!(
            positions * 10 < tokens * 13,
            "{positions} positions for {tokens} tokens"
        );
    }

    /// Against every way to cut eight units.
    #[test]
    fn no_other_cut_is_cheaper() {
        let cost = |sizes: &[(usize, usize)], ends: &[usize]| {
            let mut start = 0;
            let mut sum = 0;
            for &end in ends {
                let rows: usize = sizes[start..end].iter().map(|size| size.0).sum();
                assert!(rows <= 7 || end == start + 1);
                sum += rows * sizes[end - 1].1 + OVERHEAD;
                start = end;
            }
            sum
        };
        for seed in 0..40_usize {
            let sizes: Vec<(usize, usize)> = (1..=8)
                .map(|i| (1 + (i * seed) % 3, i * (5 + seed) / 2))
                .collect();
            let found = cost(&sizes, &cuts(&sizes, 7));
            let all = (0..1_u32 << 7).filter_map(|inner| {
                let ends: Vec<usize> = (1..8)
                    .filter(|end| inner >> (end - 1) & 1 == 1)
                    .chain([8])
                    .collect();
                let starts = std::iter::once(&0).chain(&ends);
                let fits = starts.zip(&ends).all(|(&start, &end)| {
                    sizes[start..end].iter().map(|size| size.0).sum::<usize>() <= 7
                });
                fits.then(|| cost(&sizes, &ends))
            });
            assert_eq!(Some(found), all.min(), "seed {seed}");
        }
        assert_eq!(cuts(&[(1, 5), (20, 6), (1, 7)], 7), [1, 2, 3]);
    }

    #[cfg(any(feature = "flex", feature = "ndarray"))]
    #[test]
    fn no_units_make_no_batch() {
        assert!(micro_batches(&[], 4, &device()).unwrap().is_empty());
    }
}
