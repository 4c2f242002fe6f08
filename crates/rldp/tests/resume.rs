//! Runs interrupted at every moment they have, and resumed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use rldp::RldpError;
use rldp::budget::BudgetKind;
use rldp::controller::{Controller, ControllerKind};
use rldp::data::DataKey;
use rldp::trainer::{
    Record, RunFolder, RunSetup, RunSummary, Silent, TokenUnit, TrainerConfig, TrainingData,
    Watcher, fine_tune, model_fingerprint, token_fingerprint,
};
use rldp_accounting::ledger::{Event, Ledger};
use rldp_lora::{LoraConfig, adapter_parameters, add_lora};
use rldp_models::{CausalLm, Gpt2, Gpt2Config, LanguageModel, SpecialTokens};

fn device() -> Device {
    #[cfg(feature = "flex")]
    return Device::flex();
    #[cfg(all(feature = "ndarray", not(feature = "flex")))]
    #[allow(deprecated)]
    return Device::ndarray();
}

fn units(count: u32, salt: u32) -> Vec<TokenUnit> {
    (0..count)
        .map(|unit| TokenUnit {
            rows: vec![
                (0..4 + unit % 3)
                    .map(|t| (unit * 7 + t * t + salt) % 31)
                    .collect(),
            ],
        })
        .collect()
}

/// Everything that makes a run.
#[derive(Clone)]
struct Case {
    config: TrainerConfig,
    /// Everything is trained instead of adapters.
    full: bool,
    seed: Option<u64>,
    /// Changes the weights of the base model.
    model: u64,
    /// Changes the texts.
    salt: u32,
    checkpoint_every: u64,
}

fn case(budget: BudgetKind, controller: ControllerKind, seed: Option<u64>) -> Case {
    Case {
        config: TrainerConfig {
            budget,
            controller,
            delta: Some(1e-3),
            steps: 5,
            decisions: 2,
            batch_size: 6.0,
            micro_batch: 4,
            lora_rank: 2,
            ..TrainerConfig::default()
        },
        full: false,
        seed,
        model: 3,
        salt: 0,
        checkpoint_every: 1,
    }
}

fn full_case(seed: Option<u64>) -> Case {
    Case {
        full: true,
        ..case(BudgetKind::Fixed, ControllerKind::Constant, seed)
    }
}

/// Runs or resumes a case in a folder, in a fresh process as far as the code can tell.
fn run(
    case: &Case,
    folder: &Path,
    resume: bool,
    watcher: &mut dyn Watcher,
) -> Result<RunSummary, RldpError> {
    let mut model = Gpt2::random(&Gpt2Config::new(31, 12, 1, 8, 2), case.model, &device()).unwrap();
    let base_model_fingerprint = model_fingerprint(&model);
    let lora = LoraConfig::new(2, model.default_targets());
    let full = case.full.then(|| CausalLm::from(model.clone()));
    // A private run's adapters begin anywhere: what counts is in the checkpoint.
    let seed = case.seed.unwrap_or_else(rand::random);
    add_lora(&mut model, &lora, seed).unwrap();
    let dimensions: Vec<usize> = adapter_parameters(&model)
        .iter()
        .map(|adapter| adapter.trainable_parameters())
        .collect();
    let mut setup = case.config.controller_setup(dimensions);
    setup.agent.warm_up = 1;
    setup.agent.updates = 2;
    let mut controller: Box<dyn Controller> = case
        .config
        .controller
        .build(&setup, seed, &device())
        .unwrap();
    let [training, validation, test] = [units(24, case.salt), units(6, 1), units(6, 2)];
    let key = DataKey::from_bytes([7; 32]);
    let data = TrainingData {
        token_fingerprint: token_fingerprint(&[&training, &validation, &test], &key),
        training,
        validation,
        test,
        public_validation: None,
        units: 36,
        training_population: 24,
        unit: "one row".into(),
        fingerprint: "of the table".into(),
    };
    let setup = RunSetup {
        config: case.config.clone(),
        lora,
        base_model: "tiny".into(),
        base_model_fingerprint,
        device: device(),
        seed: case.seed,
        folder: RunFolder::open(folder)?,
        resume,
        checkpoint_every: case.checkpoint_every,
        created: "then".into(),
        study: None,
    };
    match full {
        None => fine_tune(&mut model, data, controller.as_mut(), &setup, watcher),
        Some(model) => {
            let (model, summary) = rldp::full::fine_tune(model, data, &setup, watcher)?;
            setup.folder.write_folder("model", |folder| {
                Ok(model.save(folder, &SpecialTokens::default())?)
            })?;
            Ok(summary)
        }
    }
}

/// Copies the run folder at every call: what a process killed at that moment leaves on the disk.
struct Snapshots {
    folder: PathBuf,
    into: PathBuf,
    taken: usize,
    /// Everything released so far, in the order of release.
    released: Vec<Event>,
    /// How much was released when each snapshot was taken.
    released_at: Vec<usize>,
}

impl Snapshots {
    fn new(folder: &Path, into: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            into: into.to_owned(),
            taken: 0,
            released: Vec::new(),
            released_at: Vec::new(),
        }
    }

    fn take(&mut self) {
        copy(&self.folder, &self.into.join(self.taken.to_string()));
        self.taken += 1;
        self.released_at.push(self.released.len());
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

impl Watcher for Snapshots {
    fn phase(&mut self, _text: &str) {
        self.take();
    }
    fn begin(&mut self, _steps: u64) {
        self.take();
    }
    fn released(&mut self, event: &Event) {
        self.released.push(event.clone());
        self.take();
    }
    fn record(&mut self, _record: &Record) {
        self.take();
    }
    fn end(&mut self) {
        self.take();
    }
}

/// Remembers what was released.
#[derive(Default)]
struct Released(Vec<Event>);

impl Watcher for Released {
    fn phase(&mut self, _text: &str) {}
    fn begin(&mut self, _steps: u64) {}
    fn released(&mut self, event: &Event) {
        self.0.push(event.clone());
    }
    fn record(&mut self, _record: &Record) {}
    fn end(&mut self) {}
}

fn results(folder: &Path) -> Vec<(&'static str, Vec<u8>)> {
    [
        "ledger.jsonl",
        "metrics.jsonl",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "model/model.safetensors",
        "sac_policy.safetensors",
    ]
    .into_iter()
    .filter(|name| folder.join(name).exists())
    .map(|name| (name, std::fs::read(folder.join(name)).unwrap()))
    .collect()
}

/// Every snapshot of an uninterrupted run, and whether it began the run.
fn snapshots(case: &Case, folder: &Path) -> Snapshots {
    let whole = folder.join("whole");
    let mut snapshots = Snapshots::new(&whole, &folder.join("snapshots"));
    run(case, &whole, false, &mut snapshots).unwrap();
    snapshots
}

fn seeded_runs_resume_bit_for_bit(mut case: Case, every: u64, stride: usize) {
    let temporary = tempfile::tempdir().unwrap();
    case.seed = Some(5);
    case.checkpoint_every = every;
    let taken = snapshots(&case, temporary.path()).taken;
    assert!(taken > 20, "{taken} snapshots");
    let expected = results(&temporary.path().join("whole"));
    assert!(expected.len() > 2, "nothing trained is compared");
    for index in (0..taken).step_by(stride) {
        let folder = temporary.path().join("snapshots").join(index.to_string());
        run(&case, &folder, true, &mut Released::default()).unwrap();
        for ((name, found), (_, wanted)) in results(&folder).iter().zip(&expected) {
            assert!(found == wanted, "{name} differs after a stop at {index}");
        }
        assert_eq!(results(&folder).len(), expected.len());
    }
}

#[test]
fn a_seeded_fixed_run_steered_by_the_agent_resumes_bit_for_bit() {
    let case = case(BudgetKind::Fixed, ControllerKind::Sac, None);
    seeded_runs_resume_bit_for_bit(case, 1, 1);
}

#[test]
fn a_seeded_deck_run_with_rare_checkpoints_resumes_bit_for_bit() {
    let case = case(BudgetKind::Deck, ControllerKind::Random, None);
    seeded_runs_resume_bit_for_bit(case, 3, 4);
}

#[test]
fn a_seeded_filter_run_resumes_bit_for_bit() {
    let case = case(BudgetKind::Filter, ControllerKind::Rule, None);
    seeded_runs_resume_bit_for_bit(case, 1, 4);
}

#[test]
fn a_seeded_full_run_resumes_bit_for_bit() {
    seeded_runs_resume_bit_for_bit(full_case(None), 1, 1);
    seeded_runs_resume_bit_for_bit(full_case(None), 3, 3);
}

/// In private runs: every release of both processes is in the ledger, which never claims more than was promised.
fn private_runs_never_overspend(mut case: Case, every: u64, stride: usize) {
    let temporary = tempfile::tempdir().unwrap();
    case.checkpoint_every = every;
    let before = snapshots(&case, temporary.path());
    let mut lost = 0;
    for index in (0..before.taken).step_by(stride) {
        let folder = temporary.path().join("snapshots").join(index.to_string());
        let mut after = Released::default();
        let summary = run(&case, &folder, true, &mut after).unwrap();
        let released = before.released[..before.released_at[index]]
            .iter()
            .chain(&after.0);
        let ledger = Ledger::read(folder.join("ledger.jsonl")).unwrap();
        let mut left = ledger.events.clone();
        for event in released {
            let place = left.iter().position(|spent| spent == event);
            let place =
                place.unwrap_or_else(|| panic!("stop at {index}: {event:?} is not paid for"));
            left.remove(place);
        }
        let epsilon = ledger.epsilon_upper(1e-3).unwrap().overall;
        assert!(epsilon <= case.config.epsilon + 1e-9, "epsilon {epsilon}");
        assert_eq!(summary.epsilon_upper, epsilon);
        assert_eq!(ledger.steps(), case.config.steps, "stop at {index}");
        lost += summary.lost.steps + summary.lost.queries;
        let applied = summary
            .records
            .iter()
            .filter(|record| matches!(record, Record::Step(_)))
            .count() as u64;
        assert_eq!(applied + summary.lost.steps, case.config.steps);
    }
    assert!(
        lost > 0,
        "no stop lost anything: the test reached no interesting moment"
    );
}

#[test]
fn a_private_fixed_run_never_overspends() {
    private_runs_never_overspend(case(BudgetKind::Fixed, ControllerKind::Sac, None), 1, 2);
}

#[test]
fn a_private_deck_run_never_overspends() {
    private_runs_never_overspend(case(BudgetKind::Deck, ControllerKind::Random, None), 3, 4);
}

#[test]
fn a_private_filter_run_never_overspends() {
    private_runs_never_overspend(case(BudgetKind::Filter, ControllerKind::Rule, None), 1, 4);
}

#[test]
fn a_private_full_run_never_overspends() {
    private_runs_never_overspend(full_case(None), 1, 1);
    private_runs_never_overspend(full_case(None), 3, 3);
}

/// Two resumptions of the same private checkpoint draw different noise.
#[test]
fn no_noise_is_drawn_twice() {
    for (case, trained) in [
        (
            case(BudgetKind::Fixed, ControllerKind::Rule, None),
            "adapter/adapter_model.safetensors",
        ),
        (full_case(None), "model/model.safetensors"),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let snapshots = snapshots(&case, temporary.path());
        let half = temporary
            .path()
            .join("snapshots")
            .join((snapshots.taken / 2).to_string());
        let weights = ["one", "two"].map(|name| {
            let folder = temporary.path().join(name);
            copy(&half, &folder);
            run(&case, &folder, true, &mut Released::default()).unwrap();
            std::fs::read(folder.join(trained)).unwrap()
        });
        assert_ne!(weights[0], weights[1], "{trained}");
    }
}

#[test]
fn a_torn_ledger_and_a_damaged_checkpoint_cost_steps_but_never_count_less() {
    let temporary = tempfile::tempdir().unwrap();
    let case = case(BudgetKind::Fixed, ControllerKind::Rule, None);
    let before = snapshots(&case, temporary.path());
    // The moment after the third step was released: the first interval has two.
    let index = (0..before.taken)
        .find(|&index| {
            let released = &before.released[..before.released_at[index]];
            let steps = released
                .iter()
                .filter(|event| matches!(event, Event::Step { .. }));
            steps.count() == 3
        })
        .unwrap();
    let folder = temporary.path().join("snapshots").join(index.to_string());
    let ledger = folder.join("ledger.jsonl");
    let mut bytes = std::fs::read(&ledger).unwrap();
    bytes.extend_from_slice(b"{\"checksum\":\"0123");
    std::fs::write(&ledger, bytes).unwrap();
    let newest = std::fs::read_dir(folder.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max()
        .unwrap();
    std::fs::write(newest.join("optimizer.bpk"), b"nonsense").unwrap();
    let summary = run(&case, &folder, true, &mut Released::default()).unwrap();
    // Step 3, whose checkpoint was not written yet; the loss before it, whose checkpoint was damaged; and what the torn line
    // may have been: a step, or a query of either part.
    assert_eq!(summary.lost.steps, 2);
    assert_eq!(summary.lost.queries, 3);
    let ledger = Ledger::read(ledger).unwrap();
    assert_eq!(ledger.steps(), case.config.steps);
    assert!(ledger.epsilon_upper(1e-3).unwrap().overall <= case.config.epsilon + 1e-9);
}

#[test]
fn a_run_is_resumed_with_its_own_settings_only() {
    let temporary = tempfile::tempdir().unwrap();
    let good = case(BudgetKind::Fixed, ControllerKind::Rule, None);
    let taken = snapshots(&good, temporary.path()).taken;
    let folder = temporary
        .path()
        .join("snapshots")
        .join((taken / 2).to_string());
    let changes: [Change; 10] = [
        ("epsilon", |c| c.config.epsilon = 9.0),
        ("delta", |c| c.config.delta = Some(1e-2)),
        ("steps", |c| c.config.steps = 8),
        ("batch-size", |c| c.config.batch_size = 7.0),
        ("budget", |c| c.config.budget = BudgetKind::Filter),
        ("clip-count-share", |c| c.config.clip_count_share = 0.02),
        ("controller", |c| {
            c.config.controller = ControllerKind::Random
        }),
        ("seed", |c| c.seed = Some(1)),
        ("base_model_fingerprint", |c| c.model = 4),
        ("token_fingerprint", |c| c.salt = 9),
    ];
    refuses(&good, &folder, &changes);
    // Without being asked to resume, a folder with a run is left alone; memory settings may change.
    assert!(matches!(
        run(&good, &folder, false, &mut Released::default()),
        Err(RldpError::RunExists { .. })
    ));
    let mut smaller = good;
    smaller.config.micro_batch = 1;
    run(&smaller, &folder, true, &mut Released::default()).unwrap();
}

/// A setting's name, and a change of it.
type Change = (&'static str, fn(&mut Case));

/// Each of these changes is refused by name, and none writes into the ledger.
fn refuses(good: &Case, folder: &Path, changes: &[Change]) {
    let ledger = std::fs::read(folder.join("ledger.jsonl")).unwrap();
    for (named, change) in changes {
        let mut changed = good.clone();
        change(&mut changed);
        let error = run(&changed, folder, true, &mut Released::default()).unwrap_err();
        assert!(matches!(error, RldpError::Changed { .. }), "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
    assert_eq!(
        std::fs::read(folder.join("ledger.jsonl")).unwrap(),
        ledger,
        "a refused resumption wrote into the ledger"
    );
}

#[test]
fn a_full_run_is_resumed_with_its_own_settings_only() {
    let temporary = tempfile::tempdir().unwrap();
    let good = full_case(None);
    let taken = snapshots(&good, temporary.path()).taken;
    let folder = temporary
        .path()
        .join("snapshots")
        .join((taken / 2).to_string());
    let changes: [Change; 9] = [
        ("epsilon", |c| c.config.epsilon = 9.0),
        ("delta", |c| c.config.delta = Some(1e-2)),
        ("steps", |c| c.config.steps = 8),
        ("batch-size", |c| c.config.batch_size = 7.0),
        ("clipping-norm", |c| c.config.clipping_norm = 1.0),
        ("seed", |c| c.seed = Some(1)),
        ("base_model_fingerprint", |c| c.model = 4),
        ("token_fingerprint", |c| c.salt = 9),
        ("trainable", |c| c.full = false),
    ];
    refuses(&good, &folder, &changes);
    assert!(matches!(
        run(&good, &folder, false, &mut Released::default()),
        Err(RldpError::RunExists { .. })
    ));
    run(&good, &folder, true, &mut Released::default()).unwrap();
}

#[test]
fn checkpoints_without_their_ledger_and_of_another_run_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let case = case(BudgetKind::Fixed, ControllerKind::Rule, None);
    let taken = snapshots(&case, temporary.path()).taken;
    let folder = temporary
        .path()
        .join("snapshots")
        .join((taken / 2).to_string());
    let other = temporary.path().join("other");
    run(&case, &other, false, &mut Released::default()).unwrap();
    // Another run with the same settings, created at the same time, would be told apart by its checksums.
    let ledger = std::fs::read(folder.join("ledger.jsonl")).unwrap();
    std::fs::remove_file(folder.join("ledger.jsonl")).unwrap();
    let error = run(&case, &folder, true, &mut Released::default()).unwrap_err();
    assert!(error.to_string().contains("without a ledger"), "{error}");
    // A ledger shorter than its checkpoint.
    let lines: Vec<&[u8]> = ledger.split_inclusive(|byte| *byte == b'\n').collect();
    std::fs::write(folder.join("ledger.jsonl"), lines[..2].concat()).unwrap();
    let error = run(&case, &folder, true, &mut Released::default()).unwrap_err();
    assert!(
        error.to_string().contains("shorter than the checkpoint"),
        "{error}"
    );
}

/// A rate too small for f32 stands for whatever keeps the adapters where they are. One step was released and stays in the ledger.
#[test]
fn adapters_that_do_not_move_end_the_run_at_its_first_step() {
    let home = tempfile::tempdir().unwrap();
    let mut case = case(BudgetKind::Fixed, ControllerKind::Constant, None);
    case.config.learning_rate = 1e-30;
    let error = run(&case, home.path(), false, &mut Silent).unwrap_err();
    assert!(
        matches!(error, RldpError::NothingMoved { step: 1, learning_rate } if learning_rate == 1e-30),
        "{error:?}"
    );
    let ledger = Ledger::read(home.path().join("ledger.jsonl")).unwrap();
    assert_eq!(ledger.steps(), 1);
}

/// What is taken again from the metrics (an audit's steps, a shadow's) is the mechanism that the ledger accounts: one group where
/// clipping is flat, not one an adapter.
#[test]
fn the_metrics_have_the_groups_of_the_ledger() {
    for controller in [ControllerKind::Constant, ControllerKind::Rule] {
        let home = tempfile::tempdir().unwrap();
        let case = case(BudgetKind::Fixed, controller, None);
        run(&case, home.path(), false, &mut Silent).unwrap();
        let ledger = Ledger::read(home.path().join("ledger.jsonl")).unwrap();
        let spent: Vec<(Vec<f64>, Vec<f64>)> = ledger
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Step {
                    group_noise_multipliers: noise,
                    clipping_norms: norms,
                    ..
                } => Some((noise.clone(), norms.clone())),
                _ => None,
            })
            .collect();
        let metrics = std::fs::read_to_string(home.path().join("metrics.jsonl")).unwrap();
        let told: Vec<(Vec<f64>, Vec<f64>)> = metrics
            .lines()
            .filter_map(|line| match serde_json::from_str(line).unwrap() {
                Record::Step(step) => {
                    assert!(rldp::audit::plan_of_record(&step, 0.25, 24).is_ok());
                    Some((step.group_noise_multipliers, step.clipping_norms))
                }
                _ => None,
            })
            .collect();
        assert_eq!(told, spent, "{controller}");
        assert_eq!(told.len(), 5);
    }
}
