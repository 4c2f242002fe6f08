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
    /// Saved apart from the rest.
    #[serde(skip)]
    last: Vec<Option<Tensor<1>>>,
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
            last: vec![None; adapters],
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
            self.last[index] = Some(gradient);
        }
        if let Some(clipped) = clipped {
            for (sum, share) in self.clipped.iter_mut().zip(clipped) {
                *sum += share;
            }
            self.clipped_steps += 1;
        }
        self.steps += 1;
    }

    /// The last gradients as named tensors, for a checkpoint that holds the rest as JSON.
    ///
    /// # Errors
    /// [`LoraError::Readback`].
    pub fn save_last(&self) -> Result<Vec<HostTensor>, LoraError> {
        self.last
            .iter()
            .enumerate()
            .filter_map(|(index, last)| Some((index, last.clone()?)))
            .map(|(index, last)| HostTensor::from_tensor(&last_name(index), last))
            .collect()
    }

    /// Takes the last gradients from a checkpoint.
    ///
    /// # Errors
    /// A tensor of the file that cannot be read.
    pub fn restore_last(&mut self, file: &TensorFile, device: &Device) -> Result<(), LoraError> {
        self.last = (0..self.signal.len())
            .map(|index| {
                let name = last_name(index);
                match file.shape(&name) {
                    None => Ok(None),
                    Some(_) => {
                        let tensor = file.read(&name)?;
                        let shape = [tensor.data.len()];
                        let tensor = HostTensor {
                            shape: shape.to_vec(),
                            ..tensor
                        };
                        Ok(Some(tensor.into_tensor(device)))
                    }
                }
            })
            .collect::<Result<_, LoraError>>()?;
        Ok(())
    }

    /// The averages so far, one per adapter, and a fresh start that remembers the last gradients.
    pub fn take(&mut self) -> Vec<AdapterStatistics> {
        let steps = self.steps.max(1) as f64;
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
            })
            .collect();
        let last = std::mem::take(&mut self.last);
        *self = Self {
            last,
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
}

fn last_name(index: usize) -> String {
    format!("statistics.last.{index}")
}

fn dot(left: &Tensor<1>, right: &Tensor<1>) -> f64 {
    (left.clone() * right.clone())
        .sum()
        .into_scalar::<f32>()
        .into()
}
