//! Operations with a backward pass of their own.
//!
//! Autodiff would split each into five to ten steps, keep most of the intermediate tensors and pass
//! over memory once per step, forward and backward. Here each is one step that keeps its inputs or
//! its output only. On the CPU backend Flex the passes are single loops; other CPU backends compose
//! them from Burn's operations; on all other backends autodiff does its usual work.

mod flex;
pub(crate) mod math;
mod ops;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{Device, Tensor};

use ops::FusedOps;

/// Softmax over the last dimension of `scores + mask`; the mask is `[1, 1, queries, keys]`.
pub(crate) fn masked_softmax(scores: Tensor<4>, mask: Tensor<4>) -> Tensor<4> {
    if !supports(&scores.device()) {
        return softmax(scores + mask, 3);
    }
    let (scores, mask) = (scores.into_dispatch(), mask.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::masked_softmax(scores, mask))
}

/// `x/2 (1 + tanh(u)) = x sigmoid(2u)` with `u = sqrt(2/pi) (x + 0.044715 x^3)`.
pub(crate) fn gelu_tanh(x: Tensor<3>) -> Tensor<3> {
    if !supports(&x.device()) {
        let square = x.clone() * x.clone();
        let inner = x.clone() * (square * math::GELU_CUBIC + math::GELU_LINEAR);
        return x * sigmoid(inner);
    }
    Tensor::from_dispatch(<Dispatch as FusedOps>::gelu_tanh(x.into_dispatch()))
}

/// `gate sigmoid(gate) up`.
pub(crate) fn gated_silu(gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    if !supports(&gate.device()) {
        return silu(gate) * up;
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(<Dispatch as FusedOps>::gated_silu(gate, up))
}

/// Whether the device's backend implements the operations; calling them on another would panic.
pub(crate) fn supports(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        #[allow(
            unreachable_patterns,
            reason = "other variants exist with other features"
        )]
        _ => false,
    }
}
