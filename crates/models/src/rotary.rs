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
        0.663601279258728,
        0.44036662578582764,
        0.2922278344631195,
        0.193922758102417,
        0.12868738174438477,
        0.08539710193872452,
        0.05666961893439293,
        0.03760603070259094,
        0.02495540864765644,
        0.016560440883040428,
        0.010989529080688953,
        0.00729266507551074,
        0.00483942124992609,
        0.0032114461064338684,
        0.0012905480107292533,
        0.000429556705057621,
        9.708286233944818e-05,
        1.9461638657958247e-05,
        1.291476746700937e-05,
        8.570255886297673e-06,
        5.687232260243036e-06,
        3.7740544485131977e-06,
        2.504467147446121e-06,
        1.6619674170215148e-06,
        1.1028836297555245e-06,
        7.318749339901842e-07,
        4.856731266045244e-07,
        3.2229328894572973e-07,
        2.1387423032592778e-07,
        1.4192720243499934e-07,
        9.418306490260875e-08,
    ];
    /// Cosine and sine of planes 1, 7, 13 and 31 at three positions, from the same.
    const ROTATIONS: [(usize, [(f32, f32); 4]); 3] = [
        (
            1000,
            [
                (-0.7483618855476379, -0.6632906794548035),
                (0.9926941394805908, 0.12065804749727249),
                (0.12669090926647186, -0.9919422268867493),
                (1.0, 9.418306581210345e-05),
            ],
        ),
        (
            8191,
            [
                (0.8237429857254028, 0.5669633746147156),
                (0.7145150899887085, -0.6996200084686279),
                (-0.3614194989204407, 0.9324033260345459),
                (0.9999997019767761, 0.000771453429479152),
            ],
        ),
        (
            100_000,
            [
                (-0.9655159711837769, -0.2603437602519989),
                (0.8910092115402222, -0.4539852738380432),
                (0.9906479120254517, 0.13644307851791382),
                (0.9999556541442871, 0.009418167173862457),
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
