//! A private step on a tiny model: what must not change it, and what it must not do.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::{Device, Tensor};
use rldp::RldpError;
use rldp::controller::{
    ClipCounts, ControllerKind, Decision, Observation, PostProcessing, Visible,
};
use rldp::trainer::{HeldOut, PrivateStep, TokenUnit, TrainerConfig};
use rldp_accounting::ledger::{BudgetRecord, Event, Header, LEDGER_VERSION, Ledger, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget, Segment};
use rldp_lora::{LoraConfig, adapters, add_lora};
use rldp_models::{Gpt2, Gpt2Config, LanguageModel};
use rldp_optim::{SeededRandom, StepRelease};

fn device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(all(feature = "ndarray", not(feature = "flex")))]
    #[allow(deprecated)]
    return Device::ndarray();
}

fn model() -> Gpt2 {
    let config = Gpt2Config::new(31, 16, 2, 8, 2);
    let mut model = Gpt2::random(&config, 3, &device()).unwrap();
    let targets = model.default_targets();
    add_lora(&mut model, &LoraConfig::new(2, targets), 4).unwrap();
    model
}

/// Units of one to three rows of different lengths; one has no rows at all.
fn units() -> Vec<TokenUnit> {
    (0..12_u32)
        .map(|unit| TokenUnit {
            rows: (0..unit % 4)
                .map(|row| {
                    (0..3 + (unit * 5 + row * 3) % 9)
                        .map(|t| (unit * 7 + t * t + row) % 31)
                        .collect()
                })
                .collect(),
        })
        .collect()
}

fn ledger(folder: &tempfile::TempDir) -> LedgerWriter {
    let header = Header {
        version: LEDGER_VERSION,
        created: "then".into(),
        unit: "one row".into(),
        adjacency: Adjacency::AddRemove,
        target: PrivacyTarget::new(8.0, 1e-5).unwrap(),
        private: false,
        budget: BudgetRecord::Fixed {
            segment: Segment::new(0.5, 1.0, 4).unwrap(),
        },
        parameters: serde_json::Value::Null,
    };
    LedgerWriter::create(folder.path().join("ledger.jsonl"), &header).unwrap()
}

fn decision(adapters: usize) -> Decision {
    let weights = vec![1.0 / adapters as f64; adapters];
    Decision::per_adapter(vec![0.05; adapters], weights)
}

/// One step with next to no noise, at this micro-batch size.
fn release(micro_batch: usize, gradient_checkpointing: bool) -> StepRelease {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    let config = TrainerConfig {
        batch_size: 9.0,
        micro_batch,
        gradient_checkpointing,
        clip_count_share: 0.0,
        ..TrainerConfig::default()
    };
    let mut step = PrivateStep::new(&model, units(), 12, &config, &device()).unwrap();
    let count = step.references().len();
    let plan = step
        .plan(&Segment::new(0.75, 1e-4, 1).unwrap(), &decision(count))
        .unwrap();
    step.take(
        1,
        &mut model,
        &plan,
        1e-3,
        0.8,
        &mut ledger(&folder),
        &mut SeededRandom::new(1),
    )
    .unwrap()
}

fn values(release: &StepRelease) -> Vec<f32> {
    let tensors: Vec<Tensor<1>> = release
        .groups
        .iter()
        .flat_map(|group| group.gradients.clone())
        .collect();
    Tensor::cat(tensors, 0).into_data().iter::<f32>().collect()
}

#[test]
fn micro_batch_size_padding_and_checkpointing_change_nothing() {
    let reference = values(&release(1, false));
    let scale = reference
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    assert!(scale > 0.0);
    for (micro_batch, checkpointing) in [(2, false), (5, true), (64, false), (64, true)] {
        let found = values(&release(micro_batch, checkpointing));
        for (a, b) in reference.iter().zip(&found) {
            assert!(
                (a - b).abs() <= 2e-5 * scale,
                "micro-batch {micro_batch}: {a} against {b}"
            );
        }
    }
}

#[test]
fn a_step_is_in_the_ledger_with_the_numbers_it_used() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    let before: Vec<f32> = flat(&model);
    let config = TrainerConfig {
        batch_size: 6.0,
        ..TrainerConfig::default()
    };
    let mut step = PrivateStep::new(&model, units(), 12, &config, &device()).unwrap();
    let count = step.references().len();
    let plan = step
        .plan(&Segment::new(0.5, 1.0, 1).unwrap(), &decision(count))
        .unwrap();
    let mut writer = ledger(&folder);
    step.take(
        1,
        &mut model,
        &plan,
        1e-2,
        0.8,
        &mut writer,
        &mut SeededRandom::new(2),
    )
    .unwrap();
    drop(writer);
    let ledger = Ledger::read(folder.path().join("ledger.jsonl")).unwrap();
    let [
        Event::Step {
            noise_multiplier,
            clipping_norms,
            group_noise_multipliers,
            telemetry,
            ..
        },
    ] = &ledger.events[..]
    else {
        panic!("not one step: {:?}", ledger.events);
    };
    assert_eq!(*noise_multiplier, 1.0);
    assert_eq!(clipping_norms.len(), count);
    // All parts together are one Gaussian mechanism with the noise multiplier that the accountant was told.
    let precision: f64 = group_noise_multipliers
        .iter()
        .chain(telemetry)
        .map(|s| s.powi(-2))
        .sum();
    assert!((precision - 1.0).abs() < 1e-9, "precision {precision}");
    assert_ne!(before, flat(&model));
}

#[test]
fn an_empty_batch_is_noised_and_accounted() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    let before = flat(&model);
    let config = TrainerConfig {
        batch_size: 0.5,
        ..TrainerConfig::default()
    };
    // No unit has a row, so whatever is sampled is empty.
    let nobody = vec![TokenUnit { rows: Vec::new() }; 12];
    let mut step = PrivateStep::new(&model, nobody, 12, &config, &device()).unwrap();
    let count = step.references().len();
    let segment = Segment::new(0.5 / 12.0, 1.0, 1).unwrap();
    let plan = step.plan(&segment, &decision(count)).unwrap();
    let mut writer = ledger(&folder);
    let release = step
        .take(
            1,
            &mut model,
            &plan,
            1e-2,
            0.8,
            &mut writer,
            &mut SeededRandom::new(2),
        )
        .unwrap();
    assert!(values(&release).iter().any(|value| *value != 0.0));
    assert_ne!(before, flat(&model));
    drop(writer);
    assert_eq!(
        Ledger::read(folder.path().join("ledger.jsonl"))
            .unwrap()
            .steps(),
        1
    );
}

#[test]
fn a_held_out_part_answers_no_more_than_it_was_calibrated_for() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    let target = PrivacyTarget::new(2.0, 1e-5).unwrap();
    let mut random = SeededRandom::new(3);
    let mut writer = ledger(&folder);
    let mut part =
        HeldOut::new("test", units(), &target, 2, 5.0, &mut writer, &mut random).unwrap();
    for _ in 0..2 {
        part.release_loss(&model, 4, &device(), &mut writer, &mut random)
            .unwrap();
    }
    let third = part.release_loss(&model, 4, &device(), &mut writer, &mut random);
    assert!(matches!(
        third,
        Err(RldpError::QueriesSpent { part: "test" })
    ));
    drop(writer);
    let ledger = Ledger::read(folder.path().join("ledger.jsonl")).unwrap();
    let spent = ledger.epsilon_upper(1e-5).unwrap();
    assert_eq!(spent.parts.len(), 1);
    assert!(
        spent.parts[0].epsilon <= 2.0 && spent.parts[0].epsilon > 1.99,
        "{spent:?}"
    );
}

#[test]
fn a_batch_beyond_the_population_and_a_decision_of_another_size_are_refused() {
    let model = model();
    let config = TrainerConfig {
        batch_size: 13.0,
        ..TrainerConfig::default()
    };
    let refused = PrivateStep::new(&model, units(), 12, &config, &device());
    assert!(matches!(
        refused,
        Err(RldpError::OutOfRange {
            what: "batch size",
            ..
        })
    ));
    let config = TrainerConfig {
        batch_size: 6.0,
        ..TrainerConfig::default()
    };
    let step = PrivateStep::new(&model, units(), 12, &config, &device()).unwrap();
    let refused = step.plan(&Segment::new(0.5, 1.0, 1).unwrap(), &decision(3));
    assert!(matches!(
        refused,
        Err(RldpError::AdapterCount { found: 3, .. })
    ));
}

fn flat(model: &Gpt2) -> Vec<f32> {
    adapters(model)
        .layers
        .iter()
        .flat_map(|layer| [layer.a.val(), layer.b.val()])
        .flat_map(|tensor| tensor.into_data().iter::<f32>().collect::<Vec<_>>())
        .collect()
}

/// Whatever a controller reads is in its own step's effective noise multiplier, and what reads nothing pays nothing.
#[test]
fn every_controller_pays_within_the_step_for_what_it_reads() {
    let model = model();
    let config = TrainerConfig {
        batch_size: 6.0,
        ..TrainerConfig::default()
    };
    let step = PrivateStep::new(&model, units(), 12, &config, &device()).unwrap();
    let dimensions: Vec<usize> = step
        .references()
        .iter()
        .map(|adapter| adapter.trainable_parameters())
        .collect();
    let segment = Segment::new(0.5, 0.7, 1).unwrap();
    for (name, kind) in ControllerKind::NAMES {
        let mut controller = kind
            .build(&config.controller_setup(dimensions.clone()), 3, &device())
            .unwrap();
        let decision = controller.decide(&nothing_seen(&dimensions)).unwrap();
        let plan = step.plan(&segment, &decision).unwrap();
        let recomputed = plan.recomputed_noise_multiplier().unwrap();
        assert!(
            (0.7..0.7 * (1.0 + 1e-9)).contains(&recomputed),
            "{name}: {recomputed}"
        );
        let pays = !plan.telemetry_noise_multipliers().is_empty();
        assert_eq!(pays, decision.clip_counts != ClipCounts::None, "{name}");
    }
}

fn nothing_seen(dimensions: &[usize]) -> Observation {
    let zero = Visible::public(0.0);
    Observation {
        progress: 0.0,
        spent: 0.0,
        validation_loss: Visible::public(2.0),
        initial_loss: Visible::public(2.0),
        loss_noise: 0.0,
        improvement: zero,
        noise_multiplier: 0.7,
        learning_rate: 5e-3,
        learning_rate_factor: 1.0,
        beta_1: 0.8,
        post_processing: PostProcessing::default(),
        adapters: dimensions
            .iter()
            .map(|dimension| rldp::controller::AdapterView {
                dimension: *dimension,
                clipped_fraction: zero,
                signal_to_noise: zero,
                descent: zero,
                descent_noise: zero,
                cosine: zero,
                parameter_norm: zero,
                clipping_norm: 0.1,
                noise_weight: 1.0 / dimensions.len() as f64,
            })
            .collect(),
    }
}

/// A flat step clips one norm over all adapters, and is released per adapter with the same noise in every coordinate.
#[test]
fn a_flat_step_has_one_norm_and_one_count() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    let config = TrainerConfig {
        batch_size: 6.0,
        clip_count_share: 0.1,
        ..TrainerConfig::default()
    };
    let mut step = PrivateStep::new(&model, units(), 12, &config, &device()).unwrap();
    let segment = Segment::new(0.5, 1e-4, 1).unwrap();
    let plan = step.plan(&segment, &Decision::flat(0.02)).unwrap();
    let release = step
        .take(
            1,
            &mut model,
            &plan,
            1e-3,
            0.8,
            &mut ledger(&folder),
            &mut SeededRandom::new(5),
        )
        .unwrap();
    assert_eq!(release.groups.len(), step.references().len());
    assert_eq!(release.clipped_fractions.as_ref().unwrap().values.len(), 1);
    let noise = release.groups[0].noise_std;
    assert!(release.groups.iter().all(|group| group.noise_std == noise));
    // Each of at most nine sampled units adds a vector of norm at most 0.02, and the noise is next to nothing.
    let norm = values(&release)
        .iter()
        .map(|value| f64::from(value * value))
        .sum::<f64>()
        .sqrt();
    assert!(norm > 1e-3 && norm < 0.02 * 12.0 / 6.0, "norm {norm}");
    let refused = step.plan(
        &segment,
        &Decision {
            clipping: rldp::controller::Clipping::default(),
            ..Decision::flat(0.02)
        },
    );
    assert!(matches!(
        refused,
        Err(RldpError::AdapterCount { found: 1, .. })
    ));
}

/// Where parameters end up after a few steps with this post-processing, and with the averaged ones.
fn walk(post_processing: PostProcessing) -> (Vec<f32>, Option<Vec<f32>>) {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    let config = TrainerConfig {
        batch_size: 6.0,
        steps: 4,
        post_processing,
        ..TrainerConfig::default()
    };
    let mut step = PrivateStep::new(&model, units(), 12, &config, &device()).unwrap();
    let count = step.references().len();
    let (mut ledger, mut random) = (ledger(&folder), SeededRandom::new(6));
    for number in 1..=4 {
        let plan = step
            .plan(&Segment::new(0.5, 1.0, 1).unwrap(), &decision(count))
            .unwrap();
        step.take(
            number,
            &mut model,
            &plan,
            1e-2,
            0.8,
            &mut ledger,
            &mut random,
        )
        .unwrap();
        // A checkpoint in the middle changes nothing.
        let checkpoint = tempfile::tempdir().unwrap();
        step.save_post_processing(checkpoint.path()).unwrap();
        step.restore_post_processing(checkpoint.path()).unwrap();
    }
    let averaged = step.averaged(&model).unwrap().map(|model| flat(&model));
    (flat(&model), averaged)
}

#[test]
fn post_processing_changes_the_walk_and_averaging_only_its_result() {
    let off = PostProcessing::default();
    let (plain, none) = walk(off);
    assert!(none.is_none());
    let (corrected, _) = walk(PostProcessing {
        noise_correction: 1.0,
        ..off
    });
    let (denoised, _) = walk(PostProcessing {
        denoising_gain: 0.7,
        ..off
    });
    assert!(plain != corrected && plain != denoised && corrected != denoised);
    for averaging in [
        PostProcessing {
            averaging_decay: 0.9,
            ..off
        },
        PostProcessing {
            tail_averaging: 0.5,
            ..off
        },
    ] {
        let (walked, averaged) = walk(averaging);
        assert_eq!(walked, plain);
        assert_ne!(averaged.unwrap(), plain);
    }
    // The last quarter of four steps is the last step.
    assert_eq!(
        walk(PostProcessing {
            tail_averaging: 0.25,
            ..off
        })
        .1
        .unwrap(),
        plain
    );
}
