//! The passes as operations of a Burn backend extension.

// NdArray is on its way out of Burn, but the second implementation that our tests compare with.
#![cfg_attr(feature = "ndarray", allow(deprecated))]

use burn::backend::{
    Backend, Dispatch, DispatchDevice, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::row_map::RowMap;

/// Per-unit reductions of per-example gradients, `[rows, coordinates]` in single precision.
#[backend_extension(Flex: cfg(feature = "flex"), NdArray: cfg(feature = "ndarray"))]
pub(crate) trait PerExampleOps: Backend {
    /// Squared norms, `[units]`, accumulated and returned in double precision.
    fn squared_norms(gradients: FloatTensor<Self>, rows: RowMap) -> FloatTensor<Self>;

    /// Adds the sum over units of the scaled gradients, truncated to integers, to 64-bit integers, `[coordinates]`.
    fn add_scaled(
        gradients: FloatTensor<Self>,
        sums: IntTensor<Self>,
        rows: RowMap,
        scales: Vec<f64>,
    ) -> IntTensor<Self>;
}

/// What our kernels can do with a device.
pub(super) enum Family {
    /// Its memory is the host's.
    #[cfg_attr(
        not(any(feature = "flex", feature = "ndarray")),
        expect(dead_code, reason = "no CPU backend is compiled in")
    )]
    Host,
    /// It runs CubeCL kernels.
    #[cfg_attr(
        not(feature = "cube"),
        expect(dead_code, reason = "no Cube backend is compiled in")
    )]
    Cube,
    /// Only tensor operations: calling an extension there would panic.
    Other,
}

pub(super) fn family(device: &Device) -> Family {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => Family::Host,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => Family::Host,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => Family::Cube,
        #[allow(
            unreachable_patterns,
            reason = "other variants exist with other features"
        )]
        _ => Family::Other,
    }
}

pub(super) fn squared_norms(gradients: Tensor<2>, rows: RowMap) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as PerExampleOps>::squared_norms(
        gradients.into_dispatch(),
        rows,
    ))
}

/// The sums go in and come out as the same memory.
pub(super) fn add_scaled(
    gradients: Tensor<2>,
    sums: Vec<i64>,
    rows: RowMap,
    scales: Vec<f64>,
) -> Tensor<1, Int> {
    let width = sums.len();
    let data = TensorData::new(sums, [width]);
    let sums = Tensor::<1, Int>::from_data(data, (&gradients.device(), DType::I64));
    Tensor::from_dispatch(<Dispatch as PerExampleOps>::add_scaled(
        gradients.into_dispatch(),
        sums.into_dispatch(),
        rows,
        scales,
    ))
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::{
        Flex, TensorMetadata,
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    };
    use burn::tensor::TensorData;

    use super::PerExampleOps;
    use crate::kernels::host;
    use crate::row_map::RowMap;

    impl PerExampleOps for Flex {
        fn squared_norms(gradients: FloatTensor<Self>, rows: RowMap) -> FloatTensor<Self> {
            let norms = on_slice(gradients.clone(), |values, width| {
                host::squared_norms(values, width, &rows)
            });
            Self::float_from_data(TensorData::new(norms, [rows.units()]), &gradients.device())
        }

        fn add_scaled(
            gradients: FloatTensor<Self>,
            mut sums: IntTensor<Self>,
            rows: RowMap,
            scales: Vec<f64>,
        ) -> IntTensor<Self> {
            on_slice(gradients, |values, width| {
                host::add_scaled(values, width, &rows, &scales, sums.storage_mut::<i64>());
            });
            sums
        }
    }

    /// Runs on the tensor's own memory; only a tensor that is not contiguous is copied.
    fn on_slice<R>(gradients: FloatTensor<Flex>, run: impl FnOnce(&[f32], usize) -> R) -> R {
        let width = gradients.shape()[1];
        let contiguous = gradients.to_contiguous();
        run(contiguous.as_slice::<f32>().unwrap_or(&[]), width)
    }
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use burn::backend::{
        NdArray, TensorMetadata,
        ops::FloatTensorOps,
        tensor::{FloatTensor, IntTensor},
    };
    use burn::tensor::TensorData;

    use super::PerExampleOps;
    use crate::kernels::host;
    use crate::row_map::RowMap;

    type Primitive = FloatTensor<NdArray>;

    impl PerExampleOps for NdArray {
        fn squared_norms(gradients: FloatTensor<Self>, rows: RowMap) -> FloatTensor<Self> {
            let device = gradients.device();
            let norms = on_slice(gradients, |values, width| {
                host::squared_norms(values, width, &rows)
            });
            Self::float_from_data(TensorData::new(norms, [rows.units()]), &device)
        }

        fn add_scaled(
            gradients: FloatTensor<Self>,
            sums: IntTensor<Self>,
            rows: RowMap,
            scales: Vec<f64>,
        ) -> IntTensor<Self> {
            let Primitive::I64(mut storage) = sums else {
                unreachable!("the sums are made as 64-bit integers");
            };
            let sums = storage.ensure_owned().as_slice_mut().unwrap_or(&mut []);
            on_slice(gradients, |values, width| {
                host::add_scaled(values, width, &rows, &scales, sums);
            });
            Primitive::I64(storage)
        }
    }

    /// Runs on the tensor's own memory; only a tensor that is not in standard layout is copied.
    fn on_slice<R>(gradients: Primitive, run: impl FnOnce(&[f32], usize) -> R) -> R {
        let width = gradients.shape()[1];
        match gradients {
            Primitive::F32(storage) => {
                let view = storage.view();
                run(view.as_standard_layout().as_slice().unwrap_or(&[]), width)
            }
            // The caller casts to single precision.
            _ => unreachable!("per-example gradients are cast to f32 before the kernel"),
        }
    }
}
