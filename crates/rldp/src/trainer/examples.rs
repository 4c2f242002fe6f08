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

/// Tokens that make a micro-batch worth its overhead.
const ENOUGH: usize = 384;

/// Lays the units out in micro-batches of at most `rows` rows (a unit with more rows makes one of its own), units of
/// like length together: once a micro-batch has tokens enough, one that would make more than an eighth of it padding
/// starts the next. Which units share a micro-batch changes no result.
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
    let mut batches = Vec::new();
    let mut current: Vec<Place> = Vec::new();
    let mut in_current = 0;
    let mut tokens = 0;
    for index in order {
        let unit = units[index];
        let more: usize = unit.rows.iter().map(Vec::len).sum();
        let positions = (current.len() + unit.rows.len()) * longest(unit);
        let padded = tokens >= ENOUGH && positions * 8 > (tokens + more) * 9;
        if !current.is_empty() && (current.len() + unit.rows.len() > rows || padded) {
            batches.push(collate(units, &current, device)?);
            current.clear();
            in_current = 0;
            tokens = 0;
        }
        tokens += more;
        current.extend((0..unit.rows.len()).map(|row| Place { unit: index, row }));
        in_current += 1;
    }
    if in_current > 0 {
        batches.push(collate(units, &current, device)?);
    }
    Ok(batches)
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

    #[cfg(any(feature = "flex", feature = "ndarray"))]
    #[test]
    fn no_units_make_no_batch() {
        assert!(micro_batches(&[], 4, &device()).unwrap().is_empty());
    }
}
