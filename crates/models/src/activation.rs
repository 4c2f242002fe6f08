use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, relu, sigmoid};
use serde::{Deserialize, Serialize};

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

/// `x/2 (1 + tanh(u)) = x sigmoid(2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`: the sigmoid form
/// takes fewer passes over memory and its gradient is one operation.
fn gelu_tanh(x: Tensor<3>) -> Tensor<3> {
    const TWICE: f64 = 2.0 * 0.797_884_560_802_865_4;
    let square = x.clone() * x.clone();
    let inner = x.clone() * (square * (TWICE * 0.044_715) + TWICE);
    x * sigmoid(inner)
}
