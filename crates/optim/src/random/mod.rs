//! Randomness for sampling and noise.
//!
//! Two generators of different types: [`SecureRandom`], keyed from the operating system, is the only one that gives
//! privacy; [`SeededRandom`] repeats itself for tests and reproducible, *non-private* runs. [`Random`] is sealed, so
//! that no third generator can be slipped under a mechanism.
//!
//! # Precision
//! A normal is the scaled sum of two independent Box-Muller normals, each from a 53-bit angle and a radius whose uniform
//! has 53 significant bits down to 2^-117; the density is right to about 1e-15 relative out to 12 standard deviations.
//! Mechanisms never add such a float to a float: they round it to the integer grid on which the clipped sums live (see
//! [`crate::clip`]), so the release is the rounding of an exact sum plus noise, which is post-processing.

mod box_muller;
mod generator;
mod normal;
#[cfg(test)]
mod tests;

pub use generator::{SecureRandom, SeededRandom};
pub use normal::standard_normals;
pub(crate) use normal::{CHUNK, GridNoise, add_grid_noise};

mod sealed {
    /// Keeps [`super::Random`] to this crate's generators.
    pub trait Sealed {}
}

/// A source of random bits for samplers and mechanisms.
pub trait Random: sealed::Sealed + Send {
    /// The next 64 bits.
    fn next_u64(&mut self) -> u64;

    /// Whether what is drawn from here is unpredictable, as every guarantee of this crate requires.
    fn is_private(&self) -> bool;

    /// A key for an independent stream: streams from different keys never overlap in practice (256 bits).
    fn child_key(&mut self) -> [u8; 32] {
        let mut key = [0; 32];
        for bytes in key.chunks_exact_mut(8) {
            bytes.copy_from_slice(&self.next_u64().to_le_bytes());
        }
        key
    }

    /// True with probability `probability` rounded down to a multiple of 2^-64 (never more than asked for).
    fn bernoulli(&mut self, probability: f64) -> bool {
        // 2^64 is exact in f64, and the cast truncates; 1 or more must always be true.
        probability >= 1.0 || self.next_u64() < (probability * 18_446_744_073_709_551_616.0) as u64
    }
}
