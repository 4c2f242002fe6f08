//! The synthetic corpus: an endless, seeded stream of short English texts of many kinds.
//!
//! About half is general clinical prose in many phrasings, the rest everyday stories and sentences, facts and figures.
//! Its wording and distributions are its own: it teaches words, digits and units, not any particular table.

use crate::error::ExampleError;
use crate::pretrain::clinical::bind_case;
use crate::pretrain::grammar::{Grammar, Variables};
use crate::pretrain::random::CorpusRandom;

/// The kinds of text, how often each comes (of 100) and whether it needs an invented patient.
const KINDS: &[(&str, u64, bool)] = &[
    ("clinical", 56, true),
    ("teaching", 6, false),
    ("story", 12, false),
    ("sentences", 8, false),
    ("facts", 13, false),
    ("note", 5, false),
];

/// A seeded stream of texts. It never ends; the same seed gives the same texts for ever.
#[derive(Debug)]
pub struct Corpus {
    grammar: Grammar,
    random: CorpusRandom,
}

impl Corpus {
    /// The stream of this seed.
    ///
    /// # Errors
    /// Only if the grammar files shipped with the crate are malformed.
    pub fn new(seed: u64) -> Result<Self, ExampleError> {
        let grammar = Grammar::parse([
            include_str!("grammar/everyday.txt"),
            include_str!("grammar/facts.txt"),
            include_str!("grammar/clinical.txt"),
        ])?;
        Ok(Self {
            grammar,
            random: CorpusRandom::new(seed),
        })
    }

    /// The next text.
    ///
    /// # Errors
    /// Only if the grammar refers to a rule that does not exist.
    pub fn text(&mut self) -> Result<String, ExampleError> {
        let mut ticket = self.random.below(KINDS.iter().map(|kind| kind.1).sum());
        let mut chosen = KINDS[0];
        for &kind in KINDS {
            chosen = kind;
            if ticket < kind.1 {
                break;
            }
            ticket -= kind.1;
        }
        let mut variables = Variables::new();
        if chosen.2 {
            bind_case(&mut variables, &mut self.random);
        }
        self.grammar
            .text(chosen.0, &mut variables, &mut self.random)
    }

    /// The next `count` texts.
    ///
    /// # Errors
    /// As [`Corpus::text`].
    pub fn texts(&mut self, count: usize) -> Result<Vec<String>, ExampleError> {
        (0..count).map(|_| self.text()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn same_seed_same_texts_other_seed_other_texts() {
        let first = Corpus::new(0).unwrap().texts(50).unwrap();
        assert_eq!(first, Corpus::new(0).unwrap().texts(50).unwrap());
        assert_ne!(first, Corpus::new(1).unwrap().texts(50).unwrap());
    }

    #[test]
    fn texts_are_value_stable() {
        // Pinned: the committed base model was trained on exactly this stream.
        assert_eq!(
            Corpus::new(0).unwrap().text().unwrap(),
            FIRST_TEXT_OF_SEED_0
        );
    }

    const FIRST_TEXT_OF_SEED_0: &str = "My friend Lucy tells me about a long post office where the squirrels are pink. Lucy looked in the bathroom, but nobody was there. Lucy said, \"it is only 8 miles from here\", so it was too late. And that is how Lucy got a clean key.";

    #[test]
    fn texts_are_clean_and_varied() {
        let texts = Corpus::new(2).unwrap().texts(4000).unwrap();
        let distinct: BTreeSet<&String> = texts.iter().collect();
        assert!(
            distinct.len() > 3800,
            "only {} of 4000 texts are distinct",
            distinct.len()
        );
        for text in &texts {
            assert!(text.len() >= 20, "{text:?}");
            for stray in [
                "{", "}", "[", "]", "~", "^", "  ", " .", " ,", "..", "NaN", "\\",
            ] {
                assert!(!text.contains(stray), "{stray:?} in {text:?}");
            }
        }
        let words: BTreeSet<&str> = texts
            .iter()
            .flat_map(|t| t.split(|c: char| !c.is_alphabetic()))
            .collect();
        assert!(words.len() > 1500, "only {} different words", words.len());
        let all = texts.join("\n");
        for known in [
            "heart rate",
            "creatinine",
            "respiratory failure",
            "mean arterial pressure",
            "urine output",
            "diabetes",
            "PaO2/FiO2",
            "dementia",
        ] {
            assert!(all.contains(known), "{known} never occurs");
        }
    }
}
