//! What a controller answers.

use rldp_optim::Averaging;
use rldp_optim::clip::ClipRule;
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

/// Which parameters share a clipping norm, and how a unit's gradient is brought to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Clipping {
    /// One norm over all adapters together; else one for each.
    pub flat: bool,
    /// `Some(gamma)` scales every gradient by `C / (norm + gamma)` (Bu et al. 2023); `None` only those above C.
    pub normalize: Option<f64>,
}

impl Clipping {
    /// One norm over all adapters.
    pub const FLAT: Self = Self {
        flat: true,
        normalize: None,
    };

    /// The clipping function.
    #[must_use]
    pub fn rule(&self) -> ClipRule {
        match self.normalize {
            None => ClipRule::Threshold,
            Some(stability) => ClipRule::Normalize { stability },
        }
    }
}

/// What the step spends on telling how many units were clipped in every clipping group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClipCounts {
    /// What the trainer's settings say.
    #[default]
    Configured,
    /// Nothing; nothing is told.
    None,
    /// This share of the step's precision `1 / sigma^2`, at most a half.
    Share(f64),
    /// What counts with noise of this standard deviation, in units, cost: `groups / (4 s^2)` of precision (centred bits,
    /// Andrew et al. 2021, Theorem 1); never more than half the step's.
    Deviation(f64),
}

impl ClipCounts {
    /// Most of a step's precision that counts may take.
    pub const MOST: f64 = 0.5;

    /// The share of the precision of a step with this effective noise multiplier and number of clipping groups.
    #[must_use]
    pub fn share(&self, configured: f64, noise_multiplier: f64, groups: usize) -> f64 {
        let share = match *self {
            Self::Configured => configured,
            Self::None => 0.0,
            Self::Share(share) => share,
            Self::Deviation(deviation) => {
                groups as f64 * noise_multiplier.powi(2) / (4.0 * deviation * deviation)
            }
        };
        if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, Self::MOST)
        }
    }
}

/// What is done with released gradients and with the parameters they move: post-processing, free of privacy cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PostProcessing {
    /// Share of the known noise variance that is subtracted from Adam's second moments, 0 (off) to 1 (Tang et al. 2024,
    /// DP-AdamBC).
    pub noise_correction: f64,
    /// Gain of the filter over released gradients, above 0 and at most 1 (off); gradients are then taken ahead of the
    /// parameters by `(1 - gain) / gain` of their last displacement (Zhang et al. 2025, DiSK).
    pub denoising_gain: f64,
    /// Largest decay of the exponential moving average of the parameters that is tested and kept, 0 (off) or more and below
    /// 1 (Shejwalkar et al. 2022).
    pub averaging_decay: f64,
    /// Share of the run's steps at its end whose parameters are averaged with equal weights, 0 (off) to 1; goes before
    /// `averaging_decay`.
    pub tail_averaging: f64,
}

impl Default for PostProcessing {
    fn default() -> Self {
        Self {
            noise_correction: 0.0,
            denoising_gain: 1.0,
            averaging_decay: 0.0,
            tail_averaging: 0.0,
        }
    }
}

impl PostProcessing {
    /// How parameters are averaged in a run of `steps` steps.
    #[must_use]
    pub fn averaging(&self, steps: u64) -> Averaging {
        if self.tail_averaging > 0.0 {
            let before = ((1.0 - self.tail_averaging.min(1.0)) * steps as f64).floor() as u64;
            Averaging::Tail {
                from: (before + 1).min(steps),
            }
        } else if self.averaging_decay > 0.0 {
            Averaging::Exponential {
                decay: self.averaging_decay,
            }
        } else {
            Averaging::Off
        }
    }
}

/// Settings in force until the next decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Clipping norm of every adapter, > 0; the one norm over all of them, if clipping is flat.
    pub clipping_norms: Vec<f64>,
    /// Weight of every clipping group in the noise split, > 0; the sum is one.
    pub noise_weights: Vec<f64>,
    /// Wanted noise level; ignored by a `Fixed` budget.
    pub noise: NoiseWish,
    /// Factor on the scheduled learning rate, > 0.
    pub learning_rate_factor: f64,
    /// First-moment decay of the inner optimizer, in [0, 1).
    pub beta_1: f64,
    /// How gradients are clipped.
    pub clipping: Clipping,
    /// What is spent on clipped counts.
    pub clip_counts: ClipCounts,
    /// Public factor on the released gradients.
    pub gradient_factor: f64,
    /// What is done with the release; `None` for what the trainer's settings say.
    pub post_processing: Option<PostProcessing>,
}

impl Decision {
    /// A decision for one clipping norm per adapter, with everything else as plain as can be: no wish about the noise, the
    /// scheduled learning rate, first-moment decay 0.9.
    #[must_use]
    pub fn per_adapter(clipping_norms: Vec<f64>, noise_weights: Vec<f64>) -> Self {
        Self {
            clipping_norms,
            noise_weights,
            noise: NoiseWish::default(),
            learning_rate_factor: 1.0,
            beta_1: ADAM_BETA_1,
            clipping: Clipping::default(),
            clip_counts: ClipCounts::default(),
            gradient_factor: 1.0,
            post_processing: None,
        }
    }

    /// A decision for one clipping norm over all adapters.
    #[must_use]
    pub fn flat(clipping_norm: f64) -> Self {
        Self {
            clipping: Clipping::FLAT,
            ..Self::per_adapter(vec![clipping_norm], vec![1.0])
        }
    }

    /// The clipping norm that holds for an adapter, and its weight in the noise split: under flat clipping the one norm,
    /// and an even share.
    #[must_use]
    pub fn of_adapter(&self, index: usize, adapters: usize) -> (f64, f64) {
        if self.clipping.flat {
            let norm = self.clipping_norms.first().copied().unwrap_or(1.0);
            return (norm, 1.0 / adapters.max(1) as f64);
        }
        let at = |values: &[f64]| values.get(index).copied().unwrap_or(1.0);
        (at(&self.clipping_norms), at(&self.noise_weights))
    }
}

/// First-moment decay that Adam is usually run with (Kingma and Ba 2015).
const ADAM_BETA_1: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_cost_what_the_centred_bits_cost() {
        // Noise multiplier 0.8, 4 groups, counts with deviation 3.2: 4 x 0.64 / (4 x 10.24) = 1/16.
        let share = ClipCounts::Deviation(3.2).share(0.3, 0.8, 4);
        assert!((share - 0.0625).abs() < 1e-12);
        assert_eq!(ClipCounts::Configured.share(0.3, 0.8, 4), 0.3);
        assert_eq!(ClipCounts::None.share(0.3, 0.8, 4), 0.0);
        assert_eq!(ClipCounts::Deviation(1e-9).share(0.3, 0.8, 4), 0.5);
        assert_eq!(ClipCounts::Deviation(f64::NAN).share(0.3, 0.8, 4), 0.0);
    }

    #[test]
    fn a_tail_is_the_end_of_the_run() {
        let tail = |share| PostProcessing {
            tail_averaging: share,
            ..PostProcessing::default()
        };
        assert_eq!(tail(0.25).averaging(60), Averaging::Tail { from: 46 });
        assert_eq!(tail(1.0).averaging(60), Averaging::Tail { from: 1 });
        assert_eq!(PostProcessing::default().averaging(60), Averaging::Off);
    }
}
