#![allow(clippy::unwrap_used)]

mod adaclip;
mod clipping;
mod conformance;
mod kernels;
mod parts;
mod post_processing;
mod private;
mod sampling;
pub(crate) mod statistics;
mod step;

use burn::tensor::{Device, Tensor, TensorData};

use crate::kernels::Units;
use crate::{GroupGradients, Kernel, PerExampleGradients, RowMap};

/// Every compiled-in device with its own kernel and with the reference.
pub(crate) fn cases() -> Vec<(&'static str, Device, Kernel)> {
    let mut cases = Vec::new();
    for (name, device) in devices() {
        cases.push((name, device.clone(), Kernel::for_device(&device)));
        cases.push((name, device, Kernel::Reference));
    }
    cases
}

// The ndarray backend is deprecated upstream; while it exists it is the second opinion.
#[allow(deprecated)]
pub(crate) fn devices() -> Vec<(&'static str, Device)> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Device::ndarray()),
        #[cfg(feature = "wgpu")]
        (
            "wgpu",
            Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        ),
    ]
}

/// Squared norms of one tensor's units by this kernel.
pub(crate) fn squared_norms(kernel: Kernel, tensor: &Tensor<2>, rows: &RowMap) -> Vec<f64> {
    let units = Units::new(tensor, rows, Some(kernel)).unwrap();
    Units::squared_norms(&[units]).unwrap().remove(0)
}

/// A `[rows, width]` tensor.
pub(crate) fn matrix(values: &[Vec<f32>], device: &Device) -> Tensor<2> {
    let width = values[0].len();
    Tensor::from_data(
        TensorData::new(values.concat(), [values.len(), width]),
        device,
    )
}

/// One group `g` of one tensor.
pub(crate) fn single(values: &[Vec<f32>], rows: RowMap, device: &Device) -> PerExampleGradients {
    let group = GroupGradients::new("g").with(matrix(values, device));
    PerExampleGradients::new(vec![group], rows).unwrap()
}

pub(crate) fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}
