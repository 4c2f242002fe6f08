//! The settings of a run, with their defaults and their checks.

use rldp_models::Activations;
use serde::{Deserialize, Serialize};

use crate::budget::BudgetKind;
use crate::controller::{
    AgentOptions, ControllerKind, ControllerSetup, PostProcessing, RivalOptions,
};
use crate::error::RldpError;

/// Settings of a private fine-tuning run. Units are stated with each field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainerConfig {
    /// Target epsilon of the whole run, in nats.
    pub epsilon: f64,
    /// Target delta, a probability; `None` means 1 / N^1.1 for N privacy units in the table.
    pub delta: Option<f64>,
    /// Optimizer steps.
    pub steps: u64,
    /// Expected privacy units in a batch; the sampling rate is this over the units in training.
    pub batch_size: f64,
    /// Rows computed at once; changes memory and speed only.
    pub micro_batch: usize,
    /// Keep only the blocks' inputs in memory and run each block again in the backward pass: about a third more
    /// computation for a fraction of the memory.
    pub gradient_checkpointing: bool,
    /// Longest row in tokens; longer ones are cut, never split into several units.
    pub max_length: usize,
    /// Most rows of one unit that are used, chosen by a keyed hash; the rest are left out.
    pub max_rows_per_unit: usize,
    /// Rank of the adapters.
    pub lora_rank: usize,
    /// LoRA's alpha; the adapter's output is scaled by alpha over rank.
    pub lora_alpha: f64,
    /// Peak learning rate of the inner Adam.
    pub learning_rate: f64,
    /// Share of the peak that the learning rate falls to at the end of the run, linearly.
    pub final_learning_rate: f64,
    /// Second-moment decay of the inner Adam.
    pub beta_2: f64,
    /// First clipping norm of every adapter, in the norm of a unit's mean-token-loss gradient.
    pub clipping_norm: f64,
    /// Who steers.
    pub controller: ControllerKind,
    /// How the agent acts and learns.
    pub agent: AgentOptions,
    /// How the agent's rivals are set.
    pub rivals: RivalOptions,
    /// Which budget the noise is played from.
    pub budget: BudgetKind,
    /// Noise levels of a deck relative to each other, each for an equal share of the steps; empty for three levels round the
    /// calibrated one, or, under decaying noise, those of its schedule.
    pub deck_ratios: Vec<f64>,
    /// Decisions in a run: the controller acts every steps / decisions steps.
    pub decisions: u64,
    /// Steps between two decisions, instead of a number of decisions.
    pub interval: Option<u64>,
    /// What is done with released gradients and with the parameters they move; the agent may move it.
    pub post_processing: PostProcessing,
    /// Share of the training precision (1 / sigma^2) spent on released clipped counts.
    pub clip_count_share: f64,
    /// Share of the training precision spent on the released training loss.
    pub training_loss_share: f64,
    /// Bound that per-unit losses are clipped to before they are released, in nats per token.
    pub loss_bound: f64,
    /// Largest share of the table held out for validation, and the same for the test.
    pub held_out_fraction: f64,
    /// Largest expected number of units held out for validation, and the same for the test.
    pub held_out_units: usize,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            epsilon: 8.0,
            delta: None,
            steps: 100,
            batch_size: 128.0,
            micro_batch: 32,
            gradient_checkpointing: false,
            max_length: 128,
            max_rows_per_unit: 4,
            lora_rank: 8,
            lora_alpha: 16.0,
            learning_rate: 5e-3,
            final_learning_rate: 0.2,
            beta_2: 0.99,
            clipping_norm: 0.01,
            controller: ControllerKind::default(),
            agent: AgentOptions::default(),
            rivals: RivalOptions::default(),
            budget: BudgetKind::default(),
            deck_ratios: Vec::new(),
            decisions: 10,
            interval: None,
            post_processing: PostProcessing::default(),
            clip_count_share: 0.01,
            training_loss_share: 0.0,
            loss_bound: 6.0,
            held_out_fraction: 0.1,
            held_out_units: 400,
        }
    }
}

impl TrainerConfig {
    /// Checks every number on its own; what depends on the data is checked when the run starts.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] naming the first setting that is out of range.
    pub fn validate(&self) -> Result<(), RldpError> {
        let checks: [(&'static str, f64, bool, &'static str); 26] = [
            (
                "epsilon",
                self.epsilon,
                positive(self.epsilon),
                "(0, infinity)",
            ),
            (
                "delta",
                self.delta.unwrap_or(0.5),
                open_unit(self.delta.unwrap_or(0.5)),
                "(0, 1)",
            ),
            ("steps", self.steps as f64, self.steps > 0, "[1, infinity)"),
            (
                "batch size",
                self.batch_size,
                positive(self.batch_size),
                "(0, infinity)",
            ),
            (
                "micro-batch",
                self.micro_batch as f64,
                self.micro_batch > 0,
                "[1, infinity)",
            ),
            (
                "maximum length",
                self.max_length as f64,
                self.max_length > 1,
                "[2, infinity)",
            ),
            (
                "maximum rows per unit",
                self.max_rows_per_unit as f64,
                self.max_rows_per_unit > 0,
                "[1, infinity)",
            ),
            (
                "LoRA rank",
                self.lora_rank as f64,
                self.lora_rank > 0,
                "[1, infinity)",
            ),
            (
                "LoRA alpha",
                self.lora_alpha,
                positive(self.lora_alpha),
                "(0, infinity)",
            ),
            (
                "learning rate",
                self.learning_rate,
                positive(self.learning_rate),
                "(0, infinity)",
            ),
            (
                "final learning rate",
                self.final_learning_rate,
                closed_unit(self.final_learning_rate),
                "[0, 1]",
            ),
            (
                "beta 2",
                self.beta_2,
                (0.0..1.0).contains(&self.beta_2),
                "[0, 1)",
            ),
            (
                "clipping norm",
                self.clipping_norm,
                positive(self.clipping_norm),
                "(0, infinity)",
            ),
            (
                "decisions",
                self.decisions as f64,
                self.decisions > 0,
                "[1, infinity)",
            ),
            (
                "clipped-count share",
                self.clip_count_share,
                (0.0..0.5).contains(&self.clip_count_share),
                "[0, 0.5)",
            ),
            (
                "training-loss share",
                self.training_loss_share,
                (0.0..0.5).contains(&self.training_loss_share),
                "[0, 0.5)",
            ),
            (
                "loss bound",
                self.loss_bound,
                positive(self.loss_bound),
                "(0, infinity)",
            ),
            (
                "held-out fraction",
                self.held_out_fraction,
                self.held_out_fraction > 0.0 && self.held_out_fraction <= 0.3,
                "(0, 0.3]",
            ),
            (
                "held-out units",
                self.held_out_units as f64,
                self.held_out_units > 0,
                "[1, infinity)",
            ),
            (
                "bounds",
                self.agent.bounds.smallest_slack(),
                self.agent.bounds.smallest_slack() >= 0.0,
                "factors >= 1, distances >= 0",
            ),
            (
                "deck ratio",
                self.worst_deck_ratio(),
                positive(self.worst_deck_ratio()),
                "(0, infinity)",
            ),
            (
                "interval",
                self.interval.unwrap_or(1) as f64,
                self.interval != Some(0),
                "[1, infinity)",
            ),
            (
                "noise correction",
                self.post_processing.noise_correction,
                closed_unit(self.post_processing.noise_correction),
                "[0, 1]",
            ),
            (
                "denoising gain",
                self.post_processing.denoising_gain,
                self.post_processing.denoising_gain > 0.0
                    && self.post_processing.denoising_gain <= 1.0,
                "(0, 1]",
            ),
            (
                "averaging decay",
                self.post_processing.averaging_decay,
                (0.0..1.0).contains(&self.post_processing.averaging_decay),
                "[0, 1)",
            ),
            (
                "tail averaging",
                self.post_processing.tail_averaging,
                closed_unit(self.post_processing.tail_averaging),
                "[0, 1]",
            ),
        ];
        for (what, value, holds, range) in checks {
            if !holds {
                return Err(RldpError::OutOfRange { what, value, range });
            }
        }
        Ok(())
    }

    /// The first deck ratio that is no positive number, else one.
    fn worst_deck_ratio(&self) -> f64 {
        let bad = self.deck_ratios.iter().find(|ratio| !positive(**ratio));
        bad.copied().unwrap_or(1.0)
    }

    /// The deck's noise levels relative to each other; empty for the budget's own choice.
    #[must_use]
    pub fn deck_levels(&self) -> Vec<f64> {
        if self.deck_ratios.is_empty() && self.controller == ControllerKind::Decay {
            self.rivals.decay.ratios()
        } else {
            self.deck_ratios.clone()
        }
    }

    /// Steps between two decisions, if they come at an interval.
    fn interval(&self) -> Option<u64> {
        self.controller.interval().or(self.interval)
    }

    /// Decisions of a run: no more than steps.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        match self.interval() {
            Some(interval) => self.steps.div_ceil(interval.max(1)),
            None => self.decisions.min(self.steps),
        }
    }

    /// The last step of the interval that follows a decision, counted from zero.
    #[must_use]
    pub fn interval_end(&self, decision: u64) -> u64 {
        match self.interval() {
            Some(interval) => ((decision + 1) * interval).min(self.steps),
            None => (decision + 1) * self.steps / self.decisions().max(1),
        }
    }

    /// What the controller of these settings is built from, for adapters of the given dimensions.
    #[must_use]
    pub fn controller_setup(&self, dimensions: Vec<usize>) -> ControllerSetup {
        ControllerSetup {
            dimensions,
            clipping_norm: self.clipping_norm,
            batch_size: self.batch_size,
            budget: self.budget,
            agent: self.agent.clone(),
            rivals: self.rivals.clone(),
            post_processing: self.post_processing,
        }
    }

    /// What the backward pass of a step finds in memory.
    #[must_use]
    pub fn activations(&self) -> Activations {
        match self.gradient_checkpointing {
            true => Activations::Recomputed,
            false => Activations::Kept,
        }
    }

    /// The target delta for `units` privacy units: as set, else 1 / N^1.1.
    #[must_use]
    pub fn delta_for(&self, units: usize) -> f64 {
        self.delta
            .unwrap_or_else(|| (units.max(2) as f64).powf(-1.1))
    }

    /// The share of the units to hold out in each of the two held-out parts of a table of `units` units.
    #[must_use]
    pub fn held_out_share(&self, units: usize) -> f64 {
        self.held_out_fraction
            .min(self.held_out_units as f64 / units.max(1) as f64)
    }

    /// The scheduled learning rate before step `step` (from zero), without the controller's factor.
    #[must_use]
    pub fn scheduled_learning_rate(&self, step: u64) -> f64 {
        let progress = step as f64 / self.steps.max(1) as f64;
        self.learning_rate * (1.0 - (1.0 - self.final_learning_rate) * progress)
    }
}

fn positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn open_unit(value: f64) -> bool {
    value > 0.0 && value < 1.0
}

fn closed_unit(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert!(TrainerConfig::default().validate().is_ok());
    }

    #[test]
    fn every_bad_number_is_named() {
        type Spoil = fn(&mut TrainerConfig);
        let cases: [(&str, Spoil); 8] = [
            ("epsilon", |c| c.epsilon = 0.0),
            ("epsilon", |c| c.epsilon = f64::NAN),
            ("delta", |c| c.delta = Some(1.0)),
            ("steps", |c| c.steps = 0),
            ("batch size", |c| c.batch_size = -1.0),
            ("LoRA rank", |c| c.lora_rank = 0),
            ("bounds", |c| c.agent.bounds.noise_factor = 0.5),
            ("bounds", |c| c.agent.bounds.clipping_factor = f64::NAN),
        ];
        for (name, spoil) in cases {
            let mut config = TrainerConfig::default();
            spoil(&mut config);
            assert!(
                matches!(config.validate(), Err(RldpError::OutOfRange { what, .. }) if what == name),
                "{name} was not refused by its name"
            );
        }
    }

    #[test]
    fn decisions_come_at_shares_of_the_run_or_at_intervals() {
        let mut config = TrainerConfig {
            steps: 60,
            decisions: 7,
            ..TrainerConfig::default()
        };
        let ends = |config: &TrainerConfig| -> Vec<u64> {
            (0..config.decisions())
                .map(|decision| config.interval_end(decision))
                .collect()
        };
        assert_eq!(ends(&config), [8, 17, 25, 34, 42, 51, 60]);
        config.interval = Some(25);
        assert_eq!(ends(&config), [25, 50, 60]);
        // The published method acts every 112 steps, whatever else is set.
        config.controller = ControllerKind::Paper;
        config.steps = 300;
        assert_eq!(ends(&config), [112, 224, 300]);
    }

    #[test]
    fn the_learning_rate_falls_to_its_final_share() {
        let config = TrainerConfig::default();
        assert_eq!(config.scheduled_learning_rate(0), config.learning_rate);
        let last = config.scheduled_learning_rate(config.steps);
        assert!((last - config.learning_rate * config.final_learning_rate).abs() < 1e-12);
    }
}
