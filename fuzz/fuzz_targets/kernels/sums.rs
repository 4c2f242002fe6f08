//! The passes of rldp-optim over per-example gradients.

use super::input::Input;
use crate::host;
use crate::random::{CHUNK, GridNoise, SeededRandom};
use crate::row_map::RowMap;

const LARGE: [usize; 6] = [1023, 1024, 1025, 2049, 4096, 4097];

pub fn run(input: &mut Input<'_>) {
    match input.byte() % 2 {
        0 => clip(input),
        _ => release(input),
    }
}

/// Norms and clipped sums, of which no unit may have more than its bound.
fn clip(input: &mut Input<'_>) {
    let width = input.size(&LARGE, usize::MAX);
    let rows = input.size(&[], 40);
    let map = if input.flag() {
        let padding = usize::from(input.byte()) % rows;
        RowMap::padded(rows - padding, padding)
    } else {
        let units: Vec<Option<usize>> = (0..rows)
            .map(|_| Some(usize::from(input.byte() % 8)).filter(|unit| *unit < 7))
            .collect();
        match input.flag() {
            true => RowMap::averaged(&units),
            false => RowMap::summed(&units, &input.values(rows)).expect("finite weights"),
        }
    };
    let mut values = input.values(rows * width);
    let spoilt = input.spoil(&mut values, rows * width);
    let norms = host::squared_norms(&values, width, &map);
    assert_eq!(norms.len(), map.units());
    // As the caller has them: at most 2^30 a unit, nothing of a unit that is no number.
    const BOUND: f64 = 1_073_741_824.0;
    let scales: Vec<f64> = norms
        .iter()
        .map(|norm| match norm.sqrt() {
            norm if norm.is_finite() && norm > 0.0 => BOUND / norm,
            _ => 0.0,
        })
        .collect();
    let mut sums = vec![0_i64; width];
    host::add_scaled(&values, width, &map, &scales, &mut sums);
    let mut expected = vec![0_i64; width];
    for (unit, scale) in scales
        .iter()
        .enumerate()
        .filter(|(_, scale)| **scale != 0.0)
    {
        let mut gradient = vec![0.0_f64; width];
        for &(row, weight) in map.unit(unit) {
            for (sum, value) in gradient.iter_mut().zip(&values[row * width..]) {
                *sum += f64::from(weight) * f64::from(*value);
            }
        }
        let norm: f64 = gradient.iter().map(|value| value * value).sum();
        assert!((norm - norms[unit]).abs() <= 1e-9 * norm, "a unit's norm");
        let mut squares = 0.0;
        for (sum, value) in expected.iter_mut().zip(&gradient) {
            let value = (value * scale).trunc();
            squares += value * value;
            *sum += value as i64;
        }
        assert!(squares.sqrt() <= BOUND * (1.0 + 1e-12), "a unit's share");
    }
    // A row of weight w is multiplied by `scale * w` at once: one rounding may fall on the other side of a whole number.
    for (found, expected) in sums.iter().zip(&expected) {
        let units = map.units() as i64;
        assert!((found - expected).abs() <= units, "{found} for {expected}");
    }
    // Whatever the scales: no number takes the conversion out of its range.
    if spoilt {
        let wild = vec![f64::from(f32::MAX); map.units()];
        host::add_scaled(&values, width, &map, &wild, &mut sums);
    }
}

/// A release is the sums and the noise, however the tensors lie in the chunks.
fn release(input: &mut Input<'_>) {
    let count = input.up_to(6);
    let mut widths = Vec::new();
    let mut sums: Vec<Vec<i64>> = Vec::new();
    for _ in 0..count {
        let width = match input.byte() % 8 {
            0 => 0,
            _ => input.size(&LARGE, usize::MAX),
        };
        widths.push(width);
        sums.push(match input.byte() % 8 {
            0 => Vec::new(),
            1 => vec![i64::MAX; width],
            2 => vec![i64::MIN; width],
            other => (0..width as i64)
                .map(|index| (index - 7) << (4 * other))
                .collect(),
        });
    }
    let deviation = f64::from(input.byte()) * f64::from(1_u32 << (input.byte() % 31));
    let noise = || GridNoise::new(deviation, &mut SeededRandom::new(7));
    let views: Vec<&[i64]> = sums.iter().map(|sums| &sums[..]).collect();
    let released = host::release(&views, &widths, &noise(), 1e-9);
    let mut all: Vec<i64> = Vec::new();
    for (sums, width) in sums.iter().zip(&widths) {
        let start = all.len();
        all.extend(sums);
        all.resize(start + width, 0);
    }
    for (index, chunk) in all.chunks_mut(CHUNK).enumerate() {
        noise().add(index, chunk);
    }
    let expected = all.iter().map(|value| (*value as f64 * 1e-9) as f32);
    assert!(expected.eq(released.concat()));
    let lengths: Vec<usize> = released.iter().map(Vec::len).collect();
    assert_eq!(lengths, widths);
}
