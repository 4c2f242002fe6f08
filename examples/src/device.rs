//! Devices by name.

use burn::tensor::Device;

use crate::error::ExampleError;

/// The names of the devices compiled in, the first being the default.
pub const NAMES: &[&str] = &[
    #[cfg(feature = "flex")]
    "flex",
    #[cfg(feature = "ndarray")]
    "ndarray",
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "wgpu")]
    "wgpu",
];

/// The device of a name, without autodiff.
///
/// # Errors
/// [`ExampleError::UnknownDevice`] for a device that is unknown or not compiled in.
pub fn device(name: &str) -> Result<Device, ExampleError> {
    match name {
        #[cfg(feature = "flex")]
        "flex" => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        // Deprecated upstream in favour of flex; offered as the second CPU backend.
        #[allow(deprecated)]
        "ndarray" => Ok(Device::ndarray()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(0)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        other => Err(ExampleError::UnknownDevice {
            given: other.to_owned(),
            known: NAMES.join(", "),
        }),
    }
}
