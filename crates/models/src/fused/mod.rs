//! Operations with a backward pass of their own.
//!
//! Autodiff would split each into five to ten steps, keep most of the intermediate tensors and pass
//! over memory once per step, forward and backward. Here each is one step that keeps its inputs or
//! its output only. On the CPU backend Flex the passes are single loops; other CPU backends compose
//! them from Burn's operations; on all other backends autodiff does its usual work.

#[cfg(feature = "flex")]
mod attention;
mod flex;
#[cfg(feature = "flex")]
mod head;
#[cfg(feature = "flex")]
mod linear;
pub(crate) mod math;
#[cfg(feature = "flex")]
mod native;
#[cfg(feature = "flex")]
mod norm;
mod ops;
#[cfg(feature = "flex")]
mod product;
#[cfg(all(test, feature = "flex"))]
mod tests;
#[cfg(feature = "flex")]
mod tile;
#[cfg(feature = "flex")]
mod transpose;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{Device, Tensor};
use rldp_lora::LoraLinear;

use crate::attention::Attention;
use ops::FusedOps;

/// `residual + layer(x)` for `x` of `[examples, time, in]`.
pub(crate) fn linear(layer: &LoraLinear, x: Tensor<3>, residual: Option<Tensor<3>>) -> Tensor<3> {
    // A hook stands between the layer and the residual.
    let (inside, outside) = match &layer.hook {
        None => (residual, None),
        Some(_) => (None, residual),
    };
    #[cfg(feature = "flex")]
    let native = front::linear(layer, &x, inside.as_ref());
    #[cfg(not(feature = "flex"))]
    let native = None;
    let y = match (native, &layer.hook) {
        (Some(y), None) => return y,
        (Some(y), Some(hook)) => hook.call(x, y),
        (None, _) => layer.forward(x),
    };
    match inside.or(outside) {
        Some(residual) => residual + y,
        None => y,
    }
}

/// Layer normalisation over the last dimension.
pub(crate) fn layer_norm(
    x: Tensor<3>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    epsilon: f64,
) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if let Some(y) = front::norm(&x, &weight, &bias, norm::Kind::Layer { epsilon }) {
        return y;
    }
    burn::tensor::module::layer_norm(x, weight, Some(bias), epsilon)
}

/// Root-mean-square normalisation over the last dimension.
pub(crate) fn rms_norm(x: Tensor<3>, weight: Tensor<1>, epsilon: f64) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if let Some(y) = front::norm(&x, &weight, &weight, norm::Kind::RootMeanSquare { epsilon }) {
        return y;
    }
    let mean_square = (x.clone() * x.clone()).mean_dim(2);
    let inverse = (mean_square + epsilon).sqrt().recip();
    x * inverse * weight.reshape([1, 1, -1])
}

/// Causal attention from `[examples, time, heads, head]` queries, keys and values that start with
/// the first token; nothing if the device has no operation for it.
pub(crate) fn causal_attention(
    shape: &Attention,
    query: &Tensor<4>,
    key: &Tensor<4>,
    value: &Tensor<4>,
) -> Option<Tensor<3>> {
    #[cfg(feature = "flex")]
    return front::attention(shape, query, key, value);
    #[cfg(not(feature = "flex"))]
    return None;
}

/// The same for queries, keys and values side by side, `[examples, time, 3 * heads * head]`.
pub(crate) fn packed_causal_attention(shape: &Attention, all: &Tensor<3>) -> Option<Tensor<3>> {
    #[cfg(feature = "flex")]
    return front::packed_attention(shape, all);
    #[cfg(not(feature = "flex"))]
    return None;
}

/// Weighted token losses of rows, `[rows]`, and if wanted their gradients by the rows; nothing if
/// the device has no operation for it. All tensors are constants.
pub(crate) fn head_losses(
    rows: &Tensor<2>,
    projection: &Tensor<2>,
    targets: &[u32],
    weights: &[f32],
    wanted: bool,
) -> Option<(Tensor<1>, Option<Tensor<2>>)> {
    #[cfg(feature = "flex")]
    return front::head_losses(rows, projection, targets, weights, wanted);
    #[cfg(not(feature = "flex"))]
    return None;
}

/// `losses`, `[examples]`, as a function of `hidden` with the gradient `slope`: constants both.
pub(crate) fn with_slope(hidden: Tensor<3>, slope: Tensor<3>, losses: Tensor<1>) -> Tensor<1> {
    #[cfg(feature = "flex")]
    if front::supports(&hidden.device()) {
        return front::with_slope(hidden, slope, losses);
    }
    // Linear in the hidden states with the right slope; its own value cancels out.
    let [examples] = losses.dims();
    let value = (hidden * slope).sum_dim(2).sum_dim(1).reshape([examples]);
    value.clone() - value.detach() + losses
}

/// The way from tensors to the native operations, where they apply.
#[cfg(feature = "flex")]
mod front {
    use burn::backend::{Dispatch, DispatchDevice};
    use burn::tensor::{DType, Device, Tensor};
    use rldp_lora::{LoraAdapter, LoraLinear};

    use super::attention::Causal;
    use super::native::{NativeOps, Terms};
    use super::norm::Kind;
    use super::tile::Kernel;
    use crate::attention::Attention;

    /// Without vector instructions of our own, Burn's matrix products are faster.
    pub(super) fn supports(device: &Device) -> bool {
        let flex = matches!(
            device.clone().without_autodiff().as_dispatch(),
            DispatchDevice::Flex(_)
        );
        flex && Kernel::best() != Kernel::Portable
    }

    /// A frozen tensor in single precision.
    fn constant<const D: usize>(tensor: &Tensor<D>) -> bool {
        tensor.dtype() == DType::F32 && !tensor.is_tracked()
    }

    pub(super) fn linear(
        layer: &LoraLinear,
        x: &Tensor<3>,
        residual: Option<&Tensor<3>>,
    ) -> Option<Tensor<3>> {
        let (weight, bias) = (
            layer.weight.val(),
            layer.bias.as_ref().map(|bias| bias.val()),
        );
        let adapter = layer.adapter.as_ref().filter(|_| !layer.is_merged());
        let factors = adapter.map(|adapter| (adapter.a.val(), adapter.b.val(), adapter.scaling));
        let dropout = adapter.is_some_and(LoraAdapter::drops_inputs);
        let [examples, time, _] = x.dims();
        let copies = |factor: &Tensor<3>| {
            factor.dtype() == DType::F32 && [1, examples].contains(&factor.dims()[0])
        };
        let fits = supports(&x.device())
            && examples * time > 0
            && x.dtype() == DType::F32
            && !weight.is_tracked()
            && bias.as_ref().is_none_or(constant)
            && !dropout
            && factors
                .as_ref()
                .is_none_or(|(a, b, _)| copies(a) && copies(b) && a.dims()[2] > 0);
        if !fits {
            return None;
        }
        let terms = Terms {
            bias: bias.is_some(),
            residual: residual.is_some(),
            adapter: factors.as_ref().map(|factors| factors.2),
        };
        let weight = weight.into_dispatch();
        let nothing = || weight.clone();
        let residual = residual.cloned().map(Tensor::into_dispatch);
        let (a, b) = match factors {
            Some((a, b, _)) => (a.into_dispatch(), b.into_dispatch()),
            None => (nothing(), nothing()),
        };
        Some(Tensor::from_dispatch(<Dispatch as NativeOps>::linear(
            x.clone().into_dispatch(),
            weight.clone(),
            bias.map_or_else(nothing, Tensor::into_dispatch),
            residual.unwrap_or_else(nothing),
            a,
            b,
            terms,
        )))
    }

    pub(super) fn norm(
        x: &Tensor<3>,
        weight: &Tensor<1>,
        bias: &Tensor<1>,
        kind: Kind,
    ) -> Option<Tensor<3>> {
        let fits =
            supports(&x.device()) && x.dtype() == DType::F32 && constant(weight) && constant(bias);
        fits.then(|| {
            Tensor::from_dispatch(<Dispatch as NativeOps>::norm(
                x.clone().into_dispatch(),
                weight.clone().into_dispatch(),
                bias.clone().into_dispatch(),
                kind,
            ))
        })
    }

    fn causal(shape: &Attention, examples: usize, time: usize) -> Causal {
        Causal {
            examples,
            time,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            scale: shape.scale as f32,
            window: shape.window,
        }
    }

    pub(super) fn attention(
        shape: &Attention,
        query: &Tensor<4>,
        key: &Tensor<4>,
        value: &Tensor<4>,
    ) -> Option<Tensor<3>> {
        let all = [query, key, value];
        let single = all.iter().all(|tensor| tensor.dtype() == DType::F32);
        if !supports(&query.device()) || !single {
            return None;
        }
        let [examples, time, _, _] = query.dims();
        let [query, key, value] = all.map(|tensor| {
            let [examples, time, heads, dim] = tensor.dims();
            let rows = tensor.clone().reshape([examples, time, heads * dim]);
            rows.into_dispatch()
        });
        let shape = causal(shape, examples, time);
        Some(Tensor::from_dispatch(<Dispatch as NativeOps>::attention(
            query, key, value, shape,
        )))
    }

    pub(super) fn packed_attention(shape: &Attention, all: &Tensor<3>) -> Option<Tensor<3>> {
        let [examples, time, _] = all.dims();
        (supports(&all.device()) && all.dtype() == DType::F32).then(|| {
            let shape = causal(shape, examples, time);
            let all = all.clone().into_dispatch();
            Tensor::from_dispatch(<Dispatch as NativeOps>::packed_attention(all, shape))
        })
    }

    pub(super) fn head_losses(
        rows: &Tensor<2>,
        projection: &Tensor<2>,
        targets: &[u32],
        weights: &[f32],
        wanted: bool,
    ) -> Option<(Tensor<1>, Option<Tensor<2>>)> {
        let single = rows.dtype() == DType::F32 && projection.dtype() == DType::F32;
        if !supports(&rows.device()) || !single {
            return None;
        }
        let (losses, grads) = <Dispatch as NativeOps>::head_losses(
            rows.clone().into_dispatch(),
            projection.clone().into_dispatch(),
            targets.to_vec(),
            weights.to_vec(),
            wanted,
        );
        let grads = wanted.then(|| Tensor::from_dispatch(grads));
        Some((Tensor::from_dispatch(losses), grads))
    }

    pub(super) fn with_slope(hidden: Tensor<3>, slope: Tensor<3>, losses: Tensor<1>) -> Tensor<1> {
        Tensor::from_dispatch(<Dispatch as NativeOps>::with_slope(
            hidden.into_dispatch(),
            slope.into_dispatch(),
            losses.into_dispatch(),
        ))
    }
}

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
