//! Running normalisation of observations and rewards.

use serde::{Deserialize, Serialize};

/// Added to variances before the square root, so that a constant feature maps to 0.
const VARIANCE_FLOOR: f64 = 1e-8;

/// Running mean and variance of each feature (Welford's recurrence, which does not cancel), over all agents and steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningNormalizer {
    count: u64,
    mean: Vec<f64>,
    /// Sum of squared deviations.
    square: Vec<f64>,
}

impl RunningNormalizer {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(features: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; features],
            square: vec![0.0; features],
        }
    }

    /// Number of features.
    #[must_use]
    pub fn features(&self) -> usize {
        self.mean.len()
    }

    /// Rows seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Takes in one row.
    pub fn observe(&mut self, row: &[f32]) {
        self.count += 1;
        let count = self.count as f64;
        for ((mean, square), &value) in self.mean.iter_mut().zip(&mut self.square).zip(row) {
            let delta = f64::from(value) - *mean;
            *mean += delta / count;
            *square += delta * (f64::from(value) - *mean);
        }
    }

    /// Mean and (population) variance of a feature.
    #[must_use]
    pub fn moments(&self, feature: usize) -> Option<(f64, f64)> {
        let mean = *self.mean.get(feature)?;
        let square = *self.square.get(feature)?;
        Some((mean, square / self.count.max(1) as f64))
    }

    /// Standardises rows of features in place and cuts them to plus or minus `limit`. Before the second row there is no
    /// spread to divide by, and values pass as they are.
    pub fn apply(&self, values: &mut [f32], limit: f64) {
        if self.count < 2 || self.mean.is_empty() {
            return;
        }
        let count = self.count as f64;
        let scale: Vec<f64> = self
            .square
            .iter()
            .map(|square| 1.0 / (square / count + VARIANCE_FLOOR).sqrt())
            .collect();
        for row in values.chunks_mut(self.mean.len()) {
            for ((value, mean), scale) in row.iter_mut().zip(&self.mean).zip(&scale) {
                *value = ((f64::from(*value) - mean) * scale).clamp(-limit, limit) as f32;
            }
        }
    }
}

/// Scale of rewards: the running standard deviation of the discounted return. Rewards are divided, never shifted, since a
/// shift changes which policy is best when episodes end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardScale {
    discount: f64,
    running_return: f64,
    returns: RunningNormalizer,
}

impl RewardScale {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(discount: f64) -> Self {
        Self {
            discount,
            running_return: 0.0,
            returns: RunningNormalizer::new(1),
        }
    }

    /// Takes in one reward and whether the episode ended with it.
    pub fn observe(&mut self, reward: f64, episode_ended: bool) {
        self.running_return = self.discount * self.running_return + reward;
        self.returns.observe(&[self.running_return as f32]);
        if episode_ended {
            self.running_return = 0.0;
        }
    }

    /// What rewards are divided by; 1 until two rewards were seen or while they do not vary.
    #[must_use]
    pub fn divisor(&self) -> f64 {
        match self.returns.moments(0) {
            Some((_, variance)) if self.returns.count() > 1 && variance > VARIANCE_FLOOR => {
                variance.sqrt()
            }
            _ => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn moments_match_two_passes(values in proptest::collection::vec(-1e3f32..1e3, 2..50)) {
            let mut running = RunningNormalizer::new(1);
            values.iter().for_each(|&value| running.observe(&[value]));
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
            let (m, v) = running.moments(0).unwrap();
            prop_assert!((m - mean).abs() < 1e-9);
            prop_assert!((v - variance).abs() < 1e-6 * (1.0 + variance));
        }

        #[test]
        fn output_is_finite_and_limited(
            rows in proptest::collection::vec(prop_oneof![Just(5.0f32), -1e30f32..1e30], 2..20),
            probe in -1e30f32..1e30,
        ) {
            let mut running = RunningNormalizer::new(1);
            rows.iter().for_each(|&value| running.observe(&[value]));
            let mut probe = [probe];
            running.apply(&mut probe, 10.0);
            prop_assert!(probe[0].abs() <= 10.0);
        }
    }

    #[test]
    fn constant_feature_maps_to_zero_and_few_rows_pass() {
        let mut running = RunningNormalizer::new(2);
        let mut row = [3.0, 7.0];
        running.observe(&row);
        running.apply(&mut row, 10.0);
        assert_eq!(row, [3.0, 7.0]);
        running.observe(&[3.0, 9.0]);
        running.apply(&mut row, 10.0);
        assert_eq!(row[0], 0.0);
        assert!((row[1] + 1.0).abs() < 1e-6);
    }

    #[test]
    fn reward_scale_makes_scales_alike() {
        let scaled = |factor: f64| {
            let mut scale = RewardScale::new(0.9);
            for step in 0..200u32 {
                scale.observe(factor * f64::from(step % 7), step % 10 == 9);
            }
            factor / scale.divisor()
        };
        assert!((scaled(1e-3) / scaled(1e3) - 1.0).abs() < 1e-2);
        assert_eq!(RewardScale::new(0.9).divisor(), 1.0);
    }
}
