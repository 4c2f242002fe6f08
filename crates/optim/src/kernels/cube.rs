//! The passes as CubeCL kernels, for every Cube device (WGPU, CUDA, ...).
//!
//! Shading languages have neither 64-bit floats nor 64-bit integers, may flush subnormals, and may assume that no NaN and no
//! infinity exists. So
//! * what is not finite is found in the *bits* of the stored words, by integer operations;
//! * squares are taken after scaling by a power of two found in the same bits, so that they neither overflow nor vanish;
//! * sums over units are sums of integers in two 32-bit limbs, `high * 2^24 + low` with `0 <= low < 2^24`.
//!
//! The proof that a clipped unit's norm stays at most C is in `docs/proofs/clipped-sum.md`.

use burn::backend::{Backend, TensorMetadata, backend_extension};
use burn::backend::{
    Dispatch,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Int, Shape, Tensor, TensorData};
use burn_cubecl::CubeBackend;
use burn_cubecl::cubecl::{self, calculate_cube_count_elemwise, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use crate::error::OptimError;
use crate::row_map::RowMap;

/// Most threads in a cube: WebGPU's default limit.
const THREADS: usize = 256;
/// Coordinates that one thread adds up.
const RUN: usize = 16;
/// Bits of the low limb.
const LOW_BITS: u32 = 24;
/// Cubes in one dimension of a grid that every device can launch.
const GRID_LIMIT: usize = 65_535;

/// The passes on a Cube device; every tensor is in single precision or 32-bit integers, and contiguous.
#[backend_extension(Cube)]
trait CubeOps: Backend {
    /// `[units, width]`: the weighted sums of the units' rows.
    fn combine_rows(rows: FloatTensor<Self>, map: RowMap) -> FloatTensor<Self>;

    /// `[units, chunks, 2]`: for every chunk the bits of its largest size, and the bits of the sum of its scaled squares.
    fn norm_partials(units: FloatTensor<Self>) -> IntTensor<Self>;

    /// `[2, width]`: `sums` and the integer parts of all units times their factors.
    fn add_scaled(
        units: FloatTensor<Self>,
        sums: IntTensor<Self>,
        factors: Vec<f32>,
    ) -> IntTensor<Self>;

    /// `[width]`: sums plus noise, both `[2, width]`, times `step`.
    fn add_noise(sums: IntTensor<Self>, noise: IntTensor<Self>, step: f32) -> FloatTensor<Self>;
}

impl CubeOps for CubeBackend {
    fn combine_rows(rows: CubeTensor, map: RowMap) -> CubeTensor {
        let rows = into_contiguous(rows);
        let width = rows.shape()[1];
        let output = empty(&rows, [map.units(), width], DType::F32);
        let (offsets, members, weights) = map.as_columns();
        if width > 0 && map.units() > 0 {
            let client = rows.client.clone();
            let (count, dim) = launch_over(&rows, map.units() * width);
            combine_rows_kernel::launch(
                &client,
                count,
                dim,
                rows.into_buffer_arg(),
                upload(&output, u32::as_bytes(&offsets), offsets.len()),
                upload(&output, u32::as_bytes(&members), members.len()),
                upload(&output, f32::as_bytes(&weights), weights.len()),
                output.clone().into_buffer_arg(),
                map.units(),
                width,
            );
        }
        output
    }

    fn norm_partials(units: CubeTensor) -> CubeTensor {
        let units = into_contiguous(units);
        let (count, width) = (units.shape()[0], units.shape()[1]);
        let dim = threads(&units);
        let chunks = width.div_ceil(dim * RUN);
        let output = empty(&units, [count, chunks, 2], DType::I32);
        if count * chunks > 0 {
            let client = units.client.clone();
            norm_partials_kernel::launch(
                &client,
                CubeCount::Static(chunks as u32, count as u32, 1),
                CubeDim::new_1d(dim as u32),
                units.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                width,
                chunks,
                dim,
            );
        }
        output
    }

    fn add_scaled(units: CubeTensor, sums: CubeTensor, factors: Vec<f32>) -> CubeTensor {
        let units = into_contiguous(units);
        let width = units.shape()[1];
        // In place, unless someone else still looks at these sums.
        let sums = if sums.can_mut() { sums } else { sums.copy() };
        if width > 0 && !factors.is_empty() {
            let client = units.client.clone();
            let (count, dim) = launch_over(&units, width);
            add_scaled_kernel::launch(
                &client,
                count,
                dim,
                units.into_buffer_arg(),
                upload(&sums, f32::as_bytes(&factors), factors.len()),
                sums.clone().into_buffer_arg(),
                width,
                factors.len(),
            );
        }
        sums
    }

    fn add_noise(sums: CubeTensor, noise: CubeTensor, step: f32) -> CubeTensor {
        let (sums, noise) = (into_contiguous(sums), into_contiguous(noise));
        let width = sums.shape()[1];
        let output = empty(&sums, [width], DType::F32);
        if width > 0 {
            let client = sums.client.clone();
            let (count, dim) = launch_over(&sums, width);
            add_noise_kernel::launch(
                &client,
                count,
                dim,
                sums.into_buffer_arg(),
                noise.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                step,
                width,
            );
        }
        output
    }
}

/// Threads in a cube on this device: a power of two.
fn threads(tensor: &CubeTensor) -> usize {
    let most = tensor.client.properties().hardware.max_units_per_cube as usize;
    let most = most.clamp(1, THREADS);
    1 << most.ilog2()
}

/// A grid with at least one thread for every element.
fn launch_over(tensor: &CubeTensor, elements: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(threads(tensor) as u32);
    let count = calculate_cube_count_elemwise(&tensor.client, elements, dim);
    (count, dim)
}

fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(
        like.client.clone(),
        like.device.clone(),
        Shape::from(shape),
        dtype,
    )
}

fn upload(like: &CubeTensor, bytes: &[u8], length: usize) -> BufferArg {
    let handle = like.client.create_from_slice(bytes);
    // SAFETY: the buffer was made from exactly these elements.
    unsafe { BufferArg::from_raw_parts(handle, length) }
}

#[cube(launch)]
fn combine_rows_kernel(
    rows: &[f32],
    offsets: &[u32],
    members: &[u32],
    weights: &[f32],
    output: &mut [f32],
    units: usize,
    width: usize,
) {
    let cell = ABSOLUTE_POS;
    if cell < units * width {
        let unit = cell / width;
        let column = cell % width;
        let mut sum = 0.0f32;
        for member in offsets[unit]..offsets[unit + 1] {
            let member = member as usize;
            sum += weights[member] * rows[members[member] as usize * width + column];
        }
        output[cell] = sum;
    }
}

#[cube(launch)]
fn norm_partials_kernel(
    units: &[f32],
    output: &mut [i32],
    width: usize,
    chunks: usize,
    #[comptime] threads: usize,
) {
    let chunk = CUBE_POS_X as usize;
    let unit = CUBE_POS_Y as usize;
    let thread = UNIT_POS as usize;
    let mut sizes = Shared::<[u32]>::new_slice(threads);
    let mut sums = Shared::<[f32]>::new_slice(threads);

    // The largest size, by its bits: the order of non-negative floats is the order of their bits, infinity and NaN on top.
    let mut largest = 0u32;
    for turn in 0..RUN {
        let column = (chunk * RUN + turn) * threads + thread;
        if column < width {
            let size = u32::reinterpret(units[unit * width + column]) & 0x7FFF_FFFFu32;
            if size > largest {
                largest = size;
            }
        }
    }
    sizes[thread] = largest;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if thread < half {
            let other = sizes[thread + half];
            if other > sizes[thread] {
                sizes[thread] = other;
            }
        }
        sync_cube();
        half /= 2;
    }
    let largest = sizes[0];

    // Two to the power of minus the largest exponent, as in `scale_exponent`.
    let exponent = largest >> 23u32;
    let mut biased = 1u32;
    if exponent < 253u32 {
        biased = 254u32 - exponent;
    }
    let scale = f32::reinterpret(biased << 23u32);
    let mut sum = 0.0f32;
    for turn in 0..RUN {
        let column = (chunk * RUN + turn) * threads + thread;
        if column < width {
            let value = units[unit * width + column] * scale;
            sum += value * value;
        }
    }
    sums[thread] = sum;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if thread < half {
            let other = sums[thread + half];
            sums[thread] += other;
        }
        sync_cube();
        half /= 2;
    }
    if thread == 0 {
        let at = (unit * chunks + chunk) * 2;
        output[at] = i32::reinterpret(largest);
        output[at + 1] = i32::reinterpret(sums[0]);
    }
}

#[cube(launch)]
fn add_scaled_kernel(units: &[f32], factors: &[f32], sums: &mut [i32], width: usize, count: usize) {
    let column = ABSOLUTE_POS;
    if column < width {
        let mut high = sums[column];
        let mut low = sums[width + column];
        for unit in 0..count {
            let factor = factors[unit];
            // A unit of factor zero may hold anything; it is not touched.
            if factor != 0.0f32 {
                let scaled = units[unit * width + column] * factor;
                // Never binds for a norm below 2^30: it keeps the conversion defined whatever comes.
                let scaled = clamp(scaled, -1_073_741_824.0f32, 1_073_741_824.0f32);
                low += i32::cast_from(scaled);
                let rest = low & 0x00FF_FFFFi32;
                high += (low - rest) / 16_777_216i32;
                low = rest;
            }
        }
        sums[column] = high;
        sums[width + column] = low;
    }
}

#[cube(launch)]
fn add_noise_kernel(sums: &[i32], noise: &[i32], output: &mut [f32], step: f32, width: usize) {
    let column = ABSOLUTE_POS;
    if column < width {
        let low = sums[width + column] + noise[width + column];
        let rest = low & 0x00FF_FFFFi32;
        let high = sums[column] + noise[column] + (low - rest) / 16_777_216i32;
        output[column] = (f32::cast_from(high) * 16_777_216.0f32 + f32::cast_from(rest)) * step;
    }
}

/// Whether the passes can be launched for so many units and coordinates.
pub(super) fn check_size(units: usize, width: usize) -> Result<(), OptimError> {
    let too_large = OptimError::TooLarge {
        what: "units or coordinates of one gradient tensor on this device",
        most: GRID_LIMIT,
    };
    // Units are one dimension of a grid; cells are counted in 32 bits.
    let cells = units.max(1).checked_mul(width.max(1));
    if units > GRID_LIMIT || cells.is_none_or(|cells| cells > u32::MAX as usize) {
        return Err(too_large);
    }
    Ok(())
}

/// The weighted sums of the units' rows, one row a unit.
pub(super) fn combine_rows(rows: Tensor<2>, map: &RowMap) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::combine_rows(
        rows.into_dispatch(),
        map.clone(),
    ))
}

/// What [`squared_norms`] needs of a tensor, still on its device.
pub(super) fn norm_partials(units: Tensor<2>) -> Tensor<3, Int> {
    Tensor::from_dispatch(<Dispatch as CubeOps>::norm_partials(units.into_dispatch()))
}

/// The squared norms of units from their partial sums, `[units, chunks, 2]` flattened.
pub(super) fn squared_norms(partials: &[i32], units: usize) -> Vec<f64> {
    let of_unit = |partials: &[i32]| {
        partials
            .chunks_exact(2)
            .map(|partial| {
                let exponent = partial[0] as u32 >> 23;
                match exponent {
                    // Subnormals and zeros contribute nothing to a sum: see `single_below`.
                    0 => 0.0,
                    255 => f64::INFINITY,
                    _ => {
                        let scale = scale_exponent(exponent);
                        f64::from(f32::from_bits(partial[1] as u32)) * 2.0_f64.powi(-2 * scale)
                    }
                }
            })
            .sum()
    };
    let each = partials.len() / units.max(1);
    if each == 0 {
        return vec![0.0; units];
    }
    partials.chunks_exact(each).map(of_unit).collect()
}

/// The power of two that the kernel multiplies a chunk by whose largest size has this biased exponent.
fn scale_exponent(exponent: u32) -> i32 {
    254_u32.saturating_sub(exponent).max(1) as i32 - 127
}

/// Adds the integer parts of the units times their factors to the limbs, `[2, width]`; none yet counts as zero.
pub(super) fn add_scaled(
    units: Tensor<2>,
    sums: Option<Tensor<2, Int>>,
    factors: Vec<f32>,
) -> Tensor<2, Int> {
    let width = units.dims()[1];
    let sums = sums.unwrap_or_else(|| {
        let zeros = TensorData::new(vec![0_i32; 2 * width], [2, width]);
        Tensor::from_data(zeros, (&units.device(), DType::I32))
    });
    Tensor::from_dispatch(<Dispatch as CubeOps>::add_scaled(
        units.into_dispatch(),
        sums.into_dispatch(),
        factors,
    ))
}

/// The sums' values.
pub(super) fn read_limbs(sums: Tensor<2, Int>) -> Result<Vec<i64>, OptimError> {
    let width = sums.dims()[1];
    let limbs = super::read_integers::<i32>("scaled sums", sums.flatten::<1>(0, 1))?;
    let (high, low) = limbs.split_at(width);
    Ok(high
        .iter()
        .zip(low)
        .map(|(&high, &low)| (i64::from(high) << LOW_BITS) + i64::from(low))
        .collect())
}

/// Sums plus noise, times `step`. The addition is exact; only the released integer is rounded to a float.
pub(super) fn release(sums: Tensor<2, Int>, noise: &[i64], step: f32) -> Tensor<1> {
    let high = noise
        .iter()
        .map(|&value| (value >> LOW_BITS).clamp(-(1 << 30), 1 << 30) as i32);
    let low = noise
        .iter()
        .map(|&value| (value & ((1 << LOW_BITS) - 1)) as i32);
    let limbs: Vec<i32> = high.chain(low).collect();
    let noise = TensorData::new(limbs, [2, noise.len()]);
    let noise = Tensor::<2, Int>::from_data(noise, (&sums.device(), DType::I32));
    Tensor::from_dispatch(<Dispatch as CubeOps>::add_noise(
        sums.into_dispatch(),
        noise.into_dispatch(),
        step,
    ))
}
