use proptest::prelude::*;

use super::{cases, devices, norm, single, squared_norms};
use crate::clip::{Clip, ClipRule, ClippedSum};
use crate::{GroupGradients, Kernel, Layout, PerExampleGradients, RowMap};
use burn::tensor::Device;
use rldp_accounting::Adjacency;

fn sum(
    values: &[Vec<f32>],
    rows: RowMap,
    clip: Clip,
    device: &Device,
    kernel: Kernel,
) -> ClippedSum {
    let gradients = single(values, rows, device);
    let mut sum = ClippedSum::new(&gradients.layout(), &[clip])
        .unwrap()
        .with_kernel(kernel);
    sum.add(&gradients).unwrap();
    sum
}

fn threshold(norm: f64) -> Clip {
    Clip::new(norm, ClipRule::Threshold).unwrap()
}

fn distance(left: &[f64], right: &[f64]) -> f64 {
    norm(
        &left
            .iter()
            .zip(right)
            .map(|(l, r)| l - r)
            .collect::<Vec<_>>(),
    )
}

/// Gradients of 1 to 9 units over 1 to 80 coordinates, of very different sizes.
fn gradients() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (1_usize..80, 1_usize..10).prop_flat_map(|(width, rows)| {
        let row =
            (prop::collection::vec(-1.0_f32..1.0, width), -6_i32..6).prop_map(|(row, size)| {
                row.into_iter()
                    .map(|value| value * 10_f32.powi(size))
                    .collect::<Vec<_>>()
            });
        prop::collection::vec(row, rows)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_clipped_norm_is_never_above_c_and_keeps_its_direction(values in gradients(), size in -3.0_f64..3.0, normalize: bool) {
        let rule = if normalize { ClipRule::Normalize { stability: 0.01 } } else { ClipRule::Threshold };
        let clip = Clip::new(10_f64.powf(size), rule).unwrap();
        for (name, device, kernel) in cases() {
            for row in &values {
                let clipped = sum(std::slice::from_ref(row), RowMap::one_each(1), clip, &device, kernel).raw(0);
                prop_assert!(norm(&clipped) <= clip.norm(), "{name} {kernel:?}: {} > {}", norm(&clipped), clip.norm());
                let exact: Vec<f64> = row.iter().map(|&value| value.into()).collect();
                let scale = match rule {
                    ClipRule::Normalize { stability } => clip.norm() / (norm(&exact) + stability),
                    _ => (clip.norm() / norm(&exact)).min(1.0),
                };
                let wanted: Vec<f64> = exact.iter().map(|value| value * scale).collect();
                // The slack, the grid and single precision.
                let tolerance = 2e-5 * norm(&wanted) + clip.norm() * 2e-8;
                prop_assert!(distance(&clipped, &wanted) <= tolerance, "{name} {kernel:?}");
            }
        }
    }

    #[test]
    fn one_unit_moves_the_sum_by_at_most_c(values in gradients(), size in -3.0_f64..3.0) {
        let clip = threshold(10_f64.powf(size));
        for (name, device, kernel) in cases() {
            let with = sum(&values, RowMap::one_each(values.len()), clip, &device, kernel).raw(0);
            let without = sum(&values, RowMap::padded(values.len() - 1, 1), clip, &device, kernel).raw(0);
            let moved = distance(&with, &without);
            // This test's own arithmetic rounds in f64.
            prop_assert!(moved <= clip.sensitivity(Adjacency::AddRemove) * (1.0 + 1e-12), "{name} {kernel:?}: {moved}");
        }
    }

    #[test]
    fn order_micro_batches_and_padding_change_nothing(values in gradients(), cut in 0_usize..10, padding in 0_usize..4) {
        let clip = threshold(1.0);
        let cut = cut.min(values.len());
        for (name, device, kernel) in cases() {
            let whole = sum(&values, RowMap::one_each(values.len()), clip, &device, kernel).raw(0);
            let layout = Layout::new([("g", vec![values[0].len()])]);
            let mut parts = ClippedSum::new(&layout, &[clip]).unwrap().with_kernel(kernel);
            for part in [&values[cut..], &values[..cut]] {
                let mut rows: Vec<Vec<f32>> = part.iter().rev().cloned().collect();
                // Padding may hold anything at all.
                rows.extend(vec![vec![f32::NAN; values[0].len()]; padding]);
                if !rows.is_empty() {
                    parts.add(&single(&rows, RowMap::padded(part.len(), padding), &device)).unwrap();
                }
            }
            prop_assert_eq!(&whole, &parts.raw(0), "{} {:?}", name, kernel);
        }
    }

    #[test]
    fn all_kernels_on_all_devices_agree(values in gradients(), size in -3.0_f64..3.0) {
        let clip = threshold(10_f64.powf(size));
        // Rows 0 and 1 form one unit, row 2 is padding.
        let units: Vec<Option<usize>> = (0..values.len()).map(|row| match row { 0 | 1 => Some(9), 2 => None, _ => Some(row) }).collect();
        let rows = RowMap::averaged(&units);
        let mut sums = Vec::new();
        for (name, device, kernel) in cases() {
            sums.push((name, kernel, sum(&values, rows.clone(), clip, &device, kernel).raw(0)));
        }
        for (name, kernel, sum) in &sums[1..] {
            prop_assert!(distance(&sums[0].2, sum) <= clip.norm() * 2e-5 * values.len() as f64, "{name} {kernel:?}");
        }
    }

    #[test]
    fn rows_of_a_unit_are_added_before_they_are_clipped(values in gradients()) {
        let clip = threshold(0.5);
        let width = values[0].len();
        // The whole micro-batch is one unit.
        let total: Vec<f64> = (0..width).map(|j| values.iter().map(|row| f64::from(row[j])).sum::<f64>()).collect();
        let scale = (0.5 / norm(&total)).min(1.0);
        let wanted: Vec<f64> = total.iter().map(|value| value * scale).collect();
        let size = values.iter().flatten().fold(0.0_f64, |max, &value| max.max(f64::from(value.abs())));
        for (name, device, kernel) in cases() {
            let rows = RowMap::summed(&vec![Some(1); values.len()], &vec![1.0; values.len()]).unwrap();
            let clipped = sum(&values, rows, clip, &device, kernel).raw(0);
            prop_assert!(norm(&clipped) <= 0.5);
            // Cancellation between rows of size s leaves an error of s x 2^-24 a row in single precision.
            let tolerance = 2e-5 + 1e-6 * size * scale * width as f64;
            prop_assert!(distance(&clipped, &wanted) <= tolerance, "{name} {kernel:?}");
        }
    }
}

#[test]
fn a_unit_that_is_not_finite_is_zeroed_in_all_groups_and_counts_as_clipped() {
    for (name, device, kernel) in cases() {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let good = vec![vec![0.1, 0.2], vec![3.0, 4.0]];
            let mut bad = good.clone();
            bad.insert(1, vec![poison, 0.0]);
            let zeroed = |values: &[Vec<f32>]| {
                let second = GroupGradients::new("h")
                    .with(super::matrix(&vec![vec![1.0; 3]; values.len()], &device));
                let first = GroupGradients::new("g").with(super::matrix(values, &device));
                let gradients =
                    PerExampleGradients::new(vec![first, second], RowMap::one_each(values.len()))
                        .unwrap();
                let clips = [threshold(1.0), threshold(100.0)];
                let mut sum = ClippedSum::new(&gradients.layout(), &clips)
                    .unwrap()
                    .with_kernel(kernel);
                sum.add(&gradients).unwrap();
                (sum.raw(0), sum.raw(1), sum.clip_balance().to_vec())
            };
            let (clean, poisoned) = (zeroed(&good), zeroed(&bad));
            assert_eq!(
                (&clean.0, &clean.1),
                (&poisoned.0, &poisoned.1),
                "{name} {kernel:?}"
            );
            assert_eq!(
                (clean.2, poisoned.2),
                (vec![0, -2], vec![1, -1]),
                "{name} {kernel:?}"
            );
        }
    }
}

#[test]
fn tensors_of_a_group_share_one_norm() {
    for (name, device, kernel) in cases() {
        let tensors = |values: f32| super::matrix(&[vec![values]], &device);
        let pair = GroupGradients::new("g")
            .with(tensors(3.0))
            .with(tensors(4.0));
        let gradients = PerExampleGradients::new(vec![pair], RowMap::one_each(1)).unwrap();
        let mut sum = ClippedSum::new(&gradients.layout(), &[threshold(1.0)])
            .unwrap()
            .with_kernel(kernel);
        sum.add(&gradients).unwrap();
        assert!(
            distance(&sum.raw(0), &[0.6, 0.8]) < 2e-5,
            "{name} {kernel:?}: {:?}",
            sum.raw(0)
        );
    }
}

/// Values that break naive arithmetic: nothing, subnormals, the largest, what is no number, and sizes of 75 decades mixed.
fn hostile() -> impl Strategy<Value = f32> {
    prop_oneof![
        2 => Just(0.0_f32),
        2 => prop::sample::select(vec![1e-45_f32, -1e-40, 1.1e-38, -1.2e-38]),
        1 => prop::sample::select(vec![f32::MAX, f32::MIN, 1e30, -1e30]),
        8 => (-1.0_f32..1.0, -37_i32..38).prop_map(|(value, size)| value * 10_f32.powi(size)),
    ]
}

/// A row, a column and what stands there.
type Poison = (usize, usize, f32);

/// Up to six units of hostile values, and what poisons a unit, if anything does.
fn hostile_units() -> impl Strategy<Value = (Vec<Vec<f32>>, Option<Poison>)> {
    let poison = prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    let poison = prop::option::of((0_usize..100, 0_usize..100, poison));
    let values = (1_usize..40, 1_usize..7).prop_flat_map(|(width, rows)| {
        prop::collection::vec(prop::collection::vec(hostile(), width), rows)
    });
    (values, poison)
}

fn every_rule() -> impl Strategy<Value = ClipRule> {
    prop::sample::select(vec![
        ClipRule::Threshold,
        ClipRule::Normalize { stability: 0.0 },
        ClipRule::Normalize { stability: 0.01 },
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn hostile_units_obey_every_bound((mut values, poison) in hostile_units(), size in -20.0_f64..20.0, rule in every_rule()) {
        let clip = Clip::new(10_f64.powf(size), rule).unwrap();
        if let Some((row, column, poison)) = poison {
            let (row, column) = (row % values.len(), column % values[0].len());
            values[row][column] = poison;
        }
        let count = values.len();
        for (name, device, kernel) in cases() {
            let integers = |rows: RowMap| sum(&values, rows, clip, &device, kernel).integers(0);
            let one = sum(&values[count - 1..], RowMap::one_each(1), clip, &device, kernel);
            let last = one.raw(0);
            prop_assert!(norm(&last) <= clip.norm(), "{name} {kernel:?}: {} > {}", norm(&last), clip.norm());
            if values[count - 1].iter().any(|value| !value.is_finite()) {
                prop_assert!(last.iter().all(|&value| value == 0.0), "{name} {kernel:?}");
            }
            // One unit moves the sum by exactly its own contribution.
            let (with, without) = (integers(RowMap::one_each(count)), integers(RowMap::padded(count - 1, 1)));
            let moved: Vec<i64> = with.iter().zip(&without).map(|(with, without)| with - without).collect();
            prop_assert_eq!(&moved, &one.integers(0), "{} {:?}", name, kernel);
        }
    }

    /// Rows that cancel leave little of themselves; that little is what is clipped.
    #[test]
    fn cancelling_rows_of_a_unit_obey_the_bound(values in prop::collection::vec(hostile(), 1..40), rest in -1.0_f32..1.0, size in -6.0_f64..6.0) {
        let clip = threshold(10_f64.powf(size));
        let negative: Vec<f32> = values.iter().map(|value| -value * 0.999_999).collect();
        let small: Vec<f32> = values.iter().map(|_| rest).collect();
        let rows = [values, negative, small];
        for weights in [[1.0, 1.0, 1.0], [0.3, 0.3, 0.4], [1e30, 1e30, 1e-30]] {
            let map = RowMap::summed(&[Some(0), Some(0), Some(0)], &weights).unwrap();
            for (name, device, kernel) in cases() {
                let clipped = sum(&rows, map.clone(), clip, &device, kernel).raw(0);
                prop_assert!(norm(&clipped) <= clip.norm(), "{name} {kernel:?}: {}", norm(&clipped));
            }
        }
    }
}

#[test]
fn gradients_too_large_for_their_square_are_clipped_or_zeroed_never_passed_on() {
    for (name, device, kernel) in cases() {
        let clipped = sum(
            &[vec![1e30, -1e30]],
            RowMap::one_each(1),
            threshold(2.0),
            &device,
            kernel,
        )
        .raw(0);
        assert!(norm(&clipped) <= 2.0, "{name} {kernel:?}: {clipped:?}");
    }
}

/// Long rows: the error bounds of the proof, against exact norms.
#[test]
fn norms_of_long_rows_are_within_the_proven_bounds() {
    for (name, device) in devices() {
        for width in [1, 31, 33, 1023, 100_001] {
            let row: Vec<f32> = (0..width).map(|j| 1.0 + (j % 7) as f32 * 0.1).collect();
            let exact: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
            let tensor = super::matrix(&[row], &device);
            let rows = RowMap::one_each(1);
            let kernel = Kernel::for_device(&device);
            for (kernel, tolerance) in [
                (Kernel::Reference, 2.1e-6),
                (
                    kernel,
                    if kernel == Kernel::Native {
                        1e-12
                    } else {
                        3.3e-6
                    },
                ),
            ] {
                let found = squared_norms(kernel, &tensor, &rows)[0];
                assert!(
                    (found / exact - 1.0).abs() < tolerance,
                    "{name} {kernel:?} {width}: {found} {exact}"
                );
            }
        }
    }
}

#[test]
fn replacing_a_unit_costs_twice() {
    let clip = threshold(1.5);
    assert_eq!(clip.sensitivity(Adjacency::AddRemove), 1.5);
    assert_eq!(clip.sensitivity(Adjacency::ZeroOut), 1.5);
    assert_eq!(clip.sensitivity(Adjacency::ReplaceOne), 3.0);
}

#[test]
fn wrong_shapes_and_numbers_are_refused() {
    let (_, device) = devices().remove(0);
    assert!(Clip::new(0.0, ClipRule::Threshold).is_err());
    assert!(Clip::new(f64::NAN, ClipRule::Threshold).is_err());
    assert!(Clip::new(1.0, ClipRule::Normalize { stability: -1.0 }).is_err());
    assert!(PerExampleGradients::new(vec![], RowMap::one_each(1)).is_err());
    assert!(PerExampleGradients::new(vec![GroupGradients::new("g")], RowMap::one_each(1)).is_err());
    assert!(RowMap::summed(&[Some(1)], &[f32::NAN]).is_err());
    let group = || GroupGradients::new("g").with(super::matrix(&[vec![1.0, 2.0]], &device));
    assert!(PerExampleGradients::new(vec![group()], RowMap::one_each(2)).is_err());
    let gradients = PerExampleGradients::new(vec![group()], RowMap::one_each(1)).unwrap();
    for layout in [
        Layout::new([("other", vec![2])]),
        Layout::new([("g", vec![3])]),
        Layout::new([("g", vec![1, 1])]),
    ] {
        let mut sum = ClippedSum::new(&layout, &[threshold(1.0)]).unwrap();
        assert!(sum.add(&gradients).is_err(), "{layout:?}");
    }
    assert!(ClippedSum::new(&gradients.layout(), &[]).is_err());
}
