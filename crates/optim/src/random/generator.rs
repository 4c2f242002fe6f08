//! The two generators.

use rand::rngs::{ChaCha20Rng, SysRng};
use rand::{Rng, SeedableRng, TryRng};

use super::{Random, sealed::Sealed};
use crate::error::OptimError;

/// ChaCha20 keyed with 256 bits from the operating system.
///
/// # Guarantee
/// Every instance has its own fresh key, so no stream repeats across instances, threads or resumed runs, and there is no
/// way to clone, serialise or print its state.
pub struct SecureRandom(ChaCha20Rng);

impl SecureRandom {
    /// A generator with a fresh key.
    ///
    /// # Errors
    /// [`OptimError::Entropy`] if the operating system gives none.
    pub fn new() -> Result<Self, OptimError> {
        let mut key = [0; 32];
        SysRng
            .try_fill_bytes(&mut key)
            .map_err(|error| OptimError::Entropy {
                message: error.to_string(),
            })?;
        Ok(Self(ChaCha20Rng::from_seed(key)))
    }
}

impl Sealed for SecureRandom {}

impl Random for SecureRandom {
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn is_private(&self) -> bool {
        true
    }
}

/// The same stream for the same seed, on every platform: for tests and runs that must be reproduced.
///
/// **Not private**: whoever knows or guesses the seed can subtract the noise.
pub struct SeededRandom(ChaCha20Rng);

impl SeededRandom {
    /// A generator for this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut key = *b"........rldp seed, NOT PRIVATE !";
        key[..8].copy_from_slice(&seed.to_le_bytes());
        Self(ChaCha20Rng::from_seed(key))
    }

    /// How far the stream was read, in 32-bit words; [`SeededRandom::at`] goes on from there.
    #[must_use]
    pub fn position(&self) -> u128 {
        self.0.get_word_pos()
    }

    /// The generator for this seed at a position of its stream.
    #[must_use]
    pub fn at(seed: u64, position: u128) -> Self {
        let mut generator = Self::new(seed);
        generator.0.set_word_pos(position);
        generator
    }
}

impl Sealed for SeededRandom {}

impl Random for SeededRandom {
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn is_private(&self) -> bool {
        false
    }
}
