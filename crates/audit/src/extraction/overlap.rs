//! How much of what a model writes stands word for word in a text.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use serde::{Deserialize, Serialize};

use crate::error::AuditError;

/// Runs of tokens that generations share with a body of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// For each length n asked for: the share of the generations' n-grams that occur in the text; none if no generation is so long.
    pub shares: Vec<(usize, Option<f64>)>,
    /// The longest run of a generation, in tokens, that occurs in the text.
    pub longest: usize,
}

/// Compares generations with a body of text, both as tokens. No n-gram spans two generations or two texts.
///
/// Runs are compared by a keyed 64-bit hash: of a billion comparisons fewer than one in ten is expected to be wrong.
///
/// # Errors
/// [`AuditError::OutOfRange`] for a length of zero.
pub fn overlap(
    generations: &[Vec<u32>],
    texts: &[&[u32]],
    lengths: &[usize],
) -> Result<Overlap, AuditError> {
    if lengths.contains(&0) {
        return Err(AuditError::OutOfRange {
            what: "the length of an n-gram",
            value: 0.0,
            range: "at least 1",
        });
    }
    let hasher = RandomState::new();
    let known = |n: usize| -> HashSet<u64> {
        texts
            .iter()
            .flat_map(|text| text.windows(n))
            .map(|gram| hasher.hash_one(gram))
            .collect()
    };
    let counts = |n: usize| {
        let known = known(n);
        let grams = generations.iter().flat_map(|text| text.windows(n));
        grams.fold((0_u64, 0_u64), |(found, all), gram| {
            (
                found + u64::from(known.contains(&hasher.hash_one(gram))),
                all + 1,
            )
        })
    };
    let shares = lengths
        .iter()
        .map(|&n| {
            let (found, all) = counts(n);
            (n, (all > 0).then(|| found as f64 / all as f64))
        })
        .collect();
    // A shared run of n tokens holds one of n - 1.
    let (mut shared, mut beyond) = (0, generations.iter().map(Vec::len).max().unwrap_or(0) + 1);
    while beyond - shared > 1 {
        let middle = usize::midpoint(shared, beyond);
        if counts(middle).0 > 0 {
            shared = middle;
        } else {
            beyond = middle;
        }
    }
    Ok(Overlap {
        shares,
        longest: shared,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn shared_runs_are_found_and_none_spans_two_texts() {
        let texts: [&[u32]; 2] = [&[1, 2, 3, 4, 5], &[6, 7, 8]];
        let generations = [vec![9, 2, 3, 4, 9], vec![5, 6, 7, 1]];
        let found = overlap(&generations, &texts, &[2, 3, 9]).unwrap();
        // Bigrams 23, 34, 67 of seven; trigrams 234 of five; nothing is nine long.
        assert_eq!(
            found.shares,
            vec![(2, Some(3.0 / 7.0)), (3, Some(0.2)), (9, None)]
        );
        assert_eq!(found.longest, 3);
    }

    #[test]
    fn nothing_shares_nothing() {
        let found = overlap(&[], &[], &[4]).unwrap();
        assert_eq!((found.longest, found.shares[0].1), (0, None));
        assert_eq!(overlap(&[vec![1]], &[&[2]], &[1]).unwrap().longest, 0);
        assert!(overlap(&[], &[], &[0]).is_err());
    }
}
