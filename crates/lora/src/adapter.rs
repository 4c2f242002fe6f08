use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use rand::rngs::{ChaCha8Rng, ChaCha12Rng};
use rand::{Rng, RngExt, SeedableRng};

use crate::LoraConfig;

/// The two factors of one layer's update `s (x A) B`.
#[derive(Module, Debug)]
pub struct LoraAdapter {
    /// `A`, `[1 or examples, in, rank]`.
    pub a: Param<Tensor<3>>,
    /// `B`, `[1 or examples, rank, out]`.
    pub b: Param<Tensor<3>>,
    /// The adapted layer's name in the Hugging Face checkpoint.
    #[module(skip)]
    pub name: String,
    /// The factor `s`.
    #[module(skip)]
    pub scaling: f64,
    /// Probability of zeroing an input element while training.
    #[module(skip)]
    pub dropout: f64,
    /// Whether `A` stays as it is.
    #[module(skip)]
    pub freeze_a: bool,
    /// What the dropout mask follows from, so that a forward pass can be repeated; the device's
    /// generator if absent.
    #[module(skip)]
    pub(crate) dropout_seed: Option<u64>,
}

/// Identity and size of one adapter, in the order of the model's layers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdapterRef {
    /// The adapted layer's name in the Hugging Face checkpoint.
    pub name: String,
    /// Parameter id of `A`.
    pub a_id: ParamId,
    /// Parameter id of `B`.
    pub b_id: ParamId,
    /// `[in, rank]`.
    pub a_shape: [usize; 2],
    /// `[rank, out]`.
    pub b_shape: [usize; 2],
    /// Whether `A` stays as it is (FFA-LoRA); then it has no gradient.
    pub freeze_a: bool,
}

impl AdapterRef {
    /// How many numbers training changes.
    pub fn trainable_parameters(&self) -> usize {
        let a = if self.freeze_a {
            0
        } else {
            self.a_shape[0] * self.a_shape[1]
        };
        a + self.b_shape[0] * self.b_shape[1]
    }
}

/// All adapters of a model as a module of their own: what an optimizer steps and a record holds.
///
/// The parameter ids follow from the names, so optimizer state saved in one process fits the
/// adapters of another.
#[derive(Module, Debug)]
pub struct Adapters {
    /// In the order of the model's layers.
    pub layers: Vec<LoraAdapter>,
}

impl LoraAdapter {
    /// A new adapter that changes nothing yet: `B` is zero, `A` uniform within `1/sqrt(in)`.
    ///
    /// `A` depends on `seed` and `name` only, not on the device.
    pub(crate) fn init(
        name: &str,
        [inputs, outputs]: [usize; 2],
        config: &LoraConfig,
        seed: u64,
        device: &Device,
    ) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed ^ fnv1a(name.as_bytes()));
        let bound = 1.0 / (inputs as f32).sqrt();
        let a: Vec<f32> = (0..inputs * config.rank)
            .map(|_| (rng.random::<f32>() * 2.0 - 1.0) * bound)
            .collect();
        let a = Tensor::from_data(TensorData::new(a, [1, inputs, config.rank]), device);
        let b = Tensor::zeros([1, config.rank, outputs], device);
        Self::from_factors(name, a, b, config)
    }

    /// An adapter with the given factors, `[1, in, rank]` and `[1, rank, out]`.
    pub fn from_factors(name: &str, a: Tensor<3>, b: Tensor<3>, config: &LoraConfig) -> Self {
        Self {
            a: trainable(stable_id(name, "lora_A"), a, !config.freeze_a),
            b: trainable(stable_id(name, "lora_B"), b, true),
            name: name.to_owned(),
            scaling: config.scaling(),
            dropout: config.dropout,
            freeze_a: config.freeze_a,
            dropout_seed: None,
        }
    }

    /// Identity and size.
    pub fn reference(&self) -> AdapterRef {
        let [_, inputs, rank] = self.a.dims();
        let [_, _, outputs] = self.b.dims();
        AdapterRef {
            name: self.name.clone(),
            a_id: self.a.id,
            b_id: self.b.id,
            a_shape: [inputs, rank],
            b_shape: [rank, outputs],
            freeze_a: self.freeze_a,
        }
    }

    /// How many copies of the factors there are: 1 at rest, the batch size when expanded.
    pub fn examples(&self) -> usize {
        self.b.dims()[0]
    }

    /// One copy of the factors per example, each copy a leaf of the autodiff graph.
    pub(crate) fn expanded(&self, examples: usize, dropout_seed: Option<u64>) -> Self {
        let leaf = |param: &Param<Tensor<3>>| {
            let value = param.val().without_autodiff().narrow(0, 0, 1);
            let value = value.repeat_dim(0, examples).autodiff().require_grad();
            Param::initialized(param.id, value)
        };
        Self {
            a: if self.freeze_a {
                self.a.clone()
            } else {
                leaf(&self.a)
            },
            b: leaf(&self.b),
            dropout_seed,
            ..self.clone()
        }
    }

    /// Whether a forward pass zeroes input elements at random: while training, with dropout.
    pub fn drops_inputs(&self) -> bool {
        // A seed marks the factors of a training pass whose gradients are taken elsewhere.
        let training = self.b.val().is_require_grad() || self.dropout_seed.is_some();
        training && self.dropout > 0.0
    }

    /// `s (x A) B` for `x` of `[examples, time, in]`.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let (a, b) = (self.a.val(), self.b.val());
        let x = if self.drops_inputs() {
            self.drop_out(x)
        } else {
            x
        };
        // Scaling the rank-r intermediate is the cheapest place to do it.
        product(product(x, a) * self.scaling, b)
    }

    fn drop_out(&self, x: Tensor<3>) -> Tensor<3> {
        let keep = 1.0 - self.dropout;
        let device = x.device().without_autodiff();
        let mask = match self.dropout_seed {
            None => Tensor::random(x.shape(), Distribution::Bernoulli(keep), &device),
            Some(seed) => {
                let seed = seed ^ fnv1a(self.name.as_bytes());
                let mask = bernoulli(x.shape().num_elements(), keep, seed);
                Tensor::from_data(TensorData::new(mask, x.shape()), &device)
            }
        };
        x * (mask / keep)
    }

    /// The update `s A B` as `[in, out]`, from the first copy.
    pub(crate) fn delta(&self) -> Tensor<2> {
        let first = |param: &Param<Tensor<3>>| {
            let value = param.val().without_autodiff().narrow(0, 0, 1);
            let [_, rows, columns] = value.dims();
            value.reshape([rows, columns])
        };
        first(&self.a).matmul(first(&self.b)) * self.scaling
    }
}

/// `x F` with one shared factor (folded into one matrix product) or one factor per example.
fn product(x: Tensor<3>, factor: Tensor<3>) -> Tensor<3> {
    let [copies, rows, columns] = factor.dims();
    if copies == 1 {
        burn::tensor::module::linear(x, factor.reshape([rows, columns]), None)
    } else {
        x.matmul(factor)
    }
}

/// `count` values, each 1 with probability `keep` up to 2^-32, else 0.
fn bernoulli(count: usize, keep: f64, seed: u64) -> Vec<f32> {
    let threshold = (keep * 4_294_967_296.0) as u64;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let draw = |_| f32::from(u8::from(u64::from(rng.next_u32()) < threshold));
    (0..count).map(draw).collect()
}

fn trainable(id: ParamId, value: Tensor<3>, active: bool) -> Param<Tensor<3>> {
    Param::initialized(id, value).set_require_grad(active)
}

/// The same id for the same adapter in every process.
fn stable_id(name: &str, factor: &str) -> ParamId {
    ParamId::from(fnv1a(format!("{name}.{factor}").as_bytes()))
}

/// The 64-bit FNV-1a hash: stable over processes and releases, unlike the standard hasher.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::bernoulli;

    #[test]
    fn masks_keep_the_right_share_and_are_stable() {
        let mask = bernoulli(1_000_000, 0.9, 7);
        let kept: f32 = mask.iter().sum();
        // Five standard deviations (300 each): false alarm below 1e-6.
        assert!((kept - 900_000.0).abs() < 1500.0, "{kept}");
        assert_eq!(mask, bernoulli(1_000_000, 0.9, 7));
        assert_ne!(mask, bernoulli(1_000_000, 0.9, 8));
        let start: Vec<f32> = bernoulli(16, 0.5, 1);
        // Pinned: a change breaks reproducibility and belongs in the changelog.
        let pinned = [0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1];
        assert_eq!(start, pinned.map(|kept| kept as f32));
    }
}
