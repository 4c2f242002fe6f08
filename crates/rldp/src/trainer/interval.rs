//! Statistics of the released gradients between two decisions: post-processing, free of privacy cost.

use burn::tensor::{Device, Tensor};
use rldp_lora::{HostTensor, LoraError, TensorFile};
use serde::{Deserialize, Serialize};

use super::bits;

/// Running averages over an interval, per adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IntervalStatistics {
    steps: usize,
    #[serde(with = "bits")]
    clipped: Vec<f64>,
    clipped_steps: usize,
    #[serde(with = "bits")]
    signal: Vec<f64>,
    #[serde(with = "bits")]
    cosine: Vec<f64>,
    /// Gradients that had a displacement before them.
    moves: usize,
    /// Sum of the inner products of gradients with the displacements before them, with the sign of a descent.
    #[serde(with = "bits")]
    descent: Vec<f64>,
    /// Variance of that sum under the known noise.
    #[serde(with = "bits")]
    descent_variance: Vec<f64>,
    /// Saved apart from the rest.
    #[serde(skip)]
    last: Vec<Option<Tensor<1>>>,
    /// How the last step moved the parameters; saved apart from the rest.
    #[serde(skip)]
    moved: Vec<Option<Tensor<1>>>,
}

impl IntervalStatistics {
    /// Empty statistics for `adapters` adapters.
    #[must_use]
    pub fn new(adapters: usize) -> Self {
        Self {
            steps: 0,
            clipped: vec![0.0; adapters],
            clipped_steps: 0,
            signal: vec![0.0; adapters],
            cosine: vec![0.0; adapters],
            moves: 0,
            descent: vec![0.0; adapters],
            descent_variance: vec![0.0; adapters],
            last: vec![None; adapters],
            moved: vec![None; adapters],
        }
    }

    /// Takes in one step: every adapter's released gradient as one flat tensor, the standard deviation of the noise
    /// in each of its coordinates, and the released clipped shares if there are any.
    pub fn add(&mut self, gradients: Vec<Tensor<1>>, noise: &[f64], clipped: Option<&[f64]>) {
        for (index, gradient) in gradients.into_iter().enumerate() {
            let dimension = gradient.dims()[0].max(1) as f64;
            let own = dot(&gradient, &gradient);
            let floor = noise[index] * noise[index] * dimension;
            self.signal[index] += if floor > 0.0 { own / floor } else { 1.0 };
            if let Some(last) = &self.last[index] {
                let product = (own * dot(last, last)).sqrt();
                if product > 0.0 {
                    self.cosine[index] += dot(&gradient, last) / product;
                }
            }
            if let Some(moved) = &self.moved[index] {
                self.descent[index] -= dot(&gradient, moved);
                self.descent_variance[index] += noise[index] * noise[index] * dot(moved, moved);
            }
            self.last[index] = Some(gradient);
        }
        if let Some(clipped) = clipped {
            for (sum, share) in self.clipped.iter_mut().zip(clipped) {
                *sum += share;
            }
            self.clipped_steps += 1;
        }
        self.moves += usize::from(self.moved.iter().all(Option::is_some));
        self.steps += 1;
    }

    /// Takes in how a step moved every adapter's parameters: the next gradients tell where that led.
    pub fn moved(&mut self, displacements: Vec<Tensor<1>>) {
        self.moved = displacements.into_iter().map(Some).collect();
    }

    /// The last gradients and displacements as named tensors, for a checkpoint that holds the rest as JSON.
    ///
    /// # Errors
    /// [`LoraError::Readback`].
    pub fn save_last(&self) -> Result<Vec<HostTensor>, LoraError> {
        let kinds = [(LAST, &self.last), (MOVED, &self.moved)];
        kinds
            .into_iter()
            .flat_map(|(kind, tensors)| tensors.iter().enumerate().map(move |own| (kind, own)))
            .filter_map(|(kind, (index, tensor))| Some((kind, index, tensor.clone()?)))
            .map(|(kind, index, tensor)| HostTensor::from_tensor(&name(kind, index), tensor))
            .collect()
    }

    /// Takes the last gradients and displacements from a checkpoint.
    ///
    /// # Errors
    /// A tensor of the file that cannot be read.
    pub fn restore_last(&mut self, file: &TensorFile, device: &Device) -> Result<(), LoraError> {
        let read = |kind: &str| -> Result<Vec<Option<Tensor<1>>>, LoraError> {
            (0..self.signal.len())
                .map(|index| {
                    let name = name(kind, index);
                    if file.shape(&name).is_none() {
                        return Ok(None);
                    }
                    let tensor = file.read(&name)?;
                    let shape = vec![tensor.data.len()];
                    Ok(Some(HostTensor { shape, ..tensor }.into_tensor(device)))
                })
                .collect()
        };
        let (last, moved) = (read(LAST)?, read(MOVED)?);
        (self.last, self.moved) = (last, moved);
        Ok(())
    }

    /// The averages so far, one per adapter, and a fresh start that remembers the last gradients.
    pub fn take(&mut self) -> Vec<AdapterStatistics> {
        let steps = self.steps.max(1) as f64;
        let moves = self.moves.max(1) as f64;
        let statistics = (0..self.signal.len())
            .map(|index| AdapterStatistics {
                clipped_fraction: if self.clipped_steps == 0 {
                    // Nothing was paid for: assume that the rule's aim is met.
                    0.95
                } else {
                    self.clipped[index] / self.clipped_steps as f64
                },
                signal_to_noise: (self.signal[index] / steps).max(1e-9).ln(),
                cosine: self.cosine[index] / steps,
                descent: self.descent[index] / moves,
                descent_noise: (self.descent_variance[index] / moves).sqrt(),
            })
            .collect();
        let (last, moved) = (
            std::mem::take(&mut self.last),
            std::mem::take(&mut self.moved),
        );
        *self = Self {
            last,
            moved,
            ..Self::new(self.signal.len())
        };
        statistics
    }
}

/// One adapter's averages over an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterStatistics {
    /// Mean released clipped share.
    pub clipped_fraction: f64,
    /// Natural logarithm of the mean squared gradient norm over its expectation under noise alone.
    pub signal_to_noise: f64,
    /// Mean cosine between successive gradients.
    pub cosine: f64,
    /// What the gradients say that a step gained: minus the inner product of a released gradient with the displacement that led
    /// to where it was taken, on average. Each gradient's noise is independent of the displacement before it, so that this is
    /// unbiased.
    pub descent: f64,
    /// Standard deviation that the known noise makes in one step's `descent`.
    pub descent_noise: f64,
}

/// The last gradients in a checkpoint.
const LAST: &str = "last";
/// The last displacements in a checkpoint.
const MOVED: &str = "moved";

fn name(kind: &str, index: usize) -> String {
    format!("statistics.{kind}.{index}")
}

fn dot(left: &Tensor<1>, right: &Tensor<1>) -> f64 {
    (left.clone() * right.clone())
        .sum()
        .into_scalar::<f32>()
        .into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::rngs::ChaCha20Rng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// A gradient against the last displacement is a descent, on average over the steps that had one before them.
    #[test]
    fn a_descent_is_what_the_next_gradient_says_of_a_displacement() {
        let device = Device::default();
        let tensor = |values: [f32; 2]| vec![Tensor::<1>::from_floats(values, &device)];
        let mut statistics = IntervalStatistics::new(1);
        statistics.add(tensor([1.0, 1.0]), &[0.5], None);
        statistics.moved(tensor([-3.0, 4.0]));
        statistics.add(tensor([2.0, 0.5]), &[0.5], None);
        statistics.moved(tensor([-3.0, 4.0]));
        statistics.add(tensor([2.0, 0.0]), &[0.5], None);
        let first = statistics.take();
        // (6 - 2) and 6, and a displacement of norm 5 under a noise of 0.5.
        assert!((first[0].descent - 5.0).abs() < 1e-6);
        assert!((first[0].descent_noise - 2.5).abs() < 1e-6);
        // The last displacement counts in the next interval.
        statistics.moved(tensor([1.0, 0.0]));
        statistics.add(tensor([-7.0, 9.0]), &[0.5], None);
        assert!((statistics.take()[0].descent - 7.0).abs() < 1e-6);
    }

    /// Under noise alone the descent has mean zero and the deviation that is told, also where the displacement follows
    /// the gradient before it as a step does. Bounds at five and a half deviations: a false alarm is rarer than one in ten million.
    #[test]
    fn noise_alone_is_no_descent() {
        let device = Device::default();
        let mut random = ChaCha20Rng::seed_from_u64(11);
        let (steps, noise) = (2_000, 0.7);
        let mut statistics = IntervalStatistics::new(1);
        for _ in 0..steps {
            let values: Vec<f32> = (0..50)
                .map(|_| {
                    if random.random::<bool>() {
                        noise
                    } else {
                        -noise
                    }
                })
                .collect();
            let gradient = Tensor::<1>::from_floats(values.as_slice(), &device);
            statistics.add(vec![gradient.clone()], &[f64::from(noise)], None);
            statistics.moved(vec![gradient.mul_scalar(-0.1)]);
        }
        let found = statistics.take()[0];
        let deviation = found.descent_noise / f64::from(steps as u32 - 1).sqrt();
        assert!(found.descent.abs() < 5.5 * deviation, "{found:?}");
        // Every displacement has the same norm.
        let expected = f64::from(noise) * 0.1 * f64::from(noise) * 50.0_f64.sqrt();
        assert!((found.descent_noise - expected).abs() < 1e-4 * expected);
    }
}
