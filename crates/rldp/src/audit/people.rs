//! Membership inference on the run's own people. **No guarantee covers what this finds.**

use burn::tensor::Device;
use rldp_audit::attack::lira::{Shadow, likelihood_ratios};
use rldp_audit::attack::membership;
use rldp_audit::attack::signals::{Observed, Signal, compressed_bytes};
use rldp_audit::extraction::overlap::{Overlap, overlap};
use rldp_models::LanguageModel;
use rldp_optim::{Random, SecureRandom};
use serde::{Deserialize, Serialize};

use super::losses::token_losses;
use super::shadows::mean_losses;
use super::{AttackOptions, NamedAttack};
use crate::data::TextUnit;
use crate::error::RldpError;
use crate::trainer::TokenUnit;

/// A unit to be attacked. No `Debug`: this is private text.
#[derive(Clone)]
pub struct Person {
    /// Its token rows, as in training.
    pub unit: TokenUnit,
    /// Bytes of its texts, compressed.
    pub compressed: usize,
    /// Whether it was in the training part.
    pub member: bool,
}

impl Person {
    /// A person from texts and their tokens.
    #[must_use]
    pub fn new(text: &TextUnit, unit: TokenUnit, member: bool) -> Self {
        let used = text.texts.iter().take(unit.rows.len().max(1));
        let joined: Vec<&str> = used.map(String::as_str).collect();
        Self {
            unit,
            compressed: compressed_bytes(&joined.join("\n")),
            member,
        }
    }
}

/// What membership inference on people found, and what the model repeats of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeopleReport {
    /// The attacks.
    pub attacks: Vec<NamedAttack>,
    /// Shadow models used by the likelihood-ratio attacks.
    pub shadows: usize,
    /// Runs of tokens that what the model writes shares with the training text.
    pub overlap_training: Overlap,
    /// The same with as much held-out text: what there would be without memory.
    pub overlap_held_out: Overlap,
}

/// Draws at most `most` of the indices below `members` and at most `most` of those below `others`, uniformly, ascending.
///
/// # Errors
/// No randomness.
pub fn members_and_others(
    members: usize,
    others: usize,
    most: usize,
) -> Result<[Vec<usize>; 2], RldpError> {
    let mut random = SecureRandom::new()?;
    Ok([members, others].map(|count| {
        let mut indices: Vec<usize> = (0..count).collect();
        // A partial Fisher-Yates shuffle.
        let taken = most.min(count);
        for place in 0..taken {
            let from = ((u128::from(random.next_u64()) * (count - place) as u128) >> 64) as usize;
            indices.swap(place, place + from);
        }
        indices.truncate(taken);
        indices.sort_unstable();
        indices
    }))
}

/// Attacks people with every signal, and with likelihood ratios if there are shadows; compares `generations` of the model with
/// `training` rows and `held_out` rows.
///
/// People without tokens cannot be attacked and are left out.
///
/// # Errors
/// Fewer than two members or others.
#[allow(clippy::too_many_arguments)]
pub fn attack_people<M: LanguageModel>(
    tuned: &M,
    base: &M,
    people: &[Person],
    shadows: &[Shadow],
    generations: &[Vec<u32>],
    [training, held_out]: [&[&[u32]]; 2],
    options: &AttackOptions,
    device: &Device,
) -> Result<PeopleReport, RldpError> {
    let rows: Vec<&[u32]> = people
        .iter()
        .flat_map(|person| person.unit.rows.iter().map(Vec::as_slice))
        .collect();
    let mut target = token_losses(tuned, &rows, options.micro_batch, device)?.into_iter();
    let mut reference = token_losses(base, &rows, options.micro_batch, device)?.into_iter();
    let observed: Vec<Observed> = people
        .iter()
        .map(|person| {
            let count = person.unit.rows.len();
            Observed {
                target: target.by_ref().take(count).flatten().collect(),
                reference: reference.by_ref().take(count).flatten().collect(),
                compressed: person.compressed,
            }
        })
        .collect();
    let usable = |index: usize| !observed[index].target.is_empty();
    let evaluate = |name: String, scores: &dyn Fn(usize) -> Result<f64, RldpError>| {
        let (mut ins, mut outs) = (Vec::new(), Vec::new());
        for (index, person) in people
            .iter()
            .enumerate()
            .filter(|(index, _)| usable(*index))
        {
            if person.member { &mut ins } else { &mut outs }.push(scores(index)?);
        }
        Ok::<_, RldpError>(NamedAttack {
            name,
            report: membership(
                &ins,
                &outs,
                &options.false_positive_rates,
                options.confidence,
            )?,
        })
    };
    let mut attacks = Vec::new();
    for signal in Signal::ALL {
        attacks.push(evaluate(signal.name(), &|index| {
            Ok(signal.score(&observed[index])?)
        })?);
    }
    if !shadows.is_empty() {
        let scores: Vec<f64> = mean_losses(tuned, people, options.micro_batch, device)?
            .into_iter()
            .map(|loss| -loss)
            .collect();
        let ratios = likelihood_ratios(&scores, shadows)?;
        attacks.push(evaluate("LiRA, online".to_owned(), &|index| {
            Ok(ratios.online[index])
        })?);
        attacks.push(evaluate("LiRA, offline".to_owned(), &|index| {
            Ok(ratios.offline[index])
        })?);
    }
    // The bodies must be of one size, or the larger would share more.
    let tokens = |rows: &[&[u32]]| rows.iter().map(|row| row.len()).sum::<usize>();
    let size = tokens(training).min(tokens(held_out));
    let lengths = [4, 8, 16];
    Ok(PeopleReport {
        attacks,
        shadows: shadows.len(),
        overlap_training: overlap(generations, &first(training, size), &lengths)?,
        overlap_held_out: overlap(generations, &first(held_out, size), &lengths)?,
    })
}

/// The first rows that hold at most `size` tokens.
fn first<'a>(rows: &[&'a [u32]], size: usize) -> Vec<&'a [u32]> {
    let mut left = size;
    rows.iter()
        .take_while(|row| {
            let fits = row.len() <= left;
            left -= row.len().min(left);
            fits
        })
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_draw_holds_everyone_once_at_most() {
        let [members, others] = members_and_others(50, 3, 10).unwrap();
        assert_eq!((members.len(), others.len()), (10, 3));
        assert!(members.is_sorted_by(|a, b| a < b) && members.iter().all(|index| *index < 50));
        assert_eq!(others, [0, 1, 2]);
    }

    #[test]
    fn bodies_are_cut_to_one_size() {
        let rows: [&[u32]; 3] = [&[1, 2], &[3, 4, 5], &[6]];
        assert_eq!(first(&rows, 5), rows[..2]);
        assert_eq!(first(&rows, 4), rows[..1]);
        assert!(first(&rows, 0).is_empty());
    }
}
