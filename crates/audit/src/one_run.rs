//! A lower bound on epsilon from ONE training run (Steinke, Nasr and Jagielski 2023).
//!
//! Each of `m` canaries is put into the training data by a fair coin of its own. Afterwards the auditor guesses, for as many of
//! them as it likes, whether they were in. If the run is (epsilon, delta)-DP for adding or removing one canary, too many right
//! guesses are unlikely (their Theorem 5.2; Algorithm 1): with `W` right guesses of `r`, for every `v`
//!
//! ```text
//! P(W >= v) <= P(B >= v) + 2 m delta max_{1 <= i <= m} P(v > B >= v - i) / i,   B ~ Binomial(r, e^epsilon / (e^epsilon + 1)).
//! ```
//!
//! # Precision
//! Binomial probabilities are computed by logarithms of gamma functions (about 1e-12 relative), and the p-value is rounded up
//! by 1e-9 of itself, the bound on epsilon down to the last bisection that is still refuted.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, Discrete};

use crate::error::{AuditError, open_unit};

/// What an auditor guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guesses {
    /// Canaries whose inclusion was decided by a fair coin each, guessed or not.
    pub canaries: u64,
    /// Canaries that were guessed.
    pub guesses: u64,
    /// Right guesses.
    pub correct: u64,
}

impl Guesses {
    fn check(&self) -> Result<(), AuditError> {
        if self.guesses > self.canaries {
            return Err(AuditError::Counts {
                events: self.guesses,
                trials: self.canaries,
            });
        }
        if self.correct > self.guesses {
            return Err(AuditError::Counts {
                events: self.correct,
                trials: self.guesses,
            });
        }
        Ok(())
    }

    /// An upper bound on the probability of at least this many right guesses if the run is (epsilon, delta)-DP.
    ///
    /// # Errors
    /// Impossible counts; epsilon negative or not finite; delta outside [0, 1].
    pub fn p_value(&self, epsilon: f64, delta: f64) -> Result<f64, AuditError> {
        self.check()?;
        if !(epsilon >= 0.0 && epsilon.is_finite()) {
            return Err(AuditError::OutOfRange {
                what: "epsilon",
                value: epsilon,
                range: "in [0, infinity)",
            });
        }
        if !(0.0..=1.0).contains(&delta) {
            return Err(AuditError::OutOfRange {
                what: "delta",
                value: delta,
                range: "in [0, 1]",
            });
        }
        // The accuracy of epsilon-DP randomised response, which is the best there is.
        let accuracy = 1.0 / (1.0 + (-epsilon).exp());
        let Ok(law) = Binomial::new(accuracy, self.guesses) else {
            return Ok(1.0);
        };
        let at_least: f64 = (self.correct..=self.guesses).map(|k| law.pmf(k)).sum();
        let mut steepest = 0.0_f64;
        let mut just_below = 0.0;
        for i in 1..=self.correct {
            just_below += law.pmf(self.correct - i);
            steepest = steepest.max(just_below / i as f64);
        }
        let slack = 2.0 * self.canaries as f64 * delta * steepest;
        Ok(((at_least + slack) * (1.0 + 1e-9)).min(1.0))
    }

    /// The largest epsilon that these guesses refute.
    ///
    /// # Guarantee
    /// If the coins were fair and independent, and the rule of guessing was fixed before the run (or depends on nothing but the
    /// run's output), a run that is (epsilon, delta)-DP gives a bound above its epsilon with probability at most
    /// `1 - confidence`. (If some epsilon is refuted then every smaller one is, since (e, delta)-DP implies
    /// (e', delta)-DP for e' >= e: the bisection needs no monotone p-value.)
    ///
    /// # Errors
    /// As [`Guesses::p_value`]; confidence outside (0, 1).
    pub fn epsilon_lower(&self, delta: f64, confidence: f64) -> Result<f64, AuditError> {
        let alpha = 1.0 - open_unit("the confidence", confidence)?;
        let refuted = |epsilon: f64| Ok::<_, AuditError>(self.p_value(epsilon, delta)? < alpha);
        if !refuted(0.0)? {
            return Ok(0.0);
        }
        let (mut low, mut high) = (0.0, 1.0);
        while refuted(high)? {
            low = high;
            high *= 2.0;
            // With all guesses right the p-value passes alpha near ln(r / alpha); f64 ends far beyond.
            if high > 700.0 {
                return Ok(low);
            }
        }
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if refuted(middle)? {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// The outcome of a one-run audit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OneRunReport {
    /// Lower bound on epsilon.
    pub epsilon_lower: f64,
    /// Delta of the bound.
    pub delta: f64,
    /// Confidence of the bound.
    pub confidence: f64,
    /// The guesses that gave it.
    pub guesses: Guesses,
}

/// Shares of the canaries that are guessed: those with the most telling scores.
const SHARES: [f64; 6] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0];

/// Guesses "in" for the largest scores and "out" for the smallest, abstains between, and bounds epsilon.
///
/// Six shares of guesses are tried, each at a sixth of the allowed error, so that choosing the best of them is honest
/// (Bonferroni). `scores` must be computed without looking at `included`; ties are broken by position, which is as good as
/// chance for coins that are fair.
///
/// # Guarantee
/// As [`Guesses::epsilon_lower`].
///
/// # Errors
/// Scores and coins of different number, fewer than two of them; a score that is not a number; delta or confidence out of range.
pub fn one_run(
    scores: &[f64],
    included: &[bool],
    delta: f64,
    confidence: f64,
) -> Result<OneRunReport, AuditError> {
    if scores.len() != included.len() {
        return Err(AuditError::Observations {
            expected: included.len(),
            found: scores.len(),
        });
    }
    if scores.len() < 2 {
        return Err(AuditError::TooFew {
            what: "canaries",
            found: scores.len(),
            needed: 2,
        });
    }
    if let Some(index) = scores.iter().position(|score| score.is_nan()) {
        return Err(AuditError::NotANumber {
            which: "canaries",
            index,
        });
    }
    open_unit("the confidence", confidence)?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let each = 1.0 - (1.0 - confidence) / SHARES.len() as f64;
    let mut best: Option<OneRunReport> = None;
    for share in SHARES {
        let half = ((0.5 * share * scores.len() as f64).floor() as usize).max(1);
        let said_in = order[..half].iter().filter(|index| included[**index]);
        let said_out = order[order.len() - half..]
            .iter()
            .filter(|index| !included[**index]);
        let guesses = Guesses {
            canaries: scores.len() as u64,
            guesses: 2 * half as u64,
            correct: (said_in.count() + said_out.count()) as u64,
        };
        let report = OneRunReport {
            epsilon_lower: guesses.epsilon_lower(delta, each)?,
            delta,
            confidence,
            guesses,
        };
        if best.is_none_or(|best| report.epsilon_lower > best.epsilon_lower) {
            best = Some(report);
        }
    }
    best.ok_or(AuditError::TooFew {
        what: "canaries",
        found: scores.len(),
        needed: 2,
    })
}
