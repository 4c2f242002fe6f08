//! The squashed-Gaussian actor, applied to each agent with shared weights.

use burn::module::Module;
use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Device, Tensor, TensorData};

use crate::config::{AgentReduction, SacConfig};
use crate::error::SacError;
use crate::net::{Dense, Trunk};
use crate::rng::AgentRng;
use crate::tensors::TensorMap;

/// Range of the logarithm of the standard deviation.
pub const LOG_STD_RANGE: (f64, f64) = (-20.0, 2.0);

const HALF_LN_TWO_PI: f64 = 0.918_938_533_204_672_8;

/// The distribution of the actions before squashing; both `[batch, agents, act_dim]`.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// Mean.
    pub mean: Tensor<3>,
    /// Logarithm of the standard deviation, within [`LOG_STD_RANGE`].
    pub log_std: Tensor<3>,
}

/// Actions drawn from a [`Gaussian`] and squashed by tanh.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `tanh(pre_tanh)`, `[batch, agents, act_dim]`.
    pub action: Tensor<3>,
    /// `mean + exp(log_std) noise`.
    pub pre_tanh: Tensor<3>,
    /// Log-probability of the joint action, `[batch]`.
    pub log_prob: Tensor<1>,
}

impl Gaussian {
    /// Squashes `mean + exp(log_std) * noise`.
    ///
    /// # Precision
    ///
    /// The change of variables uses `ln(1 - tanh(u)^2) = 2 (ln 2 - u + ln sigmoid(2u))`, exact in the tails, where
    /// `1 - tanh(u)^2` itself rounds to 0.
    #[must_use]
    pub fn sample(&self, noise: Tensor<3>, reduction: AgentReduction) -> Sample {
        let pre_tanh = self.mean.clone() + self.log_std.clone().exp() * noise.clone();
        let normal = noise.square().mul_scalar(-0.5) - self.log_std.clone();
        let log_prob = joint(
            normal.sub_scalar(HALF_LN_TWO_PI) - log_one_minus_tanh_squared(&pre_tanh),
            reduction,
        );
        Sample {
            action: pre_tanh.clone().tanh(),
            pre_tanh,
            log_prob,
        }
    }

    /// Joint log-probability of given actions inside (-1, 1).
    #[must_use]
    pub fn log_prob(&self, action: Tensor<3>, reduction: AgentReduction) -> Tensor<1> {
        let pre_tanh = action.atanh();
        let noise = (pre_tanh.clone() - self.mean.clone()) / self.log_std.clone().exp();
        let normal = noise.square().mul_scalar(-0.5) - self.log_std.clone();
        joint(
            normal.sub_scalar(HALF_LN_TWO_PI) - log_one_minus_tanh_squared(&pre_tanh),
            reduction,
        )
    }

    /// The action at the mean.
    #[must_use]
    pub fn mode(&self) -> Tensor<3> {
        self.mean.clone().tanh()
    }
}

fn log_one_minus_tanh_squared(u: &Tensor<3>) -> Tensor<3> {
    (log_sigmoid(u.clone().mul_scalar(2.0)) - u.clone())
        .add_scalar(std::f64::consts::LN_2)
        .mul_scalar(2.0)
}

fn joint(log_prob: Tensor<3>, reduction: AgentReduction) -> Tensor<1> {
    let [batch, agents, dimensions] = log_prob.dims();
    if let Some(weights) = reduction.weights(agents) {
        let of_agents = log_prob.sum_dim(2).reshape([batch, agents]);
        return weighted(of_agents, weights).reshape([batch]);
    }
    let summed = log_prob
        .reshape([batch, agents * dimensions])
        .sum_dim(1)
        .reshape([batch]);
    match reduction {
        AgentReduction::Sum => summed,
        _ if agents > 1 => summed.div_scalar(agents as f64),
        _ => summed,
    }
}

/// `[rows, agents]` to the weighted sums over agents, `[rows, 1]`.
pub(crate) fn weighted(values: Tensor<2>, weights: Vec<f32>) -> Tensor<2> {
    let weights = TensorData::new(weights, [1, values.dims()[1]]);
    let weights = Tensor::from_data(weights, &values.device());
    (values * weights).sum_dim(1)
}

/// The actor network.
#[derive(Module, Debug)]
pub struct Actor {
    trunk: Trunk,
    mean: Dense,
    log_std: Dense,
}

impl Actor {
    /// A randomly initialised actor (PyTorch's default ranges; near-zero heads under [`SacConfig::initial_std`]).
    #[must_use]
    pub fn new(
        config: &SacConfig,
        obs_dim: usize,
        act_dim: usize,
        rng: &mut AgentRng,
        device: &Device,
    ) -> Self {
        let trunk = Trunk::random(1, obs_dim, &config.hidden, false, rng, device);
        let width = config.hidden.last().copied().unwrap_or(obs_dim);
        let scale = if config.initial_std.is_some() {
            0.01
        } else {
            1.0
        };
        let mean = Dense::random([1, width, act_dim], scale, rng, device);
        let log_std = Dense::random([1, width, act_dim], scale, rng, device);
        let log_std = match config.initial_std {
            Some(std) => log_std.shift_bias(std.ln()),
            None => log_std,
        };
        Self {
            trunk,
            mean,
            log_std,
        }
    }

    /// The action distribution for observations `[batch, agents, obs_dim]`.
    #[must_use]
    pub fn forward(&self, observations: Tensor<3>) -> Gaussian {
        let [batch, agents, obs_dim] = observations.dims();
        let hidden = self
            .trunk
            .forward(observations.reshape([1, batch * agents, obs_dim]), &[]);
        let mean = self.mean.forward(hidden.clone());
        let act_dim = mean.dims()[2];
        let (low, high) = LOG_STD_RANGE;
        let log_std = self.log_std.forward(hidden).clamp(low, high);
        let shape = [batch, agents, act_dim];
        Gaussian {
            mean: mean.reshape(shape),
            log_std: log_std.reshape(shape),
        }
    }

    pub(crate) fn export(&self, map: &mut TensorMap) -> Result<(), SacError> {
        let prefix = ["actor".to_owned()];
        self.trunk.export(&prefix, map)?;
        self.mean.export(&prefix, "mu", map)?;
        self.log_std.export(&prefix, "log_std", map)
    }

    pub(crate) fn import(
        hidden: &[usize],
        obs_dim: usize,
        act_dim: usize,
        map: &TensorMap,
        device: &Device,
    ) -> Result<Self, SacError> {
        let prefix = ["actor".to_owned()];
        let sizes = [hidden.last().copied().unwrap_or(obs_dim), act_dim];
        Ok(Self {
            trunk: Trunk::import(&prefix, obs_dim, hidden, false, map, device)?,
            mean: Dense::import(&prefix, "mu", sizes, map, device)?,
            log_std: Dense::import(&prefix, "log_std", sizes, map, device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_correction_holds_in_the_tails() {
        // ln(1 - tanh(u)^2) = ln 4 - 2|u| - 2 ln(1 + exp(-2|u|)), here in f64.
        let exact =
            |u: f64| 2.0 * (std::f64::consts::LN_2 - u.abs() - (-2.0 * u.abs()).exp().ln_1p());
        let points: Vec<f32> = (-120..=120).map(|i| i as f32 / 4.0).collect();
        let count = points.len();
        let tensor = Tensor::from_data(
            TensorData::new(points.clone(), [count, 1, 1]),
            &Device::default(),
        );
        let values = crate::net::host(log_one_minus_tanh_squared(&tensor)).unwrap();
        for (u, value) in points.iter().zip(values) {
            let exact = exact(f64::from(*u));
            assert!(
                (f64::from(value) - exact).abs() < 3e-6 * exact.abs().max(1.0),
                "{u}: {value} against {exact}"
            );
        }
    }

    #[test]
    fn densities_integrate_to_one() {
        let device = Device::default();
        let cube = |values: Vec<f32>| {
            let count = values.len();
            Tensor::<3>::from_data(TensorData::new(values, [count, 1, 1]), &device)
        };
        // Midpoint rule over the squashed action itself.
        let cells = 20_000;
        let actions: Vec<f32> = (0..cells)
            .map(|i| ((2 * i + 1) as f64 / cells as f64 - 1.0) as f32)
            .collect();
        for (mean, log_std) in [(0.0, -1.0), (0.4, -0.7), (-0.3, -1.5)] {
            let gaussian = Gaussian {
                mean: cube(vec![mean; cells]),
                log_std: cube(vec![log_std; cells]),
            };
            let log_prob = gaussian.log_prob(cube(actions.clone()), AgentReduction::Mean);
            let densities = crate::net::host(log_prob).unwrap();
            let total =
                densities.iter().map(|&l| f64::from(l).exp()).sum::<f64>() * 2.0 / cells as f64;
            assert!((total - 1.0).abs() < 1e-3, "{total}");
        }
    }
}
