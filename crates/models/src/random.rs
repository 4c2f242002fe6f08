//! Weights for a model that is trained from nothing.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{SeedableRng, rngs::ChaCha12Rng};
use rand_distr::{Distribution, Normal};

use crate::ModelError;
use crate::checkpoint::{Start, Weights};

/// Random weights that depend on the seed and the order of the model's tensors, not on the device.
#[derive(Debug)]
pub struct RandomWeights {
    rng: ChaCha12Rng,
    device: Device,
}

impl RandomWeights {
    /// Weights on `device` from a seed.
    pub fn new(seed: u64, device: &Device) -> Self {
        Self {
            rng: ChaCha12Rng::seed_from_u64(seed),
            device: device.clone().without_autodiff(),
        }
    }
}

impl Weights for RandomWeights {
    fn take<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        start: Start,
    ) -> Result<Tensor<D>, ModelError> {
        let count = shape.iter().product();
        match start {
            Start::Zeros => Ok(Tensor::zeros(shape, &self.device)),
            Start::Ones => Ok(Tensor::ones(shape, &self.device)),
            Start::Normal(deviation) => {
                let normal =
                    Normal::new(0.0, deviation).map_err(|error| ModelError::InvalidConfig {
                        problem: format!("initial deviation {deviation} of `{name}`: {error}"),
                    })?;
                let data: Vec<f32> = (0..count)
                    .map(|_| normal.sample(&mut self.rng) as f32)
                    .collect();
                Ok(Tensor::from_data(
                    TensorData::new(data, shape),
                    &self.device,
                ))
            }
        }
    }
}
