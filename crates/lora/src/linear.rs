use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Tensor};

use crate::frozen::linear;
use crate::{ForwardHook, LoraAdapter};

/// A linear layer with frozen weights and an optional adapter.
///
/// The weight is held as `[in, out]`. Checkpoints that store `[out, in]` are loaded as a transposed
/// view, which costs no copy.
#[derive(Module, Debug)]
pub struct LoraLinear {
    /// The base weight, `[in, out]`, in f32, f16 or bf16; products are in f32 in any case.
    pub weight: Param<Tensor<2>>,
    /// The base bias, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// The adapter, if the layer is a target.
    pub adapter: Option<LoraAdapter>,
    /// Called with the layer's input and output, if any.
    #[module(skip)]
    pub hook: Option<ForwardHook>,
    /// The type the weight had before the adapter was folded into it, if it is.
    #[module(skip)]
    pub(crate) merged: Option<DType>,
}

impl LoraLinear {
    /// A layer without adapter. The weight is `[in, out]`.
    pub fn new(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight: Param::initialized(ParamId::new(), weight),
            bias: bias.map(|bias| Param::initialized(ParamId::new(), bias)),
            adapter: None,
            hook: None,
            merged: None,
        }
    }

    /// `[in, out]`.
    pub fn shape(&self) -> [usize; 2] {
        self.weight.dims()
    }

    /// Whether the adapter is currently folded into the weight.
    pub fn is_merged(&self) -> bool {
        self.merged.is_some()
    }

    /// `x W + bias + s (x A) B` for `x` of `[examples, time, in]`.
    ///
    /// # Panics
    ///
    /// If the adapter is expanded to a number of examples other than `x` has.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.hook {
            None => self.output(x),
            Some(hook) => hook.call(x.clone(), self.output(x)),
        }
    }

    fn output(&self, x: Tensor<3>) -> Tensor<3> {
        let (weight, bias) = (self.weight.val(), self.bias.as_ref().map(Param::val));
        match self.adapter.as_ref().filter(|_| !self.is_merged()) {
            None => linear(x, weight, bias),
            Some(adapter) => linear(x.clone(), weight, bias) + adapter.forward(x),
        }
    }
}
