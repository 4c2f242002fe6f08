//! Any Burn optimizer, moved by releases alone.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, SgdConfig};
use burn::tensor::{Device, Tensor};
use rldp_optim::{
    Accumulator, DpOptimizer, GroupGradients, ParameterGroups, PerExampleGradients, RowMap,
    SecureRandom, SeededRandom, StepPlan,
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
