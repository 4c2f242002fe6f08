//! What a finished run says of itself.

use serde::{Deserialize, Serialize};

use super::config::TrainerConfig;
use super::records::{HeldOutRecord, Record, StepRecord};
use super::resume::Lost;
use crate::budget::BudgetKind;
use crate::report::{Figure, Guarantee, RunReport, SelfAudit, Series, TableData};

/// One adapter, for the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSummary {
    /// The adapted layer.
    pub name: String,
    /// Numbers trained.
    pub parameters: usize,
}

/// The outcome of a run: everything here is released or public.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// The settings.
    pub config: TrainerConfig,
    /// The controller's name.
    pub controller: &'static str,
    /// The privacy unit in words.
    pub unit: String,
    /// Privacy units in the table.
    pub units: usize,
    /// Epsilon of the whole run: the largest of the parts' upper bounds, computed from the ledger.
    pub epsilon_upper: f64,
    /// Delta of the run.
    pub delta: f64,
    /// Sampling rate.
    pub sampling_rate: f64,
    /// The seed of a seeded run, which is not private.
    pub seed: Option<u64>,
    /// Which accountant gave the figure.
    pub accountant: &'static str,
    /// The mechanism's audit of itself.
    pub self_audit: SelfAudit,
    /// The adapters; of a full-parameter run, all parameters as one.
    pub adapters: Vec<AdapterSummary>,
    /// What the run gives away, in words.
    pub result: &'static str,
    /// All that was recorded.
    pub records: Vec<Record>,
    /// Files in the run folder.
    pub files: Vec<String>,
    /// What was spent without its result being kept, in crashes.
    pub lost: Lost,
}

impl RunSummary {
    /// The guarantee in words.
    #[must_use]
    pub fn guarantee(&self) -> Guarantee {
        Guarantee {
            unit: self.unit.clone(),
            adjacency: "add or remove one unit".to_owned(),
            epsilon: self.epsilon_upper,
            target_epsilon: self.config.epsilon,
            delta: self.delta,
            accountant: self.accountant.to_owned(),
            covered: vec![
                self.result.to_owned(),
                "the ledger, the metrics and the agent's policy".to_owned(),
                "every figure on this page, and every figure printed during the run but for how long things took".to_owned(),
            ],
            not_covered: vec![
                "other runs on the same people: their budgets add up".to_owned(),
                "the number of units in the table, which is taken to be public".to_owned(),
                "the private table itself, and the machine's memory while it ran".to_owned(),
            ],
        }
    }

    /// Released held-out losses of one part, in order.
    pub fn held_out<'a>(&'a self, part: &'a str) -> impl Iterator<Item = &'a HeldOutRecord> {
        self.records.iter().filter_map(move |record| match record {
            Record::HeldOut(held_out) if held_out.part == part => Some(held_out),
            _ => None,
        })
    }

    /// First and last released perplexity of a part; none if a crash took one of them.
    #[must_use]
    pub fn perplexities(&self, part: &str) -> Option<(f64, f64)> {
        let first = self.held_out(part).next()?;
        let last = self.held_out(part).last()?;
        (first.step < last.step).then(|| (first.perplexity(), last.perplexity()))
    }

    fn steps(&self) -> impl Iterator<Item = &StepRecord> {
        self.records.iter().filter_map(|record| match record {
            Record::Step(step) => Some(step),
            _ => None,
        })
    }

    fn series(&self, name: &str, value: impl Fn(&StepRecord) -> f64) -> Series {
        Series::new(
            name,
            self.steps().map(|s| (s.step as f64, value(s))).collect(),
        )
    }

    fn per_adapter(&self, values: impl Fn(&StepRecord) -> Option<&Vec<f64>>) -> Vec<Series> {
        self.adapters
            .iter()
            .enumerate()
            .map(|(index, adapter)| {
                let points = self
                    .steps()
                    .filter_map(|s| Some((s.step as f64, of_adapter(values(s)?, index)?)))
                    .collect();
                Series::new(adapter.name.clone(), points)
            })
            .filter(|series| !series.points.is_empty())
            .collect()
    }

    /// The report's page, but for its title, subtitle and samples.
    #[must_use]
    pub fn report(&self, title: &str) -> RunReport {
        let mut report = RunReport::new(title, self.guarantee());
        report.seed = self.seed;
        report.figures = self.figures();
        for part in ["validation", "public-validation"] {
            let points: Vec<(f64, f64)> = self
                .held_out(part)
                .map(|r| (r.step as f64, r.perplexity()))
                .collect();
            if !points.is_empty() {
                report.perplexity.push(Series::new(part, points));
            }
        }
        let loss: Vec<(f64, f64)> = self
            .steps()
            .filter_map(|s| Some((s.step as f64, s.training_loss?)))
            .collect();
        if !loss.is_empty() {
            report.loss.push(Series::new("training", loss));
        }
        // A deck's cards are chosen adaptively, so only the whole deck's epsilon is a guarantee.
        let name = match self.config.budget {
            BudgetKind::Deck => "as if the order had been fixed (reference only)",
            BudgetKind::Fixed | BudgetKind::Filter => "epsilon spent in training",
        };
        report.epsilon = self.series(name, |s| s.epsilon_spent);
        report.radii = self.per_adapter(|s| Some(&s.clipping_norms));
        report.clipped = self.per_adapter(|s| s.clipped_fractions.as_ref());
        report.noise_multiplier = vec![self.series("effective", |s| s.noise_multiplier)];
        report.adapter_noise_multipliers = self.per_adapter(|s| Some(&s.group_noise_multipliers));
        report.learning_rate = vec![self.series("learning rate", |s| s.learning_rate)];
        if self.lost != Lost::default() {
            report.warnings.push(format!(
                "The run was interrupted: {} steps and {} held-out queries were spent without their result being kept. \
                 They are in the ledger and in the guarantee.",
                self.lost.steps, self.lost.queries
            ));
        }
        report.self_audit = Some(self.self_audit.clone());
        report.adapters = self.adapter_table();
        report.held_out_queries = self.query_table();
        report.configuration = self.configuration();
        report
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        if let Some((before, after)) = self.perplexities("test") {
            let note = "per-person mean, released with noise from the test people's own budget";
            figures.push(Figure::new(
                "Test perplexity before",
                format!("{before:.2}"),
                note,
            ));
            figures.push(Figure::new(
                "Test perplexity after",
                format!("{after:.2}"),
                note,
            ));
        }
        figures.push(Figure::new(
            "Optimizer steps",
            self.steps().count().to_string(),
            format!("{} privacy units expected in each", self.config.batch_size),
        ));
        figures
    }

    fn adapter_table(&self) -> TableData {
        let last = self.steps().last();
        TableData {
            header: [
                "adapter",
                "parameters",
                "last clipping norm",
                "last noise multiplier",
            ]
            .map(str::to_owned)
            .to_vec(),
            rows: self
                .adapters
                .iter()
                .enumerate()
                .map(|(index, adapter)| {
                    let cell = |values: Option<&Vec<f64>>| {
                        values
                            .and_then(|values| of_adapter(values, index))
                            .map_or_else(String::new, |value| format!("{value:.4}"))
                    };
                    vec![
                        adapter.name.clone(),
                        adapter.parameters.to_string(),
                        cell(last.map(|s| &s.clipping_norms)),
                        cell(last.map(|s| &s.group_noise_multipliers)),
                    ]
                })
                .collect(),
        }
    }

    fn query_table(&self) -> TableData {
        let rows = ["validation", "test"]
            .into_iter()
            .flat_map(|part| self.held_out(part))
            .map(|record| {
                vec![
                    record.part.clone(),
                    record.step.to_string(),
                    format!("{:.4}", record.loss),
                    format!("{:.4}", record.noise),
                    format!("{:.3}", record.perplexity()),
                ]
            })
            .collect();
        TableData {
            header: [
                "part",
                "after step",
                "released loss (nats)",
                "noise (nats)",
                "perplexity",
            ]
            .map(str::to_owned)
            .to_vec(),
            rows,
        }
    }

    fn configuration(&self) -> Vec<(String, String)> {
        let mut rows = vec![
            ("controller".to_owned(), self.controller.to_owned()),
            ("privacy units".to_owned(), self.units.to_string()),
            (
                "sampling rate".to_owned(),
                format!("{:.6}", self.sampling_rate),
            ),
            ("delta".to_owned(), format!("{:.3e}", self.delta)),
        ];
        // The settings are plain data, so their own serialisation is the most honest list of them.
        if let Ok(serde_json::Value::Object(settings)) = serde_json::to_value(&self.config) {
            for (name, value) in settings {
                if name != "controller" && name != "delta" {
                    rows.push((name, value.to_string().trim_matches('"').to_owned()));
                }
            }
        }
        rows
    }
}

/// A group's figure at one of its adapters: a flat step's one group holds them all.
fn of_adapter(values: &[f64], index: usize) -> Option<f64> {
    match values {
        [one] => Some(*one),
        several => several.get(index).copied(),
    }
}
