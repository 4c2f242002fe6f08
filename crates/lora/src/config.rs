use serde::{Deserialize, Serialize};

use crate::LoraError;

/// Target that means every linear layer inside the model's blocks, as in PEFT.
pub const ALL_LINEAR: &str = "all-linear";

/// What to adapt and how.
///
/// # Example
///
/// ```
/// use rldp_lora::LoraConfig;
///
/// let config = LoraConfig { alpha: 32.0, ..LoraConfig::new(8, ["q_proj", "v_proj"]) };
/// assert_eq!(config.scaling(), 4.0);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank `r` of the update.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`, or `alpha / sqrt(rank)` with [`Self::use_rslora`].
    pub alpha: f64,
    /// Probability with which an input element of an adapter is zeroed while training.
    pub dropout: f64,
    /// Rank-stabilised scaling (Kalajdzievski 2023).
    pub use_rslora: bool,
    /// Keep `A` at its random start and train only `B` (FFA-LoRA, Sun et al. 2024): noise on both
    /// factors multiplies, noise on one does not.
    pub freeze_a: bool,
    /// Layers to adapt: full names, or last parts of names (`q_proj`, `attn.c_proj`), or the single
    /// entry `all-linear`.
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// Rank `rank` with `alpha = 2 rank`, no dropout, both factors trained.
    pub fn new<S: Into<String>>(rank: usize, targets: impl IntoIterator<Item = S>) -> Self {
        Self {
            rank,
            alpha: 2.0 * rank as f64,
            dropout: 0.0,
            use_rslora: false,
            freeze_a: false,
            target_modules: targets.into_iter().map(Into::into).collect(),
        }
    }

    /// The factor `s` of the update `s (x A) B`.
    pub fn scaling(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Whether the layer called `name` is a target.
    pub fn targets(&self, name: &str) -> bool {
        self.target_modules
            .iter()
            .any(|target| matches_target(target, name))
    }

    /// Refuses values no adapter can have.
    ///
    /// # Errors
    ///
    /// [`LoraError::InvalidSetting`] naming the setting.
    pub fn validate(&self) -> Result<(), LoraError> {
        let invalid = |name, requirement, value: String| {
            Err(LoraError::InvalidSetting {
                name,
                requirement,
                value,
            })
        };
        if self.rank == 0 {
            return invalid("rank", "at least 1", self.rank.to_string());
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return invalid("alpha", "positive and finite", self.alpha.to_string());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid("dropout", "in [0, 1)", self.dropout.to_string());
        }
        if self.target_modules.is_empty() {
            return invalid("target_modules", "non-empty", "[]".to_owned());
        }
        Ok(())
    }
}

/// PEFT's rule for a list of targets: the whole name, or its end after a dot.
pub(crate) fn matches_target(target: &str, name: &str) -> bool {
    target == ALL_LINEAR
        || name == target
        || name
            .strip_suffix(target)
            .is_some_and(|head| head.ends_with('.'))
}
