//! Causal attention and its gradients without the matrix of all queries by all keys.
//!
//! A few queries at a time (Dao et al. 2022, arXiv 2205.14135); keys that no query of the tile sees
//! are skipped. The backward pass computes the weights again from the kept logarithms of the sums.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::math::{self, by_lanes};
use super::product::{FRESH, Panels, Shared, Tile, Tiles, View, multiply_transposed};
use super::tile::{COLUMNS, Kernel, Segment, Target};

/// Queries whose weights are kept at once in the backward pass.
const QUERIES: usize = 64;

/// What is attended to by whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Causal {
    pub(crate) examples: usize,
    pub(crate) time: usize,
    pub(crate) heads: usize,
    /// Key and value heads; they divide the query heads.
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    /// How many tokens back a token sees, itself included.
    pub(crate) window: Option<usize>,
}

/// Queries, keys or values: heads side by side in every token's row.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub(crate) values: &'a [f32],
    /// Place of the first head in a row.
    pub(crate) offset: usize,
    /// Elements of a row.
    pub(crate) stride: usize,
}

/// Where gradients of [`Heads`] go.
#[derive(Clone, Copy)]
pub(crate) struct HeadsMut {
    pub(crate) values: Shared,
    pub(crate) offset: usize,
    pub(crate) stride: usize,
}

impl<'a> Heads<'a> {
    /// One head of one example, `[time, head]`.
    fn view(self, shape: Causal, example: usize, head: usize) -> View<'a> {
        let start = example * shape.time * self.stride + self.offset + head * shape.head_dim;
        let values = &self.values[start..];
        View::rows(values, shape.time, shape.head_dim, self.stride)
    }

    fn row(self, shape: Causal, example: usize, head: usize, token: usize) -> &'a [f32] {
        let start = (example * shape.time + token) * self.stride;
        &self.values[start + self.offset + head * shape.head_dim..][..shape.head_dim]
    }
}

impl HeadsMut {
    /// # Safety
    ///
    /// Nobody else holds the row.
    unsafe fn row<'a>(
        self,
        shape: Causal,
        example: usize,
        head: usize,
        token: usize,
    ) -> &'a mut [f32] {
        let start = (example * shape.time + token) * self.stride + self.offset;
        let start = start + head * shape.head_dim;
        // SAFETY: the caller's.
        unsafe { self.values.slice(start..start + shape.head_dim) }
    }
}

#[derive(Default)]
struct Scratch {
    queries: Tiles,
    grads: Tiles,
    weights: Tiles,
    scores: Vec<f32>,
    slopes: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Causal {
    /// First key that the query sees.
    fn first_key(self, query: usize) -> usize {
        self.window
            .map_or(0, |window| (query + 1).saturating_sub(window))
    }

    /// Keys that some query sees, from a panel's start.
    fn keys(self, queries: Range<usize>) -> Range<usize> {
        let first = self.first_key(queries.start);
        first - first % COLUMNS..queries.end
    }

    fn width(self) -> usize {
        self.time.next_multiple_of(COLUMNS)
    }

    fn tasks(self) -> impl IndexedParallelIterator<Item = (usize, usize)> {
        (0..self.examples * self.kv_heads)
            .into_par_iter()
            .map(move |task| (task / self.kv_heads, task % self.kv_heads))
    }

    /// `left right^T` of one tile for the keys, into rows of [`Causal::width`].
    fn scores(
        self,
        left: *const f32,
        tile: Tile,
        keys: Range<usize>,
        right: &Panels,
        out: &mut [f32],
    ) {
        for panel in keys.start / COLUMNS..keys.end.div_ceil(COLUMNS) {
            let (columns, width) = right.width(panel);
            let segment = Segment {
                left,
                right: right.from(panel, 0).as_ptr(),
                stride: columns,
                inner: self.head_dim,
            };
            let target = Target {
                start: out[panel * COLUMNS..].as_mut_ptr(),
                stride: self.width(),
                width,
                add: false,
            };
            // SAFETY: the rows hold all keys.
            unsafe { Kernel::best().run(tile.rows, columns, &[segment], target) };
        }
    }

    /// `weights values` of one tile, into rows of `out`.
    ///
    /// # Safety
    ///
    /// Nobody else touches the tile's rows at `out`.
    unsafe fn mix(
        self,
        tiles: &mut Tiles,
        rows: usize,
        weights: &[f32],
        keys: Range<usize>,
        values: &Panels,
        (out, stride): (*mut f32, usize),
    ) {
        tiles.layout(std::iter::once(0..rows), keys.len());
        tiles.fill(|row| &weights[row * self.width()..][keys.clone()]);
        let tile = tiles.list()[0];
        for panel in 0..values.count() {
            let (columns, width) = values.width(panel);
            let segment = Segment {
                left: tiles.from(tile, 0),
                right: values.from(panel, keys.start).as_ptr(),
                stride: columns,
                inner: keys.len(),
            };
            // SAFETY: the caller's.
            unsafe {
                let target = Target {
                    start: out.add(panel * columns),
                    stride,
                    width,
                    add: false,
                };
                Kernel::best().run(rows, columns, &[segment], target);
            }
        }
    }

    /// Writes every element of `out`, `[examples, time, heads * head]`, and of `logs`,
    /// `[examples, heads, time]`: the logarithms of the softmax' denominators.
    pub(crate) fn forward(
        self,
        query: Heads<'_>,
        key: Heads<'_>,
        value: Heads<'_>,
        out: Shared,
        logs: Shared,
    ) {
        let (group, stride) = (self.heads / self.kv_heads, self.heads * self.head_dim);
        self.tasks().for_each(|(example, kv_head)| {
            let keys = Panels::small_wide(key.view(self, example, kv_head).transposed());
            let values = Panels::small(value.view(self, example, kv_head));
            SCRATCH.with_borrow_mut(|scratch| {
                if FRESH {
                    *scratch = Scratch::default();
                }
                for head in kv_head * group..(kv_head + 1) * group {
                    let Scratch {
                        queries,
                        weights,
                        scores,
                        ..
                    } = scratch;
                    queries.layout(std::iter::once(0..self.time), self.head_dim);
                    queries.fill(|token| query.row(self, example, head, token));
                    for index in 0..queries.list().len() {
                        let tile = queries.list()[index];
                        let seen = self.keys(tile.first..tile.first + tile.rows);
                        scores.resize(tile.rows * self.width(), 0.0);
                        self.scores(queries.from(tile, 0), tile, seen.clone(), &keys, scores);
                        let rows = scores.chunks_exact_mut(self.width());
                        for (row, scores) in rows.enumerate() {
                            let token = tile.first + row;
                            let log = self.softmax(&mut scores[seen.clone()], token, seen.start);
                            // SAFETY: a head's rows belong to this task.
                            unsafe {
                                let place = (example * self.heads + head) * self.time + token;
                                logs.slice(place..place + 1)[0] = log;
                            }
                        }
                        // SAFETY: as above.
                        unsafe {
                            let first = (example * self.time + tile.first) * stride;
                            let out = out.at(first + head * self.head_dim);
                            self.mix(weights, tile.rows, scores, seen, &values, (out, stride));
                        }
                    }
                }
            });
        });
    }

    /// Softmax of one query's scaled scores; the first is that of key `start`. Gives the logarithm
    /// of the denominator.
    fn softmax(self, scores: &mut [f32], query: usize, start: usize) -> f32 {
        let first = self.first_key(query) - start;
        let last = query + 1 - start;
        scores[..first].fill(0.0);
        scores[last..].fill(0.0);
        softmax(&mut scores[first..last], self.scale)
    }

    /// Writes every element of the three gradients. `grad` is laid out as the forward pass' result.
    pub(crate) fn backward(
        self,
        [query, key, value]: [Heads<'_>; 3],
        logs: &[f32],
        grad: &[f32],
        [query_grad, key_grad, value_grad]: [HeadsMut; 3],
    ) {
        let (group, width) = (self.heads / self.kv_heads, self.width());
        let grad = Heads {
            values: grad,
            offset: 0,
            stride: self.heads * self.head_dim,
        };
        self.tasks().for_each(|(example, kv_head)| {
            let keys = Panels::small_wide(key.view(self, example, kv_head).transposed());
            let key_rows = Panels::small(key.view(self, example, kv_head));
            let values = Panels::small_wide(value.view(self, example, kv_head).transposed());
            SCRATCH.with_borrow_mut(|scratch| {
                if FRESH {
                    *scratch = Scratch::default();
                }
                let Scratch {
                    queries,
                    grads,
                    weights,
                    scores,
                    slopes,
                    key,
                    value,
                } = scratch;
                for sums in [&mut *key, &mut *value] {
                    sums.clear();
                    sums.resize(self.head_dim * width, 0.0);
                }
                for head in kv_head * group..(kv_head + 1) * group {
                    for start in (0..self.time).step_by(QUERIES) {
                        let block = start..(start + QUERIES).min(self.time);
                        let block_keys = self.keys(block.clone());
                        // Whole panels: what no query sees must be zero there.
                        let columns = block_keys.start..block_keys.end.next_multiple_of(COLUMNS);
                        for rows in [&mut *scores, &mut *slopes] {
                            rows.clear();
                            rows.resize(block.len() * width, 0.0);
                        }
                        queries.layout(std::iter::once(block.clone()), self.head_dim);
                        queries.fill(|token| query.row(self, example, head, token));
                        grads.layout(std::iter::once(block.clone()), self.head_dim);
                        grads.fill(|token| grad.row(self, example, head, token));
                        for (tile, grad_tile) in queries.list().iter().zip(grads.list()) {
                            let tile_queries = tile.first..tile.first + tile.rows;
                            let seen = self.keys(tile_queries);
                            let place = (tile.first - start) * width;
                            let rows = place..place + tile.rows * width;
                            let (scores, slopes) = (&mut scores[rows.clone()], &mut slopes[rows]);
                            self.scores(queries.from(*tile, 0), *tile, seen.clone(), &keys, scores);
                            self.scores(
                                grads.from(*grad_tile, 0),
                                *tile,
                                seen.clone(),
                                &values,
                                slopes,
                            );
                            for row in 0..tile.rows {
                                let token = tile.first + row;
                                let log = logs[(example * self.heads + head) * self.time + token];
                                let cells = row * width..(row + 1) * width;
                                let (scores, slopes) =
                                    (&mut scores[cells.clone()], &mut slopes[cells]);
                                self.slopes(
                                    &mut scores[columns.clone()],
                                    &mut slopes[columns.clone()],
                                    token,
                                    columns.start,
                                    log,
                                );
                            }
                            // SAFETY: a head's rows belong to this task.
                            unsafe {
                                let out =
                                    query_grad.row(self, example, head, tile.first).as_mut_ptr();
                                self.mix(
                                    weights,
                                    tile.rows,
                                    slopes,
                                    seen,
                                    &key_rows,
                                    (out, query_grad.stride),
                                );
                            }
                        }
                        for (source, weights, sums) in
                            [(query, &*slopes, &mut *key), (grad, &*scores, &mut *value)]
                        {
                            let first =
                                (example * self.time + start) * source.stride + source.offset;
                            let left = View::rows(
                                &source.values[first + head * self.head_dim..],
                                block.len(),
                                self.head_dim,
                                source.stride,
                            );
                            let right = View::rows(
                                &weights[columns.start..],
                                block.len(),
                                columns.len(),
                                width,
                            );
                            multiply_transposed(
                                left,
                                right,
                                (&mut sums[columns.start..], width, true),
                            );
                        }
                    }
                }
                for (sums, target) in [(&*key, key_grad), (&*value, value_grad)] {
                    for token in 0..self.time {
                        // SAFETY: this task's head.
                        let row = unsafe { target.row(self, example, kv_head, token) };
                        for (index, value) in row.iter_mut().enumerate() {
                            *value = sums[index * width + token];
                        }
                    }
                }
            });
        });
    }

    /// From one query's scores and its gradients by the weights: the weights, and the gradients by
    /// the unscaled scores. Keys that it does not see get zeros.
    fn slopes(self, scores: &mut [f32], slopes: &mut [f32], query: usize, start: usize, log: f32) {
        let first = self.first_key(query) - start;
        let last = query + 1 - start;
        for values in [&mut *scores, &mut *slopes] {
            values[..first].fill(0.0);
            values[last..].fill(0.0);
        }
        slopes_of(
            &mut scores[first..last],
            &mut slopes[first..last],
            self.scale,
            log,
        );
    }
}

math::widest! {
    /// Turns scores into weights; the logarithm of their denominator.
    fn softmax(scores: &mut [f32], scale: f32) -> f32 {
        scores.iter_mut().for_each(|score| *score *= scale);
        let maximum = by_lanes(scores, f32::NEG_INFINITY, f32::max);
        for score in scores.iter_mut() {
            *score = math::exp(*score - maximum);
        }
        let sum = by_lanes(scores, 0.0, |sum, value| sum + value);
        let inverse = 1.0 / sum;
        scores.iter_mut().for_each(|score| *score *= inverse);
        maximum + sum.ln()
    }
}

math::widest! {
    /// Turns scores into weights again, and gradients by the weights into those by the unscaled scores.
    fn slopes_of(scores: &mut [f32], slopes: &mut [f32], scale: f32, log: f32) {
        for (score, slope) in scores.iter_mut().zip(slopes.iter_mut()) {
            *score = math::exp(*score * scale - log);
            *slope *= *score;
        }
        let sum = by_lanes(slopes, 0.0, |sum, value| sum + value);
        for (score, slope) in scores.iter().zip(slopes.iter_mut()) {
            *slope = (*slope - score * sum) * scale;
        }
    }
}
