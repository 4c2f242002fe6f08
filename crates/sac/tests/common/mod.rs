//! Shared by the integration tests.
#![allow(dead_code, reason = "each test binary uses a part")]

use burn::tensor::{Device, Tensor, TensorData};
use rldp_sac::{Observation, Sac, SacConfig, Transition};

/// Every CPU backend that was compiled in.
// The ndarray backend is deprecated upstream; while it exists it is the second opinion.
#[allow(deprecated)]
pub fn devices() -> Vec<(&'static str, Device)> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Device::ndarray()),
    ]
}

/// A tensor's values.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().into_data().try_to_vec::<f32>().unwrap()
}

/// A `[a, b, c]` tensor.
pub fn cube(values: Vec<f32>, shape: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Small nets, so that debug builds stay quick.
pub fn small() -> SacConfig {
    SacConfig::default()
        .with_hidden(vec![16, 16])
        .with_batch_size(16)
        .with_random_steps(4)
        .with_learning_rate(1e-3)
}

/// A deterministic toy problem with `agents` agents and 2 features, in episodes of 5 steps; step `step` of it.
pub fn step(agent: &mut Sac, agents: usize, step: u64) {
    let feature = |step: u64, i: usize| ((step * 7 + i as u64 * 3) % 11) as f32 / 5.0 - 1.0;
    let rows = |step: u64| {
        (0..agents)
            .map(|i| vec![feature(step, i), step as f32 / 50.0])
            .collect::<Vec<_>>()
    };
    let observation = Observation::from(rows(step));
    let action = agent.act(&observation, true).unwrap();
    let reward = -f64::from(action[0][0] - 0.5).powi(2);
    agent
        .observe(Transition {
            observation,
            action,
            reward,
            next_observation: Observation::from(rows(step + 1)),
            terminated: step % 10 == 4,
            truncated: step % 10 == 9,
        })
        .unwrap();
}
