use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;
use rldp_lora::ForwardHook;

use crate::ModelError;
use crate::checkpoint::{Start, Weights};
use crate::fused;

/// Layer normalisation over the last dimension, with scale and shift.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// The scale.
    pub weight: Param<Tensor<1>>,
    /// The shift.
    pub bias: Param<Tensor<1>>,
    /// Called with the layer's input and output, if any.
    #[module(skip)]
    pub hook: Option<ForwardHook>,
    #[module(skip)]
    pub(crate) epsilon: f64,
}

/// Root-mean-square normalisation over the last dimension, with scale.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The scale.
    pub weight: Param<Tensor<1>>,
    /// Called with the layer's input and output, if any.
    #[module(skip)]
    pub hook: Option<ForwardHook>,
    #[module(skip)]
    pub(crate) epsilon: f64,
}

/// A frozen parameter.
pub(crate) fn frozen<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), tensor)
}

impl LayerNorm {
    pub(crate) fn take<W: Weights>(
        weights: &mut W,
        name: &str,
        size: usize,
        epsilon: f64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            weight: frozen(weights.take(&format!("{name}.weight"), [size], Start::Ones)?),
            bias: frozen(weights.take(&format!("{name}.bias"), [size], Start::Zeros)?),
            hook: None,
            epsilon,
        })
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.hook {
            None => self.output(x),
            Some(hook) => hook.call(x.clone(), self.output(x)),
        }
    }

    fn output(&self, x: Tensor<3>) -> Tensor<3> {
        fused::layer_norm(x, self.weight.val(), self.bias.val(), self.epsilon)
    }
}

impl RmsNorm {
    pub(crate) fn take<W: Weights>(
        weights: &mut W,
        name: &str,
        size: usize,
        epsilon: f64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            weight: frozen(weights.take(&format!("{name}.weight"), [size], Start::Ones)?),
            hook: None,
            epsilon,
        })
    }

    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.hook {
            None => self.output(x),
            Some(hook) => hook.call(x.clone(), self.output(x)),
        }
    }

    fn output(&self, x: Tensor<3>) -> Tensor<3> {
        fused::rms_norm(x, self.weight.val(), self.epsilon)
    }
}
