//! How far an action may move the settings (design.md, section 5, "sensible range").

use serde::{Deserialize, Serialize};

/// Ranges of the agent's actions. An action component in (-1, 1) moves a setting between the two ends of its range
/// around the warm-up rule, so that the action zero is the rule itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Bounds {
    /// Largest factor on, and divisor of, the rule's clipping norm; 1 switches the action off.
    pub clipping_factor: f64,
    /// Largest factor on, and divisor of, an adapter's noise weight; 1 switches the action off.
    pub weight_factor: f64,
    /// Largest factor on, and divisor of, the rule's learning rate; 1 switches the action off.
    pub learning_rate_factor: f64,
    /// Largest change of the learning-rate factor in one decision, as a ratio.
    pub learning_rate_step: f64,
    /// Largest distance of the first-moment decay from the rule's; 0 switches the action off.
    pub beta_1_distance: f64,
    /// Largest factor on, and divisor of, the noise multiplier wished for; 1 switches the action off, and so does a fixed
    /// budget.
    pub noise_factor: f64,
    /// Largest distance of the noise correction of Adam's second moments from the trainer's; 0 switches the action off.
    pub noise_correction_distance: f64,
    /// Largest distance of the denoising gain from the trainer's; 0 switches the action off.
    pub denoising_distance: f64,
    /// Largest distance of the averaging decay from the trainer's; 0 switches the action off.
    pub averaging_distance: f64,
}

impl Bounds {
    /// Nothing can be moved.
    pub const NONE: Self = Self {
        clipping_factor: 1.0,
        weight_factor: 1.0,
        learning_rate_factor: 1.0,
        learning_rate_step: 1.4,
        beta_1_distance: 0.0,
        noise_factor: 1.0,
        noise_correction_distance: 0.0,
        denoising_distance: 0.0,
        averaging_distance: 0.0,
    };

    /// Everything that can be moved, over the ranges of design.md, section 5; the learning rate over twice its range, since its moves
    /// add up. For arms that move what the default leaves to the rule.
    pub const FULL: Self = Self {
        clipping_factor: 2.0,
        weight_factor: 2.0,
        learning_rate_factor: 4.0,
        learning_rate_step: 1.4,
        beta_1_distance: 0.1,
        noise_factor: 1.25,
        noise_correction_distance: 1.0,
        denoising_distance: 0.5,
        averaging_distance: 0.9,
    };

    /// The first slack that is negative or no number, else zero: factors start at one, distances at zero.
    #[must_use]
    pub fn smallest_slack(&self) -> f64 {
        [
            self.clipping_factor - 1.0,
            self.weight_factor - 1.0,
            self.learning_rate_factor - 1.0,
            self.learning_rate_step - 1.0,
            self.noise_factor - 1.0,
            self.beta_1_distance,
            self.noise_correction_distance,
            self.denoising_distance,
            self.averaging_distance,
        ]
        .into_iter()
        .find(|slack| slack.is_nan() || *slack < 0.0)
        .unwrap_or(0.0)
    }
}

impl Default for Bounds {
    /// The pace alone: the rule already follows the clipped shares and splits the noise by dimension, and on public text moves
    /// around that cost more than they gained.
    fn default() -> Self {
        Self {
            learning_rate_factor: Self::FULL.learning_rate_factor,
            learning_rate_step: Self::FULL.learning_rate_step,
            beta_1_distance: Self::FULL.beta_1_distance,
            ..Self::NONE
        }
    }
}
