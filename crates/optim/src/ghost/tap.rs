//! The identity, whose backward pass keeps the gradient of what flows through it.

// NdArray is on its way out of Burn, but the second implementation that our tests compare with.
#![cfg_attr(feature = "ndarray", allow(deprecated))]

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients as TapeGradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, backend_extension, tensor::FloatTensor,
};
use burn::tensor::{Device, Gradients, Tensor};

/// The operation as Burn dispatches it.
#[backend_extension(Flex: cfg(feature = "flex"), NdArray: cfg(feature = "ndarray"), Autodiff)]
pub(crate) trait TapOps: Backend {
    /// `x` itself. Backward, the gradient of `x` is also kept as that of the leaf `probe`, whatever the probe's shape.
    fn tap(x: FloatTensor<Self>, probe: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
impl TapOps for burn::backend::Flex {
    fn tap(x: FloatTensor<Self>, _probe: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }
}

#[cfg(feature = "ndarray")]
impl TapOps for burn::backend::NdArray {
    fn tap(x: FloatTensor<Self>, _probe: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }
}

impl<B: TapOps, C: CheckpointStrategy> TapOps for Autodiff<B, C> {
    fn tap(x: FloatTensor<Self>, probe: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Tap;

        impl<B: Backend> Backward<B, 2> for Tap {
            type State = ();

            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut TapeGradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                for node in ops.parents.into_iter().flatten() {
                    grads.register::<B>(node.id, grad.clone());
                }
            }
        }

        let ((x, x_node), (_, probe_node)) = (x.into_parts(), probe.into_parts());
        match Tap
            .prepare::<C>([x_node, probe_node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish((), x),
            OpsKind::UnTracked(prep) => prep.finish(x),
        }
    }
}

/// What remembers the gradient of a tapped tensor.
pub(super) struct Probe(Tensor<3>);

/// Taps a tensor of shape `[examples, time, width]`. On backends without the operation, a tensor of zeros is added.
pub(super) fn tap(x: Tensor<3>) -> (Tensor<3>, Probe) {
    let device = x.device().without_autodiff();
    let leaf = |shape: [usize; 3]| Tensor::<3>::zeros(shape, &device).autodiff().require_grad();
    if supports(&device) {
        let probe = leaf([1, 1, 1]);
        let x = x.autodiff().into_dispatch();
        let tapped = <Dispatch as TapOps>::tap(x, probe.clone().into_dispatch());
        (Tensor::from_dispatch(tapped), Probe(probe))
    } else {
        let probe = leaf(x.dims());
        (x + probe.clone(), Probe(probe))
    }
}

impl Probe {
    /// The gradient of the tapped tensor, without autodiff; nothing if the loss does not depend on it.
    pub(super) fn take(&self, gradients: &mut Gradients) -> Option<Tensor<3>> {
        self.0.grad_remove(gradients)
    }
}

/// Whether the device's backend implements the operation; calling it on another would panic.
pub(super) fn supports(device: &Device) -> bool {
    match device.as_dispatch() {
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
