use burn::tensor::{Tensor, TensorData};
use rldp_accounting::Adjacency;

use super::statistics::assert_normal_variance;
use super::{cases, devices, single};
use crate::query::{noise_of_mean, noisy_count, noisy_mean};
use crate::{
    Accumulator, GroupGradients, Layout, PerExampleGradients, Private, RowMap, SecureRandom,
    SeededRandom, StepPlan, StepRelease, Telemetry,
};

fn values(release: &StepRelease, group: usize) -> Vec<f64> {
    release.groups[group]
        .gradients
        .iter()
        .flat_map(|tensor| tensor.clone().try_into_vec_as::<f64>().unwrap())
        .collect()
}

fn all_telemetry() -> Telemetry {
    Telemetry {
        clip_counts: 0.1,
        loss: 0.2,
        loss_bound: 4.0,
    }
}

#[test]
fn an_empty_batch_is_released_with_exactly_the_planned_noise() {
    let layout = Layout::new([("a", vec![20_000, 30_000]), ("b", vec![50_000])]);
    let plan = StepPlan::new(0.01, 3000, 0.8, &[0.5, 2.0])
        .unwrap()
        .with_noise_weights(&[1.0, 3.0])
        .unwrap();
    for (name, device) in devices() {
        let mut random = SecureRandom::new().unwrap();
        let release = Accumulator::begin(&plan, &layout)
            .unwrap()
            .release(&mut random, &device)
            .unwrap();
        assert!(release.private);
        assert_eq!(
            release.groups[0]
                .gradients
                .iter()
                .map(|t| t.dims()[0])
                .collect::<Vec<_>>(),
            [20_000, 30_000]
        );
        for (index, (norm, share)) in [(0.5, 0.25_f64), (2.0, 0.75)].into_iter().enumerate() {
            let deviation = 0.8 / share.sqrt() * norm / 30.0;
            assert!((release.groups[index].noise_std / deviation - 1.0).abs() < 1e-9);
            assert_normal_variance(name, &values(&release, index), deviation);
        }
    }
}

/// Zero gradients are units too: no signal, the same noise.
#[test]
fn zero_gradients_release_noise_alone() {
    let plan = StepPlan::new(0.5, 8, 1.3, &[0.7]).unwrap();
    for (name, device, kernel) in cases() {
        let gradients = single(&vec![vec![0.0; 60_000]; 5], RowMap::one_each(5), &device);
        let mut step = Accumulator::begin(&plan, &gradients.layout())
            .unwrap()
            .with_kernel(kernel);
        step.add(&gradients, None).unwrap();
        let release = step
            .release(&mut SecureRandom::new().unwrap(), &device)
            .unwrap();
        assert_normal_variance(name, &values(&release, 0), 1.3 * 0.7 / 4.0);
    }
}

/// The divisor is q N = 4, whatever the batch holds.
#[test]
fn the_sum_is_divided_by_the_expected_batch_size() {
    let plan = StepPlan::new(0.5, 8, 1e-5, &[10.0]).unwrap();
    for (name, device, kernel) in cases() {
        for units in [1, 3, 9] {
            let gradients = single(
                &vec![vec![1.0, -2.0]; units],
                RowMap::one_each(units),
                &device,
            );
            let mut step = Accumulator::begin(&plan, &gradients.layout())
                .unwrap()
                .with_kernel(kernel);
            step.add(&gradients, None).unwrap();
            let found = values(
                &step
                    .release(&mut SecureRandom::new().unwrap(), &device)
                    .unwrap(),
                0,
            );
            for (found, each) in found.iter().zip([1.0, -2.0]) {
                assert!(
                    (found - each * units as f64 / 4.0).abs() < 1e-3,
                    "{name} {units}: {found}"
                );
            }
        }
    }
}

/// With the same noise, the release is bit for bit the same however the batch is cut, padded and ordered.
#[test]
fn micro_batches_and_padding_change_nothing() {
    let plan = StepPlan::new(0.1, 70, 0.9, &[0.4])
        .unwrap()
        .with_telemetry(all_telemetry())
        .unwrap();
    let rows: Vec<Vec<f32>> = (0..7)
        .map(|i| {
            (0..130)
                .map(|j| ((i * 131 + j * 7) % 17) as f32 / 40.0 - 0.2)
                .collect()
        })
        .collect();
    for (name, device) in devices() {
        let release = |cuts: &[usize], padding: usize| {
            let layout = Layout::new([("g", vec![130])]);
            let mut step = Accumulator::begin(&plan, &layout).unwrap();
            let mut start = 0;
            for &end in cuts {
                let mut part = rows[start..end].to_vec();
                let mut losses: Vec<f32> = (start..end).map(|i| i as f32 * 0.9).collect();
                part.extend(vec![vec![9.0; 130]; padding]);
                losses.extend(vec![f32::NAN; padding]);
                let count = losses.len();
                let losses = Tensor::from_data(TensorData::new(losses, [count]), &device);
                step.add(
                    &single(&part, RowMap::padded(end - start, padding), &device),
                    Some(Private::new(losses)),
                )
                .unwrap();
                start = end;
            }
            let release = step.release(&mut SeededRandom::new(5), &device).unwrap();
            assert!(!release.private);
            let fractions = release.clipped_fractions.clone().unwrap().values;
            (
                values(&release, 0),
                *fractions[0].value(),
                *release.mean_loss.unwrap().value.value(),
            )
        };
        let whole = release(&[7], 0);
        assert_eq!(whole, release(&[1, 2, 3, 4, 5, 6, 7], 0), "{name}");
        assert_eq!(whole, release(&[3, 7], 5), "{name}");
    }
}

#[test]
fn telemetry_is_centred_on_the_truth_with_the_noise_it_states() {
    let plan = StepPlan::new(1.0, 4, 1.0, &[1.0, 1.0])
        .unwrap()
        .with_telemetry(all_telemetry())
        .unwrap();
    let (_, device) = devices().remove(0);
    let mut random = SecureRandom::new().unwrap();
    let (mut first, mut second, mut loss) = (Vec::new(), Vec::new(), Vec::new());
    let mut deviations = (0.0, 0.0);
    for _ in 0..3000 {
        // Three of four units are clipped in the first group, none in the second; losses 1, 2, 3 and 9, clipped to 4.
        let a = GroupGradients::new("a").with(super::matrix(
            &[vec![2.0], vec![3.0], vec![0.1], vec![-9.0]],
            &device,
        ));
        let b = GroupGradients::new("b").with(super::matrix(&vec![vec![0.5]; 4], &device));
        let gradients = PerExampleGradients::new(vec![a, b], RowMap::one_each(4)).unwrap();
        let losses = Tensor::<1>::from_floats([1.0, 2.0, 3.0, 9.0], &device);
        let mut step = Accumulator::begin(&plan, &gradients.layout()).unwrap();
        step.add(&gradients, Some(Private::new(losses))).unwrap();
        let release = step.release(&mut random, &device).unwrap();
        let fractions = release.clipped_fractions.unwrap();
        let mean = release.mean_loss.unwrap();
        deviations = (fractions.noise_std, mean.noise_std);
        first.push(*fractions.values[0].value() - 0.75);
        second.push(*fractions.values[1].value());
        loss.push(*mean.value.value() - 2.5);
    }
    assert_normal_variance("first fraction", &first, deviations.0);
    assert_normal_variance("second fraction", &second, deviations.0);
    assert_normal_variance("loss", &loss, deviations.1);
}

#[test]
fn a_plan_never_promises_more_noise_than_it_adds() {
    for groups in [1, 2, 35] {
        for telemetry in [
            Telemetry::NONE,
            all_telemetry(),
            Telemetry {
                clip_counts: 0.01,
                ..Telemetry::NONE
            },
        ] {
            let weights: Vec<f64> = (0..groups).map(|l| 1.0 + l as f64).collect();
            let plan = StepPlan::new(0.01, 5000, 0.73, &vec![0.2; groups]).unwrap();
            let plan = plan
                .with_noise_weights(&weights)
                .unwrap()
                .with_telemetry(telemetry)
                .unwrap();
            let back = plan.recomputed_noise_multiplier().unwrap();
            assert!(
                (0.73..0.73 * (1.0 + 1e-11)).contains(&back),
                "{groups} groups: {back}"
            );
            plan.event(1).check().unwrap();
            let segment = plan.segment(10).unwrap();
            assert_eq!(
                (
                    segment.sampling_rate(),
                    segment.noise_multiplier(),
                    segment.steps()
                ),
                (0.01, 0.73, 10)
            );
            assert_eq!(plan.sensitivity(0, Adjacency::AddRemove), Some(0.2));
            assert_eq!(plan.sensitivity(groups, Adjacency::AddRemove), None);
        }
    }
}

#[test]
fn impossible_plans_are_refused() {
    let plan = || StepPlan::new(0.1, 100, 1.0, &[1.0]).unwrap();
    assert!(StepPlan::new(0.0, 100, 1.0, &[1.0]).is_err());
    assert!(StepPlan::new(1.5, 100, 1.0, &[1.0]).is_err());
    assert!(StepPlan::new(0.1, 0, 1.0, &[1.0]).is_err());
    assert!(StepPlan::new(0.1, 100, 0.0, &[1.0]).is_err());
    assert!(StepPlan::new(0.1, 100, f64::NAN, &[1.0]).is_err());
    assert!(StepPlan::new(0.1, 100, 1.0, &[]).is_err());
    assert!(StepPlan::new(0.1, 100, 1.0, &[0.0]).is_err());
    assert!(plan().with_noise_weights(&[0.0]).is_err());
    assert!(plan().with_noise_weights(&[1.0, 1.0]).is_err());
    for (clip_counts, loss, loss_bound) in [
        (0.6, 0.5, 1.0),
        (-0.1, 0.0, 1.0),
        (0.1, f64::NAN, 1.0),
        (0.1, 0.1, 0.0),
    ] {
        assert!(
            plan()
                .with_telemetry(Telemetry {
                    clip_counts,
                    loss,
                    loss_bound
                })
                .is_err()
        );
    }
}

#[test]
fn losses_must_come_exactly_when_they_are_paid_for() {
    let (_, device) = devices().remove(0);
    let gradients = single(&[vec![1.0]], RowMap::one_each(1), &device);
    let losses = |count: usize| Some(Private::new(Tensor::<1>::ones([count], &device)));
    let plain = StepPlan::new(0.1, 100, 1.0, &[1.0]).unwrap();
    let paying = plain.clone().with_telemetry(all_telemetry()).unwrap();
    let begin = |plan| Accumulator::begin(plan, &gradients.layout()).unwrap();
    assert!(begin(&plain).add(&gradients, losses(1)).is_err());
    assert!(begin(&paying).add(&gradients, None).is_err());
    assert!(begin(&paying).add(&gradients, losses(2)).is_err());
    assert!(begin(&paying).add(&gradients, losses(1)).is_ok());
}

#[test]
fn means_and_counts_carry_the_noise_they_state() {
    let mut random = SecureRandom::new().unwrap();
    let mut means = Vec::new();
    let mut counts = Vec::new();
    for _ in 0..5000 {
        // Clipped to [0, 4]: 0, 1, 4, 4, and the one that is not a number counts as 4.
        let losses = Private::new([-1.0, 1.0, 5.0, f64::INFINITY, f64::NAN]);
        means.push(
            noisy_mean(losses, 4.0, 5.0, 0.6, &mut random)
                .unwrap()
                .into_value()
                - 13.0 / 5.0,
        );
        counts.push(
            noisy_count(Private::new(812), 1.5, &mut random)
                .unwrap()
                .into_value()
                - 812.0,
        );
    }
    assert_normal_variance("mean", &means, noise_of_mean(4.0, 5.0, 0.6));
    assert_normal_variance("count", &counts, 1.5);
    assert!(noisy_mean(Private::new([1.0]), 0.0, 5.0, 1.0, &mut random).is_err());
    assert!(noisy_mean(Private::new([1.0]), 1.0, 0.0, 1.0, &mut random).is_err());
    assert!(noisy_count(Private::new(1), 0.0, &mut random).is_err());
}
