//! The ensemble of critics, evaluated in one batched product.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};

use crate::actor::weighted;
use crate::config::{AgentReduction, SacConfig};
use crate::error::SacError;
use crate::net::{Dense, Trunk};
use crate::rng::AgentRng;
use crate::tensors::TensorMap;

/// Critics `Q_k(s, a) = mean over agents of f_k(observation of the agent, action of the agent)`; a weighted mean under
/// [`AgentReduction::Balanced`].
#[derive(Module, Debug)]
pub struct Critics {
    trunk: Trunk,
    out: Dense,
}

/// Dropout masks of one pass, one per hidden layer.
#[derive(Clone, Debug, Default)]
pub struct DropoutMasks(Vec<Tensor<3>>);

impl DropoutMasks {
    /// Draws masks for `rows` inputs (batch times agents); none where dropout is off.
    #[must_use]
    pub fn draw(config: &SacConfig, rows: usize, rng: &mut AgentRng, device: &Device) -> Self {
        if config.dropout == 0.0 {
            return Self::default();
        }
        let keep = (1.0 / (1.0 - config.dropout)) as f32;
        let masks = config.hidden.iter().map(|&width| {
            let count = config.critics * rows * width;
            let values = (0..count)
                .map(|_| {
                    if rng.uniform() < config.dropout {
                        0.0
                    } else {
                        keep
                    }
                })
                .collect();
            Tensor::from_data(
                TensorData::new::<f32, _>(values, [config.critics, rows, width]),
                device,
            )
        });
        Self(masks.collect())
    }
}

impl Critics {
    /// Randomly initialised critics.
    #[must_use]
    pub fn new(
        config: &SacConfig,
        obs_dim: usize,
        act_dim: usize,
        rng: &mut AgentRng,
        device: &Device,
    ) -> Self {
        let inputs = obs_dim + act_dim;
        let width = config.hidden.last().copied().unwrap_or(inputs);
        Self {
            trunk: Trunk::random(
                config.critics,
                inputs,
                &config.hidden,
                config.layer_norm,
                rng,
                device,
            ),
            out: Dense::random([config.critics, width, 1], 1.0, rng, device),
        }
    }

    /// Values `[critics, batch]` of observations `[batch, agents, obs_dim]` and actions `[batch, agents, act_dim]`.
    #[must_use]
    pub fn forward(
        &self,
        observations: Tensor<3>,
        actions: Tensor<3>,
        masks: &DropoutMasks,
        reduction: AgentReduction,
    ) -> Tensor<2> {
        let inputs = Tensor::cat(vec![observations, actions], 2);
        let [batch, agents, width] = inputs.dims();
        let hidden = self
            .trunk
            .forward(inputs.reshape([1, batch * agents, width]), &masks.0);
        let values = self.out.forward(hidden);
        let members = values.dims()[0];
        if let Some(weights) = reduction.weights(agents) {
            let of_agents = values.reshape([members * batch, agents]);
            return weighted(of_agents, weights).reshape([members, batch]);
        }
        match agents {
            1 => values.reshape([members, batch]),
            _ => values
                .reshape([members, batch, agents])
                .mean_dim(2)
                .reshape([members, batch]),
        }
    }

    pub(crate) fn export(&self, prefixes: &[String], map: &mut TensorMap) -> Result<(), SacError> {
        self.trunk.export(prefixes, map)?;
        self.out.export(prefixes, "out", map)
    }

    pub(crate) fn import(
        prefixes: &[String],
        config: &SacConfig,
        inputs: usize,
        map: &TensorMap,
        device: &Device,
    ) -> Result<Self, SacError> {
        let width = config.hidden.last().copied().unwrap_or(inputs);
        Ok(Self {
            trunk: Trunk::import(
                prefixes,
                inputs,
                &config.hidden,
                config.layer_norm,
                map,
                device,
            )?,
            out: Dense::import(prefixes, "out", [width, 1], map, device)?,
        })
    }
}
