//! Canaries in a fine-tuned model. They are independent of the private data: what this finds is post-processing of the model.

use std::ops::ControlFlow;

use burn::tensor::Device;
use rand::SeedableRng as _;
use rand::rngs::ChaCha20Rng;
use rldp_audit::attack::membership;
use rldp_audit::attack::signals::{Observed, Signal, compressed_bytes};
use rldp_audit::extraction::exposure::{Exposure, exposures, goodness_of_fit};
use rldp_audit::extraction::secret::{CanarySet, Format};
use rldp_audit::one_run::{OneRunReport, one_run};
use rldp_models::{GenerationOptions, LanguageModel, generate};
use rldp_optim::{Random, SecureRandom};
use serde::{Deserialize, Serialize};

use super::losses::token_losses;
use super::{AttackOptions, NamedAttack};
use crate::error::RldpError;
use crate::trainer::{Encoding, TokenUnit};

/// What was found out about the canaries of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryReport {
    /// Canaries, in or out.
    pub canaries: usize,
    /// Membership inference: canaries that were trained on against canaries drawn alike that were not.
    pub attacks: Vec<NamedAttack>,
    /// Lower bound on the run's epsilon from the canaries that were inserted at most once, by their loss over the base model's.
    pub bound: Option<OneRunReport>,
    /// Exposure and extraction, by format, repeats and inclusion.
    pub groups: Vec<ExtractionGroup>,
}

/// Exposure and extraction of canaries of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExtractionGroup {
    /// The format's name.
    pub format: String,
    /// Bits of a secret's randomness.
    pub bits: f64,
    /// Insertions of each canary.
    pub repeats: u32,
    /// Whether these canaries were in the training data.
    pub included: bool,
    /// How many canaries.
    pub canaries: usize,
    /// Mean exposure in bits, by rank among sampled secrets; 1.44 on average for a model that knows nothing.
    pub exposure_sampled: f64,
    /// Mean exposure in bits, extrapolated.
    pub exposure_extrapolated: f64,
    /// Largest extrapolated exposure in bits.
    pub exposure_largest: f64,
    /// Kolmogorov-Smirnov p-value of the extrapolation's fit.
    pub fit_p_value: f64,
    /// Canaries whose second half the model completes greedily, given the text before and the first half.
    pub completed: usize,
    /// Canaries whose whole secret is among the texts sampled from the format's beginning.
    pub sampled: usize,
}

/// The units that the included canaries add to the training data, each of one row.
///
/// # Errors
/// From the tokenizer.
pub fn canary_units(set: &CanarySet, encoding: &Encoding<'_>) -> Result<Vec<TokenUnit>, RldpError> {
    set.training_texts()
        .map(|text| {
            Ok(TokenUnit {
                rows: vec![encoding.text(&text)?],
            })
        })
        .collect()
}

/// Attacks the canaries of a set in a model that was (or was not) trained on them.
///
/// # Guarantee
/// If the model was released by an (epsilon, delta)-DP run and the set was drawn apart from the private data, everything returned
/// is covered by that guarantee, and [`CanaryReport::bound`] exceeds the run's epsilon at `delta` with probability at most
/// `1 - options.confidence`.
///
/// # Errors
/// Fewer than two canaries in or out, a tokenizer or model that refuses a canary, options out of range.
pub fn attack_canaries<M: LanguageModel>(
    tuned: &M,
    base: &M,
    set: &CanarySet,
    encoding: &Encoding<'_>,
    delta: f64,
    options: &AttackOptions,
    device: &Device,
) -> Result<CanaryReport, RldpError> {
    let texts: Vec<String> = set.canaries.iter().map(|canary| set.text(canary)).collect();
    let target = text_losses(tuned, &texts, encoding, options, device)?;
    let reference = text_losses(base, &texts, encoding, options, device)?;
    let observed: Vec<Observed> = target
        .iter()
        .zip(reference)
        .zip(&texts)
        .map(|((target, reference), text)| Observed {
            target: target.clone(),
            reference,
            compressed: compressed_bytes(text),
        })
        .collect();
    let mut attacks = Vec::new();
    for signal in Signal::ALL {
        let scores = signal.scores(&observed)?;
        let of = |included: bool| -> Vec<f64> {
            let chosen = set.canaries.iter().zip(&scores);
            chosen
                .filter(|(canary, _)| canary.included == included)
                .map(|(_, score)| *score)
                .collect()
        };
        attacks.push(NamedAttack {
            name: signal.name(),
            report: membership(
                &of(true),
                &of(false),
                &options.false_positive_rates,
                options.confidence,
            )?,
        });
    }
    let scores = Signal::Reference.scores(&observed)?;
    // A canary that is inserted more than once is protected by a group's guarantee, which is weaker.
    let once: Vec<usize> = (0..set.canaries.len())
        .filter(|index| set.canaries[*index].repeats == 1)
        .collect();
    let bound = if once.len() < 2 {
        None
    } else {
        let scores: Vec<f64> = once.iter().map(|index| scores[*index]).collect();
        let coins: Vec<bool> = once
            .iter()
            .map(|index| set.canaries[*index].included)
            .collect();
        Some(one_run(&scores, &coins, delta, options.confidence)?)
    };
    let mut groups = Vec::new();
    for format in 0..set.formats.len() {
        groups.extend(extraction(
            tuned, set, format, &target, encoding, options, device,
        )?);
    }
    Ok(CanaryReport {
        canaries: set.canaries.len(),
        attacks,
        bound,
        groups,
    })
}

fn text_losses<M: LanguageModel>(
    model: &M,
    texts: &[String],
    encoding: &Encoding<'_>,
    options: &AttackOptions,
    device: &Device,
) -> Result<Vec<Vec<f64>>, RldpError> {
    let rows = texts
        .iter()
        .map(|text| encoding.text(text))
        .collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    token_losses(model, &rows, options.micro_batch, device)
}

/// Exposure and extraction of the canaries of one format.
fn extraction<M: LanguageModel>(
    model: &M,
    set: &CanarySet,
    index: usize,
    losses: &[Vec<f64>],
    encoding: &Encoding<'_>,
    options: &AttackOptions,
    device: &Device,
) -> Result<Vec<ExtractionGroup>, RldpError> {
    let format = &set.formats[index];
    let own: Vec<usize> = (0..set.canaries.len())
        .filter(|place| set.canaries[*place].format == index)
        .collect();
    if own.is_empty() {
        return Ok(Vec::new());
    }
    let mut random = SecureRandom::new()?;
    let others: Vec<String> = (0..options.exposure_samples)
        .map(|_| format.text(&format.draw(&mut random)))
        .collect();
    // The log-perplexity of a whole text, as the paper has it.
    let sum = |losses: &Vec<f64>| losses.iter().sum::<f64>();
    let samples: Vec<f64> = text_losses(model, &others, encoding, options, device)?
        .iter()
        .map(sum)
        .collect();
    let totals: Vec<f64> = own.iter().map(|place| sum(&losses[*place])).collect();
    let (exposed, law) = exposures(&totals, &samples, format.bits(), options.confidence)?;
    let (_, fit_p_value) = goodness_of_fit(&samples, &law);
    let written = sampled_texts(model, format, encoding, options, device, &mut random)?;
    let mut found = Vec::with_capacity(own.len());
    for (place, exposure) in own.iter().zip(exposed) {
        let secret = &set.canaries[*place].secret;
        let known = format!("{}{}", format.before, secret.concat());
        found.push(Found {
            place: *place,
            exposure,
            completed: completes(model, format, secret, encoding, device)?,
            sampled: written.iter().any(|text| text.contains(&known)),
        });
    }
    let mut groups: Vec<(u32, bool)> = own
        .iter()
        .map(|place| (set.canaries[*place].repeats, set.canaries[*place].included))
        .collect();
    groups.sort_unstable();
    groups.dedup();
    Ok(groups
        .into_iter()
        .map(|(repeats, included)| {
            let members: Vec<&Found> = found
                .iter()
                .filter(|found| {
                    let canary = &set.canaries[found.place];
                    (canary.repeats, canary.included) == (repeats, included)
                })
                .collect();
            let mean = |value: &dyn Fn(&Found) -> f64| {
                members.iter().map(|found| value(found)).sum::<f64>() / members.len() as f64
            };
            ExtractionGroup {
                format: format.name.clone(),
                bits: format.bits(),
                repeats,
                included,
                canaries: members.len(),
                exposure_sampled: mean(&|found| found.exposure.sampled.estimate),
                exposure_extrapolated: mean(&|found| found.exposure.extrapolated),
                exposure_largest: members
                    .iter()
                    .map(|found| found.exposure.extrapolated)
                    .fold(0.0, f64::max),
                fit_p_value,
                completed: members.iter().filter(|found| found.completed).count(),
                sampled: members.iter().filter(|found| found.sampled).count(),
            }
        })
        .collect())
}

struct Found {
    place: usize,
    exposure: Exposure,
    completed: bool,
    sampled: bool,
}

/// Whether the model, given the text before a secret and the secret's first half, greedily writes the rest.
fn completes<M: LanguageModel>(
    model: &M,
    format: &Format,
    secret: &[String],
    encoding: &Encoding<'_>,
    device: &Device,
) -> Result<bool, RldpError> {
    let (given, asked) = secret.split_at(secret.len() / 2);
    let prompt = encoding.prompt(&format!("{}{}", format.before, given.concat()))?;
    let whole = encoding.text(&format.text(secret))?;
    let options = GenerationOptions::greedy((whole.len() + 2).saturating_sub(prompt.len()));
    let mut unused = ChaCha20Rng::seed_from_u64(0);
    let written = continued(model, &prompt, &options, encoding, device, &mut unused)?;
    Ok(written.contains(&format!(
        "{}{}{}",
        format.before,
        given.concat(),
        asked.concat()
    )))
}

/// Texts that the model writes from the format's beginning at temperature one.
fn sampled_texts<M: LanguageModel>(
    model: &M,
    format: &Format,
    encoding: &Encoding<'_>,
    options: &AttackOptions,
    device: &Device,
    random: &mut dyn Random,
) -> Result<Vec<String>, RldpError> {
    let prompt = encoding.prompt(&format.before)?;
    let longest = encoding.text(&format.text(&format.draw(random)))?.len();
    let settings = GenerationOptions {
        max_new_tokens: (longest + 4).saturating_sub(prompt.len()),
        ..GenerationOptions::default()
    };
    let mut draws = ChaCha20Rng::seed_from_u64(random.next_u64());
    (0..options.generations)
        .map(|_| continued(model, &prompt, &settings, encoding, device, &mut draws))
        .collect()
}

/// The text of a prompt with the model's continuation.
fn continued<M: LanguageModel>(
    model: &M,
    prompt: &[u32],
    options: &GenerationOptions,
    encoding: &Encoding<'_>,
    device: &Device,
    draws: &mut ChaCha20Rng,
) -> Result<String, RldpError> {
    let mut tokens = prompt.to_vec();
    tokens.extend(generate(model, prompt, options, device, draws, |_| {
        ControlFlow::Continue(())
    })?);
    Ok(encoding.tokenizer.decode(&tokens)?)
}
