//! Chernoff bounds at fixed saddles, which usually show that the add direction loses less than the remove direction, without
//! laying a line for it.

use std::collections::HashMap;

use super::loss::{Direction, Loss, ln_hockey_stick_factor};
use crate::special::Sum;
use crate::tilt::Step;

/// Saddles: this times a power of [`RATIO`].
const FIRST: f64 = 0.5;
const RATIO: f64 = 1.5;
const COUNT: usize = 16;
/// Old kinds of step that are added for each segment composed.
const FILL: usize = 4;
/// Kinds of step whose log moments are remembered.
const REMEMBERED: usize = 256;

/// Log moments of the add direction at a bank of saddles.
#[derive(Debug, Clone)]
pub(crate) struct Guards {
    moments: [(f64, Sum); COUNT],
    pending: Vec<(Step, u64)>,
    known: HashMap<(u64, u64), [f64; COUNT]>,
}

impl Guards {
    /// Guards of a sequence, filled a few kinds of step at a time.
    pub fn new(loss: Loss) -> Self {
        let mut guards = Self {
            moments: std::array::from_fn(|k| (FIRST * RATIO.powi(k as i32), Sum::default())),
            pending: loss.steps,
            known: HashMap::new(),
        };
        guards.add_gaussian(loss.mu2);
        guards
    }

    fn add_gaussian(&mut self, mu2: f64) {
        for (c, k) in &mut self.moments {
            k.add(0.5 * mu2 * *c * (*c + 1.0));
        }
    }

    /// Composes more.
    pub fn compose(&mut self, more: &Loss) {
        self.add_gaussian(more.mu2);
        self.add(&more.steps);
        let from = self.pending.len().saturating_sub(FILL);
        let old = self.pending.split_off(from);
        self.add(&old);
    }

    fn add(&mut self, steps: &[(Step, u64)]) {
        for (step, n) in steps {
            let key = (step.q.to_bits(), step.sigma.to_bits());
            let one = self.known.get(&key).copied().unwrap_or_else(|| {
                self.moments
                    .map(|(c, _)| step.ln_moment(Direction::Add.power(c)))
            });
            if self.known.len() < REMEMBERED {
                self.known.insert(key, one);
            }
            for ((_, k), one) in self.moments.iter_mut().zip(one) {
                k.add(*n as f64 * one);
            }
        }
    }

    /// Whether the add direction's delta at `epsilon` is certainly at most this.
    pub fn below(&self, epsilon: f64, ln_delta: f64) -> bool {
        self.pending.is_empty()
            && self
                .moments
                .iter()
                .any(|(c, k)| below(*c, k.value(), epsilon, ln_delta))
    }
}

/// Whether a log moment `k` at the saddle `c` shows that delta at `epsilon` is at most this.
pub(crate) fn below(c: f64, k: f64, epsilon: f64, ln_delta: f64) -> bool {
    k * (1.0 + 1e-12) - c * epsilon + ln_hockey_stick_factor(c) <= ln_delta
}
