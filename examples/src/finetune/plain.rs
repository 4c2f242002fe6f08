//! The end of a run without privacy.

use std::time::Instant;

use rldp::report::{Guarantee, RunReport, Sample, Series};
use rldp::trainer::{Manifest, PlainSummary, RunSetup};

use super::run::REPORT_FILE;
use crate::error::ExampleError;

/// Writes the report of a run without privacy and tells the terminal what came out.
///
/// # Errors
/// A report that cannot be written.
pub fn finish(
    summary: &PlainSummary,
    setup: &RunSetup,
    data: &str,
    sample: Sample,
    begun: Instant,
) -> Result<(), ExampleError> {
    let nothing = Guarantee {
        unit: "none".to_owned(),
        adjacency: "none".to_owned(),
        epsilon: f64::INFINITY,
        target_epsilon: f64::INFINITY,
        delta: 1.0,
        accountant: "none".to_owned(),
        covered: Vec::new(),
        not_covered: Vec::new(),
    };
    let mut report = RunReport::new("Fine-tuning run without privacy", nothing);
    report.unprotected = true;
    report.subtitle = format!("{} on {data}", setup.base_model);
    report.created = setup.created.clone();
    for part in ["validation", "test"] {
        let of_part = summary.records.iter().filter(|record| record.part == part);
        report.perplexity.push(Series::new(
            part,
            of_part
                .map(|record| (record.step as f64, record.perplexity()))
                .collect(),
        ));
    }
    if !sample.before.is_empty() {
        report.samples.push(sample);
    }
    if let Ok(serde_json::Value::Object(settings)) = serde_json::to_value(&summary.config) {
        report.configuration = settings
            .into_iter()
            .map(|(name, value)| (name, value.to_string().trim_matches('"').to_owned()))
            .collect();
    }
    let path = setup.folder.join(REPORT_FILE);
    report.write(&path).map_err(ExampleError::file(&path))?;
    let nothing = "none: no gradient was clipped and no noise was added".to_owned();
    Manifest::of(&setup.folder, false, nothing)?.write(&setup.folder)?;
    for part in ["validation", "test"] {
        if let Some((before, after)) = summary.perplexities(part) {
            println!("{part} perplexity (exact): {before:.2} before, {after:.2} after");
        }
    }
    println!("trained in {:.0} s", begun.elapsed().as_secs_f64());
    println!("NOT PRIVATE: this run clipped nothing and added no noise.");
    Ok(())
}
