//! What a controller answers.

use serde::{Deserialize, Serialize};

/// The noise level a controller wishes for; the budget decides what is played.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoiseWish(
    /// Wanted noise multiplier relative to the calibrated one; one means no wish.
    pub f64,
);

impl Default for NoiseWish {
    fn default() -> Self {
        Self(1.0)
    }
}

/// Settings in force until the next decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Clipping norm of every adapter, > 0.
    pub clipping_norms: Vec<f64>,
    /// Weight of every adapter in the noise split, > 0; the sum is one.
    pub noise_weights: Vec<f64>,
    /// Wanted noise level; ignored by a `Fixed` budget.
    pub noise: NoiseWish,
    /// Factor on the scheduled learning rate, > 0.
    pub learning_rate_factor: f64,
    /// First-moment decay of the inner optimizer, in [0, 1).
    pub beta_1: f64,
}
