//! Attacks on models that remember, and on models that do not.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::tensor::Device;
use rldp::audit::{
    Person, ShadowSteps, ShadowTraining, attack_mechanism, plan_of_record, train_shadows,
};
use rldp::data::TextUnit;
use rldp::trainer::{StepRecord, TokenUnit, TrainerConfig};
use rldp_accounting::epsilon_upper;
use rldp_lora::{LoraConfig, add_lora};
use rldp_models::{Gpt2, Gpt2Config};
use rldp_optim::{Random, SecureRandom, SeededRandom};

fn device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(all(feature = "ndarray", not(feature = "flex")))]
    #[allow(deprecated)]
    return Device::ndarray();
}

const VOCABULARY: usize = 40;

fn base() -> Gpt2 {
    Gpt2::random(&Gpt2Config::new(VOCABULARY, 32, 2, 32, 4), 3, &device()).unwrap()
}

/// On every matrix: a model of random weights remembers little through its attention alone.
fn lora() -> LoraConfig {
    LoraConfig::new(16, ["c_attn", "c_proj", "c_fc"].map(str::to_owned).to_vec())
}

/// Random rows: nothing but memory tells one from another.
fn people(count: usize, seed: u64) -> Vec<Person> {
    let mut random = SeededRandom::new(seed);
    (0..count)
        .map(|index| {
            let row = (0..12)
                .map(|_| (random.next_u64() % VOCABULARY as u64) as u32)
                .collect();
            let text = TextUnit {
                texts: vec![format!("row {index}")],
            };
            Person::new(&text, TokenUnit { rows: vec![row] }, index % 2 == 0)
        })
        .collect()
}

fn config(steps: u64) -> TrainerConfig {
    TrainerConfig {
        steps,
        batch_size: 10.0,
        learning_rate: 2e-2,
        ..TrainerConfig::default()
    }
}

#[test]
fn a_runs_steps_are_planned_and_bounded_as_they_were_taken() {
    let record = |step: u64| StepRecord {
        step,
        noise_multiplier: 0.9,
        group_noise_multipliers: vec![1.5, 3.0],
        clipping_norms: vec![0.1, 0.2],
        clipped_fractions: None,
        training_loss: None,
        learning_rate: 1e-3,
        beta_1: 0.9,
        epsilon_spent: 1.0,
    };
    let plan = plan_of_record(&record(1), 0.1, 500).unwrap();
    for (found, expected) in plan.group_noise_multipliers().iter().zip([1.5, 3.0]) {
        assert!((found / expected - 1.0).abs() < 1e-9);
    }
    let records: Vec<StepRecord> = (1..=8).map(record).collect();
    let mut random = SecureRandom::new().unwrap();
    // False alarm 1e-6; delta small enough to allow it.
    let report = attack_mechanism(
        &records,
        0.1,
        200,
        1e-12,
        1.0 - 1e-6,
        &device(),
        &mut random,
    )
    .unwrap();
    let claim = epsilon_upper(&[plan.segment(8).unwrap()], 1e-12).unwrap();
    assert!(report.bound.epsilon_lower <= claim);
    assert_eq!((report.steps, report.canaries), (8, 200));
    assert!(attack_mechanism(&[], 0.1, 200, 1e-5, 0.95, &device(), &mut random).is_err());
}

/// Shadows of a private run go through the run's own step.
#[test]
fn private_shadows_train_on_the_runs_steps() {
    let (base, people) = (base(), people(30, 2));
    let mut model = base.clone();
    add_lora(&mut model, &lora(), 5).unwrap();
    let groups = rldp_lora::adapter_parameters(&model).len();
    let records: Vec<StepRecord> = (1..=3)
        .map(|step| StepRecord {
            step,
            noise_multiplier: 1.0,
            group_noise_multipliers: vec![(groups as f64).sqrt(); groups],
            clipping_norms: vec![0.05; groups],
            clipped_fractions: None,
            training_loss: None,
            learning_rate: 1e-2,
            beta_1: 0.9,
            epsilon_spent: 1.0,
        })
        .collect();
    let steps = ShadowSteps::Private {
        records,
        sampling_rate: 0.3,
        population: 30,
    };
    let training = ShadowTraining {
        config: &config(3),
        lora: &lora(),
        steps: &steps,
        others: &[],
    };
    let shadows = train_shadows(&base, &people, &training, 2, &device(), &mut |_| ()).unwrap();
    assert_eq!(shadows.len(), 2);
    assert_ne!(shadows[0].scores, shadows[1].scores);
    assert!(
        shadows
            .iter()
            .all(|s| s.included.contains(&true) && s.included.contains(&false))
    );
}
