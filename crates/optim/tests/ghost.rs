//! Ghost norms against the multiplied-out gradients.
#![cfg(feature = "flex")]
#![allow(missing_docs, clippy::unwrap_used)]

use burn::module::ParamId;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use proptest::prelude::*;

use rldp_optim::ghost::{Factor, FactoredGradients, Tape};
use rldp_optim::{OptimError, ParameterGroups, ParameterSlot, RowMap};

/// What a random case is made of.
#[derive(Debug, Clone)]
struct Case {
    examples: usize,
    time: usize,
    left: usize,
    right: usize,
    /// How alike the positions are, from not at all to equal up to sign, when the gradient nearly cancels.
    alike: f64,
    outer: usize,
    table: bool,
    /// Units of the rows; none for one each.
    units: Option<Vec<Option<usize>>>,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1_usize..5, 1_usize..9, 1_usize..40, 1_usize..300);
    (
        sizes,
        0.0_f64..1.0,
        0_usize..3,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_flat_map(
            |((examples, time, left, right), alike, outer, table, grouped)| {
                let units = prop::collection::vec(prop::option::of(0_usize..3), examples);
                units.prop_map(move |units| Case {
                    examples,
                    time,
                    left,
                    right,
                    alike,
                    outer,
                    table: table || outer == 0,
                    units: grouped.then_some(units),
                })
            },
        )
}

/// Positions that repeat one row with alternating signs, plus noise.
fn rows(case: &Case, width: usize, device: &Device) -> Tensor<3> {
    let Case { examples, time, .. } = *case;
    let normal = Distribution::Normal(0.0, 1.0);
    let base = Tensor::<3>::random([examples, 1, width], normal, device);
    let noise = Tensor::<3>::random([examples, time, width], normal, device);
    let signs: Vec<f32> = (0..time)
        .map(|t| if t % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    let signs = Tensor::<3>::from_data(TensorData::new(signs, [1, time, 1]), device);
    base * signs * case.alike + noise * (1.0 - case.alike)
}

fn tape(case: &Case, id: ParamId, device: &Device) -> Tape {
    let tape = Tape::new();
    for index in 0..case.outer {
        // Errors that do not alternate with the inputs cancel: the worst case for Gram matrices.
        let plain = Case {
            alike: if index == 0 { 0.0 } else { case.alike },
            ..case.clone()
        };
        tape.known(
            id,
            Factor::Outer {
                left: rows(case, case.left, device),
                right: rows(&plain, case.right, device),
            },
        );
    }
    if case.table {
        let ids: Vec<i64> = (0..case.examples * case.time)
            .map(|index| ((index * index + 1) % case.left) as i64)
            .collect();
        let data = TensorData::new(ids, [case.examples, case.time]);
        tape.known(
            id,
            Factor::Rows {
                ids: Tensor::<2, Int>::from_data(data, device),
                error: rows(case, case.right, device),
                rows: case.left,
            },
        );
    }
    tape
}

/// Norms of the units' multiplied-out gradients, a unit being the mean of its rows, in the order in which units first appear.
fn multiplied(gradients: &Tensor<2>, units: &[Option<usize>]) -> Vec<f64> {
    let width = gradients.dims()[1];
    let values: Vec<f64> = gradients.to_data().iter::<f64>().collect();
    let mut order = Vec::new();
    for unit in units.iter().flatten() {
        if !order.contains(unit) {
            order.push(*unit);
        }
    }
    let norm = |unit: usize| {
        let rows: Vec<usize> = (0..units.len())
            .filter(|row| units[*row] == Some(unit))
            .collect();
        let mean = |index: usize| -> f64 {
            let sum: f64 = rows.iter().map(|row| values[row * width + index]).sum();
            sum / rows.len() as f64
        };
        (0..width)
            .map(|index| mean(index).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    order.into_iter().map(norm).collect()
}

/// No pass is needed when all factors are known.
fn finish(tape: Tape, device: &Device) -> FactoredGradients {
    let leaf = Tensor::<1>::ones([1], device).autodiff().require_grad();
    tape.finish(&mut leaf.sum().backward()).unwrap()
}

proptest! {
    /// Bounds are never below the norm, for heads, tables, tied heads, layers used twice and units of several rows; and no
    /// further above than the proof says.
    #[test]
    fn ghost_norms_bound_the_multiplied_out_norms(case in cases()) {
        let device = Device::flex();
        let id = ParamId::new();
        let slot = ParameterSlot { id, shape: vec![case.left, case.right] };
        let groups = ParameterGroups::new().with("one", vec![slot]);
        let map = match &case.units {
            Some(units) => RowMap::averaged(units),
            None => RowMap::one_each(case.examples),
        };
        let factored = finish(tape(&case, id, &device), &device);
        let bounds = factored.norms(&groups, &map).unwrap().remove(0);
        let out = factored.multiplied_out(&groups).unwrap().remove(0).tensors.remove(0);
        let units = match &case.units {
            Some(units) => units.clone(),
            None => (0..case.examples).map(Some).collect(),
        };
        let norms = multiplied(&out, &units);
        prop_assert_eq!(bounds.len(), norms.len());
        for (bound, norm) in bounds.iter().zip(norms) {
            // The mean's weights are rounded to single precision.
            prop_assert!(bound.bound >= norm * (1.0 - 1e-7), "{} below {norm}", bound.bound);
            // All rows at most 2 long in each coordinate: a crude, but real ceiling.
            let lengths = (case.examples * case.time * (case.outer + 1) * case.left * case.right) as f64;
            prop_assert!(bound.bound <= norm + 1e-4 * lengths.max(1.0).sqrt() * 30.0 + 1e-6 * norm);
        }
    }
}

#[test]
fn what_is_not_finite_has_no_finite_bound() {
    let device = Device::flex();
    let id = ParamId::new();
    let slot = ParameterSlot {
        id,
        shape: vec![2, 3],
    };
    let groups = ParameterGroups::new().with("one", vec![slot]);
    for bad in [f32::NAN, f32::INFINITY, f32::MAX] {
        let tape = Tape::new();
        let left = Tensor::<3>::ones([2, 1, 2], &device);
        let right = TensorData::new(vec![bad, 1.0, 1.0, 1.0, 1.0, 1.0], [2, 1, 3]);
        let right = Tensor::<3>::from_data(right, &device);
        tape.known(id, Factor::Outer { left, right });
        let factored = finish(tape, &device);
        let bounds = factored
            .norms(&groups, &RowMap::one_each(2))
            .unwrap()
            .remove(0);
        assert!(!bounds[0].bound.is_finite(), "{bad}");
        assert!((bounds[1].square - 6.0).abs() < 1e-6);
        assert!((bounds[1].bound - 6.0_f64.sqrt()).abs() < 1e-4);
    }
}

#[test]
fn what_was_not_recorded_or_does_not_fit_is_refused() {
    let device = Device::flex();
    let (id, other) = (ParamId::new(), ParamId::new());
    let groups = |id, shape: [usize; 2]| {
        let shape = shape.to_vec();
        ParameterGroups::new().with("one", vec![ParameterSlot { id, shape }])
    };
    let factored = || {
        let tape = Tape::new();
        let ones = |width| Tensor::<3>::ones([2, 1, width], &device);
        let (left, right) = (ones(2), ones(3));
        tape.known(id, Factor::Outer { left, right });
        finish(tape, &device)
    };
    let missing = factored().multiplied_out(&groups(other, [2, 3])).err();
    assert!(matches!(
        missing,
        Some(OptimError::UnrecordedParameter { .. })
    ));
    let wrong = factored().multiplied_out(&groups(id, [2, 4])).err();
    assert!(matches!(wrong, Some(OptimError::LengthMismatch { .. })));
    let rows = factored()
        .norms(&groups(id, [2, 3]), &RowMap::one_each(3))
        .err();
    assert!(matches!(rows, Some(OptimError::LengthMismatch { .. })));
    // A layer that the loss does not depend on.
    let tape = Tape::new();
    let x = Tensor::<3>::ones([1, 1, 1], &device);
    drop(tape.linear(id, None, x.clone(), x));
    let leaf = Tensor::<1>::ones([1], &device).autodiff().require_grad();
    let missing = tape.finish(&mut leaf.sum().backward()).err();
    assert!(matches!(
        missing,
        Some(OptimError::MissingGradient { layer: 0 })
    ));
}
