//! Adam whose first-moment decay can be changed during a run, and which can subtract noise of known size.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};

/// Adam (Kingma and Ba 2015) with a first-moment decay that a controller can change between steps.
///
/// Bias correction uses the product of the decays really used, so that the first moment is an average of the
/// gradients with weights that sum to one at every step. What reaches this optimizer is released, so everything it
/// computes is post-processing and costs no privacy.
///
/// With a [`KnownNoise`] it can subtract the noise's share of the second moment, which is otherwise most of it
/// (Tang, Shpilevskiy, Lecuyer 2024, DP-AdamBC, Algorithm 1).
#[derive(Clone, Debug)]
pub struct SteeredAdam {
    beta_1: Beta1,
    beta_2: f64,
    epsilon: f64,
    noise: Option<KnownNoise>,
}

/// A second moment corrected for noise is never taken below this share of the noise's own: DP-AdamBC's stability
/// constant, in units of the noise, so that it fits any clipping norm. A step is so at most `10^(1/2)` times larger
/// than without the correction.
pub const SECOND_MOMENT_FLOOR: f64 = 0.1;

/// The noise that is known to be in the gradients of some parameters, for a [`SteeredAdam`] to subtract; clones share
/// the values.
#[derive(Clone, Debug, Default)]
pub struct KnownNoise {
    variance: Arc<AtomicU64>,
    share: Arc<AtomicU64>,
}

impl KnownNoise {
    /// No noise, and nothing subtracted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the variance of the noise in each coordinate of the next gradient, and which share of it to subtract,
    /// clamped to [0, 1]. What is no number, or a negative variance, counts as zero.
    pub fn set(&self, variance: f64, share: f64) {
        let sound = |value: f64| if value > 0.0 { value } else { 0.0 };
        self.variance
            .store(sound(variance).to_bits(), Ordering::Relaxed);
        self.share
            .store(sound(share).min(1.0).to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> (f64, f64) {
        let read = |value: &AtomicU64| f64::from_bits(value.load(Ordering::Relaxed));
        (read(&self.variance), read(&self.share))
    }
}

/// A handle on a [`SteeredAdam`]'s first-moment decay: clones share the value.
#[derive(Clone, Debug)]
pub struct Beta1(Arc<AtomicU64>);

impl Beta1 {
    /// A handle holding `value`, clamped to [0, 0.9999].
    #[must_use]
    pub fn new(value: f64) -> Self {
        let handle = Self(Arc::new(AtomicU64::new(0)));
        handle.set(value);
        handle
    }

    /// The decay now.
    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Sets the decay for the steps to come, clamped to [0, 0.9999]; a value that is no number is ignored.
    pub fn set(&self, value: f64) {
        if !value.is_nan() {
            self.0
                .store(value.clamp(0.0, 0.9999).to_bits(), Ordering::Relaxed);
        }
    }
}

/// The state of [`SteeredAdam`] for one parameter.
#[derive(Clone, Debug)]
pub struct SteeredAdamState<const D: usize> {
    /// Product of all first-moment decays so far.
    pub beta_1_product: f64,
    /// Product of all second-moment decays so far.
    pub beta_2_product: f64,
    /// Running average of the known noise's variance, with the weights of `moment_2`.
    pub noise_moment: f64,
    /// Running average of the gradients, not corrected for its start at zero.
    pub moment_1: Tensor<D>,
    /// Running average of the squared gradients, not corrected for its start at zero.
    pub moment_2: Tensor<D>,
}

// By hand: Burn's derive names paths that exist only inside Burn.
impl<const D: usize> RecordState for SteeredAdamState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, "beta_1_product", self.beta_1_product.into());
        out.push_scalar(prefix, "beta_2_product", self.beta_2_product.into());
        out.push_scalar(prefix, "noise_moment", self.noise_moment.into());
        out.push_tensor(prefix, "moment_1", self.moment_1.to_data());
        out.push_tensor(prefix, "moment_2", self.moment_2.to_data());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self {
            beta_1_product: src.take_scalar(prefix, "beta_1_product")?.try_into().ok()?,
            beta_2_product: src.take_scalar(prefix, "beta_2_product")?.try_into().ok()?,
            noise_moment: src.take_scalar(prefix, "noise_moment")?.try_into().ok()?,
            moment_1: Tensor::from_data(src.take_tensor(prefix, "moment_1")?, device),
            moment_2: Tensor::from_data(src.take_tensor(prefix, "moment_2")?, device),
        })
    }
}

impl SteeredAdam {
    /// An optimizer with the given decays; `epsilon` is added to the root of the second moment. Released gradients
    /// are as small as the clipping norms make them, so it should be far below their noise (1e-12 serves any norm).
    #[must_use]
    pub fn new(beta_1: Beta1, beta_2: f64, epsilon: f64) -> Self {
        Self {
            beta_1,
            beta_2: beta_2.clamp(0.0, 0.999_999),
            epsilon: epsilon.max(0.0),
            noise: None,
        }
    }

    /// The same optimizer, told of the noise in its gradients. As long as the share to subtract is zero it moves
    /// parameters bit for bit as without.
    #[must_use]
    pub fn with_known_noise(mut self, noise: KnownNoise) -> Self {
        self.noise = Some(noise);
        self
    }

    /// The optimizer for whole modules.
    #[must_use]
    pub fn init(self) -> ModuleOptimizer {
        self.into()
    }
}

impl Optimizer for SteeredAdam {
    type State<const D: usize> = SteeredAdamState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let beta_1 = self.beta_1.get();
        let squared = grad.clone() * grad.clone();
        let (variance, share) = self.noise.as_ref().map_or((0.0, 0.0), KnownNoise::get);
        let state = match state {
            None => SteeredAdamState {
                beta_1_product: beta_1,
                beta_2_product: self.beta_2,
                noise_moment: variance * (1.0 - self.beta_2),
                moment_1: grad.mul_scalar(1.0 - beta_1),
                moment_2: squared.mul_scalar(1.0 - self.beta_2),
            },
            Some(last) => SteeredAdamState {
                beta_1_product: last.beta_1_product * beta_1,
                beta_2_product: last.beta_2_product * self.beta_2,
                noise_moment: last.noise_moment * self.beta_2 + variance * (1.0 - self.beta_2),
                moment_1: last.moment_1.mul_scalar(beta_1) + grad.mul_scalar(1.0 - beta_1),
                moment_2: last.moment_2.mul_scalar(self.beta_2)
                    + squared.mul_scalar(1.0 - self.beta_2),
            },
        };
        let direction = state
            .moment_1
            .clone()
            .div_scalar(1.0 - state.beta_1_product);
        let second = state
            .moment_2
            .clone()
            .div_scalar(1.0 - state.beta_2_product);
        let known = state.noise_moment / (1.0 - state.beta_2_product);
        let second = if share > 0.0 && known > 0.0 {
            second
                .sub_scalar(share * known)
                .clamp_min(SECOND_MOMENT_FLOOR * known)
        } else {
            second
        };
        let scale = second.sqrt().add_scalar(self.epsilon);
        let update = (direction / scale).mul_scalar(lr);
        (tensor - update, Some(state))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.moment_1 = state.moment_1.to_device(device);
        state.moment_2 = state.moment_2.to_device(device);
        state
    }
}
