use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, relu};
use serde::{Deserialize, Serialize};

use crate::fused::gelu_tanh;

/// The activation functions of GPT-2 checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// The tanh approximation of the Gaussian error linear unit.
    GeluNew,
    /// The same function under PyTorch's name.
    GeluPytorchTanh,
    /// The Gaussian error linear unit.
    Gelu,
    /// The rectified linear unit.
    Relu,
}

impl Activation {
    pub(crate) fn forward(self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::GeluNew | Self::GeluPytorchTanh => gelu_tanh(x),
            Self::Gelu => gelu(x),
            Self::Relu => relu(x),
        }
    }
}
