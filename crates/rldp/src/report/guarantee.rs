//! The promise in words.

use serde::{Deserialize, Serialize};

use super::number::{short, short_upper};

/// What a run promises, as it is told to the reader.
#[derive(Clone, Debug, PartialEq)]
pub struct Guarantee {
    /// Whom it protects: `one row`, `all rows with the same patient_nbr`.
    pub unit: String,
    /// How neighbouring data sets differ: `add or remove one unit`.
    pub adjacency: String,
    /// What was spent, an upper bound.
    pub epsilon: f64,
    /// What might have been spent at most.
    pub target_epsilon: f64,
    /// The delta of both.
    pub delta: f64,
    /// Which accountant computed it.
    pub accountant: String,
    /// What may be published under it.
    pub covered: Vec<String>,
    /// What it says nothing about.
    pub not_covered: Vec<String>,
}

impl Guarantee {
    /// The promise in one plain sentence. Epsilon and delta are rounded up, never down.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!(
            "Everything this run released is (\u{3b5} = {}, \u{3b4} = {})-differentially private with {} as the protected unit, \
             under the adjacency \u{201c}{}\u{201d}, by the accountant \u{201c}{}\u{201d}.",
            short_upper(self.epsilon, 4),
            short_upper(self.delta, 3),
            self.unit,
            self.adjacency,
            self.accountant,
        )
    }

    /// What that means for a person.
    #[must_use]
    pub fn meaning(&self) -> String {
        let factor = self.epsilon.exp();
        format!(
            "Whether or not any one unit was in the data changes the probability of any outcome by at most a factor of {} \
             (e^\u{3b5}), apart from events of probability {} in total (\u{3b4}). Training, validation and test people are \
             disjoint and each part has its own budget, so the figure is the largest of the three.",
            short_upper(factor, 4),
            short_upper(self.delta, 3),
        )
    }

    /// The sentence of a seeded run, which promises nothing.
    pub(crate) fn seeded_sentence(&self) -> String {
        format!(
            "No privacy: this run drew its noise from a seed that is known. The same run with secret randomness would be \
             (\u{3b5} = {}, \u{3b4} = {})-differentially private with {} as the protected unit, under the adjacency \u{201c}{}\u{201d}, by the accountant \u{201c}{}\u{201d}.",
            short_upper(self.epsilon, 4),
            short_upper(self.delta, 3),
            self.unit,
            self.adjacency,
            self.accountant,
        )
    }
}

/// An attack on the mechanism itself, whose success bounds epsilon from below.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelfAudit {
    /// What the accountant claims for the audited mechanism.
    pub claimed_epsilon: f64,
    /// What the attack proves epsilon to be at least, at `confidence`.
    pub lower_bound: f64,
    /// Confidence of the lower bound, such as 0.95.
    pub confidence: f64,
    /// How many runs of the mechanism were attacked.
    pub trials: u64,
    /// What was attacked and how, in a sentence.
    pub method: String,
}

impl SelfAudit {
    /// Whether the claim survived.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.lower_bound <= self.claimed_epsilon
    }

    pub(crate) fn verdict(&self) -> String {
        let outcome = if self.passed() {
            "No attack contradicted the claim."
        } else {
            "The attack CONTRADICTS the claim: the implementation or the accounting is wrong, do not publish."
        };
        format!(
            "{outcome} Claimed \u{3b5} {}, proven lower bound {} at {} % confidence, from {} trials.",
            short_upper(self.claimed_epsilon, 4),
            short(self.lower_bound, 4),
            short(100.0 * self.confidence, 4),
            self.trials,
        )
    }
}
