//! The agent's random generator: seeded, portable, and small enough to be put into a checkpoint.

use std::convert::Infallible;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng, TryRng};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

/// What a generator is for. Streams are independent: acting more often does not change what learning draws.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    Initial = 0,
    Explore = 1,
    Learn = 2,
}

/// State of an [`AgentRng`], as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {
    seed: [u8; 32],
    stream: u64,
    /// Position in 32-bit words, in hexadecimal: JSON has no 128-bit integers.
    position: String,
}

/// ChaCha8 with its state within reach. Not for privacy noise: it only explores and samples the replay buffer.
#[derive(Debug)]
pub struct AgentRng {
    inner: ChaCha8Rng,
}

impl Clone for AgentRng {
    fn clone(&self) -> Self {
        Self::at(
            self.inner.get_seed(),
            self.inner.get_stream(),
            self.inner.get_word_pos(),
        )
    }
}

impl AgentRng {
    /// A generator from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_stream(seed, Stream::Initial)
    }

    pub(crate) fn with_stream(seed: u64, stream: Stream) -> Self {
        let mut inner = ChaCha8Rng::seed_from_u64(seed);
        inner.set_stream(stream as u64);
        Self { inner }
    }

    /// The state, to continue from later.
    #[must_use]
    pub fn state(&self) -> RngState {
        RngState {
            seed: self.inner.get_seed(),
            stream: self.inner.get_stream(),
            position: format!("{:x}", self.inner.get_word_pos()),
        }
    }

    /// A generator that continues from `state`, or `None` where the state was damaged.
    #[must_use]
    pub fn from_state(state: &RngState) -> Option<Self> {
        let position = u128::from_str_radix(&state.position, 16).ok()?;
        Some(Self::at(state.seed, state.stream, position))
    }

    fn at(seed: [u8; 32], stream: u64, position: u128) -> Self {
        let mut inner = ChaCha8Rng::from_seed(seed);
        inner.set_stream(stream);
        inner.set_word_pos(position);
        Self { inner }
    }

    /// Standard normal draws, rounded to `f32`.
    pub fn normals(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| {
                let draw: f64 = StandardNormal.sample(self);
                draw as f32
            })
            .collect()
    }

    /// A uniform draw in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A uniform draw in 0..bound, by multiplication (bias below bound / 2^64).
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }

    /// `count` different numbers in 0..bound, in random order (partial Fisher-Yates).
    pub(crate) fn subset(&mut self, count: usize, bound: usize) -> Vec<usize> {
        let mut items: Vec<usize> = (0..bound).collect();
        for i in 0..count.min(bound) {
            let j = i + self.below(bound - i);
            items.swap(i, j);
        }
        items.truncate(count);
        items
    }
}

impl TryRng for AgentRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(self.inner.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.inner.next_u64())
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        self.inner.fill_bytes(dst);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stream_is_stable_and_resumes() {
        let mut rng = AgentRng::new(7);
        let first: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        let mut resumed = AgentRng::from_state(&rng.state()).unwrap();
        assert_eq!(rng.normals(101), resumed.normals(101));
        assert_eq!(rng.state(), resumed.state());
        assert_eq!(
            first,
            [
                2910824217569608635,
                3098856782162503994,
                12991601491111613745
            ],
            "a change here changes every seeded run"
        );
        let mut again = AgentRng::new(7);
        assert_eq!(first, (0..3).map(|_| again.next_u64()).collect::<Vec<_>>());
        let mut other = AgentRng::with_stream(7, Stream::Explore);
        assert_ne!(first[0], other.next_u64());
    }

    #[test]
    fn subsets_hold_different_members() {
        let mut rng = AgentRng::new(1);
        for _ in 0..100 {
            let mut subset = rng.subset(3, 5);
            assert_eq!(subset.len(), 3);
            subset.sort_unstable();
            subset.dedup();
            assert_eq!(subset.len(), 3);
            assert!(subset[2] < 5);
        }
    }
}
