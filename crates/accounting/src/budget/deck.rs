//! A deck: a multiset of steps registered before training, played in any adaptively chosen order.

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;
use crate::pld;
use crate::segment::Segment;

/// One card as played: one step of this mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Which kind of card.
    pub index: usize,
    /// Sampling rate of the step.
    pub sampling_rate: f64,
    /// Effective noise multiplier of the step.
    pub noise_multiplier: f64,
}

/// A registered multiset of steps. Each kind of card is a [`Segment`] whose steps are the number of copies.
///
/// # Guarantee
/// Whatever the order, chosen adaptively from all earlier outputs, and wherever it stops, the play is dominated by the
/// composition of the whole deck: [`Deck::epsilon_upper`]. Proof: `docs/proofs/deck.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deck {
    cards: Vec<Segment>,
    remaining: Vec<u64>,
}

impl Deck {
    /// A full deck.
    ///
    /// # Errors
    /// No cards, or a number of steps that overflows.
    pub fn new(cards: Vec<Segment>) -> Result<Self, AccountingError> {
        if cards.is_empty() {
            return Err(AccountingError::NoSegments);
        }
        let mut total = 0u64;
        for card in &cards {
            total = total
                .checked_add(card.steps())
                .ok_or(AccountingError::StepsOverflow)?;
        }
        let remaining = cards.iter().map(Segment::steps).collect();
        Ok(Self { cards, remaining })
    }

    /// Takes one card of this kind out of the deck.
    ///
    /// # Errors
    /// No such kind, or none left of it: the step must not be taken.
    pub fn play(&mut self, index: usize) -> Result<Card, AccountingError> {
        let card = *self.card(index)?;
        let left = &mut self.remaining[index];
        *left = left
            .checked_sub(1)
            .ok_or(AccountingError::DeckExhausted { card: index })?;
        Ok(Card {
            index,
            sampling_rate: card.sampling_rate(),
            noise_multiplier: card.noise_multiplier(),
        })
    }

    /// The kind of card at an index, with its full count.
    ///
    /// # Errors
    /// No such kind.
    pub fn card(&self, index: usize) -> Result<&Segment, AccountingError> {
        self.cards.get(index).ok_or(AccountingError::NoSuchCard {
            card: index,
            cards: self.cards.len(),
        })
    }

    /// How many cards of each kind are left.
    pub fn remaining(&self) -> &[u64] {
        &self.remaining
    }

    /// How many cards are left in all.
    pub fn remaining_total(&self) -> u64 {
        self.remaining.iter().sum()
    }

    /// The whole deck, as registered.
    pub fn segments(&self) -> &[Segment] {
        &self.cards
    }

    /// What was played so far. Its epsilon is not a guarantee when the stopping or the order was adaptive; the whole deck's is.
    pub fn played(&self) -> Vec<Segment> {
        self.cards
            .iter()
            .zip(&self.remaining)
            .filter_map(|(card, left)| card.with_steps(card.steps() - left).ok())
            .collect()
    }

    /// The kind whose noise multiplier is nearest (in ratio) to `noise_multiplier` among those left.
    pub fn nearest(&self, noise_multiplier: f64) -> Option<usize> {
        let distance = |i: usize| {
            (self.cards[i].noise_multiplier() / noise_multiplier)
                .ln()
                .abs()
        };
        (0..self.cards.len())
            .filter(|&i| self.remaining[i] > 0)
            .min_by(|&a, &b| distance(a).total_cmp(&distance(b)))
    }

    /// Certified epsilon of the whole deck.
    ///
    /// # Guarantee
    /// Any adaptive play of this deck is (returned, delta)-DP.
    ///
    /// # Errors
    /// As for [`pld::epsilon_upper`].
    pub fn epsilon_upper(&self, delta: f64) -> Result<f64, AccountingError> {
        pld::epsilon_upper(&self.cards, delta)
    }
}
