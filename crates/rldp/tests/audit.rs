//! Attacks on models that remember, and on models that do not.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use rldp::audit::{
    AttackOptions, Person, ShadowSteps, ShadowTraining, attack_canaries, attack_mechanism,
    attack_people, audit_section, canary_units, plan_of_record, train_shadows,
};
use rldp::data::TextUnit;
use rldp::report::Section;
use rldp::trainer::{Encoding, PlainStep, StepRecord, TokenUnit, TrainerConfig};
use rldp_accounting::epsilon_upper;
use rldp_audit::extraction::secret::{CanarySet, Format};
use rldp_lora::{LoraConfig, add_lora};
use rldp_models::{Gpt2, Gpt2Config, SpecialTokens, Tokenizer};
use rldp_optim::{Random, SecureRandom, SeededRandom};

fn device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(all(feature = "ndarray", not(feature = "flex")))]
    #[allow(deprecated)]
    return Device::ndarray();
}

const VOCABULARY: usize = 40;

/// Token embeddings as large as a trained model's. Those of a new one are of size 0.02, and behind the last norm and the tied
/// head, both frozen, no logit could then leave [-0.7, 0.7], whatever the adapters learnt.
struct LargeEmbeddings;

impl ModuleMapper for LargeEmbeddings {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if param.dims()[0] == VOCABULARY {
            param.map(|embedding| embedding * 8.0)
        } else {
            param
        }
    }
}

fn base() -> Gpt2 {
    let config = Gpt2Config::new(VOCABULARY, 32, 2, 32, 4);
    let model = Gpt2::random(&config, 3, &device()).unwrap();
    model.map(&mut LargeEmbeddings)
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
        learning_rate: 3e-3,
        ..TrainerConfig::default()
    }
}

fn trained(base: &Gpt2, units: Vec<TokenUnit>, steps: u64) -> Gpt2 {
    let mut model = base.clone();
    add_lora(&mut model, &lora(), 5).unwrap();
    let config = config(steps);
    let mut step = PlainStep::new(units, &config, &device()).unwrap();
    let mut random = SeededRandom::new(7);
    for _ in 0..steps {
        step.take(&mut model, config.learning_rate, &mut random)
            .unwrap();
    }
    model
}

fn members(people: &[Person]) -> Vec<TokenUnit> {
    people
        .iter()
        .filter(|person| person.member)
        .map(|person| person.unit.clone())
        .collect()
}

#[test]
fn a_model_that_learnt_its_people_by_heart_is_broken_by_every_attack_and_the_base_model_by_none() {
    let (base, people) = (base(), people(80, 1));
    let tuned = trained(&base, members(&people), 600);
    let steps = ShadowSteps::Plain;
    let training = ShadowTraining {
        config: &config(300),
        lora: &lora(),
        steps: &steps,
        others: &[],
    };
    let shadows = train_shadows(&base, &people, &training, 3, &device(), &mut |_| ()).unwrap();
    let rows: Vec<&[u32]> = people.iter().map(|p| p.unit.rows[0].as_slice()).collect();
    let halves: [Vec<&[u32]>; 2] = [true, false].map(|member| {
        let chosen = people.iter().zip(&rows).filter(|(p, _)| p.member == member);
        chosen.map(|(_, row)| *row).collect()
    });
    // A model that knows its rows by heart writes them.
    let written = vec![halves[0][0].to_vec()];
    let attack = |model: &Gpt2| {
        attack_people(
            model,
            &base,
            &people,
            &shadows,
            &written,
            [&halves[0], &halves[1]],
            &AttackOptions::default(),
            &device(),
        )
        .unwrap()
    };
    let broken = attack(&tuned);
    assert_eq!(broken.attacks.len(), 6);
    for found in &broken.attacks {
        assert!(
            found.report.auc.lower > 0.8,
            "{}: {:?}",
            found.name,
            found.report.auc
        );
    }
    assert_eq!(broken.overlap_training.longest, 12);
    assert!(broken.overlap_held_out.longest < 12);
    // 40 against 40 that differ in nothing: the AUC's standard deviation is 0.065. The base model cannot know, so five of
    // these, 0.33, is a false alarm of less than 1e-6 for this fixed draw.
    for found in &attack(&base).attacks[..1] {
        assert!(
            (found.report.auc.estimate - 0.5).abs() < 0.33,
            "{}: {:?}",
            found.name,
            found.report.auc
        );
    }
    let section = broken.section();
    assert_eq!(section.banners[0].0, "PRIVATE");
}

/// A tokenizer of single letters, digits and spaces.
fn tokenizer(folder: &Path) -> Tokenizer {
    let letters = "abcdefghijklmnopqrstuvwxyz0123456789 ._";
    let vocabulary: serde_json::Map<String, serde_json::Value> = letters
        .chars()
        .enumerate()
        .map(|(id, letter)| (letter.to_string(), id.into()))
        .collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "_"},
    });
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    Tokenizer::from_file(&path).unwrap()
}

#[test]
fn canaries_are_extracted_from_a_model_that_learnt_them_and_only_those_that_were_in() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer(folder.path());
    let special_tokens = SpecialTokens {
        bos: Some(38),
        ..SpecialTokens::default()
    };
    let encoding = Encoding {
        tokenizer: &tokenizer,
        special_tokens: &special_tokens,
        max_length: 32,
        max_rows: 1,
    };
    let digits: Vec<String> = (0..10).map(|digit| digit.to_string()).collect();
    let format = Format::repeated("pins", "pin ", ".", &digits, 6);
    let set = CanarySet::draw(vec![format], &[1], 60, &mut SeededRandom::new(11)).unwrap();
    let base = base();
    let tuned = trained(&base, canary_units(&set, &encoding).unwrap(), 800);
    let options = AttackOptions {
        exposure_samples: 300,
        // Of 200 texts 6 held a canary; that none of 600 does has probability e^-18.
        generations: 600,
        ..AttackOptions::default()
    };
    let attack = |model: &Gpt2| {
        attack_canaries(model, &base, &set, &encoding, 1e-6, &options, &device()).unwrap()
    };
    let broken = attack(&tuned);
    let group = |included: bool| {
        broken
            .groups
            .iter()
            .find(|group| group.included == included)
            .unwrap()
    };
    let (inside, outside) = (group(true), group(false));
    assert!(
        inside.exposure_extrapolated > outside.exposure_extrapolated + 3.0,
        "{inside:?} {outside:?}"
    );
    assert!(2 * inside.completed > inside.canaries, "{inside:?}");
    assert!(outside.completed * 5 < outside.canaries, "{outside:?}");
    assert!(inside.sampled > 0 && outside.sampled == 0, "{inside:?}");
    assert!(broken.bound.unwrap().epsilon_lower > 1.0, "{broken:?}");
    let section = audit_section(Some(0.5), None, Some(&broken));
    assert_eq!(section.banners[0].0, "Audit failed");
    assert!(audit_section(None, None, Some(&broken)).banners.is_empty());
    let page = Section::page("title", &[section]);
    assert!(
        page.contains("false-positive rate (log)") && page.contains("true-positive rate (log)")
    );

    // The base model never saw a canary: its losses say nothing about the coins (confidence 0.95 each of six shares; the base
    // model's reference scores are all zero, so guesses follow the order of fair coins).
    let blind = attack(&base);
    assert!(blind.bound.unwrap().epsilon_lower < 1.0, "{blind:?}");
    assert_eq!(
        blind
            .groups
            .iter()
            .map(|group| group.sampled)
            .sum::<usize>(),
        0
    );
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
    // One group's figure told once an adapter would be taken for a step of far less noise.
    let repeated = StepRecord {
        group_noise_multipliers: vec![0.9; 2],
        ..record(1)
    };
    assert!(plan_of_record(&repeated, 0.1, 500).is_err());
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
