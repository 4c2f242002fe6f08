//! Averages of the parameters over the steps of a run: post-processing, free of privacy cost.

use burn::module::Module;

use crate::snapshot::Snapshot;

/// How the parameters of the steps are averaged (Shejwalkar et al. 2022).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum Averaging {
    /// The last step's parameters are the result.
    #[default]
    Off,
    /// Exponential moving average: `a <- b a + (1 - b) x` with `b = min(decay, (1 + t) / (10 + t))` before step t, counted
    /// from zero, so that a short run is not tied to its start.
    Exponential {
        /// The largest decay, in [0, 1); 0 is the last step's parameters.
        decay: f64,
    },
    /// Uniform average of the steps from `from` on, counted from one.
    Tail {
        /// The first step that counts.
        from: u64,
    },
}

/// A running average of a module's trainable parameters.
#[derive(Debug, Clone, Default)]
pub struct WeightAverage {
    average: Option<Snapshot>,
    /// Steps seen.
    steps: u64,
    /// Steps in the tail's average.
    counted: u64,
}

impl WeightAverage {
    /// An average of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An average restored from its parts.
    #[must_use]
    pub fn from_parts(average: Option<Snapshot>, steps: u64, counted: u64) -> Self {
        Self {
            average,
            steps,
            counted,
        }
    }

    /// The average so far with the numbers of steps seen and of steps counted, for a checkpoint.
    #[must_use]
    pub fn parts(&self) -> (Option<&Snapshot>, u64, u64) {
        (self.average.as_ref(), self.steps, self.counted)
    }

    /// Takes in the parameters after a step. The kind of averaging may change between steps; an average that starts later
    /// starts from the parameters of that step.
    pub fn add<M: Module>(&mut self, module: &M, averaging: Averaging) {
        let step = self.steps;
        self.steps += 1;
        let weight = match averaging {
            Averaging::Off => {
                self.average = None;
                self.counted = 0;
                return;
            }
            Averaging::Exponential { decay } => {
                let ceiling = (1.0 + step as f64) / (10.0 + step as f64);
                let decay = if decay.is_nan() { 0.0 } else { decay };
                1.0 - decay.clamp(0.0, 1.0).min(ceiling)
            }
            Averaging::Tail { from } => {
                if self.steps < from {
                    self.average = None;
                    self.counted = 0;
                    return;
                }
                self.counted += 1;
                1.0 / self.counted as f64
            }
        };
        let now = Snapshot::of(module);
        match &mut self.average {
            None => self.average = Some(now),
            Some(average) => average.blend(&now, weight),
        }
    }

    /// The module with the average in the place of its parameters; as it is, if there is no average.
    #[must_use]
    pub fn install<M: Module>(&self, module: M) -> M {
        match &self.average {
            None => module,
            Some(average) => average.install(module),
        }
    }

    /// Whether there is an average that differs from the last step's parameters.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.average.is_some()
    }
}
