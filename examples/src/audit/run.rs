//! What `audit` does, step by step.

use std::ops::ControlFlow;
use std::path::Path;

use burn::tensor::Device;
use rand::SeedableRng as _;
use rand::rngs::{ChaCha20Rng, SysRng};
use rldp::audit::{
    AttackOptions, PeopleReport, Person, ShadowSteps, ShadowTraining, attack_canaries,
    attack_mechanism, attack_people, canary_units, members_and_others, train_shadows,
};
use rldp::data::{Corpus, CorpusOptions, DataKey, Fractions, units};
use rldp::trainer::{Encoding, Record, TokenUnit, Watcher};
use rldp_accounting::print::{AtLeast, AtMost};
use rldp_lora::LoraConfig;
use rldp_models::{CausalLm, GenerationOptions, LanguageModel as _, LoadedModel, generate};
use rldp_optim::SecureRandom;

use super::folder::AuditedRun;
use super::results::{COVERED_FILE, Covered, PRIVATE_PAGE, table};
use super::settings::Settings;
use crate::device::device;
use crate::error::ExampleError;
use crate::finetune::run::{KEY_FILE, REPORT_FILE, load_model, source};

/// Prints phases.
struct Phases;

impl Watcher for Phases {
    fn phase(&mut self, text: &str) {
        eprintln!("{text}");
    }
    fn begin(&mut self, _steps: u64) {}
    fn record(&mut self, _record: &Record) {}
    fn end(&mut self) {}
}

/// Audits as the settings say, and tells the terminal what was found.
///
/// # Errors
/// See [`ExampleError`].
pub fn run(settings: &Settings) -> Result<(), ExampleError> {
    match &settings.run {
        Some(folder) => audit(folder, settings),
        None => {
            print!("{}", table(&settings.table, settings.people_too)?);
            Ok(())
        }
    }
}

fn audit(folder: &Path, settings: &Settings) -> Result<(), ExampleError> {
    let mut run = AuditedRun::read(folder)?;
    if let Some(data) = &settings.data {
        run.settings.data = Some(data.clone());
    }
    let device = device(settings.device.as_ref().unwrap_or(&run.settings.device))?;
    let options = settings.options(run.settings.micro_batch);
    let claimed = run.claimed_epsilon()?;
    let delta = run.delta();
    let loaded = load_model(&run.settings, &device, &mut Phases)?;
    let (tuned, lora) = run.tuned(&loaded.model, &device)?;
    let config = run.settings.trainer();
    let encoding = Encoding {
        tokenizer: loaded.tokenizer()?,
        special_tokens: &loaded.special_tokens,
        max_length: config.max_length.min(loaded.model.positions()),
        max_rows: config.max_rows_per_unit,
    };

    let mechanism = match run.sampling_rate() {
        Some(rate) if settings.mechanism_canaries > 0 => {
            eprintln!(
                "taking the run's {} steps again on canary gradients",
                run.steps.len()
            );
            let mut random = SecureRandom::new().map_err(rldp::RldpError::from)?;
            Some(attack_mechanism(
                &run.steps,
                rate,
                settings.mechanism_canaries,
                delta,
                options.confidence,
                &device,
                &mut random,
            )?)
        }
        _ => None,
    };
    let canaries = match &run.canaries {
        None => None,
        Some(set) => {
            eprintln!("attacking {} canaries", set.canaries.len());
            let base = &loaded.model;
            Some(attack_canaries(
                &tuned, base, set, &encoding, delta, &options, &device,
            )?)
        }
    };
    let covered = Covered {
        controller: run.controller(),
        private: run.ledger.header.private,
        claimed_epsilon: claimed,
        delta,
        mechanism,
        canaries,
    };
    let people = if settings.people > 0 {
        Some(people(
            &run,
            settings,
            &options,
            &loaded,
            &tuned,
            lora.as_ref(),
            &encoding,
            &device,
        )?)
    } else {
        None
    };
    covered.write(people.as_ref(), &run.folder)?;
    tell(&covered, people.as_ref(), folder);
    match (covered.largest_bound(), claimed) {
        (Some(bound), Some(claimed)) if bound > claimed => Err(ExampleError::Other(format!(
            "the lower bound {:.4} exceeds the claimed epsilon {:.4}: the guarantee is broken",
            AtMost(bound),
            AtLeast(claimed)
        ))),
        _ => Ok(()),
    }
}

/// The run's parts as it had them, from its table and its key.
fn corpus(run: &AuditedRun) -> Result<Corpus, ExampleError> {
    let settings = &run.settings;
    let source = source(settings)?;
    let key = match settings.seed {
        Some(seed) => DataKey::from_seed(seed),
        None => DataKey::kept(&run.folder.join(KEY_FILE))?,
    };
    let count = units(&source.table, settings.unit_column.as_deref())?.len();
    let share = settings.trainer().held_out_share(count);
    let options = CorpusOptions {
        text_column: settings.text_column.clone(),
        template: source.template.clone(),
        unit_column: settings.unit_column.clone(),
        fractions: Fractions::new(1.0 - 2.0 * share, share, share)?,
    };
    let corpus = Corpus::build(&source.table, &options, &key)?;
    let known = run.ledger.header.parameters.get("fingerprint");
    if known.and_then(serde_json::Value::as_str) != Some(&corpus.fingerprint) {
        return Err(ExampleError::Other(
            "the table is not the one that the run was trained on: its fingerprint differs"
                .to_owned(),
        ));
    }
    Ok(corpus)
}

#[allow(clippy::too_many_arguments)]
fn people(
    run: &AuditedRun,
    settings: &Settings,
    options: &AttackOptions,
    loaded: &LoadedModel,
    tuned: &CausalLm,
    lora: Option<&LoraConfig>,
    encoding: &Encoding<'_>,
    device: &Device,
) -> Result<PeopleReport, ExampleError> {
    let corpus = corpus(run)?;
    let held_out_texts = [corpus.validation.clone(), corpus.test.clone()].concat();
    let training = encoding.units(&corpus.train)?;
    let held_out = encoding.units(&held_out_texts)?;
    let [members, others] =
        members_and_others(training.len(), held_out.len(), options.most_people)?;
    let mut people: Vec<Person> = members
        .iter()
        .map(|index| Person::new(&corpus.train[*index], training[*index].clone(), true))
        .collect();
    people.extend(
        others
            .iter()
            .map(|index| Person::new(&held_out_texts[*index], held_out[*index].clone(), false)),
    );
    let shadows = if settings.shadows > 0 {
        let lora = lora.ok_or_else(|| ExampleError::Flag {
            flag: "shadows",
            value: settings.shadows.to_string(),
            reason: "shadows are adapters, and this run trained the whole model".to_owned(),
        })?;
        let mut unattacked: Vec<TokenUnit> = training
            .iter()
            .enumerate()
            .filter(|(index, _)| members.binary_search(index).is_err())
            .map(|(_, unit)| unit.clone())
            .collect();
        if let Some(set) = &run.canaries {
            unattacked.extend(canary_units(set, encoding)?);
        }
        let steps = match (run.sampling_rate(), run.training_population()) {
            (Some(sampling_rate), Some(population)) => ShadowSteps::Private {
                records: run.steps.clone(),
                sampling_rate,
                population,
            },
            _ => ShadowSteps::Plain,
        };
        let training = ShadowTraining {
            config: &run.settings.trainer(),
            lora,
            steps: &steps,
            others: &unattacked,
        };
        train_shadows(
            &loaded.model,
            &people,
            &training,
            settings.shadows,
            device,
            &mut |done| {
                eprintln!("shadow adapter {done} of {}", settings.shadows);
            },
        )?
    } else {
        Vec::new()
    };
    eprintln!(
        "attacking {} members and {} others",
        members.len(),
        others.len()
    );
    let generations = generations(loaded, tuned, encoding, options.generations, device)?;
    let rows = |units: &[TokenUnit]| -> Vec<Vec<u32>> {
        units.iter().flat_map(|unit| unit.rows.clone()).collect()
    };
    let (training_rows, held_out_rows) = (rows(&training), rows(&held_out));
    Ok(attack_people(
        tuned,
        &loaded.model,
        &people,
        &shadows,
        &generations,
        [&slices(&training_rows), &slices(&held_out_rows)],
        options,
        device,
    )?)
}

/// Texts that the model writes from nothing, as tokens.
fn generations(
    loaded: &LoadedModel,
    tuned: &CausalLm,
    encoding: &Encoding<'_>,
    count: usize,
    device: &Device,
) -> Result<Vec<Vec<u32>>, ExampleError> {
    let Some(bos) = loaded.special_tokens.bos else {
        return Ok(Vec::new());
    };
    let options = GenerationOptions {
        max_new_tokens: encoding.max_length,
        stop_tokens: loaded.special_tokens.eos.clone(),
        ..GenerationOptions::default()
    };
    let mut random = ChaCha20Rng::try_from_rng(&mut SysRng)
        .map_err(|error| ExampleError::Other(error.to_string()))?;
    (0..count)
        .map(|_| {
            Ok(generate(
                tuned,
                &[bos],
                &options,
                device,
                &mut random,
                |_| ControlFlow::Continue(()),
            )?)
        })
        .collect()
}

fn tell(covered: &Covered, people: Option<&PeopleReport>, folder: &Path) {
    match covered.claimed_epsilon {
        Some(epsilon) => println!(
            "claimed epsilon {:.4} at delta {:.2e}",
            AtLeast(epsilon),
            AtLeast(covered.delta)
        ),
        None => println!("the run claims no epsilon: it was not private"),
    }
    if let Some(report) = covered.mechanism {
        println!(
            "mechanism, {} canary gradients over {} steps: epsilon at least {:.4} ({} of {} guesses right)",
            report.canaries,
            report.steps,
            AtMost(report.bound.epsilon_lower),
            report.bound.guesses.correct,
            report.bound.guesses.guesses
        );
    }
    if let Some(report) = &covered.canaries {
        if let Some(bound) = report.bound {
            println!(
                "canary texts: epsilon at least {:.4} ({} of {} guesses right)",
                AtMost(bound.epsilon_lower),
                bound.guesses.correct,
                bound.guesses.guesses
            );
        }
        for attack in &report.attacks {
            println!(
                "canaries, {}: AUC {:.3}",
                attack.name, attack.report.auc.estimate
            );
        }
        for group in &report.groups {
            println!(
                "{} {} times: exposure {:.1} of {:.1} bits, {} of {} completed",
                group.format,
                if group.included { group.repeats } else { 0 },
                group.exposure_extrapolated,
                group.bits,
                group.completed,
                group.canaries
            );
        }
    }
    if let Some(report) = people {
        println!("no guarantee covers the following:");
        for attack in &report.attacks {
            let rates: Vec<String> = attack
                .report
                .true_rates
                .iter()
                .map(|rate| {
                    format!(
                        "TPR {:.4} at FPR {}",
                        rate.true_positive_rate.estimate, rate.false_positive_rate
                    )
                })
                .collect();
            let auc = attack.report.auc;
            println!(
                "people, {}: AUC {:.3} [{:.3}, {:.3}], {}",
                attack.name,
                auc.estimate,
                auc.lower,
                auc.upper,
                rates.join(", ")
            );
        }
        println!("private page: {}", folder.join(PRIVATE_PAGE).display());
    }
    println!(
        "covered by the run's guarantee: {COVERED_FILE} and the section in {REPORT_FILE}, in {}",
        folder.display()
    );
}

fn slices(rows: &[Vec<u32>]) -> Vec<&[u32]> {
    rows.iter().map(Vec::as_slice).collect()
}
