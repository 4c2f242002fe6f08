//! What a step releases, of adapters and of all parameters alike: a person is clipped once, and the ledger comes first.
#![allow(clippy::unwrap_used, missing_docs)]

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rldp::RldpError;
use rldp::controller::{ClipCounts, Decision};
use rldp::full::FullStep;
use rldp::trainer::{PrivateStep, TokenUnit, TrainerConfig};
use rldp_accounting::ledger::{BudgetRecord, Header, LEDGER_VERSION, Ledger, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget, Segment};
use rldp_lora::{LoraConfig, add_lora};
use rldp_models::{Gpt2, Gpt2Config, LanguageModel};
use rldp_optim::{SeededRandom, StepRelease};

/// Far below any gradient's norm: every unit is clipped.
const NORM: f64 = 1e-4;

fn device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(all(feature = "ndarray", not(feature = "flex")))]
    #[allow(deprecated)]
    return Device::ndarray();
}

fn header() -> Header {
    Header {
        version: LEDGER_VERSION,
        created: "then".into(),
        unit: "a person".into(),
        adjacency: Adjacency::AddRemove,
        target: PrivacyTarget::new(8.0, 1e-5).unwrap(),
        private: false,
        budget: BudgetRecord::Fixed {
            segment: Segment::new(1.0, 1e-4, 4).unwrap(),
        },
        parameters: serde_json::Value::Null,
    }
}

/// Step `number` on everybody, with next to no noise and flat clipping to [`NORM`].
fn step(
    full: bool,
    units: &[TokenUnit],
    number: u64,
    ledger: &mut LedgerWriter,
    random: &mut SeededRandom,
) -> Result<StepRelease, RldpError> {
    let mut model = Gpt2::random(&Gpt2Config::new(31, 16, 2, 8, 2), 3, &device()).unwrap();
    // Expected from a public number, also where nobody is there.
    let population = units.len().max(2);
    let config = TrainerConfig {
        batch_size: population as f64,
        clipping_norm: NORM,
        clip_count_share: 0.0,
        ..TrainerConfig::default()
    };
    let segment = Segment::new(1.0, 1e-4, 1).unwrap();
    if full {
        let mut step = FullStep::new(&model, units.to_vec(), population, &config, &device())?;
        let plan = step.plan(&segment)?;
        let (_, release) = step.take(number, model.freeze(), &plan, 1e-3, ledger, random)?;
        return Ok(release);
    }
    let targets = model.default_targets();
    add_lora(&mut model, &LoraConfig::new(2, targets), 4)?;
    let mut step = PrivateStep::new(&model, units.to_vec(), population, &config, &device())?;
    let plan = step.plan(&segment, &Decision::flat(NORM))?;
    step.release(number, &model, &plan, ledger, random)
}

/// A person with as many rows, all alike, so that nothing cancels out.
fn person(rows: usize) -> TokenUnit {
    TokenUnit {
        rows: vec![vec![3, 1, 4, 1, 5, 9, 2, 6]; rows],
    }
}

#[test]
fn a_person_of_many_rows_is_clipped_once_and_two_people_are_clipped_twice() {
    for full in [false, true] {
        for people in [vec![1, 3], vec![2, 1, 3]] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger.jsonl");
            let units: Vec<TokenUnit> = people.iter().map(|rows| person(*rows)).collect();
            let mut ledger = LedgerWriter::create(path, &header()).unwrap();
            let mut random = SeededRandom::new(1);
            let release = step(full, &units, 1, &mut ledger, &mut random).unwrap();
            let tensors: Vec<Tensor<1>> = release
                .groups
                .into_iter()
                .flat_map(|group| group.gradients)
                .collect();
            let mean = Tensor::cat(tensors, 0).into_data();
            let square: f64 = mean.iter::<f32>().map(|x| f64::from(x).powi(2)).sum();
            // The sum over the expected number of people.
            let mean = square.sqrt() / NORM;
            assert!(
                (mean - 1.0).abs() < 0.01,
                "full {full}, rows {people:?}: {mean} clipping norms a person"
            );
        }
    }
}

/// A ledger that refuses the line stands for a full disk: then no noise has been drawn.
#[test]
fn nothing_is_drawn_before_the_ledger_has_the_step() {
    for full in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let units = [person(1), person(2)];
        let mut ledger = LedgerWriter::create(&path, &header()).unwrap();
        let mut random = SeededRandom::new(1);
        step(full, &units, 1, &mut ledger, &mut random).unwrap();
        assert_ne!(random.position(), 0, "the noise comes from elsewhere");
        drop(ledger);
        // Asked to repeat step 1, it refuses step 2.
        let (mut ledger, _) = LedgerWriter::repeat(&path, &header(), 0).unwrap();
        let mut random = SeededRandom::new(1);
        step(full, &units, 2, &mut ledger, &mut random).unwrap_err();
        // Everybody is sampled for certain, which takes no random number.
        assert_eq!(random.position(), 0, "full {full}: noise before the ledger");
        assert_eq!(Ledger::read(&path).unwrap().steps(), 1);
    }
}

#[test]
fn an_empty_batch_is_released_and_in_the_ledger_like_any_other() {
    for full in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = LedgerWriter::create(&path, &header()).unwrap();
        let mut random = SeededRandom::new(1);
        let release = step(full, &[], 1, &mut ledger, &mut random).unwrap();
        let first = release.groups[0].gradients[0].clone().into_data();
        assert!(
            first.iter::<f32>().any(|value| value != 0.0),
            "full {full}: no noise"
        );
        assert_eq!(Ledger::read(&path).unwrap().steps(), 1, "full {full}");
    }
}

/// Two people of an expected four, both clipped: telemetry is divided by the public number, as the gradient is.
#[test]
fn clipped_shares_are_divided_by_the_expected_batch_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let mut model = Gpt2::random(&Gpt2Config::new(31, 16, 2, 8, 2), 3, &device()).unwrap();
    let targets = model.default_targets();
    add_lora(&mut model, &LoraConfig::new(2, targets), 4).unwrap();
    let config = TrainerConfig {
        batch_size: 4.0,
        clip_count_share: 0.1,
        ..TrainerConfig::default()
    };
    let units = vec![person(1), person(2)];
    let mut step = PrivateStep::new(&model, units, 4, &config, &device()).unwrap();
    let decision = Decision {
        clip_counts: ClipCounts::Configured,
        ..Decision::flat(NORM)
    };
    let segment = Segment::new(1.0, 1e-4, 1).unwrap();
    let plan = step.plan(&segment, &decision).unwrap();
    let mut ledger = LedgerWriter::create(path, &header()).unwrap();
    let mut random = SeededRandom::new(1);
    let release = step
        .release(1, &model, &plan, &mut ledger, &mut random)
        .unwrap();
    let shares = release.clipped_fractions.unwrap().values;
    // Centred bits: a half, and half a person more for each of the two over the four.
    let expected = 0.5 + 2.0 * 0.5 / 4.0;
    let share = *shares[0].value();
    assert!((share - expected).abs() < 0.01, "{share} for {expected}");
}
