//! The passes over per-example gradients: squared norms per unit, the sum of the scaled units, and the noise.
//!
//! Norms and sum each read the gradients once and write back nothing of size batch x parameters (but for units of several
//! rows on a Cube device, which are added up once). There are
//! * native multi-threaded loops for the CPU backends ([`host`], reached through [`extension`]),
//! * CubeCL kernels for every Cube device ([`cube`]),
//! * a reference of plain tensor operations, for every backend ([`reference`]).
//!
//! All three give sums of whole grid units, exact and the same in any order (see [`crate::clip`]). They differ in the precision
//! of norms and products: double on the CPU, single elsewhere.

#[cfg(feature = "cube")]
mod cube;
mod extension;
mod host;
mod reference;

use burn::tensor::{DType, Device, Element, Int, Tensor, TensorData};

use crate::error::OptimError;
use crate::random::GridNoise;
use crate::row_map::RowMap;

/// Which implementation of the passes is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Multi-threaded loops over the memory of a CPU backend, in double precision.
    Native,
    /// CubeCL kernels, on a Cube device (WGPU, CUDA): sums stay on the device.
    Cube,
    /// Tensor operations, on any backend that computes in IEEE single precision.
    Reference,
}

impl Kernel {
    /// The fastest for this device.
    #[must_use]
    pub fn for_device(device: &Device) -> Self {
        match extension::family(device) {
            extension::Family::Host => Self::Native,
            extension::Family::Cube => Self::Cube,
            extension::Family::Other => Self::Reference,
        }
    }

    /// This one, if the device has it; the reference otherwise.
    fn on(self, device: &Device) -> Self {
        if self == Self::for_device(device) {
            self
        } else {
            Self::Reference
        }
    }
}

/// One gradient tensor as both passes read it.
///
/// What is clipped must be what is summed, to the last bit: where a unit's rows are added up in floats, that happens once, and both
/// passes read the stored result. (The native loops add rows up twice, by the same instructions in the same order.)
pub(crate) struct Units {
    kernel: Kernel,
    /// `[rows, width]` for the native loops, else `[units, width]`.
    tensor: Tensor<2>,
    rows: RowMap,
}

impl Units {
    /// Makes a tensor ready for this kernel, or for the fastest.
    pub(crate) fn new(
        tensor: &Tensor<2>,
        rows: &RowMap,
        kernel: Option<Kernel>,
    ) -> Result<Self, OptimError> {
        let tensor = plain(tensor);
        let device = tensor.device();
        let kernel = kernel
            .unwrap_or_else(|| Kernel::for_device(&device))
            .on(&device);
        let tensor = match kernel {
            Kernel::Native => tensor,
            #[cfg(feature = "cube")]
            Kernel::Cube => {
                cube::check_size(rows.rows().max(rows.units()), tensor.dims()[1])?;
                if rows.is_plain() {
                    tensor
                } else {
                    cube::combine_rows(tensor, rows)
                }
            }
            _ => reference::combined(tensor, rows),
        };
        Ok(Self {
            kernel,
            tensor,
            rows: rows.clone(),
        })
    }

    /// Squared norm of every unit in each tensor. Not finite if any coordinate is not.
    pub(crate) fn squared_norms(list: &[Self]) -> Result<Vec<Vec<f64>>, OptimError> {
        #[cfg(feature = "cube")]
        let mut partials = cube_norms(list)?.into_iter();
        list.iter()
            .map(|units| match units.kernel {
                _ if units.rows.units() == 0 => Ok(Vec::new()),
                Kernel::Native => read(
                    "squared norms",
                    extension::squared_norms(units.tensor.clone(), units.rows.clone()),
                ),
                #[cfg(feature = "cube")]
                Kernel::Cube => Ok(partials.next().unwrap_or_default()),
                _ => reference::squared_norms(units.tensor.clone()),
            })
            .collect()
    }

    /// Adds `sum_u scale_u * unit_u` to `sum`, in whole grid units, each coordinate of each unit rounded toward zero. Units of
    /// scale zero are not touched, whatever they hold.
    pub(crate) fn add_scaled(&self, scales: &[f64], sum: &mut TensorSum) -> Result<(), OptimError> {
        if scales.iter().all(|&scale| scale == 0.0) {
            return Ok(());
        }
        match self.kernel {
            Kernel::Native => {
                let mut sums = std::mem::take(&mut sum.host);
                sums.resize(self.tensor.dims()[1], 0);
                let (tensor, rows) = (self.tensor.clone(), self.rows.clone());
                let sums = extension::add_scaled(tensor, sums, rows, scales.to_vec());
                sum.host = read_integers("scaled sums", sums)?;
            }
            #[cfg(feature = "cube")]
            Kernel::Cube => {
                let factors = scales.iter().map(|&scale| single_below(scale)).collect();
                let limbs = sum.limbs_on(&self.tensor.device())?;
                sum.limbs = Some(cube::add_scaled(self.tensor.clone(), limbs, factors));
            }
            _ => {
                let factors: Vec<f32> = scales.iter().map(|&scale| single_below(scale)).collect();
                sum.add(reference::scaled_sum(self.tensor.clone(), &factors)?);
            }
        }
        Ok(())
    }
}

/// The norms of all tensors with Cube kernels, in order: everything is launched before the one read that waits for it.
#[cfg(feature = "cube")]
fn cube_norms(list: &[Units]) -> Result<Vec<Vec<f64>>, OptimError> {
    let mut lengths = Vec::new();
    let mut partials = Vec::new();
    for units in list
        .iter()
        .filter(|units| units.kernel == Kernel::Cube && units.rows.units() > 0)
    {
        let tensor = units.tensor.clone();
        // Padding comes after the units of a plain map.
        let [rows, width] = tensor.dims();
        let count = units.rows.units();
        let tensor = if rows == count {
            tensor
        } else {
            tensor.slice([0..count, 0..width])
        };
        let partial = cube::norm_partials(tensor).flatten::<1>(0, 2);
        lengths.push((count, partial.dims()[0]));
        partials.push(partial);
    }
    if partials.is_empty() {
        return Ok(Vec::new());
    }
    let values = read_integers::<i32>("squared norms", Tensor::cat(partials, 0))?;
    let mut rest = values.as_slice();
    Ok(lengths
        .into_iter()
        .map(|(units, length)| {
            let (own, others) = rest.split_at(length.min(rest.len()));
            rest = others;
            cube::squared_norms(own, units)
        })
        .collect())
}

/// The largest single-precision number that is not above a positive factor, nor above 2^125: a subnormal coordinate, which a
/// device may or may not take for zero, then contributes less than half a grid unit, that is, nothing.
fn single_below(value: f64) -> f32 {
    let value = value.min(2.0_f64.powi(125));
    let nearest = value as f32;
    if f64::from(nearest) > value {
        nearest.next_down()
    } else {
        nearest
    }
}

/// A sum of integers, one for each coordinate of a tensor, that lives where it was made.
#[derive(Default)]
pub(crate) struct TensorSum {
    /// The part on the host; empty means zero.
    host: Vec<i64>,
    /// The part on a Cube device: `[2, width]`, see [`cube`].
    #[cfg(feature = "cube")]
    limbs: Option<Tensor<2, Int>>,
}

impl TensorSum {
    /// Adds whole numbers.
    pub(crate) fn add(&mut self, values: Vec<f64>) {
        if self.host.is_empty() {
            self.host = values.into_iter().map(|value| value as i64).collect();
        } else {
            for (sum, value) in self.host.iter_mut().zip(values) {
                *sum = sum.saturating_add(value as i64);
            }
        }
    }

    /// The limbs to add to on this device; a part on another device is brought home first.
    #[cfg(feature = "cube")]
    fn limbs_on(&mut self, device: &Device) -> Result<Option<Tensor<2, Int>>, OptimError> {
        match self.limbs.take() {
            Some(limbs) if limbs.device() == *device => Ok(Some(limbs)),
            Some(limbs) => {
                self.add_integers(cube::read_limbs(limbs)?);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    #[cfg(any(feature = "cube", test))]
    fn add_integers(&mut self, values: Vec<i64>) {
        if self.host.is_empty() {
            self.host = values;
        } else {
            for (sum, value) in self.host.iter_mut().zip(values) {
                *sum = sum.saturating_add(value);
            }
        }
    }

    /// Adds noise that lies in memory and multiplies by `step`, on the device that the sums are on.
    #[cfg(any(feature = "cube", test))]
    pub(crate) fn release(
        #[allow(unused_mut, reason = "only a Cube part is brought home")] mut self,
        noise: &[i64],
        step: f64,
        device: &Device,
    ) -> Result<Tensor<1>, OptimError> {
        #[cfg(feature = "cube")]
        match self.limbs.take() {
            Some(limbs) if self.host.is_empty() => {
                return Ok(cube::release(limbs, noise, step as f32).to_device(device));
            }
            Some(limbs) => self.add_integers(cube::read_limbs(limbs)?),
            None => {}
        }
        self.add_integers(noise.to_vec());
        let values = self.host.iter().map(|&value| (value as f64 * step) as f32);
        Ok(on_device(values.collect(), device))
    }

    /// The raw integers, for tests of the clipping itself.
    #[cfg(test)]
    pub(crate) fn raw(&self, width: usize) -> Vec<i64> {
        let mut values = vec![0; width];
        for (sum, value) in values.iter_mut().zip(&self.host) {
            *sum += value;
        }
        #[cfg(feature = "cube")]
        if let Some(limbs) = &self.limbs {
            for (sum, value) in values
                .iter_mut()
                .zip(cube::read_limbs(limbs.clone()).unwrap())
            {
                *sum += value;
            }
        }
        values
    }
}

/// Adds the noise to the sums of a group's tensors, of these widths, and multiplies by `step`: the only way out. The sum of integers is
/// exact; what is rounded to a float has its noise.
pub(crate) fn release(
    sums: Vec<TensorSum>,
    widths: &[usize],
    noise: &GridNoise,
    step: f64,
    device: &Device,
) -> Result<Vec<Tensor<1>>, OptimError> {
    #[cfg(feature = "cube")]
    if sums.iter().any(|sum| sum.limbs.is_some()) {
        return cube_release(sums, widths, noise, step, device);
    }
    let sums: Vec<&[i64]> = sums.iter().map(|sum| &sum.host[..]).collect();
    let values = host::release(&sums, widths, noise, step);
    Ok(values
        .into_iter()
        .map(|values| on_device(values, device))
        .collect())
}

/// The same for sums of which some lie on a Cube device: their noise is sent there.
#[cfg(feature = "cube")]
fn cube_release(
    sums: Vec<TensorSum>,
    widths: &[usize],
    noise: &GridNoise,
    step: f64,
    device: &Device,
) -> Result<Vec<Tensor<1>>, OptimError> {
    let mut values = vec![0; widths.iter().sum()];
    noise.add_all(&mut values);
    let mut rest = &values[..];
    let mut released = Vec::with_capacity(sums.len());
    for (sum, &width) in sums.into_iter().zip(widths) {
        let (own, others) = rest.split_at(width);
        rest = others;
        released.push(sum.release(own, step, device)?);
    }
    Ok(released)
}

fn on_device(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let width = values.len();
    Tensor::from_data(TensorData::new(values, [width]), device)
}

/// One row per unit, in single precision; padding is left out.
pub(crate) fn combined_units(tensor: &Tensor<2>, rows: &RowMap) -> Tensor<2> {
    reference::combined(plain(tensor), rows)
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
    tensor.try_into_vec_as::<f64>().map_err(unreadable(what))
}

/// A tensor's integers.
fn read_integers<E: Element>(
    what: &'static str,
    tensor: Tensor<1, Int>,
) -> Result<Vec<E>, OptimError> {
    tensor.try_into_vec_as::<E>().map_err(unreadable(what))
}

fn unreadable<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> OptimError {
    move |error| OptimError::Device {
        what,
        message: error.to_string(),
    }
}
