//! Plain Gaussian queries: means and counts of a whole part, not of a sampled batch.

use crate::clip::{GRID, check_noise_multiplier};
use crate::error::{OptimError, positive};
use crate::private::{Private, Released};
use crate::random::{Random, add_grid_noise};

/// A sum of values clipped to `[0, bound]`, counted from the middle of the range so that one unit moves it by at most half
/// the bound; exact, in grid units.
pub(crate) struct CentredSum {
    half: f64,
    total: i64,
}

impl CentredSum {
    pub(crate) fn new(bound: f64) -> Result<Self, OptimError> {
        Ok(Self {
            half: 0.5 * positive("the bound of a clipped value", bound)?,
            total: 0,
        })
    }

    /// Adds one unit's value; one that is not a number counts as the bound.
    pub(crate) fn add(&mut self, value: f64) {
        let clipped = if value.is_nan() {
            2.0 * self.half
        } else {
            value.clamp(0.0, 2.0 * self.half)
        };
        let steps = ((clipped - self.half) / self.half * GRID).clamp(-GRID, GRID) as i64;
        self.total = self.total.saturating_add(steps);
    }

    /// The noisy sum over `divisor`, moved back to `[0, bound]`'s origin, and the standard deviation of its noise.
    pub(crate) fn release(
        self,
        noise_multiplier: f64,
        divisor: f64,
        random: &mut dyn Random,
    ) -> (Released<f64>, f64) {
        let mut total = [self.total];
        add_grid_noise(&mut total, noise_multiplier * GRID, random);
        let mean = self.half + self.half * (total[0] as f64 / GRID) / divisor;
        (Released::new(mean), noise_multiplier * self.half / divisor)
    }
}

/// Standard deviation of the noise in [`noisy_mean`].
#[must_use]
pub fn noise_of_mean(bound: f64, expected_count: f64, noise_multiplier: f64) -> f64 {
    0.5 * bound * noise_multiplier / expected_count
}

/// The mean of one value per unit, clipped to `[0, bound]`, as noisy sum over a public (or released) number of units.
///
/// Values are counted from the middle of the range: adding or removing a unit moves the sum by at most `bound / 2`, half of
/// what an uncentred sum would. A value that is not a number counts as the bound. If `expected_count` is not the true
/// number n, the result is `c + (n / expected_count) (mean - c)` with `c = bound / 2`.
///
/// # Guarantee
/// A plain (not subsampled) Gaussian mechanism with the given noise multiplier, for adding or removing one unit, rounded to
/// a grid. `expected_count` must not depend on the private data except through a released value.
///
/// # Errors
/// A number out of range.
pub fn noisy_mean<V: IntoIterator<Item = f64>>(
    values: Private<V>,
    bound: f64,
    expected_count: f64,
    noise_multiplier: f64,
    random: &mut dyn Random,
) -> Result<Released<f64>, OptimError> {
    check_noise_multiplier(noise_multiplier)?;
    positive("the expected count", expected_count)?;
    let mut sum = CentredSum::new(bound)?;
    for value in values.into_inner() {
        sum.add(value);
    }
    Ok(sum.release(noise_multiplier, expected_count, random).0)
}

/// The number of units with noise; sensitivity one.
///
/// # Guarantee
/// A plain Gaussian mechanism with the given noise multiplier, for adding or removing one unit, rounded to a grid.
///
/// # Errors
/// A noise multiplier out of range.
pub fn noisy_count(
    count: Private<u64>,
    noise_multiplier: f64,
    random: &mut dyn Random,
) -> Result<Released<f64>, OptimError> {
    check_noise_multiplier(noise_multiplier)?;
    // Up to 2^33 units fit on the grid.
    let mut total = [i64::try_from(count.into_inner())
        .unwrap_or(i64::MAX)
        .saturating_mul(GRID as i64)];
    add_grid_noise(&mut total, noise_multiplier * GRID, random);
    Ok(Released::new(total[0] as f64 / GRID))
}
