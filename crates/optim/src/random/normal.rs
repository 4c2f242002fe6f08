//! Normals, and the noise made of them.

use rand::rngs::ChaCha20Rng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::Random;
use super::box_muller::{BLOCK, box_muller};
use crate::wide::widest;

/// Coordinates per stream. Fixed, so that a seeded release does not depend on the number of threads.
pub(crate) const CHUNK: usize = 4096;

/// Independent standard normals; see the module's Precision section.
pub fn standard_normals(random: &mut dyn Random, count: usize) -> Vec<f64> {
    let key = random.child_key();
    let mut normals = vec![0.0; count];
    for_each_chunk(&mut normals, |index, chunk| {
        let mut stream = Stream::new(key, index);
        for block in chunk.chunks_mut(BLOCK) {
            stream.fill(block);
        }
    });
    normals
}

/// Runs over the chunks of a slice, on all threads if there are several chunks.
fn for_each_chunk<T: Send>(values: &mut [T], run: impl Fn(usize, &mut [T]) + Sync) {
    if values.len() <= CHUNK {
        // Waking the pool costs more than the work.
        run(0, values);
    } else {
        values
            .par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(index, chunk)| run(index, chunk));
    }
}

/// Adds noise of standard deviation `deviation`, in units of the grid, to integers on that grid.
///
/// # Guarantee
/// That of [`GridNoise`].
pub(crate) fn add_grid_noise(sums: &mut [i64], deviation: f64, random: &mut dyn Random) {
    GridNoise::new(deviation, random).add_all(sums);
}

/// The noise of one release, in units of the grid: a stream for each chunk of coordinates.
///
/// # Guarantee
/// Since `S + round(Z) = round(S + Z)` for an integer `S`, the sum of integers and this noise is the Gaussian mechanism followed by
/// rounding to the grid: no low-order bits of a float can betray `S` (Mironov 2012). That `Z` is a sum of independent samples keeps
/// its own float grid from being inverted (Holohan and Braghin 2021).
///
/// A value serves one release: it has a key of its own, cannot be cloned, and whoever adds one of its chunks twice repeats noise.
pub(crate) struct GridNoise {
    key: [u8; 32],
    deviation: f64,
}

impl GridNoise {
    /// Noise of this standard deviation under a fresh key.
    pub(crate) fn new(deviation: f64, random: &mut dyn Random) -> Self {
        Self {
            key: random.child_key(),
            deviation,
        }
    }

    /// Adds all of the noise.
    pub(crate) fn add_all(&self, sums: &mut [i64]) {
        for_each_chunk(sums, |index, chunk| self.add(index, chunk));
    }

    /// Adds chunk `index` of the noise to the [`CHUNK`] coordinates from `index * CHUNK`, or what there is of them.
    pub(crate) fn add(&self, index: usize, sums: &mut [i64]) {
        let mut stream = Stream::new(self.key, index);
        let mut normals = [0.0; BLOCK];
        for block in sums.chunks_mut(BLOCK) {
            stream.fill(&mut normals[..block.len()]);
            add_rounded(block, &normals, self.deviation);
        }
    }
}

widest! {
    /// Adds values times `scale`, rounded to whole numbers, ties to even.
    fn add_rounded(sums: &mut [i64], values: &[f64; BLOCK], scale: f64) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum = sum.saturating_add((value * scale).round_ties_even() as i64);
        }
    }
}

/// One chunk's stream: the key is the call's, the stream number the chunk's.
struct Stream(ChaCha20Rng);

impl Stream {
    fn new(key: [u8; 32], index: usize) -> Self {
        let mut generator = ChaCha20Rng::from_seed(key);
        generator.set_stream(index as u64);
        Self(generator)
    }

    /// At most a block of independent standard normals, each the scaled sum of two Box-Muller normals.
    ///
    /// Takes two words for each normal in turn, one for the radius and one for the angle, and a third where [`uniform`] wants one.
    fn fill(&mut self, normals: &mut [f64]) {
        let drawn = 2 * normals.len().div_ceil(2);
        let mut bytes = [0; 2 * BLOCK * size_of::<u64>()];
        let bytes = &mut bytes[..2 * drawn * size_of::<u64>()];
        self.0.fill_bytes(bytes);
        let mut words = [0; 2 * BLOCK];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let (mut uniform, mut turn) = ([1.0; BLOCK], [0.0; BLOCK]);
        if !split(&words, &mut uniform, &mut turn) {
            let mut words = words[..2 * drawn].iter().copied();
            let mut next = || words.next().unwrap_or_else(|| self.0.next_u64());
            for (uniform, turn) in uniform.iter_mut().zip(&mut turn).take(drawn) {
                *uniform = self::uniform(&mut next);
                *turn = fraction(next());
            }
        }
        let (first, second) = box_muller(&uniform, &turn);
        let mut sums = [0.0; BLOCK];
        add_pairs(&first, &second, &mut sums);
        normals.copy_from_slice(&sums[..normals.len()]);
    }
}

widest! {
    /// The scaled sums of two neighbours: those of the first, then those of the second, in turn.
    fn add_pairs(first: &[f64; BLOCK], second: &[f64; BLOCK], sums: &mut [f64; BLOCK]) {
        for pair in 0..BLOCK / 2 {
            let (a, b) = (2 * pair, 2 * pair + 1);
            sums[a] = (first[a] + first[b]) * std::f64::consts::FRAC_1_SQRT_2;
            sums[b] = (second[a] + second[b]) * std::f64::consts::FRAC_1_SQRT_2;
        }
    }
}

widest! {
    /// Uniforms and turns from pairs of words, if no uniform wants a word more.
    fn split(words: &[u64; 2 * BLOCK], uniform: &mut [f64; BLOCK], turn: &mut [f64; BLOCK]) -> bool {
        let mut enough = true;
        for ((pair, uniform), turn) in words.as_chunks::<2>().0.iter().zip(uniform).zip(turn) {
            enough &= pair[0] >> SHORT != 0;
            *uniform = from_one_word(pair[0]);
            *turn = fraction(pair[1]);
        }
        enough
    }
}

/// Uniform on [0, 1) from the first 53 bits.
#[inline(always)]
fn fraction(word: u64) -> f64 {
    (word >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Below two to this a word has fewer than 53 significant bits.
const SHORT: u32 = 53;

/// A word of which at least 53 bits are significant, as a part of 2^64. Half a unit is added to keep away from zero and from bias.
#[inline(always)]
fn from_one_word(word: u64) -> f64 {
    ((word as f64) + 0.5) * (1.0 / 18_446_744_073_709_551_616.0)
}

/// Uniform on (0, 1] with 53 significant bits even when small: a fixed 53-bit grid would cut the normal off at 8.6
/// standard deviations, with a mass that many coordinates and steps would make noticeable beside delta.
fn uniform(mut next: impl FnMut() -> u64) -> f64 {
    let high = next();
    if high >> SHORT != 0 {
        return from_one_word(high);
    }
    let wide = (u128::from(high) << 64) | u128::from(next());
    (wide as f64 + 0.5) * (1.0 / 340_282_366_920_938_463_463_374_607_431_768_211_456.0)
}
