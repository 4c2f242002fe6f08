//! The crate's one error type.

use crate::adjacency::Adjacency;

/// Why an accountant refused to answer.
///
/// No function of this crate answers epsilon 0, NaN or infinity in place of one of these.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AccountingError {
    /// The sampling rate is not a probability.
    #[error("the sampling rate must be in [0, 1], but it is {value}")]
    SamplingRate {
        /// The offending value.
        value: f64,
    },
    /// The noise multiplier is not positive and finite.
    #[error("the noise multiplier must be positive and finite, but it is {value}")]
    NoiseMultiplier {
        /// The offending value.
        value: f64,
    },
    /// Delta is not strictly between 0 and 1.
    #[error("delta must be strictly between 0 and 1, but it is {value}")]
    Delta {
        /// The offending value.
        value: f64,
    },
    /// Epsilon is not a non-negative (or, for a target, positive) finite number.
    #[error("epsilon must be finite and not negative (a target's: positive), but it is {value}")]
    Epsilon {
        /// The offending value.
        value: f64,
    },
    /// A RDP order is not above 1 and finite.
    #[error("an RDP order must be above 1 and finite, but it is {value}")]
    Order {
        /// The offending value.
        value: f64,
    },
    /// A weight of a noise split is not positive and finite.
    #[error("weight {index} must be positive and finite, but it is {value}")]
    Weight {
        /// Its position.
        index: usize,
        /// The offending value.
        value: f64,
    },
    /// Another parameter that must be positive and finite is not.
    #[error("{name} must be positive and finite, but it is {value}")]
    NotPositive {
        /// The parameter's name.
        name: &'static str,
        /// The offending value.
        value: f64,
    },
    /// The run has no privacy: no epsilon, however large, describes it.
    #[error("the run clipped nothing and added no noise: it has no epsilon and protects nobody")]
    Unprotected,
    /// A mechanism without groups has no noise.
    #[error("there is no group, so there is no noise to account for")]
    NoGroups,
    /// Nothing was composed.
    #[error("there is no segment to account for")]
    NoSegments,
    /// A segment, card or query count of zero.
    #[error("a count of steps must be at least 1")]
    ZeroSteps,
    /// The number of steps overflows.
    #[error("the number of steps overflows")]
    StepsOverflow,
    /// The privacy loss is too large for the arithmetic.
    #[error("the privacy loss overflows: no finite epsilon can be certified")]
    Overflow,
    /// No parameter in the searched range reaches the target.
    #[error("no {what} in [{low}, {high}] reaches epsilon {epsilon} at delta {delta}")]
    Unreachable {
        /// What was searched for.
        what: &'static str,
        /// Lower end of the search.
        low: f64,
        /// Upper end of the search.
        high: f64,
        /// The target's epsilon.
        epsilon: f64,
        /// The target's delta.
        delta: f64,
    },
    /// The neighbouring relation has no known dominating pair for this mechanism.
    #[error(
        "{adjacency} adjacency has no dominating pair for Poisson sampling at rate {sampling_rate} (only at rate 1)"
    )]
    AdjacencyUndefined {
        /// The relation asked for.
        adjacency: Adjacency,
        /// The sampling rate of the refused segment.
        sampling_rate: f64,
    },
    /// GDP is exact only for mechanisms without subsampling.
    #[error(
        "Gaussian differential privacy is exact only at sampling rate 1, but the rate is {sampling_rate}"
    )]
    Subsampled {
        /// The sampling rate of the refused segment.
        sampling_rate: f64,
    },
    /// A deck has no card of that index.
    #[error("there is no card {card}: the deck has {cards} kinds")]
    NoSuchCard {
        /// The index asked for.
        card: usize,
        /// The number of kinds of cards.
        cards: usize,
    },
    /// All the cards of that kind were played.
    #[error("all the cards of kind {card} were played")]
    DeckExhausted {
        /// The index asked for.
        card: usize,
    },
    /// The proposed step does not fit into the budget; it must not be taken.
    #[error("refused before the step: spent {spent}, proposed {proposed}, budget {budget}")]
    BudgetExceeded {
        /// Spent so far, in the filter's own measure.
        spent: f64,
        /// What the step would cost.
        proposed: f64,
        /// The whole budget.
        budget: f64,
    },
    /// A proposed noise multiplier lies outside the registered range.
    #[error("the noise multiplier {value} is outside the registered range [{floor}, {ceiling}]")]
    OutsideRange {
        /// The offending value.
        value: f64,
        /// Registered floor.
        floor: f64,
        /// Registered ceiling.
        ceiling: f64,
    },
    /// A proposed sampling rate is not the registered one.
    #[error("the sampling rate {value} is not the registered {registered}")]
    SamplingRateChanged {
        /// The offending value.
        value: f64,
        /// The registered value.
        registered: f64,
    },
    /// The ledger's file could not be read or written.
    #[error("ledger {path}: {message}")]
    LedgerIo {
        /// Its path.
        path: String,
        /// What the operating system said.
        message: String,
    },
    /// The ledger has no header, or has nothing to account for.
    #[error("the ledger is empty")]
    LedgerEmpty,
    /// A line other than a torn last one is damaged.
    #[error("ledger line {line} is damaged: {reason}")]
    LedgerDamaged {
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The ledger was written by another version of the format.
    #[error("the ledger has format version {found}; this program reads {supported}")]
    LedgerVersion {
        /// Version in the file.
        found: u32,
        /// Version understood here.
        supported: u32,
    },
    /// The ledger's events contradict its registered budget.
    #[error("the ledger contradicts itself: {reason}")]
    LedgerInconsistent {
        /// How.
        reason: String,
    },
}
