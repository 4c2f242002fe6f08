//! What a controller may see.

use rldp_optim::Released;
use serde::{Deserialize, Serialize};

use super::PostProcessing;

/// A number that a controller, a log or a report may see: it was public from the start, or a mechanism released it.
///
/// There is no way from a `Private` value to a `Visible` one but through a mechanism of `rldp-optim`, whose
/// [`Released`] values convert into it.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Visible(f64);

impl Visible {
    /// A number that never depended on private data: configuration, step counts, what the controller itself chose.
    #[must_use]
    pub fn public(value: f64) -> Self {
        Self(value)
    }

    /// A function of visible numbers only, computed elsewhere in this crate: norms of the released gradients, say.
    pub(crate) fn post_processed(value: f64) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }

    /// A function of visible numbers only: post-processing.
    #[must_use]
    pub fn map(self, function: impl FnOnce(f64) -> f64) -> Self {
        Self(function(self.0))
    }
}

impl From<&Released<f64>> for Visible {
    fn from(released: &Released<f64>) -> Self {
        Self(*released.value())
    }
}

/// One adapter as a controller sees it. Every figure is an average over the steps since the last decision.
#[derive(Clone, Debug)]
pub struct AdapterView {
    /// Number of trainable parameters.
    pub dimension: usize,
    /// Released share of units whose gradient was clipped, about 0 to 1; noise can carry it outside.
    pub clipped_fraction: Visible,
    /// Natural logarithm of the squared norm of the released gradient over what the noise alone would give.
    pub signal_to_noise: Visible,
    /// Cosine between successive released gradients.
    pub cosine: Visible,
    /// What the released gradients say that a step gained: minus the inner product of the released gradient with the
    /// displacement that led to where it was taken. Its noise is independent of that displacement, so it is unbiased; in units of
    /// clipped gradients. Free: post-processing.
    pub descent: Visible,
    /// Standard deviation that the known noise makes in one step's `descent`.
    pub descent_noise: Visible,
    /// Euclidean norm of the adapter's parameters.
    pub parameter_norm: Visible,
    /// The clipping norm in force.
    pub clipping_norm: f64,
    /// The weight in the noise split in force; all weights sum to one.
    pub noise_weight: f64,
}

/// All that a controller sees at a decision.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Share of the run's steps already taken, 0 to 1.
    pub progress: f64,
    /// Share of the target epsilon already spent, 0 to 1.
    pub spent: f64,
    /// The latest released validation loss in nats.
    pub validation_loss: Visible,
    /// The first released validation loss in nats.
    pub initial_loss: Visible,
    /// Standard deviation of the noise in a released validation loss, in nats; zero for one of public text. Public.
    pub loss_noise: f64,
    /// Fall of the released validation loss in nats over the last interval.
    pub improvement: Visible,
    /// Noise multiplier of the last step, all terms together; the calibrated one before the first step.
    pub noise_multiplier: f64,
    /// Scheduled learning rate of the next step, without the controller's factor.
    pub learning_rate: f64,
    /// Learning-rate factor in force.
    pub learning_rate_factor: f64,
    /// First-moment decay in force.
    pub beta_1: f64,
    /// Post-processing in force.
    pub post_processing: PostProcessing,
    /// The adapters, in the model's order.
    pub adapters: Vec<AdapterView>,
}

/// What a row of the agent's observation and of its action stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowKind {
    /// One adapter: clipping norm, weight in the noise split.
    Adapter,
    /// The run: learning rate, first-moment decay.
    Pace,
    /// The run: noise level, noise correction of Adam's second moments.
    Noise,
    /// The run: denoising gain, averaging decay.
    Filter,
}

impl RowKind {
    /// All kinds, in the order of the rows.
    pub const ALL: [Self; 4] = [Self::Adapter, Self::Pace, Self::Noise, Self::Filter];
}

/// Features per row: what [`Observation::features`] lists.
pub const FEATURES: usize = 24;
/// Noise in nats at which a released loss, and the last fall of it, count half in the features: what one usually sees.
const HALF_HEARD: (f64, f64) = (0.5, 0.03);
/// Columns of a row that are an adapter's own.
const OWN: usize = 8;

impl Observation {
    /// What a step of all adapters together gained, in standard deviations of the noise in it: far above zero while steps
    /// are shorter than they could be, below zero where they overshoot. Zero before the second step.
    #[must_use]
    pub fn descent(&self) -> f64 {
        let sum: f64 = self.adapters.iter().map(|a| a.descent.get()).sum();
        let noise = self.adapters.iter().map(|a| a.descent_noise.get().powi(2));
        in_deviations(sum, noise.sum::<f64>().sqrt())
    }

    /// The observation as rows of 24 numbers: one for every adapter if there is a row of that kind, and one for each other
    /// kind. Each number is scaled to order one and bounded, so that one policy serves any model.
    ///
    /// A row is: 0 clipped share around its aim of 0.95; 1 log clipping norm; 2 log relative noise weight; 3 excess of the
    /// gradient's squared norm over its noise's; 4 cosine of successive gradients; 5 descent; these three in deviations of
    /// their noise, since a signal that is plain over all coordinates is far below the noise of one; 6 log parameter norm; 7
    /// log dimension (these eight are averages over adapters in rows of other kinds); 8 to 11 the row's kind, one of four;
    /// then the same for every row: 12 progress; 13 epsilon spent; 14 loss fallen so far; 15 last improvement, both the
    /// smaller the noisier they are; 16 log noise multiplier; 17 log learning-rate factor; 18 descent of all adapters
    /// together; 19 momentum; 20 noise correction; 21 denoising gain; 22 averaging decay; 23 one. The learning rate itself is
    /// not among them: what is a good one differs between tasks, and the descent tells.
    #[must_use]
    pub fn features(&self, kinds: &[RowKind]) -> Vec<Vec<f32>> {
        let count = self.adapters.len().max(1) as f64;
        let shared = [
            2.0 * self.progress - 1.0,
            2.0 * self.spent - 1.0,
            heard(self.loss_noise, HALF_HEARD.0)
                * bounded(self.initial_loss.get() - self.validation_loss.get(), 2.0),
            heard(self.loss_noise, HALF_HEARD.1) * bounded(10.0 * self.improvement.get(), 2.0),
            bounded(self.noise_multiplier.max(1e-6).ln(), 3.0),
            bounded(2.0 * self.learning_rate_factor.max(1e-6).ln(), 3.0),
            compressed(self.descent()),
            bounded(10.0 * (self.beta_1 - 0.8), 3.0),
            bounded(self.post_processing.noise_correction, 1.0),
            bounded(2.0 * (1.0 - self.post_processing.denoising_gain), 2.0),
            bounded(self.post_processing.averaging_decay, 1.0),
            1.0,
        ];
        let adapters: Vec<[f64; OWN]> = self
            .adapters
            .iter()
            .map(|adapter| {
                let dimension = adapter.dimension.max(1) as f64;
                [
                    bounded(5.0 * (adapter.clipped_fraction.get() - 0.95), 2.0),
                    bounded(0.5 * adapter.clipping_norm.max(1e-9).ln(), 4.0),
                    bounded((adapter.noise_weight * count).max(1e-9).ln(), 3.0),
                    compressed(adapter.signal_to_noise.get().exp_m1() * (0.5 * dimension).sqrt()),
                    compressed(adapter.cosine.get() * dimension.sqrt()),
                    compressed(in_deviations(
                        adapter.descent.get(),
                        adapter.descent_noise.get(),
                    )),
                    bounded(0.5 * adapter.parameter_norm.get().max(1e-6).ln(), 3.0),
                    bounded(dimension.ln() - 8.0, 4.0),
                ]
            })
            .collect();
        let mut mean = [0.0; OWN];
        for own in &adapters {
            for (sum, value) in mean.iter_mut().zip(own) {
                *sum += value / count;
            }
        }
        let mut rows = Vec::new();
        for kind in kinds {
            let one_hot = RowKind::ALL.map(|other| f64::from(u8::from(other == *kind)));
            let own = match kind {
                RowKind::Adapter => adapters.as_slice(),
                _ => std::slice::from_ref(&mean),
            };
            rows.extend(own.iter().map(|own| {
                let columns = own.iter().chain(&one_hot).chain(&shared);
                columns.map(|value| *value as f32).collect::<Vec<f32>>()
            }));
        }
        rows
    }
}

/// `value` over the deviation of its noise; zero where there is none, since nothing was measured then.
fn in_deviations(value: f64, deviation: f64) -> f64 {
    if deviation > 0.0 {
        value / deviation
    } else {
        0.0
    }
}

/// A number in deviations of its noise, on a scale on which one and thirty both are of order one.
fn compressed(deviations: f64) -> f64 {
    bounded(0.5 * (3.0 * deviations).asinh(), 3.0)
}

/// The share of a number that is worth hearing under noise of this deviation, a half where it is `half`.
fn heard(noise: f64, half: f64) -> f64 {
    let ratio = noise / half;
    if ratio.is_nan() {
        0.0
    } else {
        1.0 / (1.0 + ratio * ratio)
    }
}

/// `value` clamped to [-limit, limit], and zero if it is not a number: one bad feature must not poison a policy.
fn bounded(value: f64, limit: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(-limit, limit)
    }
}
