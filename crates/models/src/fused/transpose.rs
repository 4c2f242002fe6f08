//! Turning columns of a matrix that lie side by side in memory into rows, sixteen by sixteen.

use super::tile::LANE;

/// Writes `out[k][column] = source[column * stride + k]` for `k` below 16, where `out` has 16 rows of a multiple of 16 columns;
/// gives false, and writes nothing, on processors that have no instructions for it.
pub(crate) fn columns(source: &[f32], stride: usize, out: &mut [f32]) -> bool {
    debug_assert!(out.len().is_multiple_of(LANE * LANE));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions.
        unsafe { avx512(source, stride, out) };
        return true;
    }
    let _ = (source, stride, out);
    false
}

/// Four perfect shuffles of sixteen rows are a transposition.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(source: &[f32], stride: usize, out: &mut [f32]) {
    use std::arch::x86_64::{
        _mm512_loadu_ps, _mm512_permutex2var_ps, _mm512_setr_epi32, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let width = out.len() / LANE;
    for first in (0..width).step_by(LANE) {
        let mut rows = [_mm512_setzero_ps(); LANE];
        for (index, row) in rows.iter_mut().enumerate() {
            let column = &source[(first + index) * stride..][..LANE];
            // SAFETY: the slice has sixteen values.
            *row = unsafe { _mm512_loadu_ps(column.as_ptr()) };
        }
        for _ in 0..4 {
            let before = rows;
            for index in 0..LANE / 2 {
                let (a, b) = (before[index], before[index + LANE / 2]);
                rows[2 * index] = _mm512_permutex2var_ps(a, low, b);
                rows[2 * index + 1] = _mm512_permutex2var_ps(a, high, b);
            }
        }
        for (index, row) in rows.into_iter().enumerate() {
            let out = &mut out[index * width + first..][..LANE];
            // SAFETY: the slice has sixteen values.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), row) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_rows() {
        for (width, stride) in [(16, 16), (32, 16), (32, 37)] {
            let source: Vec<f32> = (0..(width - 1) * stride + LANE).map(|i| i as f32).collect();
            let mut out = vec![-1.0; LANE * width];
            if !columns(&source, stride, &mut out) {
                return;
            }
            for (index, &value) in out.iter().enumerate() {
                let (k, column) = (index / width, index % width);
                assert_eq!(value, source[column * stride + k], "{width} {stride}");
            }
        }
    }
}
