//! What is done to releases and parameters afterwards, against sequences computed by hand.

use burn::module::{Module, Param};
use burn::optim::Optimizer;
use burn::tensor::{Device, Tensor};

use super::devices;
use crate::{
    Accumulator, Averaging, Beta1, GradientFilter, KnownNoise, Layout, SeededRandom, Snapshot,
    SteeredAdam, SteeredAdamState, StepPlan, StepRelease, WeightAverage,
};

#[derive(Module, Debug)]
struct Pair {
    a: Param<Tensor<1>>,
    b: Param<Tensor<2>>,
}

fn pair(a: f32, b: f32, device: &Device) -> Pair {
    let device = device.clone().autodiff();
    Pair {
        a: Param::initialized(
            1.into(),
            Tensor::from_floats([a, -a], &device).require_grad(),
        ),
        b: Param::initialized(
            2.into(),
            Tensor::from_floats([[b], [2.0 * b]], &device).require_grad(),
        ),
    }
}

fn values(pair: &Pair) -> Vec<f64> {
    let mut values: Vec<f64> = pair.a.val().try_into_vec_as().unwrap();
    values.extend(pair.b.val().try_into_vec_as::<f64>().unwrap());
    values
}

fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= 1e-6 * b.abs().max(1.0),
            "{found:?} is not {expected:?}"
        );
    }
}

/// Runs an optimizer over one-coordinate gradients from the parameter 0 at rate 1.
fn trace(
    adam: &SteeredAdam,
    steps: &[f32],
    mut before: impl FnMut(usize),
    device: &Device,
) -> Vec<f64> {
    let mut tensor = Tensor::<1>::zeros([1], device);
    let mut state: Option<SteeredAdamState<1>> = None;
    let mut places = Vec::new();
    for (index, gradient) in steps.iter().enumerate() {
        before(index);
        let gradient = Tensor::from_floats([*gradient], device);
        (tensor, state) = adam.step(1.0, tensor, gradient, state);
        places.push(f64::from(tensor.clone().into_scalar::<f32>()));
    }
    places
}

/// DP-AdamBC, Algorithm 1: `theta -= m_hat / sqrt(max(v_hat - Phi, floor))`, here with decays 0.9 and 0.5 and noise
/// variances 0.5 and 1, whose average has the weights of the second moment.
#[test]
fn known_noise_is_subtracted_from_the_second_moment() {
    for (_, device) in devices() {
        let noise = KnownNoise::new();
        let adam = SteeredAdam::new(Beta1::new(0.9), 0.5, 0.0).with_known_noise(noise.clone());
        let found = trace(
            &adam,
            &[3.0, 1.0],
            |step| noise.set([0.5, 1.0][step], 1.0),
            &device,
        );
        // Step 1: m_hat 3, v_hat 9, Phi 0.5. Step 2: m_hat 0.37 / 0.19, v_hat 2.75 / 0.75, Phi 0.625 / 0.75.
        let first = -3.0 / 8.5_f64.sqrt();
        let second = first - 0.37 / 0.19 / (2.125_f64 / 0.75).sqrt();
        assert_close(&found, &[first, second]);
        // Where noise explains everything, a tenth of its variance is what remains.
        let noise_only = trace(&adam, &[1.0], |_| noise.set(2.0, 1.0), &device);
        assert_close(&noise_only, &[-1.0 / 0.2_f64.sqrt()]);
        // Half of it: v_hat 9 less 0.25.
        let half = trace(&adam, &[3.0], |_| noise.set(0.5, 0.5), &device);
        assert_close(&half, &[-3.0 / 8.75_f64.sqrt()]);
    }
}

#[test]
fn nothing_subtracted_is_the_plain_optimizer_bit_for_bit() {
    for (_, device) in devices() {
        let steps = [0.3, -1.7, 0.01, 2.4];
        let plain = SteeredAdam::new(Beta1::new(0.8), 0.99, 1e-12);
        let noise = KnownNoise::new();
        let told = plain.clone().with_known_noise(noise.clone());
        let expected = trace(&plain, &steps, |_| {}, &device);
        assert_eq!(
            trace(&told, &steps, |_| noise.set(0.7, 0.0), &device),
            expected
        );
        for nonsense in [f64::NAN, -1.0] {
            assert_eq!(
                trace(&told, &steps, |_| noise.set(nonsense, 1.0), &device),
                expected
            );
            assert_eq!(
                trace(&told, &steps, |_| noise.set(0.7, nonsense), &device),
                expected
            );
        }
    }
}

/// A release of one group with these coordinates, built from noise alone.
fn release(values: &[f32], noise_std: f64, device: &Device) -> StepRelease {
    let layout = Layout::new([("g", vec![values.len()])]);
    let plan = StepPlan::new(0.5, 10, 1.0, &[1.0]).unwrap();
    let mut release = Accumulator::begin(&plan, &layout)
        .unwrap()
        .release(&mut SeededRandom::new(1), device)
        .unwrap();
    release.groups[0].gradients = vec![Tensor::from_floats(values, device)];
    release.groups[0].noise_std = noise_std;
    release
}

fn coordinates(release: &StepRelease) -> Vec<f64> {
    release.groups[0].gradients[0]
        .clone()
        .try_into_vec_as()
        .unwrap()
}

/// DiSK, Algorithm 1: `g_t = (1 - kappa) g_(t-1) + kappa g_(t+1/2)`, with the authors' kappa of 0.7.
#[test]
fn the_filter_averages_releases_and_knows_the_noise_that_is_left() {
    for (_, device) in devices() {
        let mut filter = GradientFilter::new();
        let mut steps = [[1.0, -4.0], [2.0, 0.0], [0.0, 1.0]].map(|g| release(&g, 0.5, &device));
        for step in &mut steps {
            filter.apply(step, 0.7).unwrap();
        }
        assert_close(&coordinates(&steps[0]), &[1.0, -4.0]);
        assert_close(&coordinates(&steps[1]), &[1.7, -1.2]);
        assert_close(&coordinates(&steps[2]), &[0.51, 0.34]);
        let second: f64 = (0.09 + 0.49) * 0.25;
        let third = 0.09 * second + 0.49 * 0.25;
        assert_close(
            &[steps[1].groups[0].noise_std, steps[2].groups[0].noise_std],
            &[second.sqrt(), third.sqrt()],
        );
        assert!((GradientFilter::look_ahead(0.7) - 3.0 / 7.0).abs() < 1e-12);
    }
}

#[test]
fn a_filter_of_gain_one_changes_nothing() {
    for (_, device) in devices() {
        let mut filter = GradientFilter::new();
        for (gain, g) in [
            (1.0, [0.1, 0.2]),
            (1.0, [3.3, -7.1]),
            (f64::NAN, [0.3, 0.9]),
            (0.0, [0.7, 0.6]),
        ] {
            let mut step = release(&g, 0.5, &device);
            filter.apply(&mut step, gain).unwrap();
            assert_eq!(coordinates(&step), g.map(f64::from));
            assert_eq!(step.groups[0].noise_std, 0.5);
            assert_eq!(GradientFilter::look_ahead(gain), 0.0);
        }
    }
}

/// The warmed-up decay of step t is `min(decay, (1 + t) / (10 + t))`: 2/11 before the second step.
#[test]
fn averages_of_parameters_by_hand() {
    for (_, device) in devices() {
        let steps = [(1.0, 10.0), (2.0, 0.0), (5.0, 4.0)].map(|(a, b)| pair(a, b, &device));
        let averaged = |averaging: Averaging| {
            let mut average = WeightAverage::new();
            for step in &steps {
                average.add(step, averaging);
            }
            values(&average.install(steps[2].clone()))
        };
        assert_eq!(averaged(Averaging::Off), values(&steps[2]));
        assert_eq!(
            averaged(Averaging::Exponential { decay: 0.0 }),
            values(&steps[2])
        );
        let second = 2.0 / 11.0 + 9.0 / 11.0 * 2.0;
        let a = 0.25 * second + 0.75 * 5.0;
        let b = 0.25 * (2.0 / 11.0 * 10.0) + 0.75 * 4.0;
        assert_close(
            &averaged(Averaging::Exponential { decay: 0.9 }),
            &[a, -a, b, 2.0 * b],
        );
        assert_close(
            &averaged(Averaging::Tail { from: 2 }),
            &[3.5, -3.5, 2.0, 4.0],
        );
        assert_eq!(averaged(Averaging::Tail { from: 9 }), values(&steps[2]));
    }
}

#[test]
fn a_snapshot_keeps_parameters_and_puts_them_back() {
    for (_, device) in devices() {
        let (first, second) = (pair(1.0, 10.0, &device), pair(2.0, 4.0, &device));
        let (old, new) = (Snapshot::of(&first), Snapshot::of(&second));
        // 1.5 displacements beyond the second.
        let ahead = new.extrapolated(&old, 1.5).install(second.clone());
        assert_close(&values(&ahead), &[3.5, -3.5, -5.0, -10.0]);
        let back = new.install(ahead);
        assert_eq!(values(&back), values(&second));
        assert!(back.a.is_require_grad() && back.a.val().is_autodiff());
        let again = Snapshot::from_data(old.to_data(), &device).install(second);
        assert_eq!(values(&again), values(&first));
    }
}

#[test]
fn a_flat_release_is_cut_into_the_layouts_groups() {
    for (_, device) in devices() {
        let layout = Layout::new([("a", vec![2, 3]), ("b", vec![4])]);
        let flat = layout.flattened("all");
        assert_eq!((flat.groups.len(), flat.groups[0].dimension()), (1, 9));
        let plan = StepPlan::new(0.5, 10, 1.0, &[2.0]).unwrap();
        let release = Accumulator::begin(&plan, &flat)
            .unwrap()
            .release(&mut SeededRandom::new(1), &device)
            .unwrap();
        let whole: Vec<f64> = release.groups[0]
            .gradients
            .iter()
            .flat_map(|g| g.clone().try_into_vec_as::<f64>().unwrap())
            .collect();
        let noise_std = release.groups[0].noise_std;
        let cut = release.cut(&layout).unwrap().scaled(0.5);
        assert_eq!(cut.groups.len(), 2);
        assert_eq!(
            (cut.groups[0].name.as_str(), cut.groups[0].gradients.len()),
            ("a", 2)
        );
        let parts: Vec<f64> = cut
            .groups
            .iter()
            .flat_map(|group| &group.gradients)
            .flat_map(|g| g.clone().try_into_vec_as::<f64>().unwrap())
            .collect();
        assert_close(&parts, &whole.iter().map(|v| 0.5 * v).collect::<Vec<_>>());
        assert_eq!(cut.groups[1].noise_std, 0.5 * noise_std);
        assert!(cut.cut(&layout).is_err());
    }
}
