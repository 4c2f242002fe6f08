//! How well scores separate members from non-members.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};

use crate::bounds::{probability_lower, probability_upper};
use crate::error::{AuditError, open_unit};

/// A figure with a confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub estimate: f64,
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

/// One point of the operating curve at low false-positive rates, where an attack does harm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrueRateAt {
    /// False-positive rate asked for.
    pub false_positive_rate: f64,
    /// False-positive rate reached: the largest not above it.
    pub reached: f64,
    /// True-positive rate there; the interval is Clopper-Pearson's for that threshold.
    pub true_positive_rate: Interval,
}

/// What an attack achieves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MembershipReport {
    /// Number of members.
    pub members: usize,
    /// Number of non-members.
    pub non_members: usize,
    /// Confidence of every interval.
    pub confidence: f64,
    /// Probability that a member scores above a non-member (ties count half); the interval is DeLong's (1988).
    pub auc: Interval,
    /// True-positive rates at the asked false-positive rates.
    pub true_rates: Vec<TrueRateAt>,
    /// The operating curve: (false-positive rate, true-positive rate), ascending, one point a distinct score.
    pub curve: Vec<(f64, f64)>,
}

/// Scores of the loss attack: the smaller the loss, the likelier a member.
#[must_use]
pub fn loss_scores(losses: &[f64]) -> Vec<f64> {
    losses.iter().map(|loss| -loss).collect()
}

/// Evaluates an attack's scores: larger must mean "likelier a member".
///
/// # Errors
/// Fewer than two scores on a side, a score that is not a number, confidence or a rate outside (0, 1).
pub fn membership(
    members: &[f64],
    non_members: &[f64],
    false_positive_rates: &[f64],
    confidence: f64,
) -> Result<MembershipReport, AuditError> {
    open_unit("the confidence", confidence)?;
    for (which, scores) in [("members", members), ("non-members", non_members)] {
        if scores.len() < 2 {
            return Err(AuditError::TooFew {
                what: which,
                found: scores.len(),
                needed: 2,
            });
        }
        if let Some(index) = scores.iter().position(|score| score.is_nan()) {
            return Err(AuditError::NotANumber { which, index });
        }
    }
    let (ins, outs) = (sorted(members), sorted(non_members));
    let true_rates = false_positive_rates
        .iter()
        .map(|&rate| {
            true_rate_at(
                &ins,
                &outs,
                open_unit("a false-positive rate", rate)?,
                confidence,
            )
        })
        .collect::<Result<_, _>>()?;
    Ok(MembershipReport {
        members: ins.len(),
        non_members: outs.len(),
        confidence,
        auc: auc(&ins, &outs, confidence),
        true_rates,
        curve: curve(&ins, &outs),
    })
}

fn sorted(scores: &[f64]) -> Vec<f64> {
    let mut sorted = scores.to_vec();
    // Minus zero must rank with zero.
    sorted.iter_mut().for_each(|score| *score += 0.0);
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Share of `sorted` below `score`, ties counted half.
fn placement(sorted: &[f64], score: f64) -> f64 {
    let below = sorted.partition_point(|&other| other < score);
    let not_above = sorted.partition_point(|&other| other <= score);
    (below + not_above) as f64 / (2 * sorted.len()) as f64
}

fn auc(members: &[f64], non_members: &[f64], confidence: f64) -> Interval {
    let of_members: Vec<f64> = members
        .iter()
        .map(|&score| placement(non_members, score))
        .collect();
    let of_others: Vec<f64> = non_members
        .iter()
        .map(|&score| 1.0 - placement(members, score))
        .collect();
    let (estimate, member_variance) = mean_and_variance(&of_members);
    let (_, other_variance) = mean_and_variance(&of_others);
    let deviation =
        (member_variance / members.len() as f64 + other_variance / non_members.len() as f64).sqrt();
    let half = Normal::standard().inverse_cdf(0.5 + confidence / 2.0) * deviation;
    Interval {
        estimate,
        lower: (estimate - half).max(0.0),
        upper: (estimate + half).min(1.0),
    }
}

fn mean_and_variance(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (
        mean,
        values
            .iter()
            .map(|value| (value - mean).powi(2))
            .sum::<f64>()
            / (n - 1.0),
    )
}

fn true_rate_at(
    members: &[f64],
    non_members: &[f64],
    rate: f64,
    confidence: f64,
) -> Result<TrueRateAt, AuditError> {
    // The attack says "in" above the threshold; at most this many non-members may be above it.
    let allowed = (rate * non_members.len() as f64).floor() as usize;
    let threshold = non_members[non_members.len() - 1 - allowed.min(non_members.len() - 1)];
    let above = |scores: &[f64]| scores.len() - scores.partition_point(|&score| score <= threshold);
    let (hits, trials) = (above(members) as u64, members.len() as u64);
    let alpha = (1.0 - confidence) / 2.0;
    Ok(TrueRateAt {
        false_positive_rate: rate,
        reached: above(non_members) as f64 / non_members.len() as f64,
        true_positive_rate: Interval {
            estimate: hits as f64 / trials as f64,
            lower: probability_lower(hits, trials, alpha)?,
            upper: probability_upper(hits, trials, alpha)?,
        },
    })
}

fn curve(members: &[f64], non_members: &[f64]) -> Vec<(f64, f64)> {
    let mut thresholds: Vec<f64> = members.iter().chain(non_members).copied().collect();
    thresholds.sort_by(|a, b| b.total_cmp(a));
    thresholds.dedup();
    let rate = |scores: &[f64], threshold: f64| {
        (scores.len() - scores.partition_point(|&score| score < threshold)) as f64
            / scores.len() as f64
    };
    let points = thresholds
        .into_iter()
        .map(|threshold| (rate(non_members, threshold), rate(members, threshold)));
    std::iter::once((0.0, 0.0)).chain(points).collect()
}
