//! Poisson sampling of privacy units.

use crate::error::OptimError;
use crate::random::Random;

/// Puts each unit into a batch independently with one probability.
///
/// # Guarantee
/// The inclusion probability is the sampling rate rounded *down* to a multiple of 2^-64, independently for each unit and
/// each batch, which is what the accountant's subsampled Gaussian assumes. Batches vary in size and may be empty; an
/// empty batch must still be released (see [`crate::Accumulator`]).
#[derive(Debug, Clone, Copy)]
pub struct PoissonSampler {
    population: usize,
    sampling_rate: f64,
}

impl PoissonSampler {
    /// A sampler over units `0..population`.
    ///
    /// # Errors
    /// [`OptimError::OutOfRange`] for a sampling rate outside (0, 1].
    pub fn new(population: usize, sampling_rate: f64) -> Result<Self, OptimError> {
        if sampling_rate > 0.0 && sampling_rate <= 1.0 {
            Ok(Self {
                population,
                sampling_rate,
            })
        } else {
            Err(OptimError::OutOfRange {
                what: "the sampling rate",
                value: sampling_rate,
                range: "in (0, 1]",
            })
        }
    }

    /// Number of units.
    #[must_use]
    pub fn population(&self) -> usize {
        self.population
    }

    /// Inclusion probability of each unit.
    #[must_use]
    pub fn sampling_rate(&self) -> f64 {
        self.sampling_rate
    }

    /// One batch: the included units in ascending order; may be empty.
    pub fn sample(&self, random: &mut dyn Random) -> Vec<usize> {
        (0..self.population)
            .filter(|_| random.bernoulli(self.sampling_rate))
            .collect()
    }
}
