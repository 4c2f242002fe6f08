//! Matrix products from tiles: operands packed once, blocks of rows in parallel.
//!
//! Packing the right operand is shared by all rows; rows are packed block by block into the
//! processor's cache. The split into blocks depends on the shapes only, never on the threads.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::tile::{COLUMNS, Kernel, LANE, ROWS, Segment, Target};
use super::transpose;

/// Inner positions that are multiplied at a time, so that packed rows stay in the cache.
const DEPTH: usize = 1024;

/// A strided matrix.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// `[rows, columns]` with neighbouring columns side by side, rows `stride` apart.
    pub(crate) fn rows(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        debug_assert!(rows == 0 || data.len() >= (rows - 1) * stride + columns);
        Self {
            data,
            rows,
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn pack_panel(self, first: usize, panel: usize, out: &mut [f32]) {
        let width = panel.min(self.columns - first);
        if self.column_stride == 1 {
            for (k, out) in out.chunks_exact_mut(panel).enumerate() {
                let start = k * self.row_stride + first;
                out[..width].copy_from_slice(&self.data[start..start + width]);
                out[width..].fill(0.0);
            }
            return;
        }
        // Sixteen inner positions at a time, so that what is written stays close.
        for (block, out) in out.chunks_mut(LANE * panel).enumerate() {
            let depth = out.len() / panel;
            if self.row_stride == 1 && depth == LANE && width == panel {
                let source = &self.data[first * self.column_stride + block * LANE..];
                if transpose::columns(source, self.column_stride, out) {
                    continue;
                }
            }
            for column in 0..panel {
                if column >= width {
                    (0..depth).for_each(|k| out[k * panel + column] = 0.0);
                    continue;
                }
                let start = (first + column) * self.column_stride + block * LANE * self.row_stride;
                let values = self.data[start..].iter().step_by(self.row_stride);
                for (k, value) in values.take(depth).enumerate() {
                    out[k * panel + column] = *value;
                }
            }
        }
    }
}

/// A right operand in panels, each `[inner, 16 or 32]`.
pub(crate) struct Panels {
    data: Buffer,
    inner: usize,
    columns: usize,
    panel: usize,
}

impl Panels {
    /// Packs on all threads.
    pub(crate) fn new(matrix: View<'_>) -> Self {
        let mut panels = Self::empty(matrix, Self::fitting(matrix.columns));
        let (size, panel) = (panels.inner * panels.panel, panels.panel);
        panels.data.0[..]
            .par_chunks_mut(size.max(1))
            .enumerate()
            .for_each(|(index, out)| matrix.pack_panel(index * panel, panel, out));
        panels
    }

    /// Packs on this thread.
    pub(crate) fn small(matrix: View<'_>) -> Self {
        let mut panels = Self::empty(matrix, Self::fitting(matrix.columns));
        panels.pack(matrix);
        panels
    }

    /// The same with panels of 32 columns, however few there are.
    pub(crate) fn small_wide(matrix: View<'_>) -> Self {
        let mut panels = Self::empty(matrix, COLUMNS);
        panels.pack(matrix);
        panels
    }

    fn pack(&mut self, matrix: View<'_>) {
        let (size, panel) = (self.inner * self.panel, self.panel);
        for (index, out) in self.data.0.chunks_mut(size.max(1)).enumerate() {
            matrix.pack_panel(index * panel, panel, out);
        }
    }

    fn fitting(columns: usize) -> usize {
        if columns <= LANE { LANE } else { COLUMNS }
    }

    fn empty(matrix: View<'_>, panel: usize) -> Self {
        let count = matrix.columns.div_ceil(panel);
        Self {
            data: Buffer::take(count * matrix.rows * panel),
            inner: matrix.rows,
            columns: matrix.columns,
            panel,
        }
    }

    /// How many panels.
    pub(crate) fn count(&self) -> usize {
        self.columns.div_ceil(self.panel)
    }

    /// Columns of every panel, and those of panel `index` that exist.
    pub(crate) fn width(&self, index: usize) -> (usize, usize) {
        (
            self.panel,
            self.panel.min(self.columns - index * self.panel),
        )
    }

    /// The panel's rows from inner position `start`.
    pub(crate) fn from(&self, index: usize, start: usize) -> &[f32] {
        &self.data.0[(index * self.inner + start) * self.panel..]
    }
}

/// Builds with debug assertions use no scratch memory twice and fill it with NaN: sanitizers see where every buffer ends, and
/// whoever reads what nobody wrote.
pub(super) const FRESH: bool = cfg!(debug_assertions);

/// Scratch memory that is used again: fresh pages from the system would cost more than the work.
pub(crate) struct Buffer(Vec<f32>);

static SPARE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Buffers kept for later.
const SPARE_BUFFERS: usize = 8;

impl Buffer {
    /// `size` values, whatever was in them before.
    pub(crate) fn take(size: usize) -> Self {
        let mut spare = SPARE
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // The smallest that is large enough, else the largest.
        let fits = (0..spare.len())
            .filter(|index| spare[*index].capacity() >= size)
            .min_by_key(|index| spare[*index].capacity());
        let largest = || (0..spare.len()).max_by_key(|index| spare[*index].capacity());
        let mut data = match fits.or_else(largest) {
            Some(index) => spare.swap_remove(index),
            None => Vec::new(),
        };
        drop(spare);
        data.resize(size, if FRESH { f32::NAN } else { 0.0 });
        Self(data)
    }

    pub(crate) fn values(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = SPARE
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if !FRESH && spare.len() < SPARE_BUFFERS {
            spare.push(std::mem::take(&mut self.0));
        }
    }
}

/// A pointer that several threads write through, each to places of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: whoever writes through it takes care that no two threads touch one element.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(crate) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// A pointer to one value.
    ///
    /// # Safety
    ///
    /// The value exists.
    pub(crate) unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(index) }
    }

    /// A part of the values as a slice.
    ///
    /// # Safety
    ///
    /// The range exists and nobody else touches it while the slice lives.
    pub(crate) unsafe fn slice<'a>(self, range: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Rows packed for the kernels: tiles `[inner / 16, rows, 16]`.
#[derive(Default)]
pub(crate) struct Tiles {
    data: Vec<f32>,
    list: Vec<Tile>,
}

/// One tile: its rows, counted within the block, and its place among the packed values.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    offset: usize,
}

impl Tiles {
    /// Lays out tiles for `inner` positions of the spans' rows; no tile crosses a span's end.
    pub(crate) fn layout(&mut self, spans: impl Iterator<Item = Range<usize>>, inner: usize) {
        self.list.clear();
        let mut offset = 0;
        for span in spans {
            let rows = span.len();
            let count = rows.div_ceil(ROWS);
            for index in 0..count {
                let (start, end) = (rows * index / count, rows * (index + 1) / count);
                self.list.push(Tile {
                    first: span.start + start,
                    rows: end - start,
                    offset,
                });
                offset += (end - start) * inner.next_multiple_of(LANE);
            }
        }
        if FRESH {
            self.data = vec![f32::NAN; offset];
        } else if self.data.len() < offset {
            self.data.resize(offset, 0.0);
        }
    }

    /// Fills every tile from the rows that `row` gives, each of the layout's inner length.
    pub(crate) fn fill<'a>(&mut self, row: impl Fn(usize) -> &'a [f32]) {
        for tile in &self.list {
            let values = &mut self.data[tile.offset..];
            for index in 0..tile.rows {
                let source = row(tile.first + index);
                let (parts, rest) = source.as_chunks::<LANE>();
                let mut place = index * LANE;
                for part in parts {
                    values[place..place + LANE].copy_from_slice(part);
                    place += tile.rows * LANE;
                }
                if !rest.is_empty() {
                    values[place..place + rest.len()].copy_from_slice(rest);
                }
            }
        }
    }

    /// Fills every tile with columns of `matrix`: row `r` of the operand is its column `r`.
    pub(crate) fn fill_transposed(&mut self, matrix: View<'_>) {
        for tile in &self.list {
            let values = &mut self.data[tile.offset..];
            for k in 0..matrix.rows {
                let start = k * matrix.row_stride + tile.first * matrix.column_stride;
                let place = (k / LANE) * tile.rows * LANE + k % LANE;
                for index in 0..tile.rows {
                    values[place + index * LANE] =
                        matrix.data[start + index * matrix.column_stride];
                }
            }
        }
    }

    pub(crate) fn list(&self) -> &[Tile] {
        &self.list
    }

    /// The tile's values from inner position `start`, a multiple of 16.
    pub(crate) fn from(&self, tile: Tile, start: usize) -> *const f32 {
        self.data[tile.offset + start * tile.rows..].as_ptr()
    }
}

/// What a block of rows is multiplied with besides the main operand: `low x panels`, added on top.
#[derive(Clone, Copy)]
pub(crate) struct Low<'a> {
    /// The block's rows, `[rows, inner]`.
    pub(crate) rows: &'a [f32],
    pub(crate) inner: usize,
}

/// Rows of a block that belong together, with the right operand of the [`Low`] part.
pub(crate) struct Span<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) low: Option<&'a Panels>,
}

/// The rows of a left operand, side by side.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

thread_local! {
    static TILES: RefCell<[Tiles; 2]> = RefCell::default();
}

/// `out (+)= left panels + low spans' panels` for the rows of one block, on this thread.
///
/// `out` starts at the block's first row.
///
/// # Safety
///
/// Nobody else touches the block's rows of `out`, which has `panels.columns()` columns.
pub(crate) unsafe fn multiply_block(
    left: Left<'_>,
    panels: &Panels,
    spans: &[Span<'_>],
    low: Option<Low<'_>>,
    (out, stride, add): (*mut f32, usize, bool),
) {
    let kernel = Kernel::best();
    TILES.with_borrow_mut(|[main, extra]| {
        let ranges = || spans.iter().map(|span| span.rows.clone());
        let owners: Vec<Option<&Panels>> = spans
            .iter()
            .flat_map(|span| vec![span.low; span.rows.len().div_ceil(ROWS)])
            .collect();
        if let Some(low) = low {
            extra.layout(ranges(), low.inner);
            extra.fill(|row| &low.rows[row * low.inner..(row + 1) * low.inner]);
        }
        let count = panels.count();
        for start in (0..panels.inner).step_by(DEPTH) {
            let depth = DEPTH.min(panels.inner - start);
            main.layout(ranges(), depth);
            main.fill(|row| &left.values[row * left.stride + start..][..depth]);
            let last = start + depth == panels.inner;
            for index in 0..count {
                let right = panels.from(index, start).as_ptr();
                let first_column = index * panels.panel;
                for (number, tile) in main.list().iter().enumerate() {
                    let main_part = Segment {
                        left: main.from(*tile, 0),
                        right,
                        stride: panels.panel,
                        inner: depth,
                    };
                    let mut segments = [main_part; 2];
                    let mut used = 1;
                    if let (Some(low), Some(owner), true) = (low, owners[number], last) {
                        segments[1] = Segment {
                            left: extra.from(extra.list()[number], 0),
                            right: owner.from(index, 0).as_ptr(),
                            stride: owner.panel,
                            inner: low.inner,
                        };
                        used = 2;
                    }
                    // SAFETY: tiles lie within the block, panels within the columns.
                    unsafe {
                        let target = Target {
                            start: out.add(tile.first * stride + first_column),
                            stride,
                            width: panels.panel.min(panels.columns - first_column),
                            add: add || start > 0,
                        };
                        kernel.run(tile.rows, panels.panel, &segments[..used], target);
                    }
                }
            }
        }
    });
}

/// `out (+)= left^T right` for small numbers of `left`'s columns, on this thread: `left` is
/// `[inner, rows]`, `right` `[inner, columns]`, `out` `[rows, columns]` with rows `stride` apart.
pub(crate) fn multiply_transposed(
    left: View<'_>,
    right: View<'_>,
    (out, stride, add): (&mut [f32], usize, bool),
) {
    let kernel = Kernel::best();
    let (inner, rows, columns) = (left.rows, left.columns, right.columns);
    debug_assert!(right.column_stride == 1 && right.rows == inner);
    let whole = columns - columns % COLUMNS;
    // The last panel is packed: reading past a row's end could leave the tensor.
    let mut rest = Vec::new();
    if whole < columns {
        rest.resize(inner * COLUMNS, 0.0);
        right.pack_panel(whole, COLUMNS, &mut rest);
    }
    TILES.with_borrow_mut(|[tiles, _]| {
        tiles.layout(std::iter::once(0..rows), inner);
        tiles.fill_transposed(left);
        for first in (0..columns).step_by(COLUMNS) {
            let (source, source_stride) = if first < whole {
                (&right.data[first..], right.row_stride)
            } else {
                (&rest[..], COLUMNS)
            };
            for tile in tiles.list() {
                let segment = Segment {
                    left: tiles.from(*tile, 0),
                    right: source.as_ptr(),
                    stride: source_stride,
                    inner,
                };
                let target = Target {
                    start: out[tile.first * stride + first..].as_mut_ptr(),
                    stride,
                    width: COLUMNS.min(columns - first),
                    add,
                };
                // SAFETY: the views cover the operands, `out` the result.
                unsafe { kernel.run(tile.rows, COLUMNS, &[segment], target) };
            }
        }
    });
}

/// How `examples` of `time` rows each are cut into blocks for the threads: whole examples, or parts
/// of one, of about this many rows.
const BLOCK: usize = 112;

/// A block: its first row, and its examples with their rows within the block.
pub(crate) struct Block {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) spans: Vec<(usize, Range<usize>)>,
}

pub(crate) fn blocks(examples: usize, time: usize) -> Vec<Block> {
    if examples == 0 || time == 0 {
        return Vec::new();
    }
    if time >= BLOCK {
        let parts = (time + BLOCK / 4).div_ceil(BLOCK + BLOCK / 4).max(1);
        let part = |example: usize, index: usize| {
            let (start, end) = (time * index / parts, time * (index + 1) / parts);
            Block {
                first: example * time + start,
                rows: end - start,
                spans: vec![(example, 0..end - start)],
            }
        };
        return (0..examples)
            .flat_map(|example| (0..parts).map(move |index| part(example, index)))
            .collect();
    }
    let together = BLOCK / time;
    (0..examples)
        .step_by(together)
        .map(|start| {
            let count = together.min(examples - start);
            Block {
                first: start * time,
                rows: count * time,
                spans: (0..count)
                    .map(|index| (start + index, index * time..(index + 1) * time))
                    .collect(),
            }
        })
        .collect()
}
