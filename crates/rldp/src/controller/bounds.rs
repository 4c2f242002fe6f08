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
    /// Largest factor on, and divisor of, the learning rate; 1 switches the action off.
    pub learning_rate_factor: f64,
    /// Largest change of the learning-rate factor in one decision, as a ratio.
    pub learning_rate_step: f64,
    /// Largest distance of the first-moment decay from the rule's; 0 switches the action off.
    pub beta_1_distance: f64,
    /// Largest factor on, and divisor of, the noise multiplier wished for; 1 switches the action off.
    pub noise_factor: f64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            clipping_factor: 2.0,
            weight_factor: 2.0,
            learning_rate_factor: 2.0,
            learning_rate_step: 1.4,
            beta_1_distance: 0.1,
            noise_factor: 1.25,
        }
    }
}
