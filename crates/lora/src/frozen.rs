//! Products with frozen matrices, which may be held in half precision.
//!
//! A half matrix is widened to f32 for one product at a time, in the forward pass and again in the
//! backward pass, so that no f32 copy of the model ever exists. All arithmetic is in f32. Autodiff
//! by itself would keep the widened matrix of every layer until the backward pass: on the CPU
//! backend Flex one operation with a backward pass of its own keeps the half matrix instead. On
//! other devices the widened matrices live as long as the graph, which is one block at a time if
//! activations are recomputed.

// NdArray holds no half precision, but the macro needs every backend that can be compiled in.
#![cfg_attr(feature = "ndarray", allow(deprecated))]

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind, unary};
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, backend_extension, tensor::FloatTensor,
};
use burn::tensor::{DType, Device, FloatDType, Tensor, module};

/// Whether elements of this type are half as wide as f32.
pub fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// A tensor of half precision as f32; any other as it is.
pub fn widen<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match is_half(tensor.dtype()) {
        true => tensor.cast(FloatDType::F32),
        false => tensor,
    }
}

/// `x W + bias` for `x` of `[.., in]` and `W` of `[in, out]`, in f32 whatever the type of `W`.
///
/// A gradient flows to `x` and to the bias; to `W` only if it is tracked, as in full-parameter
/// training.
pub fn linear<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    if !is_half(weight.dtype()) {
        return module::linear(x, weight, bias);
    }
    if weight.is_tracked() || !supports(&weight.device()) {
        return module::linear(x, widen(weight), bias);
    }
    let [inputs, outputs] = weight.dims();
    let mut shape = x.dims();
    shape[D - 1] = outputs;
    let rows = x.reshape([-1, inputs as i32]);
    let product =
        <Dispatch as FrozenOps>::half_product(rows.into_dispatch(), weight.into_dispatch());
    let product = Tensor::<2>::from_dispatch(product).reshape(shape);
    match bias {
        Some(bias) => product + bias.unsqueeze(),
        None => product,
    }
}

/// Whether the device's backend implements the operation; calling it on another would panic.
fn supports(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[allow(
            unreachable_patterns,
            reason = "other variants exist with other features"
        )]
        _ => false,
    }
}

#[backend_extension(Flex: cfg(feature = "flex"), NdArray: cfg(feature = "ndarray"), Autodiff)]
pub(crate) trait FrozenOps: Backend {
    /// `x W` for rows `x` in f32 and a frozen `W` in half precision.
    fn half_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

pub(crate) trait Widen: Backend {
    /// Half precision to f32.
    fn widen(weight: FloatTensor<Self>) -> FloatTensor<Self> {
        cast::<Self>(weight)
    }
}

fn cast<B: Backend>(weight: FloatTensor<B>) -> FloatTensor<B> {
    B::float_cast(weight, FloatDType::F32)
}

fn product<B: Widen>(rows: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(rows, B::widen(weight))
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Flex, TensorMetadata};
    use burn::tensor::DType;
    use half::slice::HalfFloatSliceExt;
    use half::{bf16, f16};
    use rayon::prelude::*;

    use super::{FrozenOps, Widen, cast, product};

    type Primitive = FloatTensor<Flex>;

    /// Elements a thread takes at a time.
    const GRAIN: usize = 1 << 16;

    impl FrozenOps for Flex {
        fn half_product(rows: Primitive, weight: Primitive) -> Primitive {
            product::<Self>(rows, weight)
        }
    }

    impl Widen for Flex {
        fn widen(weight: Primitive) -> Primitive {
            // A matrix stored as `[out, in]` is a transposed view: its elements are read as they lie.
            if !weight.is_contiguous() && weight.transpose(0, 1).is_contiguous() {
                return in_order(weight.transpose(0, 1)).transpose(0, 1);
            }
            in_order(weight)
        }
    }

    fn in_order(weight: Primitive) -> Primitive {
        let weight = weight.to_contiguous();
        let mut wide = Primitive::empty(weight.shape(), DType::F32);
        let out = wide.storage_mut::<f32>().par_chunks_mut(GRAIN);
        match weight.dtype() {
            DType::BF16 => {
                let source = weight.as_slice::<bf16>().unwrap_or(&[]);
                // bf16 is the upper half of an f32.
                out.zip(source.par_chunks(GRAIN)).for_each(|(out, source)| {
                    for (out, half) in out.iter_mut().zip(source) {
                        *out = f32::from_bits(u32::from(half.to_bits()) << 16);
                    }
                });
            }
            DType::F16 => {
                let source = weight.as_slice::<f16>().unwrap_or(&[]);
                out.zip(source.par_chunks(GRAIN))
                    .for_each(|(out, source)| source.convert_to_f32_slice(out));
            }
            _ => return cast::<Flex>(weight),
        }
        wide
    }
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use super::{FloatTensor, FrozenOps, Widen, product};

    impl Widen for burn::backend::NdArray {}

    impl FrozenOps for burn::backend::NdArray {
        fn half_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            product::<Self>(rows, weight)
        }
    }
}

impl<B: FrozenOps + Widen, C: CheckpointStrategy> FrozenOps for Autodiff<B, C> {
    fn half_product(rows: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct HalfProduct;

        impl<B: Widen> Backward<B, 1> for HalfProduct {
            /// The matrix as it is held: shared with the model, not copied.
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let weight = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::float_matmul(grad, B::float_swap_dims(B::widen(weight), 0, 1))
                });
            }
        }

        let (rows, node) = rows.into_parts();
        let weight = weight.into_primitive();
        match HalfProduct.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(weight.clone(), product::<B>(rows, weight)),
            OpsKind::UnTracked(prep) => prep.finish(product::<B>(rows, weight)),
        }
    }
}
