use burn::tensor::Tensor;
use rldp_lora::{HostTensor, LinearLayers, LoraLinear};

use crate::ModelError;
use crate::checkpoint::{Start, Weights};

/// Whether a checkpoint stores a linear weight as `[in, out]` (GPT-2) or `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    InOut,
    OutIn,
}

/// What a linear layer looks like in a checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinearSpec {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
    pub(crate) storage: Storage,
    pub(crate) deviation: f64,
}

pub(crate) fn take_linear<W: Weights>(
    weights: &mut W,
    name: &str,
    spec: LinearSpec,
) -> Result<LoraLinear, ModelError> {
    let start = Start::Normal(spec.deviation);
    let weight_name = format!("{name}.weight");
    let weight: Tensor<2> = match spec.storage {
        Storage::InOut => weights.take(&weight_name, [spec.inputs, spec.outputs], start)?,
        // A view: the product reads it as it lies.
        Storage::OutIn => weights
            .take(&weight_name, [spec.outputs, spec.inputs], start)?
            .swap_dims(0, 1),
    };
    let bias = match spec.bias {
        true => Some(weights.take(&format!("{name}.bias"), [spec.outputs], Start::Zeros)?),
        false => None,
    };
    Ok(LoraLinear::new(weight, bias))
}

/// The tensors of all of a model's linear layers as its checkpoint stores them.
pub(crate) fn host_linears<M: LinearLayers>(
    model: &M,
    storage: Storage,
) -> Result<Vec<HostTensor>, ModelError> {
    let mut tensors = Vec::new();
    let mut result = Ok(());
    model.visit_linears(&mut |name, layer| {
        if result.is_ok() {
            result = host_linear(name, layer, storage).map(|pair| tensors.extend(pair));
        }
    });
    result.map(|()| tensors)
}

/// The weight, and the bias if there is one.
fn host_linear(
    name: &str,
    layer: &LoraLinear,
    storage: Storage,
) -> Result<Vec<HostTensor>, ModelError> {
    let weight = match storage {
        Storage::InOut => layer.weight.val(),
        Storage::OutIn => layer.weight.val().swap_dims(0, 1),
    };
    let mut tensors = vec![HostTensor::from_tensor(&format!("{name}.weight"), weight)?];
    if let Some(bias) = &layer.bias {
        let name = format!("{name}.bias");
        tensors.push(HostTensor::from_tensor(&name, bias.val())?);
    }
    Ok(tensors)
}

/// Shows the linear layers of equal blocks under `prefix`, the block's number and the layer's name.
pub(crate) fn visit_blocks<'a, B, const N: usize>(
    blocks: &'a [B],
    prefix: &str,
    linears: impl Fn(&'a B) -> [(&'static str, &'a LoraLinear); N],
    visit: &mut dyn FnMut(&str, &LoraLinear),
) {
    for (number, block) in blocks.iter().enumerate() {
        for (name, linear) in linears(block) {
            visit(&format!("{prefix}.{number}.{name}"), linear);
        }
    }
}

/// The same with mutable access, in the same order.
pub(crate) fn visit_blocks_mut<'a, B, const N: usize>(
    blocks: &'a mut [B],
    prefix: &str,
    linears: impl Fn(&'a mut B) -> [(&'static str, &'a mut LoraLinear); N],
    visit: &mut dyn FnMut(&str, &mut LoraLinear),
) {
    for (number, block) in blocks.iter_mut().enumerate() {
        for (name, linear) in linears(block) {
            visit(&format!("{prefix}.{number}.{name}"), linear);
        }
    }
}
