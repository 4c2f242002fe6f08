//! Normals, and the noise made of them.

use rand::rngs::ChaCha20Rng;
use rand::{Rng, SeedableRng};
use rayon::prelude::*;

use super::Random;
use super::box_muller::{BLOCK, box_muller, scale_and_round};

/// Coordinates per stream. Fixed, so that a seeded release does not depend on the number of threads.
const CHUNK: usize = 4096;

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
/// Since `S + round(Z) = round(S + Z)` for an integer `S`, the result is the Gaussian mechanism followed by rounding to
/// the grid: no low-order bits of a float can betray `S` (Mironov 2012). That `Z` is a sum of independent samples keeps
/// its own float grid from being inverted (Holohan and Braghin 2021).
pub(crate) fn add_grid_noise(sums: &mut [i64], deviation: f64, random: &mut dyn Random) {
    let key = random.child_key();
    for_each_chunk(sums, |index, chunk| {
        let mut stream = Stream::new(key, index);
        let mut normals = [0.0; BLOCK];
        for block in chunk.chunks_mut(BLOCK) {
            stream.fill(&mut normals[..block.len()]);
            scale_and_round(&mut normals, deviation);
            for (sum, &noise) in block.iter_mut().zip(&normals) {
                *sum = sum.saturating_add(noise as i64);
            }
        }
    });
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
    fn fill(&mut self, normals: &mut [f64]) {
        let (mut uniform, mut turn) = ([1.0; BLOCK], [0.0; BLOCK]);
        let drawn = 2 * normals.len().div_ceil(2);
        for (uniform, turn) in uniform.iter_mut().zip(&mut turn).take(drawn) {
            *uniform = self.uniform();
            *turn = (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64);
        }
        let (first, second) = box_muller(&uniform, &turn);
        for (pair, values) in normals.chunks_mut(2).enumerate() {
            let (a, b) = (2 * pair, 2 * pair + 1);
            let both = [first[a] + first[b], second[a] + second[b]];
            for (value, sum) in values.iter_mut().zip(both) {
                *value = sum * std::f64::consts::FRAC_1_SQRT_2;
            }
        }
    }

    /// Uniform on (0, 1] with 53 significant bits even when small: a fixed 53-bit grid would cut the normal off at 8.6
    /// standard deviations, with a mass that many coordinates and steps would make noticeable beside delta.
    fn uniform(&mut self) -> f64 {
        let high = self.0.next_u64();
        if high >> 53 != 0 {
            // At least 53 bits are significant. Half a unit is added to keep away from zero and from bias.
            ((high as f64) + 0.5) * (1.0 / 18_446_744_073_709_551_616.0)
        } else {
            let wide = (u128::from(high) << 64) | u128::from(self.0.next_u64());
            (wide as f64 + 0.5) * (1.0 / 340_282_366_920_938_463_463_374_607_431_768_211_456.0)
        }
    }
}
