//! Adam over one flat parameter vector (Burn's own update rule), and over one number.

use burn::optim::{Adam, AdamConfig, AdamState, AdaptiveMomentumState, Optimizer};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::SacError;
use crate::net::host;
use crate::tensors::TensorMap;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Adam on a flattened module: one tensor, so that tiny networks do not pay for many small operations.
#[derive(Clone)]
pub(crate) struct FlatAdam {
    rule: Adam,
    learning_rate: f64,
    state: Option<AdamState<1>>,
}

impl FlatAdam {
    pub(crate) fn new(learning_rate: f64) -> Self {
        let rule = AdamConfig::new()
            .with_beta_1(BETA_1 as f32)
            .with_beta_2(BETA_2 as f32)
            .with_epsilon(EPSILON as f32)
            .build();
        Self {
            rule,
            learning_rate,
            state: None,
        }
    }

    pub(crate) fn step(&mut self, parameters: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
        let (parameters, state) =
            self.rule
                .step(self.learning_rate, parameters, gradient, self.state.take());
        self.state = state;
        parameters
    }

    /// Number of steps taken.
    pub(crate) fn time(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.momentum.time)
    }

    pub(crate) fn export(&self, name: &str, map: &mut TensorMap) -> Result<(), SacError> {
        if let Some(AdamState { momentum }) = &self.state {
            for (part, tensor) in [
                ("moment_1", &momentum.moment_1),
                ("moment_2", &momentum.moment_2),
            ] {
                let values = host(tensor.clone())?;
                map.insert(format!("{name}.{part}"), vec![values.len()], values);
            }
        }
        Ok(())
    }

    /// Restores the moments after `time` steps over `count` parameters.
    pub(crate) fn import(
        &mut self,
        name: &str,
        time: usize,
        count: usize,
        map: &TensorMap,
        device: &Device,
    ) -> Result<(), SacError> {
        self.state = None;
        if time > 0 {
            let load = |part: &str| -> Result<Tensor<1>, SacError> {
                let values = map.get(&format!("{name}.{part}"), &[count])?.to_vec();
                Ok(Tensor::from_data(TensorData::new(values, [count]), device))
            };
            let momentum = AdaptiveMomentumState::new(time, load("moment_1")?, load("moment_2")?);
            self.state = Some(AdamState::new(momentum));
        }
        Ok(())
    }
}

/// Adam on one number, on the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScalarAdam {
    time: i32,
    moment_1: f64,
    moment_2: f64,
}

impl ScalarAdam {
    pub(crate) fn step(&mut self, learning_rate: f64, parameter: f64, gradient: f64) -> f64 {
        self.time = self.time.saturating_add(1);
        self.moment_1 = BETA_1 * self.moment_1 + (1.0 - BETA_1) * gradient;
        self.moment_2 = BETA_2 * self.moment_2 + (1.0 - BETA_2) * gradient * gradient;
        let mean = self.moment_1 / (1.0 - BETA_1.powi(self.time));
        let square = self.moment_2 / (1.0 - BETA_2.powi(self.time));
        parameter - learning_rate * mean / (square.sqrt() + EPSILON)
    }
}
