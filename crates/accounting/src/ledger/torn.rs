//! What a torn last line may have been.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::line::{DIGITS, HEAD, MIDDLE};
use super::{Event, Ledger};
use crate::error::AccountingError;

/// A torn last line, as a crash leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TornLine {
    /// Its number, from 1.
    pub line: usize,
    /// Its bytes, as far as they are text.
    pub text: String,
}

impl TornLine {
    /// Whether the line, as far as it can be read, may have been an event of this kind (and, for a query, of this part).
    ///
    /// True in doubt: for a line cut before it says what it is, and for one that is not the beginning of any line.
    pub fn may_be(&self, event: &Event) -> bool {
        let Some(record) = self
            .text
            .strip_prefix(HEAD)
            .and_then(|rest| rest.get(DIGITS..))
            .and_then(|rest| rest.strip_prefix(MIDDLE))
        else {
            return true;
        };
        let known = [
            start_of(&Event::Note {
                text: String::new(),
            }),
            "{\"event\":\"query\"".to_string(),
            "{\"event\":\"step\"".to_string(),
        ];
        let fits = |start: &str| record.starts_with(start) || start.starts_with(record);
        fits(&start_of(event)) || !known.iter().any(|start| fits(start))
    }
}

/// How the record of an event begins, as far as its kind and part need.
fn start_of(event: &Event) -> String {
    match event {
        Event::Step { .. } => "{\"event\":\"step\"".to_string(),
        Event::Note { .. } => "{\"event\":\"note\"".to_string(),
        Event::Query { part, .. } => format!(
            "{{\"event\":\"query\",\"part\":{}",
            serde_json::Value::from(part.as_str())
        ),
    }
}

impl Ledger {
    /// What a torn last line may have been, by the ledger alone: the step that loses most among those left, and one query
    /// of every part seen so far, at the least noise seen. Empty if the last line is whole.
    ///
    /// # Errors
    /// A step with bad figures.
    pub fn in_doubt(&self) -> Result<Vec<Event>, AccountingError> {
        let Some(torn) = &self.torn else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        if let Some(worst) = self.worst_step(&self.segments()?)? {
            found.push(Event::Step {
                step: self.steps() + 1,
                sampling_rate: worst.sampling_rate(),
                noise_multiplier: worst.noise_multiplier(),
                group_noise_multipliers: Vec::new(),
                clipping_norms: Vec::new(),
                telemetry: Vec::new(),
            });
        }
        let mut least: BTreeMap<&str, f64> = BTreeMap::new();
        for event in &self.events {
            if let Event::Query {
                part,
                noise_multiplier,
                ..
            } = event
            {
                let least = least.entry(part).or_insert(*noise_multiplier);
                *least = least.min(*noise_multiplier);
            }
        }
        found.extend(
            least
                .into_iter()
                .map(|(part, noise_multiplier)| Event::Query {
                    part: part.to_string(),
                    name: "lost in a crash".to_string(),
                    noise_multiplier,
                }),
        );
        found.retain(|event| torn.may_be(event));
        Ok(found)
    }
}
