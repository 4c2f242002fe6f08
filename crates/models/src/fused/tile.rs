//! The innermost loop of every matrix product: a tile of up to 14 rows by 32 columns in registers.
//!
//! Each element of the result is one chain of fused multiply-adds in the order of the inner index,
//! whatever the tile's shape and whoever else is in the batch: an example's numbers do not depend
//! on its neighbours. AVX-512 and AVX2 have kernels of their own; elsewhere the compiler's
//! vectoriser does what it can.

/// Columns of a panel of the right operand.
pub(crate) const COLUMNS: usize = 32;
/// Most rows of a tile: with AVX-512, 28 of 32 registers hold the result.
pub(crate) const ROWS: usize = 14;
/// Inner positions of a row that lie together in a packed left operand.
pub(crate) const LANE: usize = 16;

/// One product that a tile sums: `rows x inner` times `inner x columns`.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// The left operand, `[inner / 16, rows, 16]`, the last part of 16 possibly not full.
    pub(crate) left: *const f32,
    /// The right operand, `inner` rows of at least a panel's columns.
    pub(crate) right: *const f32,
    /// Elements from one row of the right operand to the next.
    pub(crate) stride: usize,
    /// How many inner positions.
    pub(crate) inner: usize,
}

/// Where a tile's result goes.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    /// Its first element.
    pub(crate) start: *mut f32,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Columns that exist, at most a panel's.
    pub(crate) width: usize,
    /// Whether the result is added to what is there.
    pub(crate) add: bool,
}

/// The kinds of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    /// The fastest that this processor has.
    pub(crate) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Computes one tile of `rows` rows and `panel` columns (16 or 32).
    ///
    /// # Safety
    ///
    /// `rows` is 1 to [`ROWS`]; every pointer is valid for what its fields describe, the right
    /// operands for `panel` columns, and nobody else touches the target.
    pub(crate) unsafe fn run(self, rows: usize, panel: usize, segments: &[Segment], to: Target) {
        macro_rules! by_rows {
            ($kernel:ident, $vectors:literal: $($rows:literal)*) => {
                match rows {
                    // SAFETY: the caller's.
                    $($rows => unsafe { $kernel::<$rows, $vectors>(segments, to) },)*
                    _ => {}
                }
            };
        }
        debug_assert!((1..=ROWS).contains(&rows) && to.width <= panel);
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if panel == COLUMNS => {
                by_rows!(avx512, 2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => by_rows!(avx512, 1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
            // SAFETY: the caller's.
            _ => unsafe { in_parts(self, rows, panel, segments, to) },
        }
    }
}

/// Runs the smaller kernels, 6 rows by 16 columns, over a tile.
unsafe fn in_parts(kind: Kernel, rows: usize, panel: usize, segments: &[Segment], to: Target) {
    const PART: usize = 6;
    for column in (0..panel).step_by(LANE) {
        if column >= to.width {
            break;
        }
        for row in (0..rows).step_by(PART) {
            let count = PART.min(rows - row);
            // SAFETY: parts of what the caller gave.
            let (parts, target) = unsafe {
                let mut parts = [segments[0]; 2];
                for (part, segment) in parts.iter_mut().zip(segments) {
                    *part = Segment {
                        left: segment.left.add(row * LANE),
                        right: segment.right.add(column),
                        ..*segment
                    };
                }
                let target = Target {
                    start: to.start.add(row * to.stride + column),
                    width: (to.width - column).min(LANE),
                    ..to
                };
                (parts, target)
            };
            let parts = &parts[..segments.len()];
            macro_rules! by_rows {
                ($kernel:ident: $($rows:literal)*) => {
                    match count {
                        // SAFETY: the caller's; the processor has what `kind` needs.
                        $($rows => unsafe { $kernel::<$rows>(parts, rows, target) },)*
                        _ => {}
                    }
                };
            }
            match kind {
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => by_rows!(avx2: 1 2 3 4 5 6),
                _ => by_rows!(portable: 1 2 3 4 5 6),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize, const V: usize>(segments: &[Segment], to: Target) {
    use std::arch::x86_64::*;
    let mask = |vector: usize| -> __mmask16 {
        let width = to.width.saturating_sub(16 * vector).min(16);
        ((1u32 << width) - 1) as __mmask16
    };
    // SAFETY: the caller's; masked lanes are not touched.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        if to.add {
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = _mm512_maskz_loadu_ps(mask(v), to.start.add(r * to.stride + 16 * v));
                }
            }
        }
        for segment in segments {
            let (mut left, mut right, mut rest) = (segment.left, segment.right, segment.inner);
            while rest > 0 {
                let lanes = rest.min(LANE);
                for lane in 0..lanes {
                    let mut b = [_mm512_setzero_ps(); V];
                    for (v, b) in b.iter_mut().enumerate() {
                        *b = _mm512_loadu_ps(right.add(16 * v));
                    }
                    for (r, row) in sums.iter_mut().enumerate() {
                        let a = _mm512_set1_ps(*left.add(r * LANE + lane));
                        for (sum, b) in row.iter_mut().zip(b) {
                            *sum = _mm512_fmadd_ps(a, b, *sum);
                        }
                    }
                    right = right.add(segment.stride);
                }
                left = left.add(R * LANE);
                rest -= lanes;
            }
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                _mm512_mask_storeu_ps(to.start.add(r * to.stride + 16 * v), mask(v), *sum);
            }
        }
    }
}

/// `rows` are those of the whole tile, of which `R` are computed.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize>(segments: &[Segment], rows: usize, to: Target) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's; beyond the width only local memory is touched.
    unsafe {
        let mut buffer = [[0.0f32; LANE]; R];
        if to.add {
            for (r, row) in buffer.iter_mut().enumerate() {
                let from = std::slice::from_raw_parts(to.start.add(r * to.stride), to.width);
                row[..to.width].copy_from_slice(from);
            }
        }
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for (sums, row) in sums.iter_mut().zip(&buffer) {
            *sums = [
                _mm256_loadu_ps(row.as_ptr()),
                _mm256_loadu_ps(row.as_ptr().add(8)),
            ];
        }
        for segment in segments {
            let (mut left, mut right, mut rest) = (segment.left, segment.right, segment.inner);
            while rest > 0 {
                let lanes = rest.min(LANE);
                for lane in 0..lanes {
                    let b = [_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8))];
                    for (r, row) in sums.iter_mut().enumerate() {
                        let a = _mm256_set1_ps(*left.add(r * LANE + lane));
                        for (sum, b) in row.iter_mut().zip(b) {
                            *sum = _mm256_fmadd_ps(a, b, *sum);
                        }
                    }
                    right = right.add(segment.stride);
                }
                left = left.add(rows * LANE);
                rest -= lanes;
            }
        }
        for (row, sums) in buffer.iter_mut().zip(sums) {
            _mm256_storeu_ps(row.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(row.as_mut_ptr().add(8), sums[1]);
        }
        for (r, row) in buffer.iter().enumerate() {
            let into = std::slice::from_raw_parts_mut(to.start.add(r * to.stride), to.width);
            into.copy_from_slice(&row[..to.width]);
        }
    }
}

unsafe fn portable<const R: usize>(segments: &[Segment], rows: usize, to: Target) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[0.0f32; LANE]; R];
        if to.add {
            for (r, row) in sums.iter_mut().enumerate() {
                let from = std::slice::from_raw_parts(to.start.add(r * to.stride), to.width);
                row[..to.width].copy_from_slice(from);
            }
        }
        for segment in segments {
            let (mut left, mut right, mut rest) = (segment.left, segment.right, segment.inner);
            while rest > 0 {
                let lanes = rest.min(LANE);
                for lane in 0..lanes {
                    let b = &*right.cast::<[f32; LANE]>();
                    for (r, row) in sums.iter_mut().enumerate() {
                        let a = *left.add(r * LANE + lane);
                        for (sum, b) in row.iter_mut().zip(b) {
                            *sum += a * b;
                        }
                    }
                    right = right.add(segment.stride);
                }
                left = left.add(rows * LANE);
                rest -= lanes;
            }
        }
        for (r, row) in sums.iter().enumerate() {
            let into = std::slice::from_raw_parts_mut(to.start.add(r * to.stride), to.width);
            into.copy_from_slice(&row[..to.width]);
        }
    }
}
