//! Canaries: made-up texts with a secret drawn from a known space, put into the training data to see whether they come out.
//!
//! A canary is independent of the private data, so everything that an attack on canaries finds in a released model is
//! post-processing of the release.

use rldp_optim::Random;
use serde::{Deserialize, Serialize};

use crate::error::AuditError;

/// A text with a secret in it: what stands before and after, and what the secret may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// A name for tables.
    pub name: String,
    /// The text before the secret.
    #[serde(default)]
    pub before: String,
    /// The text after the secret.
    #[serde(default)]
    pub after: String,
    /// The secret's pieces, one after another: each is drawn uniformly from its list.
    pub slots: Vec<Vec<String>>,
}

impl Format {
    /// A secret of `length` pieces of one alphabet.
    #[must_use]
    pub fn repeated(
        name: &str,
        before: &str,
        after: &str,
        alphabet: &[String],
        length: usize,
    ) -> Self {
        Self {
            name: name.to_owned(),
            before: before.to_owned(),
            after: after.to_owned(),
            slots: vec![alphabet.to_vec(); length],
        }
    }

    /// A sequence of digits, as in a telephone or record number.
    #[must_use]
    pub fn numbers(length: usize) -> Self {
        let digits: Vec<String> = (0..10).map(|digit| format!(" {digit}")).collect();
        Self::repeated("numbers", "The record number is", ".", &digits, length)
    }

    /// A sequence of random pieces of a vocabulary, which no text of the world holds.
    #[must_use]
    pub fn tokens(vocabulary: &[String], length: usize) -> Self {
        Self::repeated("tokens", "The password is", ".", vocabulary, length)
    }

    /// A clinical sentence with a rare fact of 2^16 possible ones.
    #[must_use]
    pub fn rare_fact() -> Self {
        let slots = [
            [
                "a tumour",
                "an infection",
                "a stroke",
                "a burn",
                "gout",
                "asthma",
                "anemia",
                "sepsis",
                "a fall",
                "a bite",
                "a fever",
                "a rash",
                "poisoning",
                "frostbite",
                "a wound",
                "malaria",
            ],
            [
                "fishing", "sailing", "hunting", "mining", "diving", "farming", "dancing",
                "boxing", "fencing", "painting", "welding", "baking", "climbing", "skating",
                "riding", "swimming",
            ],
            [
                "Peru", "Chad", "Oman", "Laos", "Fiji", "Cuba", "Mali", "Togo", "Iran", "Iraq",
                "Nepal", "Kenya", "Samoa", "Malta", "Qatar", "Ghana",
            ],
            [
                "spring",
                "summer",
                "autumn",
                "winter",
                "January",
                "February",
                "March",
                "April",
                "May",
                "June",
                "July",
                "August",
                "September",
                "October",
                "November",
                "December",
            ],
        ];
        let joined = [" for ", " after ", " in ", " in "];
        Self {
            name: "rare fact".to_owned(),
            before: "Woman aged 50 to 60, admitted".to_owned(),
            after: ". She was discharged home, not readmitted.".to_owned(),
            slots: slots
                .iter()
                .zip(joined)
                .map(|(pieces, before)| {
                    pieces
                        .iter()
                        .map(|piece| format!("{before}{piece}"))
                        .collect()
                })
                .collect(),
        }
    }

    /// Checks that there is something to draw.
    ///
    /// # Errors
    /// [`AuditError::TooFew`] for a format with fewer than two possible secrets, or an empty slot.
    pub fn check(&self) -> Result<(), AuditError> {
        let smallest = self.slots.iter().map(Vec::len).min().unwrap_or(0);
        if smallest == 0 || self.bits() < 1.0 {
            return Err(AuditError::TooFew {
                what: "possible secrets of a format",
                found: smallest.min(1),
                needed: 2,
            });
        }
        Ok(())
    }

    /// The secret's randomness in bits: log2 of the number of possible secrets, if no two ways of drawing spell the same.
    #[must_use]
    pub fn bits(&self) -> f64 {
        self.slots
            .iter()
            .map(|slot| (slot.len() as f64).log2())
            .sum()
    }

    /// A secret, uniformly: a piece for each slot.
    pub fn draw(&self, random: &mut dyn Random) -> Vec<String> {
        self.slots
            .iter()
            .filter(|slot| !slot.is_empty())
            .map(|slot| slot[below(slot.len(), random)].clone())
            .collect()
    }

    /// The text with this secret in it.
    #[must_use]
    pub fn text(&self, secret: &[String]) -> String {
        format!("{}{}{}", self.before, secret.concat(), self.after)
    }
}

/// A uniform number below `bound`, which is at least one. The bias is below 2^-32 for bounds below 2^32.
fn below(bound: usize, random: &mut dyn Random) -> usize {
    ((u128::from(random.next_u64()) * bound as u128) >> 64) as usize
}

/// A canary: one secret, how often it is put into the training data, and whether it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Which of the formats.
    pub format: usize,
    /// The secret, piece by piece.
    pub secret: Vec<String>,
    /// Units of the training data that hold it, each with this text as its one row, if it is included.
    pub repeats: u32,
    /// Whether the coin put it in.
    pub included: bool,
}

/// The canaries of a run: the auditor's secret until the audit is done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CanarySet {
    /// The formats.
    pub formats: Vec<Format>,
    /// The canaries.
    pub canaries: Vec<Canary>,
}

impl CanarySet {
    /// Draws `count` canaries, the formats and the numbers of repeats in turn, each included by a fair coin.
    ///
    /// # Errors
    /// No formats or repeats, a repeat of zero, a format with nothing to draw.
    pub fn draw(
        formats: Vec<Format>,
        repeats: &[u32],
        count: usize,
        random: &mut dyn Random,
    ) -> Result<Self, AuditError> {
        for (what, found) in [
            ("canary formats", formats.len()),
            ("numbers of repeats", repeats.len()),
        ] {
            if found == 0 {
                return Err(AuditError::TooFew {
                    what,
                    found,
                    needed: 1,
                });
            }
        }
        if repeats.contains(&0) {
            return Err(AuditError::OutOfRange {
                what: "a number of repeats",
                value: 0.0,
                range: "at least 1",
            });
        }
        for format in &formats {
            format.check()?;
        }
        let canaries = (0..count)
            .map(|index| {
                let format = index % formats.len();
                Canary {
                    format,
                    secret: formats[format].draw(random),
                    repeats: repeats[index / formats.len() % repeats.len()],
                    included: random.bernoulli(0.5),
                }
            })
            .collect();
        Ok(Self { formats, canaries })
    }

    /// The texts to train on, one a unit: each included canary as often as it repeats.
    pub fn training_texts(&self) -> impl Iterator<Item = String> + '_ {
        self.canaries
            .iter()
            .filter(|canary| canary.included)
            .flat_map(|canary| std::iter::repeat_n(self.text(canary), canary.repeats as usize))
    }

    /// A canary's text.
    #[must_use]
    pub fn text(&self, canary: &Canary) -> String {
        self.formats.get(canary.format).map_or_else(
            || canary.secret.concat(),
            |format| format.text(&canary.secret),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rldp_optim::{SecureRandom, SeededRandom};

    use super::*;

    #[test]
    fn the_spaces_are_as_large_as_they_say() {
        assert!((Format::numbers(6).bits() - 6.0 * 10_f64.log2()).abs() < 1e-12);
        assert_eq!(Format::rare_fact().bits(), 16.0);
        for slot in Format::rare_fact().slots {
            let mut pieces = slot.clone();
            pieces.sort();
            pieces.dedup();
            assert_eq!(pieces.len(), slot.len(), "a piece stands twice");
        }
    }

    #[test]
    fn secrets_are_uniform() {
        // 1e5 draws of one digit: chi-square with 9 degrees of freedom is above 57 with probability below 1e-8.
        let format = Format::numbers(1);
        let mut random = SecureRandom::new().unwrap();
        let mut counts = [0_u32; 10];
        for _ in 0..100_000 {
            let digit: usize = format.draw(&mut random)[0].trim().parse().unwrap();
            counts[digit] += 1;
        }
        let statistic: f64 = counts
            .iter()
            .map(|count| (f64::from(*count) - 1e4).powi(2) / 1e4)
            .sum();
        assert!(statistic < 57.0, "{statistic}");
    }

    #[test]
    fn a_set_repeats_its_included_canaries_and_survives_a_file() {
        let formats = vec![Format::numbers(4), Format::rare_fact()];
        let set = CanarySet::draw(formats, &[1, 3], 40, &mut SeededRandom::new(5)).unwrap();
        let expected: u32 = set
            .canaries
            .iter()
            .filter(|canary| canary.included)
            .map(|canary| canary.repeats)
            .sum();
        assert_eq!(set.training_texts().count(), expected as usize);
        assert!(set.canaries.iter().any(|canary| !canary.included));
        assert_eq!(set.canaries.iter().filter(|c| c.repeats == 3).count(), 20);
        let text = set.text(&set.canaries[0]);
        assert!(text.starts_with("The record number is ") && text.ends_with('.'));
        let kept = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<CanarySet>(&kept).unwrap(), set);
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let random = &mut SeededRandom::new(1);
        assert!(CanarySet::draw(Vec::new(), &[1], 3, random).is_err());
        assert!(CanarySet::draw(vec![Format::numbers(2)], &[], 3, random).is_err());
        assert!(CanarySet::draw(vec![Format::numbers(2)], &[0], 3, random).is_err());
        assert!(CanarySet::draw(vec![Format::numbers(0)], &[1], 3, random).is_err());
        assert!(
            CanarySet::draw(vec![Format::tokens(&["a".to_owned()], 5)], &[1], 3, random).is_err()
        );
    }
}
