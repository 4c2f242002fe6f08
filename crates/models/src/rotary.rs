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
    ///
    /// Every step is rounded to f32 as transformers rounds it: checkpoints are trained and served with these angles, and at
    /// position 100,000 the rounding of an angle alone is up to 0.004.
    fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|plane| 2.0 * plane as f32 / head_dim as f32)
            .map(|exponent| 1.0 / (self.theta.powf(f64::from(exponent)) as f32))
            .map(|frequency| self.scaling.apply(frequency))
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, frequency: f32) -> f32 {
        match *self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: context,
            } => {
                let wavelength = std::f32::consts::TAU / frequency;
                let factor = factor as f32;
                if wavelength > (context / low_freq_factor) as f32 {
                    frequency / factor
                } else if wavelength < (context / high_freq_factor) as f32 {
                    frequency
                } else {
                    let smooth = (context as f32 / wavelength - low_freq_factor as f32)
                        / (high_freq_factor - low_freq_factor) as f32;
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
    frequencies: Vec<f32>,
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
                .map(|frequency| function(f64::from(position as f32 * frequency)) as f32)
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

#[cfg(test)]
mod tests {
    use super::{RopeConfig, RopeScaling, Rotary};
    use burn::tensor::Device;

    /// Llama-3.2-1B's, as transformers 5.23.0 (torch 2.15.0) computes them.
    const FREQUENCIES: [f32; 32] = [
        1.0,
        0.6636013,
        0.44036663,
        0.29222783,
        0.19392276,
        0.12868738,
        0.0853971,
        0.05666962,
        0.03760603,
        0.024955409,
        0.01656044,
        0.010989529,
        0.007292665,
        0.0048394212,
        0.003211446,
        0.001290548,
        4.295567e-4,
        9.708286e-5,
        1.9461639e-5,
        1.29147675e-5,
        8.570256e-6,
        5.6872323e-6,
        3.7740544e-6,
        2.5044671e-6,
        1.6619674e-6,
        1.1028836e-6,
        7.3187493e-7,
        4.856731e-7,
        3.222933e-7,
        2.1387423e-7,
        1.419272e-7,
        9.4183065e-8,
    ];
    /// Cosine and sine of planes 1, 7, 13 and 31 at three positions, from the same.
    const ROTATIONS: [(usize, [(f32, f32); 4]); 3] = [
        (
            1000,
            [
                (-0.7483619, -0.6632907),
                (0.99269414, 0.12065805),
                (0.12669091, -0.9919422),
                (1.0, 9.4183066e-5),
            ],
        ),
        (
            8191,
            [
                (0.823743, 0.5669634),
                (0.7145151, -0.69962),
                (-0.3614195, 0.9324033),
                (0.9999997, 7.7145343e-4),
            ],
        ),
        (
            100_000,
            [
                (-0.965516, -0.26034376),
                (0.8910092, -0.45398527),
                (0.9906479, 0.13644308),
                (0.99995565, 0.009418167),
            ],
        ),
    ];

    #[test]
    fn angles_are_transformers_own_far_into_the_context() {
        let config = RopeConfig {
            theta: 500_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 8192.0,
            },
        };
        let rotary = Rotary::new(&config, 64);
        let steps_apart = |a: f32, b: f32| a.to_bits().abs_diff(b.to_bits());
        let worst = rotary.frequencies.iter().zip(FREQUENCIES);
        let worst = worst.map(|(found, expected)| steps_apart(*found, expected));
        assert!(
            worst.clone().all(|steps| steps <= 1),
            "{:?}",
            rotary.frequencies
        );
        println!(
            "{} of 32 frequencies equal to the bit",
            worst.filter(|steps| *steps == 0).count()
        );
        let device = Device::default();
        for (position, planes) in ROTATIONS {
            let values = |function| {
                let table = rotary.table(function, position, 1, &device);
                table.into_data().iter::<f32>().collect::<Vec<f32>>()
            };
            let (cos, sin) = (values(f64::cos), values(f64::sin));
            for (plane, (expected_cos, expected_sin)) in [1, 7, 13, 31].into_iter().zip(planes) {
                assert!(
                    (cos[plane] - expected_cos).abs() < 2e-7,
                    "{position} {plane}"
                );
                assert!(
                    (sin[plane] - expected_sin).abs() < 2e-7,
                    "{position} {plane}"
                );
            }
        }
    }
}
