//! The two passes over per-example gradients: squared norms per unit, and the sum of the scaled units.
//!
//! Each pass reads the gradients once and writes back nothing of size batch x parameters. Both have
//! * a reference of plain tensor operations, which runs on every backend ([`reference`]), and
//! * native multi-threaded loops for the CPU backends ([`host`]), reached through a Burn backend extension
//!   ([`extension`]); their results are exact integers (see [`crate::clip`]).

mod extension;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
mod reference;

use burn::tensor::{DType, Device, Tensor};

use crate::error::OptimError;
use crate::gradients::RowMap;

/// Which implementation of the passes is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Multi-threaded loops over the memory of a CPU backend: exact sums, the same bit for bit in any order. On a device
    /// without them the reference is used.
    Native,
    /// Tensor operations, on any backend: sums right to f32 rounding.
    Reference,
}

impl Kernel {
    /// The fastest for this device.
    #[must_use]
    pub fn for_device(device: &Device) -> Self {
        if extension::supports(device) {
            Self::Native
        } else {
            Self::Reference
        }
    }

    /// Squared norm of every unit's gradient in one tensor. Not finite if any coordinate is not.
    pub(crate) fn squared_norms(
        self,
        tensor: &Tensor<2>,
        rows: &RowMap,
    ) -> Result<Vec<f64>, OptimError> {
        if rows.units() == 0 {
            return Ok(Vec::new());
        }
        let tensor = plain(tensor);
        let norms = match self {
            Self::Native if extension::supports(&tensor.device()) => read(
                "squared norms",
                extension::squared_norms(tensor, rows.clone()),
            )?,
            _ => reference::squared_norms(tensor, rows)?,
        };
        Ok(norms)
    }

    /// Adds `sum_u scale_u * gradient_u` to `sums`, in whole grid units, rounded toward zero. Units of scale zero are
    /// not touched, whatever they hold.
    pub(crate) fn add_scaled(
        self,
        tensor: &Tensor<2>,
        rows: &RowMap,
        scales: &[f64],
        sums: &mut [i64],
    ) -> Result<(), OptimError> {
        if scales.iter().all(|&scale| scale == 0.0) {
            return Ok(());
        }
        let tensor = plain(tensor);
        let total = match self {
            Self::Native if extension::supports(&tensor.device()) => read(
                "scaled sums",
                extension::scaled_sum(tensor, rows.clone(), scales.to_vec()),
            )?,
            _ => reference::scaled_sum(tensor, rows, scales)?,
        };
        for (sum, value) in sums.iter_mut().zip(total) {
            *sum = sum.saturating_add(value as i64);
        }
        Ok(())
    }
}

/// Single precision without an autodiff wrapper, which is what every kernel reads.
fn plain(tensor: &Tensor<2>) -> Tensor<2> {
    let tensor = tensor.clone().inner();
    if tensor.dtype() == DType::F32 {
        tensor
    } else {
        tensor.cast(DType::F32)
    }
}

/// A tensor's values in double precision.
pub(crate) fn read(what: &'static str, tensor: Tensor<1>) -> Result<Vec<f64>, OptimError> {
    tensor
        .try_into_vec_as::<f64>()
        .map_err(|error| OptimError::Device {
            what,
            message: error.to_string(),
        })
}
