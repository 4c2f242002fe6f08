//! The rivals' formulas against sequences computed by hand from their papers.
#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use rldp_accounting::{PrivacyTarget, epsilon_upper};
use rldp_optim::{Accumulator, Layout, SeededRandom, StepPlan, StepRelease};

use super::*;
use crate::budget::{Budget, BudgetKind};
use crate::controller::{AdapterView, PostProcessing, StepView, Visible};

fn observation(adapters: usize) -> Observation {
    let visible = Visible::public(0.0);
    let view = AdapterView {
        dimension: 10,
        clipped_fraction: visible,
        signal_to_noise: visible,
        descent: visible,
        descent_noise: visible,
        cosine: visible,
        parameter_norm: visible,
        clipping_norm: 1.0,
        noise_weight: 1.0 / adapters as f64,
    };
    Observation {
        progress: 0.0,
        spent: 0.0,
        validation_loss: visible,
        initial_loss: visible,
        loss_noise: 0.0,
        improvement: visible,
        noise_multiplier: 1.0,
        learning_rate: 5e-3,
        learning_rate_factor: 1.0,
        beta_1: 0.9,
        post_processing: PostProcessing::default(),
        adapters: vec![view; adapters],
    }
}

fn release() -> (StepPlan, StepRelease) {
    let plan = StepPlan::new(0.5, 10, 1.0, &[1.0]).unwrap();
    let release = Accumulator::begin(&plan, &Layout::new([("g", vec![2])]))
        .unwrap()
        .release(&mut SeededRandom::new(1), &Device::default())
        .unwrap();
    (plan, release)
}

/// Lets a controller see steps with these released clipped shares, and gives the decisions in force after each.
fn follow(
    controller: &mut dyn Controller,
    adapters: usize,
    steps: &[Option<Vec<f64>>],
) -> Vec<Decision> {
    let (plan, release) = release();
    let mut decision = controller.decide(&observation(adapters)).unwrap();
    let mut decisions = vec![decision.clone()];
    for (index, clipped) in steps.iter().enumerate() {
        let clipped: Option<Vec<Visible>> = clipped
            .as_ref()
            .map(|shares| shares.iter().copied().map(Visible::public).collect());
        let view = StepView {
            step: index as u64 + 1,
            steps: steps.len() as u64,
            clipped_fractions: clipped.as_deref(),
            plan: &plan,
            release: &release,
        };
        controller.step(&view, &mut decision).unwrap();
        decisions.push(decision.clone());
    }
    decisions
}

fn assert_close(found: f64, expected: f64) {
    assert!(
        (found / expected - 1.0).abs() < 1e-12,
        "{found} is not {expected}"
    );
}

#[test]
fn constant_clipping_never_moves() {
    let shares = [Some(vec![1.0]), Some(vec![0.0])];
    for decision in follow(&mut ConstantController::flat(0.3).unwrap(), 4, &shares) {
        assert_eq!(
            (decision.clipping, decision.clipping_norms.as_slice()),
            (super::super::Clipping::FLAT, &[0.3][..])
        );
        assert_eq!(decision.noise_weights, [1.0]);
        assert_eq!(decision.clip_counts, ClipCounts::None);
    }
    let each = ConstantController::per_adapter(0.3)
        .unwrap()
        .decide(&observation(4))
        .unwrap();
    assert!(!each.clipping.flat);
    assert_eq!(
        (each.clipping_norms, each.noise_weights),
        (vec![0.3; 4], vec![0.25; 4])
    );
}

/// AUTO-S scales every gradient by `1 / (norm + 0.01)` and needs no count (Bu et al. 2023, equation 4.1).
#[test]
fn automatic_clipping_normalises_with_the_papers_stability() {
    let mut rival = AutomaticController::new(AutomaticOptions::default()).unwrap();
    let decision = rival.decide(&observation(3)).unwrap();
    assert_eq!(decision.clipping.normalize, Some(0.01));
    assert_eq!(
        (decision.clipping.flat, decision.clipping_norms),
        (true, vec![1.0])
    );
    assert_eq!(decision.clip_counts, ClipCounts::None);
    let options = AutomaticOptions {
        per_adapter: true,
        ..AutomaticOptions::default()
    };
    let decision = AutomaticController::new(options)
        .unwrap()
        .decide(&observation(3))
        .unwrap();
    assert_eq!(
        (decision.clipping.flat, decision.clipping_norms),
        (false, vec![1.0; 3])
    );
}

/// `C <- C exp(-0.2 (b - 0.5))` with b the unclipped share, counts with deviation B/20 (Andrew et al. 2021, Algorithm 1 and
/// section 3).
#[test]
fn quantile_clipping_follows_the_unclipped_share() {
    let mut rival = QuantileController::new(0.1, 64.0, QuantileOptions::default()).unwrap();
    let found = follow(
        &mut rival,
        5,
        &[Some(vec![0.9]), Some(vec![0.3]), None, Some(vec![0.5])],
    );
    assert_eq!(found[0].clip_counts, ClipCounts::Deviation(3.2));
    let norms: Vec<f64> = found
        .iter()
        .map(|decision| decision.clipping_norms[0])
        .collect();
    assert_eq!(norms[0], 0.1);
    assert_close(norms[1], 0.1 * 0.08_f64.exp());
    assert_close(norms[2], 0.1 * 0.04_f64.exp());
    // Nothing released, nothing moved; at the target neither.
    assert_close(norms[3], norms[2]);
    assert_close(norms[4], norms[2]);
    // The next interval begins where the last one ended.
    assert_eq!(
        rival.decide(&observation(5)).unwrap().clipping_norms,
        found[4].clipping_norms
    );
}

/// The same per adapter, with the noise split evenly or in proportion to the squared norms (He et al. 2023, section 3).
#[test]
fn quantile_clipping_per_adapter_follows_each_share() {
    for (allocation, expected) in [
        (Allocation::EqualBudget, [0.5, 0.5]),
        (Allocation::Global, {
            let (a, b) = (0.3_f64.exp(), (-0.18_f64).exp());
            [a / (a + b), b / (a + b)]
        }),
    ] {
        let options = PerAdapterQuantileOptions {
            allocation,
            ..PerAdapterQuantileOptions::default()
        };
        let mut rival = PerAdapterQuantileController::new(2, 0.1, options).unwrap();
        let found = follow(&mut rival, 2, &[Some(vec![1.0, 0.2])]);
        assert_eq!(found[0].clip_counts, ClipCounts::Share(0.01));
        assert_eq!(found[0].noise_weights, [0.5, 0.5]);
        assert_close(found[1].clipping_norms[0], 0.1 * 0.15_f64.exp());
        assert_close(found[1].clipping_norms[1], 0.1 * (-0.09_f64).exp());
        for (found, expected) in found[1].noise_weights.iter().zip(expected) {
            assert_close(*found, expected);
        }
    }
}

/// `C_t = C_0 rho_c^(-t/T)`, `sigma_t = sigma_0 rho_mu^(-t/T)` (Du et al. 2021), the noise relative to the run's middle.
#[test]
fn clipping_norm_and_noise_decay_geometrically() {
    let options = DecayOptions {
        clipping: 2.0,
        noise: 1.5,
        levels: 2,
    };
    let mut rival = DecayingController::new(0.8, options.clone()).unwrap();
    let found = follow(&mut rival, 3, &[const { None }; 4]);
    for (t, decision) in found.iter().enumerate() {
        let share = t as f64 / 4.0;
        assert_close(decision.clipping_norms[0], 0.8 * 2.0_f64.powf(-share));
        assert_close(decision.noise.0, 1.5_f64.powf(0.5 - share));
        assert_eq!(decision.clip_counts, ClipCounts::None);
    }
    let ratios = options.ratios();
    assert_close(ratios[0], 1.5_f64.powf(0.25));
    assert_close(ratios[1], 1.5_f64.powf(-0.25));
}

/// The schedule is played from a deck registered beforehand: falling, to the last card, within the budget.
#[test]
fn decaying_noise_costs_no_more_than_the_budget() {
    let target = PrivacyTarget::new(4.0, 1e-5).unwrap();
    let options = DecayOptions {
        levels: 5,
        ..DecayOptions::default()
    };
    let levels = options.ratios();
    let mut budget =
        Budget::calibrate_levels(BudgetKind::Deck, &target, 0.02, 20, &levels).unwrap();
    let mut rival = DecayingController::new(1.0, options).unwrap();
    let wishes = follow(&mut rival, 1, &[const { None }; 20]);
    let played: Vec<_> = wishes[..20]
        .iter()
        .map(|decision| budget.play(decision.noise.0).unwrap().unwrap())
        .collect();
    let sigmas: Vec<f64> = played.iter().map(|step| step.noise_multiplier()).collect();
    assert!(
        sigmas.windows(2).all(|pair| pair[1] <= pair[0]),
        "{sigmas:?}"
    );
    assert_close(sigmas[0] / sigmas[19], levels[0] / levels[4]);
    assert!(budget.play(1.0).unwrap().is_none());
    let epsilon = epsilon_upper(&played, 1e-5).unwrap();
    assert!(epsilon <= 4.0 && epsilon > 3.9, "{epsilon}");
}

/// `Z <- Z exp(-eta + b)`, gradients scaled by `C_0 / Z` (Esipova et al. 2023, Algorithm 1).
#[test]
fn the_ceiling_adapts_and_gradients_are_scaled_below_it() {
    let mut rival = GlobalAdaptController::new(0.5, GlobalAdaptOptions::default()).unwrap();
    let found = follow(&mut rival, 2, &[Some(vec![0.04]), Some(vec![0.0])]);
    assert_eq!(found[0].clipping_norms, [25.0]);
    assert_eq!(found[0].clip_counts, ClipCounts::Deviation(10.0));
    let first = 25.0 * (0.04 - 0.1_f64).exp();
    let second = first * (-0.1_f64).exp();
    for (decision, ceiling) in found.iter().zip([25.0, first, second]) {
        assert_close(decision.clipping_norms[0], ceiling);
        assert_close(decision.gradient_factor, 0.5 / ceiling);
    }
}

/// The published update, by hand in double precision: `b = sqrt(s) sqrt(sum s)`, `v = clamp((g - m)^2 - b^2 noise^2, h1, h2)`,
/// `m <- 0.99 m + 0.01 g`, `s^2 <- 0.9 s^2 + 0.1 v`, from m = 0 and `s^2 = sqrt(h1 h2)` (Pichapati et al. 2019, Algorithm 1).
#[test]
fn adaclip_follows_its_paper() {
    let options = AdaClipRivalOptions {
        smallest_variance: 1e-4,
        ..AdaClipRivalOptions::default()
    };
    let mut rival = AdaClipController::new(&[2, 1], &options).unwrap();
    let mut decision = rival.decide(&observation(2)).unwrap();
    assert_eq!(
        (decision.clipping.flat, decision.clipping_norms.as_slice()),
        (true, &[1.0][..])
    );
    assert_eq!(decision.clip_counts, ClipCounts::None);
    let layout = Layout::new([("a", vec![2]), ("b", vec![1])]);
    let (mut mean, mut variance) = ([0.0_f64; 3], [(1e-4_f64 * 10.0).sqrt(); 3]);
    let mut random = SeededRandom::new(5);
    for step in 1..=4 {
        let transforms = rival.transforms().unwrap().unwrap();
        let total: f64 = variance.iter().map(|v| v.sqrt()).sum();
        let scale = variance.map(|v| (v.sqrt() * total).sqrt());
        for (found, expected) in transforms[0].scale().iter().zip(scale) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-5);
        }
        let plan = StepPlan::new(0.5, 10, 0.8, &[1.0])
            .unwrap()
            .with_transforms(transforms)
            .unwrap();
        let release = Accumulator::begin(&plan, &layout.flattened("all"))
            .unwrap()
            .release(&mut random, &Device::default())
            .unwrap()
            .cut(&layout)
            .unwrap();
        let released: Vec<f64> = release
            .groups
            .iter()
            .flat_map(|group| group.gradients.clone())
            .flat_map(|tensor| {
                tensor
                    .into_data()
                    .iter::<f32>()
                    .map(f64::from)
                    .collect::<Vec<_>>()
            })
            .collect();
        let view = StepView {
            step,
            steps: 4,
            clipped_fractions: None,
            plan: &plan,
            release: &release,
        };
        rival.step(&view, &mut decision).unwrap();
        for (at, g) in released.into_iter().enumerate() {
            let noise = scale[at] * 0.8 / 5.0;
            let v = ((g - mean[at]).powi(2) - noise * noise).clamp(1e-4, 10.0);
            mean[at] = 0.99 * mean[at] + 0.01 * g;
            variance[at] = 0.9 * variance[at] + 0.1 * v;
        }
    }
    assert!(variance.iter().any(|v| *v != variance[0]), "{variance:?}");
    // What a checkpoint keeps is all there is.
    let folder = tempfile::tempdir().unwrap();
    let state = rival.save_state(folder.path()).unwrap();
    let mut restored = AdaClipController::new(&[2, 1], &options).unwrap();
    restored.restore_state(&state, folder.path()).unwrap();
    assert_eq!(restored.transforms().unwrap(), rival.transforms().unwrap());
    std::fs::write(folder.path().join("adaclip.bin"), [0; 47]).unwrap();
    assert!(restored.restore_state(&state, folder.path()).is_err());
    assert!(AdaClipController::new(&[], &options).is_err());
}

#[test]
fn released_shares_that_are_no_numbers_move_nothing() {
    let wild = [
        Some(vec![f64::NAN]),
        Some(vec![f64::INFINITY]),
        Some(vec![-1e300]),
    ];
    let quantile = &mut QuantileController::new(0.1, 8.0, QuantileOptions::default()).unwrap();
    let global = &mut GlobalAdaptController::new(0.1, GlobalAdaptOptions::default()).unwrap();
    for rival in [quantile as &mut dyn Controller, global] {
        for decision in follow(rival, 1, &wild) {
            let norm = decision.clipping_norms[0];
            assert!((NORM_RANGE.0..=NORM_RANGE.1).contains(&norm), "{norm}");
        }
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    assert!(ConstantController::flat(0.0).is_err());
    assert!(ConstantController::per_adapter(f64::NAN).is_err());
    assert!(QuantileController::new(1.0, 0.0, QuantileOptions::default()).is_err());
    let options = AutomaticOptions {
        stability: -1.0,
        ..AutomaticOptions::default()
    };
    assert!(AutomaticController::new(options).is_err());
    let options = DecayOptions {
        noise: 0.0,
        ..DecayOptions::default()
    };
    assert!(DecayingController::new(1.0, options).is_err());
    let options = GlobalAdaptOptions {
        count_deviation: 0.0,
        ..GlobalAdaptOptions::default()
    };
    assert!(GlobalAdaptController::new(1.0, options).is_err());
}
