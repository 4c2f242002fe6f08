//! The agent's actions: which there are, and what each does to the warm-up rule's decision.

use rldp_optim::GradientFilter;
use serde::{Deserialize, Serialize};

use super::{Bounds, Decision, NoiseWish, Observation, PostProcessing, RowKind, WarmUpRule};

/// Components of a row's action.
pub const ACTION: usize = 2;
/// Entropy of a uniform draw from (-1, 1), what a component that does nothing settles at.
const FREE_ENTROPY: f64 = std::f64::consts::LN_2;

/// Which actions there are. Every row of an action has two components in (-1, 1); what is switched off has no effect, and a
/// kind of row with nothing switched on does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionSpace {
    bounds: Bounds,
    /// Whether the budget plays what is wished for.
    noise: bool,
    /// What the post-processing actions move around.
    post_processing: PostProcessing,
}

impl ActionSpace {
    /// The actions within these bounds; `noise` if the budget can vary the noise level.
    #[must_use]
    pub fn new(bounds: Bounds, noise: bool, post_processing: PostProcessing) -> Self {
        Self {
            bounds,
            noise,
            post_processing,
        }
    }

    /// For every kind of row whether its first and its second component do anything.
    fn active(&self, kind: RowKind) -> [bool; ACTION] {
        let bounds = &self.bounds;
        match kind {
            RowKind::Adapter => [bounds.clipping_factor > 1.0, bounds.weight_factor > 1.0],
            RowKind::Pace => [
                bounds.learning_rate_factor > 1.0,
                bounds.beta_1_distance > 0.0,
            ],
            RowKind::Noise => [
                self.noise && bounds.noise_factor > 1.0,
                bounds.noise_correction_distance > 0.0,
            ],
            RowKind::Filter => [
                bounds.denoising_distance > 0.0,
                bounds.averaging_distance > 0.0,
            ],
        }
    }

    /// The kinds of rows, in the order of the rows; one adapter row stands for all. At least one: an agent with nothing to
    /// do still has its pace.
    #[must_use]
    pub fn kinds(&self) -> Vec<RowKind> {
        let kinds: Vec<RowKind> = RowKind::ALL
            .into_iter()
            .filter(|kind| self.active(*kind) != [false; ACTION])
            .collect();
        if kinds.is_empty() {
            vec![RowKind::Pace]
        } else {
            kinds
        }
    }

    /// What an agent with these actions sees: one row for each of its own.
    #[must_use]
    pub fn features(&self, observation: &Observation) -> Vec<Vec<f32>> {
        observation.features(&self.kinds())
    }

    /// Rows that are one of their kind: they come last, and each weighs as much as all adapters together.
    #[must_use]
    pub fn solo_rows(&self) -> usize {
        let kinds = self.kinds();
        kinds
            .iter()
            .filter(|kind| **kind != RowKind::Adapter)
            .count()
    }

    /// Entropy target, the mean over kinds of rows: minus one for a component that does something (Haarnoja et al. 2018b,
    /// "-dim(A)"), and the largest entropy there is for one that does nothing, so that it cannot stand in for exploration.
    #[must_use]
    pub fn target_entropy(&self) -> f64 {
        let kinds = self.kinds();
        let sum: f64 = kinds
            .iter()
            .flat_map(|kind| self.active(*kind))
            .map(|active| if active { -1.0 } else { FREE_ENTROPY })
            .sum();
        sum / kinds.len().max(1) as f64
    }

    /// The rule's decision moved by an action; the zero action is the rule itself until the learning rate was moved. Components
    /// are clamped to [-1, 1], and what is missing or no number counts as zero. `last_factor` is the factor on the rule's learning
    /// rate in force: the action moves it by at most [`Bounds::learning_rate_step`], and it stays where it was moved.
    #[must_use]
    pub fn apply(&self, rule: &WarmUpRule, action: &[Vec<f32>], last_factor: f64) -> Decision {
        let bounds = &self.bounds;
        let mut decision = rule.decision();
        let adapters = decision.clipping_norms.len();
        let mut row = 0;
        for kind in self.kinds() {
            let active = self.active(kind);
            let component = |row: usize, column: usize| -> f64 {
                let value = action
                    .get(row)
                    .and_then(|row| row.get(column))
                    .map_or(0.0, |value| f64::from(*value));
                if active[column] && !value.is_nan() {
                    value.clamp(-1.0, 1.0)
                } else {
                    0.0
                }
            };
            match kind {
                RowKind::Adapter => {
                    for adapter in 0..adapters {
                        decision.clipping_norms[adapter] *=
                            bounds.clipping_factor.powf(component(adapter, 0));
                        decision.noise_weights[adapter] *=
                            bounds.weight_factor.powf(component(adapter, 1));
                    }
                    let total: f64 = decision.noise_weights.iter().sum();
                    for weight in &mut decision.noise_weights {
                        *weight /= total;
                    }
                    row += adapters;
                    continue;
                }
                RowKind::Pace => {
                    // What the agent has moved so far stays: the rule answers each interval in the same way, and only the sum of
                    // many answers finds a rate that is far off.
                    let range = bounds.learning_rate_factor;
                    let step = bounds.learning_rate_step.powf(component(row, 0));
                    decision.learning_rate_factor *= (last_factor * step).clamp(1.0 / range, range);
                    decision.beta_1 = (decision.beta_1
                        + bounds.beta_1_distance * component(row, 1))
                    .clamp(0.0, 0.99);
                }
                RowKind::Noise => {
                    decision.noise = NoiseWish(bounds.noise_factor.powf(component(row, 0)));
                    if active[1] {
                        let own = self.post(&mut decision);
                        own.noise_correction = (own.noise_correction
                            + bounds.noise_correction_distance * component(row, 1))
                        .clamp(0.0, 1.0);
                    }
                }
                RowKind::Filter => {
                    let own = self.post(&mut decision);
                    if active[0] {
                        own.denoising_gain = (own.denoising_gain
                            + bounds.denoising_distance * component(row, 0))
                        .clamp(GradientFilter::SMALLEST_GAIN, 1.0);
                    }
                    if active[1] {
                        own.averaging_decay = (own.averaging_decay
                            + bounds.averaging_distance * component(row, 1))
                        .clamp(0.0, 0.999);
                    }
                }
            }
            row += 1;
        }
        decision
    }

    fn post<'a>(&self, decision: &'a mut Decision) -> &'a mut PostProcessing {
        decision.post_processing.get_or_insert(self.post_processing)
    }
}
