//! Rotary position embedding in the half-split form of Hugging Face checkpoints.

use burn::tensor::{Device, Tensor, TensorData, module::linear};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ModelError;
use crate::config::Settings;
use crate::device_cache::DeviceCache;

/// How rotation frequencies follow from the position in the head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for contexts longer than those of pre-training.
    pub scaling: RopeScaling,
}

/// Change of the rotation frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// None.
    Default,
    /// All positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided by a factor, high ones kept, a smooth band between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Bounds of the band, in turns over the original context.
        low_freq_factor: f64,
        /// The upper bound.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position_embeddings: f64,
    },
}

impl RopeConfig {
    /// Reads `rope_theta` and `rope_scaling`, or `rope_parameters` of transformers 5.
    pub(crate) fn take(settings: &mut Settings) -> Result<Self, ModelError> {
        let theta = settings.take_f64("rope_theta")?;
        settings.only("rope_interleaved", false)?;
        settings.only("partial_rotary_factor", 1.0)?;
        let mut source = "rope_scaling";
        let mut fields = settings.take(source);
        if let Some(parameters) = settings.take("rope_parameters") {
            source = "rope_parameters";
            fields = Some(parameters);
        }
        let Some(value) = fields else {
            return Ok(Self {
                theta: theta.unwrap_or(10_000.0),
                scaling: RopeScaling::Default,
            });
        };
        let refuse = |reason: &str| settings.refuse(source, &value, reason);
        let Value::Object(map) = &value else {
            return Err(refuse("expected an object"));
        };
        let mut map: Map<String, Value> = map.clone();
        map.retain(|_, value| !value.is_null());
        let mut number = |name: &str| map.remove(name).and_then(|value| value.as_f64());
        let inner_theta = number("rope_theta");
        let partial = number("partial_rotary_factor");
        if partial.is_some_and(|factor| factor != 1.0) {
            return Err(refuse("partial rotation is not implemented"));
        }
        let names = ["rope_type", "type"];
        let kinds: Vec<Value> = names.iter().filter_map(|name| map.remove(*name)).collect();
        let kind = kinds.first().and_then(Value::as_str).unwrap_or("default");
        let mut need = |name: &str| {
            map.remove(name)
                .and_then(|value| value.as_f64())
                .filter(|number| number.is_finite() && *number > 0.0)
                .ok_or_else(|| refuse(&format!("`{name}` must be a number above 0")))
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear {
                factor: need("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: need("original_max_position_embeddings")?,
            },
            _ => return Err(refuse("implemented are default, linear and llama3")),
        };
        if let Some(name) = map.keys().next() {
            return Err(refuse(&format!("`{name}` is not known to this crate")));
        }
        Ok(Self {
            theta: inner_theta.or(theta).unwrap_or(10_000.0),
            scaling,
        })
    }

    /// Angle per position of each of the `head_dim / 2` planes.
    fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|plane| self.theta.powf(-2.0 * plane as f64 / head_dim as f64))
            .map(|frequency| self.scaling.apply(frequency))
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f64) -> f64 {
        match *self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let turns =
                    original_max_position_embeddings * frequency / (2.0 * std::f64::consts::PI);
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                if turns < low_freq_factor {
                    frequency / factor
                } else if turns > high_freq_factor {
                    frequency
                } else {
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Rotates queries and keys by their positions.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    head_dim: usize,
    frequencies: Vec<f64>,
    tables: DeviceCache<(usize, usize), 2>,
    halves: DeviceCache<(), 1>,
}

impl Rotary {
    pub(crate) fn new(config: &RopeConfig, head_dim: usize) -> Self {
        Self {
            head_dim,
            frequencies: config.frequencies(head_dim),
            tables: DeviceCache::default(),
            halves: DeviceCache::default(),
        }
    }

    /// Rotates `[batch, time, heads, head]`, the first token being at position `start`.
    pub(crate) fn forward(&self, x: Tensor<4>, start: usize) -> Tensor<4> {
        let device = x.device();
        let time = x.dims()[1];
        let [cos, sin] = self.tables.get((start, time), &device, |device| {
            [f64::cos, f64::sin].map(|function| self.table(function, start, time, device))
        });
        let [swap] = self
            .halves
            .get((), &device, |device| [self.swap_halves(device)]);
        // A small matrix product instead of slices, whose gradients would each write a full tensor.
        let swapped = linear(
            x.clone(),
            swap.reshape([self.head_dim, self.head_dim]),
            None,
        );
        x * cos + swapped * sin
    }

    fn table(
        &self,
        function: fn(f64) -> f64,
        start: usize,
        time: usize,
        device: &Device,
    ) -> Tensor<4> {
        let row = |position: usize| {
            let half: Vec<f32> = self
                .frequencies
                .iter()
                .map(|frequency| function(position as f64 * frequency) as f32)
                .collect();
            half.repeat(2)
        };
        let data: Vec<f32> = (start..start + time).flat_map(row).collect();
        Tensor::from_data(TensorData::new(data, [1, time, 1, self.head_dim]), device)
    }

    /// The matrix that takes `(x1, x2)` to `(-x2, x1)`.
    fn swap_halves(&self, device: &Device) -> Tensor<4> {
        let (dim, half) = (self.head_dim, self.head_dim / 2);
        let mut matrix = vec![0.0f32; dim * dim];
        for plane in 0..half {
            matrix[(plane + half) * dim + plane] = -1.0;
            matrix[plane * dim + plane + half] = 1.0;
        }
        Tensor::from_data(TensorData::new(matrix, [1, 1, dim, dim]), device)
    }
}
