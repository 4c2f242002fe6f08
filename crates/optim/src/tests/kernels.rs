//! The implementations of the passes against each other, integer by integer.

use burn::tensor::Tensor;
use proptest::prelude::*;

use super::{cases, devices, matrix, norm};
use crate::kernels::{TensorSum, Units};
use crate::{Kernel, RowMap};

/// The integers of `sum_u trunc(factor_u * unit_u)`.
fn integers(tensor: &Tensor<2>, rows: &RowMap, kernel: Kernel, factors: &[f64]) -> Vec<i64> {
    let mut sum = TensorSum::default();
    let units = Units::new(tensor, rows, Some(kernel)).unwrap();
    units.add_scaled(factors, &mut sum).unwrap();
    units.add_scaled(factors, &mut sum).unwrap();
    sum.raw(tensor.dims()[1])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// In single precision all devices round products alike, so that even the integers are the same; the native loops
    /// compute in double precision and are off by the rounding of single precision at most.
    #[test]
    fn sums_are_the_same_integers(width in 1_usize..600, rows in 1_usize..20, seed in 0_u32..1000) {
        let values: Vec<Vec<f32>> = (0..rows)
            .map(|row| (0..width).map(|j| (((row * 131 + j * 37) as u32 ^ seed.wrapping_mul(2_654_435_761)) % 20_011) as f32 / 10_005.5 - 1.0).collect())
            .collect();
        // Whole powers of two and what lies between, and a unit that is left out; nothing above 2^30 in all.
        let factors: Vec<f64> = (0..rows).map(|row| if row == 1 { 0.0 } else { f64::from(1_000_003.0_f32 * 1.37_f32.powi(row as i32 % 20)) }).collect();
        let mut single: Option<Vec<i64>> = None;
        for (name, device, kernel) in cases() {
            let found = integers(&matrix(&values, &device), &RowMap::one_each(rows), kernel, &factors);
            for (column, found) in found.iter().enumerate() {
                let exact: f64 = 2.0 * values.iter().zip(&factors).map(|(row, factor)| f64::from(row[column]) * factor).sum::<f64>();
                let size: f64 = values.iter().zip(&factors).map(|(row, factor)| 2.0 * (f64::from(row[column]) * factor).abs()).sum();
                let rounding = if kernel == Kernel::Native { 0.0 } else { size * 2.0_f64.powi(-24) };
                prop_assert!((*found as f64 - exact).abs() <= 2.0 * rows as f64 + rounding, "{name} {kernel:?}: {found} for {exact}");
            }
            if kernel != Kernel::Native {
                if let Some(single) = &single {
                    prop_assert_eq!(single, &found, "{} {:?}", name, kernel);
                }
                single = Some(found);
            }
        }
    }
}

/// Many units: limbs carry, and partial sums stay whole.
#[test]
fn large_sums_are_exact() {
    let (units, width) = (1500, 3);
    // Every unit at the limit of 2^30 in one coordinate, negative in another, and a number that fills both limbs.
    let values = vec![vec![1.0, -1.0, 0.123_456_78]; units];
    let factor = 1_073_741_824.0;
    let each = [
        factor as i64,
        -(factor as i64),
        (0.123_456_78_f32 * factor as f32) as i64,
    ];
    for (name, device, kernel) in cases() {
        let map = RowMap::one_each(units);
        let found = integers(
            &matrix(&values, &device),
            &map,
            kernel,
            &vec![factor; units],
        );
        assert_eq!(found.len(), width);
        for (found, each) in found.iter().zip(each) {
            assert_eq!(*found, each * 2 * units as i64, "{name} {kernel:?}");
        }
    }
}

/// The noise kernel adds what the host would add, for every pattern of signs and limbs.
#[test]
fn noise_is_added_exactly() {
    let values = [
        0_i64,
        1,
        -1,
        5,
        -5,
        (1 << 24) - 1,
        1 << 24,
        -(1 << 24),
        -(1 << 24) - 1,
        1 << 29,
        -(1 << 29),
    ];
    let noises = [
        0_i64,
        1,
        -1,
        (1 << 24) - 1,
        -(1 << 24),
        12_345_678_901,
        -12_345_678_901,
        1 << 50,
        -(1 << 50),
    ];
    for (name, device, kernel) in cases() {
        for noise in noises {
            let row: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            let mut sum = TensorSum::default();
            let tensor = matrix(std::slice::from_ref(&row), &device);
            let units = Units::new(&tensor, &RowMap::one_each(1), Some(kernel)).unwrap();
            units.add_scaled(&[1.0], &mut sum).unwrap();
            let released = sum
                .release(&vec![noise; values.len()], 0.5, &device)
                .unwrap();
            let released: Vec<f64> = released.try_into_vec_as().unwrap();
            for (column, released) in released.iter().enumerate() {
                // Values that single precision does not hold were rounded before they came here.
                let exact = (row[column] as i64 + noise) as f64 * 0.5;
                let tolerance = exact.abs() * 2.0_f64.powi(-22);
                assert!(
                    (released - exact).abs() <= tolerance,
                    "{name} {kernel:?}: {released} for {exact}"
                );
            }
        }
    }
}

#[test]
fn every_device_has_its_own_kernel() {
    for (name, device) in devices() {
        let expected = if name == "wgpu" {
            Kernel::Cube
        } else {
            Kernel::Native
        };
        assert_eq!(Kernel::for_device(&device), expected, "{name}");
    }
    assert!(norm(&[3.0, 4.0]) == 5.0);
}
