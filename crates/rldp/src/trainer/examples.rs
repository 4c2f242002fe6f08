//! Privacy units as token rows, and how they are laid out in micro-batches.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rldp_models::Batch;

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
    length: usize,
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

/// Lays the units out in micro-batches of at most `rows` rows (a unit with more rows makes one of its own), units of
/// like length together so that little padding is computed. Which units share a micro-batch changes no result.
#[must_use]
pub fn micro_batches(units: &[&TokenUnit], rows: usize, device: &Device) -> Vec<MicroBatch> {
    let longest = |unit: &TokenUnit| unit.rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut order: Vec<usize> = (0..units.len())
        .filter(|index| !units[*index].rows.is_empty())
        .collect();
    order.sort_by_key(|index| (longest(units[*index]), *index));
    let mut batches = Vec::new();
    let mut current: Vec<Place> = Vec::new();
    let mut in_current = 0;
    for index in order {
        let unit = units[index];
        if !current.is_empty() && current.len() + unit.rows.len() > rows {
            batches.push(collate(units, &current, device));
            current.clear();
            in_current = 0;
        }
        current.extend(unit.rows.iter().enumerate().map(|(row, tokens)| Place {
            unit: index,
            row,
            length: tokens.len(),
        }));
        in_current += 1;
    }
    if in_current > 0 {
        batches.push(collate(units, &current, device));
    }
    batches
}

/// Builds the padded tensors of one micro-batch. Inputs are a row's tokens but the last, targets all but the first.
fn collate(units: &[&TokenUnit], places: &[Place], device: &Device) -> MicroBatch {
    let width = places
        .iter()
        .map(|place| place.length.saturating_sub(1))
        .max()
        .unwrap_or(1)
        .max(1);
    let rows = places.len();
    let mut inputs = vec![0_i64; rows * width];
    let mut targets = vec![0_i64; rows * width];
    let mut mask = vec![0.0_f32; rows * width];
    let mut unit_of_row = Vec::with_capacity(rows);
    let mut weight_of_row = Vec::with_capacity(rows);
    let mut unit_count = 0;
    let mut last = None;
    for (index, place) in places.iter().enumerate() {
        let unit = units[place.unit];
        let tokens = &unit.rows[place.row];
        for (offset, pair) in tokens.windows(2).enumerate() {
            inputs[index * width + offset] = i64::from(pair[0]);
            targets[index * width + offset] = i64::from(pair[1]);
            mask[index * width + offset] = 1.0;
        }
        if last != Some(place.unit) {
            unit_count += 1;
            last = Some(place.unit);
        }
        unit_of_row.push(unit_count - 1);
        weight_of_row.push(1.0 / unit.rows.len() as f32);
    }
    let shape = [rows, width];
    let batch = Batch {
        input_ids: Tensor::<2, Int>::from_data(TensorData::new(inputs, shape), device),
        targets: Tensor::<2, Int>::from_data(TensorData::new(targets, shape), device),
        mask: Tensor::<2>::from_data(TensorData::new(mask, shape), device),
    };
    MicroBatch {
        batch,
        unit_of_row,
        weight_of_row,
        units: unit_count,
    }
}

#[cfg(test)]
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
        let batches = micro_batches(&references, 3, &device());
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
    fn no_units_make_no_batch() {
        assert!(micro_batches(&[], 4, &device()).is_empty());
    }
}
