//! Any Burn optimizer, moved by releases alone.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::module::Param;
use burn::nn::{Linear, LinearConfig};
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdamConfig, AdamWConfig, GradientsParams, LionConfig, ModuleOptimizer, MuonConfig, SgdConfig,
};
use burn::tensor::{Device, Tensor};
use rldp_optim::{
    Accumulator, DpOptimizer, GroupGradients, ParameterGroups, ParameterSlot, PerExampleGradients,
    RowMap, SecureRandom, SeededRandom, StepPlan,
};

// The ndarray backend is deprecated upstream; while it exists it is the second opinion.
#[allow(deprecated)]
fn devices() -> Vec<(&'static str, Device)> {
    vec![
        #[cfg(feature = "flex")]
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Device::ndarray()),
    ]
}

fn weights(model: &Linear) -> (Vec<f64>, Vec<f64>) {
    (
        model.weight.val().try_into_vec_as().unwrap(),
        model
            .bias
            .as_ref()
            .unwrap()
            .val()
            .try_into_vec_as()
            .unwrap(),
    )
}

#[test]
fn sgd_moves_parameters_by_exactly_the_release() {
    for (name, device) in devices() {
        let model = LinearConfig::new(3, 2).init(&device.clone().autodiff());
        let groups = ParameterGroups::flat("all", &model);
        let mut optimizer = DpOptimizer::new(SgdConfig::new().init(), groups);
        let plan = StepPlan::new(0.5, 10, 1.0, &[1.0]).unwrap();
        let release = Accumulator::begin(&plan, &optimizer.layout())
            .unwrap()
            .release(&mut SecureRandom::new().unwrap(), &device)
            .unwrap();
        let before = weights(&model);
        let after = weights(&optimizer.step(0.1, model, &release).unwrap());
        let noise: Vec<Vec<f64>> = release.groups[0]
            .gradients
            .iter()
            .map(|g| g.clone().try_into_vec_as().unwrap())
            .collect();
        for (before, after, noise) in [
            (&before.0, &after.0, &noise[0]),
            (&before.1, &after.1, &noise[1]),
        ] {
            assert_eq!(before.len(), noise.len());
            for ((b, a), n) in before.iter().zip(after).zip(noise) {
                assert!(
                    (a - (b - 0.1 * n)).abs() < 1e-6,
                    "{name}: {b} -> {a} by {n}"
                );
            }
        }
    }
}

/// Linear regression with per-example gradients written by hand learns through the whole chain.
#[test]
fn a_private_regression_learns() {
    for (name, device) in devices() {
        let mut model = LinearConfig::new(2, 1).init(&device.clone().autodiff());
        let mut optimizer = DpOptimizer::new(
            AdamConfig::new().init(),
            ParameterGroups::flat("all", &model),
        );
        let plan = StepPlan::new(1.0, 64, 0.5, &[1.0]).unwrap();
        let mut random = SeededRandom::new(11);
        let inputs: Vec<[f32; 2]> = (0..64)
            .map(|i| [(i % 8) as f32 / 4.0 - 0.9, (i / 8) as f32 / 4.0 - 0.9])
            .collect();
        let target = |x: &[f32; 2]| 0.8 * x[0] - 0.5 * x[1] + 0.3;
        let mut losses = Vec::new();
        for _ in 0..200 {
            let (w, b) = weights(&model);
            let mut rows = Vec::new();
            let mut loss = 0.0;
            for x in &inputs {
                let error = w[0] as f32 * x[0] + w[1] as f32 * x[1] + b[0] as f32 - target(x);
                loss += error * error / 64.0;
                rows.push([error * x[0], error * x[1], error]);
            }
            losses.push(loss);
            let all = Tensor::<2>::from_data(
                burn::tensor::TensorData::new(rows.concat(), [64, 3]),
                &device,
            );
            let group = GroupGradients::new("all")
                .with(all.clone().slice([0..64, 0..2]))
                .with(all.slice([0..64, 2..3]));
            let mut step = Accumulator::begin(&plan, &optimizer.layout()).unwrap();
            step.add(
                &PerExampleGradients::new(vec![group], RowMap::one_each(64)).unwrap(),
                None,
            )
            .unwrap();
            model = optimizer
                .step(0.02, model, &step.release(&mut random, &device).unwrap())
                .unwrap();
        }
        let last: f32 = losses[190..].iter().sum::<f32>() / 10.0;
        assert!(
            last < 0.02 && last < losses[0] / 5.0,
            "{name}: {} -> {last}",
            losses[0]
        );
    }
}

#[test]
fn a_release_of_other_groups_is_refused() {
    let (_, device) = devices().remove(0);
    let model = LinearConfig::new(3, 2).init(&device.clone().autodiff());
    let mut optimizer = DpOptimizer::new(
        SgdConfig::new().init(),
        ParameterGroups::flat("all", &model),
    );
    let plan = StepPlan::new(0.5, 10, 1.0, &[1.0]).unwrap();
    let other = rldp_optim::Layout::new([("other", vec![6, 2])]);
    let release = Accumulator::begin(&plan, &other)
        .unwrap()
        .release(&mut SeededRandom::new(1), &device)
        .unwrap();
    assert!(optimizer.step(0.1, model, &release).is_err());
}

fn every_optimizer() -> Vec<(&'static str, ModuleOptimizer)> {
    let momentum = MomentumConfig::new().with_momentum(0.9);
    vec![
        ("AdamW", AdamWConfig::new().init()),
        (
            "SGD with momentum",
            SgdConfig::new().with_momentum(Some(momentum)).init(),
        ),
        ("Lion", LionConfig::new().init()),
        ("Muon", MuonConfig::new().init()),
    ]
}

/// Any optimizer, stateful or not, moves the parameters as it would if the released mean were an ordinary gradient, and takes a task
/// to its end: a linear map, learned from gradients accumulated over micro-batches.
#[test]
fn every_optimizer_steps_on_releases() {
    for (device_name, device) in devices() {
        for (name, optimizer) in every_optimizer() {
            let what = format!("{device_name} {name}");
            let target = Tensor::<2>::from_floats([[0.8, -0.5], [0.1, 0.4], [-0.6, 0.2]], &device);
            let inputs = Tensor::<2>::from_data(
                burn::tensor::TensorData::new(
                    (0..60)
                        .map(|i| (i * 37 % 23) as f32 / 11.0 - 1.0)
                        .collect::<Vec<f32>>(),
                    [20, 3],
                ),
                &device,
            );
            // Muon takes matrices only: the weight alone, a bias of zero.
            let mut model = LinearConfig::new(3, 2)
                .with_bias(false)
                .init(&device.clone().autodiff());
            let slot = ParameterSlot {
                id: model.weight.id,
                shape: vec![3, 2],
            };
            let groups = ParameterGroups::new().with("weight", vec![slot]);
            let mut private = DpOptimizer::new(optimizer.clone(), groups.clone());
            let (mut twin, mut plain) = (model.clone(), optimizer);
            let plan = StepPlan::new(1.0, 20, 0.01, &[10.0]).unwrap();
            let mut random = SeededRandom::new(5);
            let mut losses = Vec::new();
            for _ in 0..150 {
                let errors = inputs
                    .clone()
                    .matmul(model.weight.val().inner() - target.clone());
                losses.push(errors.clone().powi_scalar(2).mean().into_scalar::<f64>());
                let mut step = Accumulator::begin(&plan, &private.layout()).unwrap();
                for start in [0, 8, 16] {
                    let rows = if start == 16 { 4 } else { 8 };
                    let x = inputs
                        .clone()
                        .slice([start..start + rows, 0..3])
                        .unsqueeze_dim::<3>(2);
                    let error = errors
                        .clone()
                        .slice([start..start + rows, 0..2])
                        .unsqueeze_dim::<3>(1);
                    let group = GroupGradients::new("weight").with(x.matmul(error));
                    let gradients = PerExampleGradients::new(vec![group], RowMap::one_each(rows));
                    step.add(&gradients.unwrap(), None).unwrap();
                }
                let release = step.release(&mut random, &device).unwrap();
                model = private.step(0.02, model, &release).unwrap();
                let mut gradients = GradientsParams::new();
                let mean = release.groups[0].gradients[0].clone().reshape([3, 2]);
                gradients.register(twin.weight.id, mean);
                twin = plain.step(0.02, twin, gradients);
                let values = |weight: &Param<Tensor<2>>| weight.val().into_data();
                assert_eq!(values(&model.weight), values(&twin.weight), "{what}");
            }
            let last = losses[140..].iter().sum::<f64>() / 10.0;
            assert!(
                last < 0.02 && last < losses[0] / 10.0,
                "{what}: {} -> {last}",
                losses[0]
            );
        }
    }
}
