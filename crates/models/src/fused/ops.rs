// NdArray is on its way out of Burn, but the second implementation that our tests compare with.
#![cfg_attr(feature = "ndarray", allow(deprecated))]

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, binary, unary};
use burn::backend::{Autodiff, Backend, backend_extension, tensor::FloatTensor};

use super::math;

/// The operations as Burn dispatches them.
#[backend_extension(Flex: cfg(feature = "flex"), NdArray: cfg(feature = "ndarray"), Autodiff)]
pub(crate) trait FusedOps: Backend {
    fn masked_softmax(scores: FloatTensor<Self>, mask: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gated_silu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The passes themselves, forward and backward; a backend may have something better than Burn's
/// operations one after the other.
pub(crate) trait FusedPasses: Backend {
    fn softmax_pass(scores: FloatTensor<Self>, mask: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::softmax::<Self>(scores, mask)
    }

    fn softmax_backward(output: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::softmax_backward::<Self>(output, grad)
    }

    fn gelu_pass(x: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu::<Self>(x)
    }

    fn gelu_backward_pass(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gelu_backward::<Self>(x, grad)
    }

    fn gated_silu_pass(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::gated_silu::<Self>(gate, up)
    }

    fn gate_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::gate_backward::<Self>(gate, up, grad)
    }
}

/// The passes as compositions of Burn's operations.
pub(super) mod composed {
    use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

    use super::math;

    type Float<B> = FloatTensor<B>;

    pub(crate) fn softmax<B: Backend>(scores: Float<B>, mask: Float<B>) -> Float<B> {
        let last = scores.shape().num_dims() - 1;
        B::softmax(B::float_add(scores, mask), last)
    }

    /// `p (g - sum(p g))` over rows.
    pub(crate) fn softmax_backward<B: Backend>(output: Float<B>, grad: Float<B>) -> Float<B> {
        let last = output.shape().num_dims() - 1;
        let product = B::float_mul(grad, output.clone());
        let sum = B::float_sum_dim(product.clone(), last);
        B::float_sub(product, B::float_mul(output, sum))
    }

    pub(crate) fn gelu<B: Backend>(x: Float<B>) -> Float<B> {
        let gate = B::sigmoid(gelu_inner::<B>(x.clone()));
        B::float_mul(x, gate)
    }

    /// With `s` the sigmoid of `v(x)`: `g (s + x s (1 - s) v'(x))`.
    pub(crate) fn gelu_backward<B: Backend>(x: Float<B>, grad: Float<B>) -> Float<B> {
        let gate = B::sigmoid(gelu_inner::<B>(x.clone()));
        let square = B::float_mul(x.clone(), x.clone());
        let slope = B::float_mul_scalar(square, (3.0 * math::GELU_CUBIC).into());
        let slope = B::float_add_scalar(slope, math::GELU_LINEAR.into());
        let slope = B::float_mul(B::float_mul(x, slope), complement::<B>(gate.clone()));
        let slope = B::float_mul(gate, B::float_add_scalar(slope, 1.0.into()));
        B::float_mul(grad, slope)
    }

    pub(crate) fn gated_silu<B: Backend>(gate: Float<B>, up: Float<B>) -> Float<B> {
        let silu = B::float_mul(gate.clone(), B::sigmoid(gate));
        B::float_mul(silu, up)
    }

    /// With `s` the gate's sigmoid: `g up s (1 + gate (1 - s))`.
    pub(crate) fn gate_backward<B: Backend>(
        gate: Float<B>,
        up: Float<B>,
        grad: Float<B>,
    ) -> Float<B> {
        let sigmoid = B::sigmoid(gate.clone());
        let slope = B::float_mul(gate, complement::<B>(sigmoid.clone()));
        let slope = B::float_mul(sigmoid, B::float_add_scalar(slope, 1.0.into()));
        B::float_mul(B::float_mul(grad, up), slope)
    }

    fn gelu_inner<B: Backend>(x: Float<B>) -> Float<B> {
        let square = B::float_mul(x.clone(), x.clone());
        let factor = B::float_mul_scalar(square, math::GELU_CUBIC.into());
        B::float_mul(x, B::float_add_scalar(factor, math::GELU_LINEAR.into()))
    }

    /// `1 - x`.
    fn complement<B: Backend>(x: Float<B>) -> Float<B> {
        B::float_add_scalar(B::float_neg(x), 1.0.into())
    }
}

macro_rules! forward_to_passes {
    ($backend:ty) => {
        impl FusedOps for $backend {
            fn masked_softmax(
                scores: FloatTensor<Self>,
                mask: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                Self::softmax_pass(scores, mask)
            }

            fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::gelu_pass(x)
            }

            fn gated_silu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
                Self::gated_silu_pass(gate, up)
            }
        }
    };
}

#[cfg(feature = "flex")]
forward_to_passes!(burn::backend::Flex);

#[cfg(feature = "ndarray")]
mod ndarray {
    use super::{FloatTensor, FusedOps, FusedPasses};

    impl FusedPasses for burn::backend::NdArray {}
    forward_to_passes!(burn::backend::NdArray);
}

impl<B: FusedOps + FusedPasses, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    /// The mask is a constant: no gradient flows into it.
    fn masked_softmax(scores: FloatTensor<Self>, mask: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Softmax;

        impl<B: FusedPasses> Backward<B, 1> for Softmax {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let output = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::softmax_backward(output, grad)
                });
            }
        }

        let (scores, node) = scores.into_parts();
        let output = B::softmax_pass(scores, mask.into_primitive());
        match Softmax.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(output.clone(), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    }

    fn gelu_tanh(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Gelu;

        impl<B: FusedPasses> Backward<B, 1> for Gelu {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let x = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::gelu_backward_pass(x, grad)
                });
            }
        }

        let (x, node) = x.into_parts();
        match Gelu.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(x.clone(), B::gelu_pass(x)),
            OpsKind::UnTracked(prep) => prep.finish(B::gelu_pass(x)),
        }
    }

    fn gated_silu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GatedSilu;

        impl<B: FusedPasses> Backward<B, 2> for GatedSilu {
            type State = (FloatTensor<B>, FloatTensor<B>);

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let (gate, up) = ops.state;
                let same = gate.clone();
                binary::<B, _, _>(
                    ops.parents,
                    ops.node,
                    grads,
                    |grad| B::gate_backward(gate, up, grad),
                    |grad| B::gated_silu_pass(same, grad),
                );
            }
        }

        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        let operation = GatedSilu.prepare::<C>([gate_node, up_node]);
        match operation.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                prep.finish((gate.clone(), up.clone()), B::gated_silu_pass(gate, up))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_silu_pass(gate, up)),
        }
    }
}
