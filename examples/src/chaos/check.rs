//! What must hold after every fault, and at the end.

use std::path::Path;

use rldp::trainer::{ADAPTER_FOLDER, ARTEFACTS, LEDGER_FILE, METRICS_FILE};
use rldp_accounting::budget::RenyiFilter;
use rldp_accounting::ledger::{BudgetRecord, Event, Ledger, LedgerEpsilon};
use rldp_accounting::{AccountingError, Segment};

use super::worker::{DELTA, EPSILON, STEPS};
use crate::error::ExampleError;
use crate::finetune::run::MODEL_FOLDER;

fn broken(text: String) -> ExampleError {
    ExampleError::Other(text)
}

/// The releases that the witness saw. A process that is killed while it writes across a page's end leaves part of a line: it
/// died before it could use what it had released.
///
/// # Errors
/// A witness that cannot be read.
pub fn witnessed(path: &Path) -> Result<Vec<Event>, ExampleError> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut events = Vec::new();
    for line in whole.lines() {
        events.push(serde_json::from_str(line).map_err(|error| {
            broken(format!(
                "the witness is unreadable ({error}); it is written before anything else"
            ))
        })?);
    }
    Ok(events)
}

/// What a comparison of ledger and witness found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Compared {
    /// Epsilon of the training steps as the ledger counts them.
    pub counted: f64,
    /// Epsilon of the training steps that were released.
    pub released: f64,
}

/// Holds the ledger against the witness: every release is in it, and its epsilon is at least that of the releases, for the
/// training and for every held-out part. None before the ledger has begun.
///
/// # Errors
/// What does not hold, in words.
pub fn compare(folder: &Path, witness: &Path) -> Result<Option<Compared>, ExampleError> {
    let released = witnessed(witness)?;
    let path = folder.join(LEDGER_FILE);
    if !Ledger::begun(&path)? {
        return if released.is_empty() {
            Ok(None)
        } else {
            Err(broken(format!("{} releases and no ledger", released.len())))
        };
    }
    let ledger = Ledger::read(&path)?;
    let mut left = ledger.events.clone();
    // A seeded run may release the same thing again: it is counted once.
    let mut distinct: Vec<&Event> = Vec::new();
    for event in &released {
        if !ledger.header.private && distinct.contains(&event) {
            let times = |events: &[&Event]| events.iter().filter(|e| **e == event).count();
            let in_ledger: Vec<&Event> = ledger.events.iter().collect();
            if times(&distinct) >= times(&in_ledger) {
                continue;
            }
        }
        distinct.push(event);
        match left.iter().position(|spent| spent == event) {
            Some(place) => {
                left.remove(place);
            }
            None => {
                return Err(broken(format!(
                    "released, but not in the ledger: {event:?}"
                )));
            }
        }
    }
    let truth = Ledger {
        header: ledger.header.clone(),
        events: distinct.into_iter().cloned().collect(),
        torn: None,
    };
    let (counted, released) = (epsilon(&ledger)?, epsilon(&truth)?);
    let training = |epsilon: &Option<LedgerEpsilon>| {
        epsilon
            .as_ref()
            .and_then(|epsilon| epsilon.training.played)
            .unwrap_or(0.0)
    };
    let compared = Compared {
        counted: training(&counted),
        released: training(&released),
    };
    if compared.counted < compared.released {
        return Err(broken(format!(
            "the ledger says epsilon {}, {} was released",
            compared.counted, compared.released
        )));
    }
    for part in released.iter().flat_map(|epsilon| &epsilon.parts) {
        let own = counted
            .iter()
            .flat_map(|epsilon| &epsilon.parts)
            .find(|own| own.part == part.part);
        if own.is_none_or(|own| own.epsilon < part.epsilon) {
            return Err(broken(format!("the {} part is under-counted", part.part)));
        }
    }
    // A torn line is read as a query of every part, spent or not; a resumed run knows what is left and counts no more.
    let overall = counted.map_or(0.0, |epsilon| epsilon.overall);
    if ledger.torn.is_none() && overall > EPSILON * (1.0 + 1e-9) {
        return Err(broken(format!("epsilon {overall} of {EPSILON}")));
    }
    Ok(Some(compared))
}

fn epsilon(ledger: &Ledger) -> Result<Option<LedgerEpsilon>, ExampleError> {
    match ledger.epsilon_upper(DELTA) {
        Ok(epsilon) => Ok(Some(epsilon)),
        // A filter's ledger without a step.
        Err(AccountingError::LedgerEmpty) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The files by which two runs are the same.
fn results(folder: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    [
        LEDGER_FILE.to_owned(),
        METRICS_FILE.to_owned(),
        format!("{ADAPTER_FOLDER}/adapter_model.safetensors"),
        format!("{ADAPTER_FOLDER}/adapter_config.json"),
        format!("{MODEL_FOLDER}/model.safetensors"),
        "sac_policy.safetensors".to_owned(),
    ]
    .into_iter()
    .map(|name| {
        let bytes = std::fs::read(folder.join(&name)).ok();
        (name, bytes)
    })
    .collect()
}

/// A seeded run equals the uninterrupted one, byte for byte.
///
/// # Errors
/// The file that differs.
pub fn same(folder: &Path, uninterrupted: &Path) -> Result<(), ExampleError> {
    for ((name, found), (_, wanted)) in results(folder).iter().zip(&results(uninterrupted)) {
        if found != wanted {
            return Err(broken(format!(
                "{name} differs from the uninterrupted run's"
            )));
        }
    }
    Ok(())
}

/// A private run spent every step of its budget, and no more. A filter counts a torn line as the dearest step there is, so it
/// may end earlier, but only once it can afford no step at all.
///
/// # Errors
/// Another number of steps.
pub fn played_out(folder: &Path) -> Result<(), ExampleError> {
    let ledger = Ledger::read(folder.join(LEDGER_FILE))?;
    let steps = ledger.steps();
    if steps == STEPS || (steps < STEPS && exhausted(&ledger)?) {
        Ok(())
    } else {
        Err(broken(format!("{steps} steps spent of {STEPS}")))
    }
}

/// Whether the ledger's filter refuses even the step with the most noise.
fn exhausted(ledger: &Ledger) -> Result<bool, ExampleError> {
    let segments = ledger.segments()?;
    let BudgetRecord::Filter {
        floor,
        ceiling,
        order,
    } = ledger.header.budget
    else {
        return Ok(false);
    };
    let Some(sampling_rate) = segments.first().map(Segment::sampling_rate) else {
        return Ok(false);
    };
    let mut filter =
        RenyiFilter::with_order(ledger.header.target, sampling_rate, floor, ceiling, order)?;
    for segment in &segments {
        filter.spend(segment)?;
    }
    Ok(!filter.would_allow(&Segment::new(sampling_rate, ceiling, 1)?))
}

/// Nothing lies in the folder but what belongs there.
///
/// # Errors
/// The file that does not.
pub fn clean(folder: &Path) -> Result<(), ExampleError> {
    let mut open = vec![folder.to_owned()];
    while let Some(place) = open.pop() {
        for entry in std::fs::read_dir(&place).map_err(ExampleError::file(&place))? {
            let path = entry.map_err(ExampleError::file(&place))?.path();
            let name = path
                .file_name()
                .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let known = place != folder || ARTEFACTS.iter().any(|(known, _, _)| *known == name);
            if !known || name.contains(".tmp") || name.ends_with(".partial") {
                return Err(broken(format!("{} was left behind", path.display())));
            }
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(())
}
