//! The composed privacy loss of a sequence: its log moments and Chernoff (Renyi) bounds.

use crate::rdp::{SMALLEST_SUBSAMPLED_SIGMA, convert, minimise_up_to};
use crate::segment::Segment;
use crate::tilt::Step;

/// Direction of add/remove adjacency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The unit is in the first table: loss ln P/Q under P, P the mixture.
    Remove,
    /// The unit is in the second table: loss ln Q/P under Q.
    Add,
}

impl Direction {
    /// Power of the likelihood ratio whose mean is E[exp(c loss)].
    pub fn power(self, c: f64) -> f64 {
        match self {
            Self::Remove => c + 1.0,
            Self::Add => -c,
        }
    }
}

/// A sequence, reduced to subsampled steps and one plain Gaussian of squared `mu2`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Loss {
    pub steps: Vec<(Step, u64)>,
    pub mu2: f64,
}

impl Loss {
    /// For upper bounds: a step with absurdly little noise counts as not subsampled, which loses more privacy.
    pub fn upper(merged: &[Segment]) -> Self {
        let mut loss = Self::default();
        for s in merged {
            loss.push(s, true);
        }
        loss
    }

    /// For lower bounds: such a step counts as losing nothing.
    pub fn lower(merged: &[Segment]) -> Self {
        let mut loss = Self::default();
        for s in merged {
            loss.push(s, false);
        }
        loss
    }

    fn push(&mut self, s: &Segment, upper: bool) {
        let (q, sigma) = (s.sampling_rate(), s.noise_multiplier());
        if q == 0.0 {
        } else if q == 1.0 {
            self.mu2 += s.steps() as f64 / (sigma * sigma);
        } else if sigma < SMALLEST_SUBSAMPLED_SIGMA {
            if upper {
                self.mu2 += s.steps() as f64 / (sigma * sigma);
            }
        } else {
            self.steps.push((Step::new(q, sigma), s.steps()));
        }
    }

    /// A few kinds of step that stand for all of them, `factor` times as many steps. Each stands for itself and those after it,
    /// which have more noise where the sampling rate is the same.
    pub fn sample(&self, kinds: usize, factor: u64) -> Self {
        let total: u128 = self.steps.iter().map(|(_, n)| u128::from(*n)).sum();
        let times = |n: u128| u64::try_from(n.max(1)).unwrap_or(u64::MAX / factor);
        let steps = if self.steps.len() <= kinds {
            self.steps.clone()
        } else {
            let mut sample = Vec::with_capacity(kinds);
            let mut seen = 0;
            for (step, n) in &self.steps {
                if sample.len() < kinds && seen >= sample.len() as u128 * total / kinds as u128 {
                    sample.push((*step, times(total / kinds as u128)));
                }
                seen += u128::from(*n);
            }
            sample
        };
        Self {
            steps: steps
                .into_iter()
                .map(|(s, n)| (s, n.saturating_mul(factor)))
                .collect(),
            mu2: self.mu2 * factor as f64,
        }
    }

    /// ln E[exp(c loss)].
    pub fn ln_moment(&self, direction: Direction, c: f64) -> f64 {
        let power = direction.power(c);
        let steps: f64 = self
            .steps
            .iter()
            .map(|(s, n)| *n as f64 * s.ln_moment(power))
            .sum();
        steps + 0.5 * self.mu2 * c * (c + 1.0)
    }

    /// The largest possible loss.
    pub fn supremum(&self, direction: Direction) -> f64 {
        if direction == Direction::Remove || self.mu2 > 0.0 {
            return f64::INFINITY;
        }
        self.steps
            .iter()
            .map(|(s, n)| -(*n as f64) * (-s.q).ln_1p())
            .sum::<f64>()
            * (1.0 + 1e-12)
    }

    /// The order minus one, and the epsilon, of the best Chernoff (Renyi) bound at this delta.
    pub fn chernoff_epsilon(
        &self,
        direction: Direction,
        ln_delta: f64,
        tolerance: f64,
    ) -> (f64, f64) {
        let start = self.first_guess(ln_delta);
        minimise_up_to(
            |c| {
                let value = convert(self.ln_moment(direction, c) / c, c + 1.0, ln_delta);
                if value.is_nan() { f64::INFINITY } else { value }
            },
            start.min(most_saddle(direction)),
            tolerance,
            most_saddle(direction),
        )
    }

    /// The saddle, and ln delta, of the best Chernoff bound at this epsilon.
    pub fn chernoff_ln_delta(
        &self,
        direction: Direction,
        epsilon: f64,
        tolerance: f64,
    ) -> (f64, f64) {
        minimise_up_to(
            |c| {
                let value = self.ln_moment(direction, c) - c * epsilon + ln_hockey_stick_factor(c);
                if value.is_nan() { f64::INFINITY } else { value }
            },
            self.first_guess(-16.0).min(most_saddle(direction)),
            tolerance,
            most_saddle(direction),
        )
    }

    /// A saddle for small losses: sqrt(2 ln(1/delta)) over the loss's standard deviation, capped where jumps take over.
    fn first_guess(&self, ln_delta: f64) -> f64 {
        let mut variance = self.mu2;
        let mut cap = f64::INFINITY;
        for (s, n) in &self.steps {
            let i2 = 1.0 / (s.sigma * s.sigma);
            variance += *n as f64 * s.q * s.q * i2.min(30.0).exp_m1();
            cap = cap.min(2.0 * s.sigma * s.sigma * (1.0 / s.q).ln() + 1.0);
        }
        ((-2.0 * ln_delta).sqrt() / variance.sqrt())
            .min(cap)
            .clamp(1e-3, 1e12)
    }
}

/// Saddles searched. The add direction's loss is bounded, and far out its quadrature gets slow for nothing.
fn most_saddle(direction: Direction) -> f64 {
    match direction {
        Direction::Remove => 1e14,
        Direction::Add => 1e6,
    }
}

/// ln of c^c / (1 + c)^(1 + c): (1 - e^(epsilon - y))_+ <= this factor times e^(c (y - epsilon)).
pub(crate) fn ln_hockey_stick_factor(c: f64) -> f64 {
    -c * (1.0 / c).ln_1p() - c.ln_1p()
}
