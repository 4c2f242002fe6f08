//! All accountants side by side, each with what its figure is worth.

use std::fmt;

use serde::Serialize;

use crate::adjacency::Adjacency;
use crate::error::AccountingError;
use crate::gdp;
use crate::pld::{PldOptions, accountant};
use crate::print::{AtLeast, AtMost};
use crate::rdp;
use crate::segment::Segment;

/// One accountant's figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The accountant.
    pub accountant: &'static str,
    /// Its epsilon; none where it refuses.
    pub epsilon: Option<f64>,
    /// Whether it is a bound that holds for steps fixed in advance, or a deck.
    pub certified: bool,
    /// Whether it also holds when noise is chosen freely from earlier outputs (only with the step tested before it is taken).
    pub adaptive: bool,
    /// What to know about it, or why it refuses.
    pub note: String,
}

/// All accountants on one sequence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The sequence.
    pub segments: Vec<Segment>,
    /// Delta.
    pub delta: f64,
    /// The neighbouring relation.
    pub adjacency: Adjacency,
    /// One row an accountant, the recommended one first.
    pub rows: Vec<Row>,
}

/// All accountants on one sequence.
///
/// # Errors
/// Bad parameters, or an adjacency that is not defined for a segment; an accountant that refuses gives a row that says so.
pub fn summary(
    segments: &[Segment],
    delta: f64,
    adjacency: Adjacency,
) -> Result<Summary, AccountingError> {
    let given = segments;
    let segments = &adjacency.all_as_add_remove(given)?;
    let pld = accountant(segments, PldOptions::default())?;
    let upper = pld.epsilon_upper(delta)?;
    let lower = pld.epsilon_lower(delta)?.min(upper);
    let mut rows = vec![
        row(
            "PLD upper",
            Ok(upper),
            true,
            false,
            "the guarantee for fixed steps or a deck; certified, all numerical errors included",
        ),
        row(
            "PLD lower",
            Ok(lower),
            false,
            false,
            "no smaller epsilon is true: how tight the line above is",
        ),
    ];
    let optimised = rdp::epsilon_upper(segments, delta);
    let note = match &optimised {
        Ok(best) => format!(
            "valid; the order, {:.4}, was chosen knowing all the steps",
            best.order
        ),
        Err(_) => String::new(),
    };
    rows.push(row(
        "RDP, best order",
        optimised.map(|b| b.epsilon),
        true,
        false,
        &note,
    ));
    let mut grid = rdp::RdpAccountant::default();
    let composed = segments
        .iter()
        .try_for_each(|s| grid.compose(s))
        .and_then(|()| grid.epsilon_upper(delta));
    let note = match &composed {
        Ok(best) => format!(
            "what a filter registered at order {:.4} before the run would certify, also under adaptive noise",
            best.order
        ),
        Err(_) => String::new(),
    };
    rows.push(row(
        "RDP, fixed order (filter)",
        composed.map(|b| b.epsilon),
        true,
        true,
        &note,
    ));
    let exact = gdp::mu(segments).and_then(|mu| gdp::epsilon_upper(mu, delta));
    rows.push(row(
        "GDP, exact",
        exact,
        true,
        true,
        "exact without subsampling; also as a filter",
    ));
    rows.push(row(
        "GDP-CLT, underestimates",
        gdp::clt_epsilon_underestimate(segments, delta),
        false,
        false,
        "NOT a bound: a central-limit approximation that is too small; for comparison with other software only",
    ));
    Ok(Summary {
        segments: given.to_vec(),
        delta,
        adjacency,
        rows,
    })
}

fn row(
    accountant: &'static str,
    epsilon: Result<f64, AccountingError>,
    certified: bool,
    adaptive: bool,
    note: &str,
) -> Row {
    match epsilon {
        Ok(e) => Row {
            accountant,
            epsilon: Some(e),
            certified,
            adaptive,
            note: note.to_string(),
        },
        Err(error) => Row {
            accountant,
            epsilon: None,
            certified: false,
            adaptive: false,
            note: error.to_string(),
        },
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in &self.segments {
            writeln!(
                f,
                "{} steps at sampling rate {}, noise multiplier {}",
                s.steps(),
                s.sampling_rate(),
                s.noise_multiplier()
            )?;
        }
        writeln!(
            f,
            "delta {:e}, {} adjacency; a guarantee holds for steps fixed in advance or a deck, an adaptive one also for \
             noise chosen step by step\n",
            self.delta, self.adjacency
        )?;
        writeln!(
            f,
            "{:<26} {:>14}  {:<9} {:<8}  note",
            "accountant", "epsilon", "guarantee", "adaptive"
        )?;
        for r in &self.rows {
            let epsilon = r.epsilon.map_or("-".to_string(), |e| {
                if r.certified {
                    format!("{:.6}", AtLeast(e))
                } else {
                    // A lower bound, or an approximation that is too small anyway.
                    format!("{:.6}", AtMost(e))
                }
            });
            let yes = |b: bool| if b { "yes" } else { "no" };
            writeln!(
                f,
                "{:<26} {epsilon:>14}  {:<9} {:<8}  {}",
                r.accountant,
                yes(r.certified),
                yes(r.adaptive),
                r.note
            )?;
        }
        Ok(())
    }
}
