use std::sync::Arc;

use proptest::prelude::*;
use rldp_accounting::Adjacency;

use super::statistics::assert_normal_variance;
use super::{cases, devices, norm, single};
use crate::clip::ClippedSum;
use crate::{
    Accumulator, AdaClip, AdaClipOptions, AffineTransform, Clip, ClipRule, Layout, RowMap,
    SecureRandom, SeededRandom, StepPlan,
};

fn transform(width: usize) -> AffineTransform {
    let shift = (0..width).map(|j| (j % 5) as f32 * 0.3 - 0.6).collect();
    let scale = (0..width).map(|j| 0.1 + (j % 7) as f32 * 0.2).collect();
    AffineTransform::new(shift, scale).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// In transformed coordinates: the norm bound, the direction, and one unit's reach.
    #[test]
    fn transformed_units_obey_the_bounds(values in prop::collection::vec(prop::collection::vec(-3.0_f32..3.0, 9), 1..6), size in -2.0_f64..2.0) {
        let clip = Clip::new(10_f64.powf(size), ClipRule::Threshold).unwrap();
        let transform = transform(9);
        let reference = transform.clone();
        for (name, device, kernel) in cases() {
            let sum = |values: &[Vec<f32>], rows: RowMap| {
                let gradients = single(values, rows, &device);
                let mut sum = ClippedSum::new(&gradients.layout(), &[clip]).unwrap().with_kernel(kernel)
                    .with_transforms(Arc::from([transform.clone()])).unwrap();
                sum.add(&gradients).unwrap();
                sum
            };
            let count = values.len();
            let one = sum(&values[count - 1..], RowMap::one_each(1));
            let last = one.raw(0);
            prop_assert!(norm(&last) <= clip.norm());
            let moved: Vec<f64> = values[count - 1].iter().enumerate()
                .map(|(j, &value)| (f64::from(value) - ((j % 5) as f64 * 0.3 - 0.6)) / f64::from(reference.scale()[j]))
                .collect();
            let factor = (clip.norm() / norm(&moved)).min(1.0);
            for (found, wanted) in last.iter().zip(&moved) {
                prop_assert!((found - wanted * factor).abs() <= 3e-5 * norm(&moved) * factor + 1e-8 * clip.norm(), "{name} {kernel:?}");
            }
            let with = sum(&values, RowMap::one_each(count)).integers(0);
            let without = sum(&values, RowMap::padded(count - 1, 1)).integers(0);
            let moved: Vec<i64> = with.iter().zip(&without).map(|(with, without)| with - without).collect();
            prop_assert_eq!(moved, one.integers(0), "{} {:?}", name, kernel);
            prop_assert!(norm(&last) <= clip.sensitivity(Adjacency::AddRemove));
        }
    }
}

/// A full batch of equal units within the clipping norm comes back as it was; the noise has the scales of the coordinates.
#[test]
fn the_release_is_turned_back() {
    let width = 40_000;
    for (name, device) in devices() {
        let values = vec![vec![0.25_f32; width]; 4];
        let gradients = single(&values, RowMap::one_each(4), &device);
        let plan = StepPlan::new(0.5, 8, 1e-4, &[1e4]).unwrap();
        let plan = plan.with_transforms(vec![transform(width)]).unwrap();
        let mut step = Accumulator::begin(&plan, &gradients.layout()).unwrap();
        step.add(&gradients, None).unwrap();
        let release = step
            .release(&mut SecureRandom::new().unwrap(), &device)
            .unwrap();
        let values: Vec<f64> = release.groups[0].gradients[0]
            .clone()
            .try_into_vec_as()
            .unwrap();
        let noise: Vec<f64> = values
            .iter()
            .zip(transform(width).scale())
            .map(|(value, &scale)| (value - 0.25) / f64::from(scale))
            .collect();
        assert_normal_variance(name, &noise, 1e-4 * 1e4 / 4.0);
        let stated = release.groups[0].noise_std;
        let all: Vec<f64> = values.iter().map(|value| value - 0.25).collect();
        let measured = norm(&all) / (width as f64).sqrt();
        assert!(
            (measured / stated - 1.0).abs() < 0.05,
            "{name}: {measured} for {stated}"
        );
    }
}

/// Where gradients vary more, the scale becomes larger.
#[test]
fn estimates_follow_the_gradients() {
    let layout = Layout::new([("g", vec![4])]);
    let options = AdaClipOptions {
        mean_decay: 0.5,
        variance_decay: 0.5,
        initial_deviation: 0.1,
        variance_bounds: [1e-6, 10.0],
    };
    let mut adaclip = AdaClip::new(&layout, options).unwrap();
    let (_, device) = devices().remove(0);
    let mut random = SeededRandom::new(2);
    for round in 0..20 {
        let plan = StepPlan::new(1.0, 2, 1e-5, &[100.0]).unwrap();
        assert!(
            adaclip
                .clone()
                .update(
                    &plan,
                    &Accumulator::begin(&plan, &layout)
                        .unwrap()
                        .release(&mut random, &device)
                        .unwrap()
                )
                .is_err()
        );
        let plan = plan.with_transforms(adaclip.transforms().unwrap()).unwrap();
        let mut step = Accumulator::begin(&plan, &layout).unwrap();
        let sign = if round % 2 == 0 { 1.0 } else { -1.0 };
        let row = vec![sign * 2.0, 0.5, 0.01 * sign, 0.0];
        let gradients = single(&[row.clone(), row], RowMap::one_each(2), &device);
        step.add(&gradients, None).unwrap();
        let release = step.release(&mut random, &device).unwrap();
        adaclip.update(&plan, &release).unwrap();
    }
    let scale = adaclip.transforms().unwrap().remove(0).scale().to_vec();
    assert!(
        scale[0] > 10.0 * scale[1] && scale[0] > 10.0 * scale[2],
        "{scale:?}"
    );
}

#[test]
fn bad_transforms_are_refused() {
    assert!(AffineTransform::new(vec![0.0], vec![0.0]).is_err());
    assert!(AffineTransform::new(vec![0.0], vec![f32::INFINITY]).is_err());
    assert!(AffineTransform::new(vec![f32::NAN], vec![1.0]).is_err());
    assert!(AffineTransform::new(vec![0.0, 0.0], vec![1.0]).is_err());
    let plan = StepPlan::new(0.5, 8, 1.0, &[1.0]).unwrap();
    assert!(plan.clone().with_transforms(vec![]).is_err());
    let plan = plan.with_transforms(vec![transform(3)]).unwrap();
    assert!(Accumulator::begin(&plan, &Layout::new([("g", vec![4])])).is_err());
    let layout = Layout::new([("g", vec![4])]);
    for options in [
        AdaClipOptions {
            mean_decay: 1.0,
            ..AdaClipOptions::default()
        },
        AdaClipOptions {
            initial_deviation: 0.0,
            ..AdaClipOptions::default()
        },
        AdaClipOptions {
            variance_bounds: [1.0, 0.5],
            ..AdaClipOptions::default()
        },
    ] {
        assert!(AdaClip::new(&layout, options).is_err());
    }
}
