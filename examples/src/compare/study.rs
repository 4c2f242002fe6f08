//! What a study compares: a TOML file.

use std::path::{Path, PathBuf};

use rldp::trainer::TrainerConfig;
use serde::{Deserialize, Serialize};

use super::attacks::Attacks;
use crate::error::ExampleError;

/// A study: arms x epsilons x seeds on one model and one table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Study {
    /// The study's name, and that of its folder.
    pub name: String,
    /// The task that arms are compared on.
    pub task: TaskSettings,
    /// Privacy budgets.
    pub epsilons: Vec<f64>,
    /// Seeds; runs of one seed have the same split of the table, the same start and the same draws where they draw alike.
    pub seeds: Vec<u64>,
    /// The arm that the others are compared with.
    pub reference: String,
    /// Exact test losses are recorded after every so many steps.
    #[serde(default = "five")]
    pub curve_every: u64,
    /// Settings that all arms share, as in [`TrainerConfig`].
    #[serde(default)]
    pub trainer: toml::Table,
    /// The arms.
    #[serde(rename = "arm")]
    pub arms: Vec<Arm>,
    /// Where arms of the grade `public` are tuned.
    pub public: Option<PublicTuning>,
    /// Seeds that arms of the grade `oracle` are tuned with; the study's own where there are none.
    #[serde(default)]
    pub oracle_seeds: Vec<u64>,
    /// Attacks on the model of every run of the comparison; none if the section is missing.
    pub attacks: Option<Attacks>,
}

fn five() -> u64 {
    5
}

/// A model and a table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct TaskSettings {
    /// A Hugging Face folder; the embedded model if there is none. Relative paths are relative to the study's file.
    pub model: Option<PathBuf>,
    /// The table; the embedded SUPPORT2 table if there is none.
    pub data: Option<PathBuf>,
    /// Instead of a table, this many texts of the corpus that the embedded model was made from, of a seed it was not.
    pub generated: Option<usize>,
    /// Template that renders a row.
    pub template: Option<PathBuf>,
    /// Column that holds the text.
    pub text_column: Option<String>,
    /// Column that names the unit.
    pub unit_column: Option<String>,
}

/// What an arm's numbers were found by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grade {
    /// Ours: untuned, or an ablation of it.
    #[default]
    Ours,
    /// A rival at the values of the literature.
    Defaults,
    /// A rival tuned on public data.
    Public,
    /// A rival tuned on the private task itself, which no private run may be: an upper limit.
    Oracle,
}

impl std::fmt::Display for Grade {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Ours => "ours",
            Self::Defaults => "literature defaults",
            Self::Public => "tuned on public data",
            Self::Oracle => "tuned by the oracle",
        })
    }
}

/// One way to run the task.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Arm {
    /// Its name, unique in the study.
    pub name: String,
    /// Its grade.
    #[serde(default)]
    pub grade: Grade,
    /// Settings on top of the study's, as in [`TrainerConfig`]; `controller` is one of them.
    #[serde(default)]
    pub trainer: toml::Table,
    /// For the grades `public` and `oracle`: lists of values by dotted key, all combinations of which are tried.
    #[serde(default)]
    pub grid: toml::Table,
}

/// The public task for tuning.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PublicTuning {
    /// The task; its table must be public.
    pub task: TaskSettings,
    /// Seeds per cell.
    pub seeds: Vec<u64>,
}

impl Study {
    /// Reads and checks a study.
    ///
    /// # Errors
    /// [`ExampleError::Toml`] naming what is wrong.
    pub fn read(path: &Path) -> Result<Self, ExampleError> {
        let text = std::fs::read_to_string(path).map_err(ExampleError::file(path))?;
        let bad = |message: String| ExampleError::Toml {
            path: path.to_owned(),
            message,
        };
        let mut study: Self = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        study.task.resolve(folder);
        if let Some(public) = &mut study.public {
            public.task.resolve(folder);
        }
        study.check().map_err(bad)?;
        Ok(study)
    }

    fn check(&self) -> Result<(), String> {
        for (index, arm) in self.arms.iter().enumerate() {
            if self.arms[..index]
                .iter()
                .any(|other| other.name == arm.name)
            {
                return Err(format!("there are two arms named {}", arm.name));
            }
            let tuned = matches!(arm.grade, Grade::Public | Grade::Oracle);
            if tuned == arm.grid.is_empty() {
                return Err(format!(
                    "arm {}: a grid belongs to the grades public and oracle, and to them alone",
                    arm.name
                ));
            }
            if arm.grade == Grade::Public && self.public.is_none() {
                return Err(format!("arm {}: the study names no public task", arm.name));
            }
            for cell in cells(&arm.grid) {
                let config =
                    self.config(arm, &cell, self.epsilons.first().copied().unwrap_or(1.0))?;
                config
                    .validate()
                    .map_err(|error| format!("arm {}: {error}", arm.name))?;
            }
        }
        if !self.arms.iter().any(|arm| arm.name == self.reference) {
            return Err(format!("there is no arm named {}", self.reference));
        }
        if self.epsilons.is_empty() || self.seeds.is_empty() {
            return Err("there must be epsilons and seeds".to_owned());
        }
        Ok(())
    }

    /// The trainer's settings of an arm at a cell of its grid.
    ///
    /// # Errors
    /// What does not fit [`TrainerConfig`].
    pub fn config(
        &self,
        arm: &Arm,
        cell: &toml::Table,
        epsilon: f64,
    ) -> Result<TrainerConfig, String> {
        let mut settings = self.trainer.clone();
        merge(&mut settings, &arm.trainer);
        for (key, value) in cell {
            set(&mut settings, key, value.clone())?;
        }
        settings.insert("epsilon".to_owned(), toml::Value::Float(epsilon));
        settings
            .try_into()
            .map_err(|error: toml::de::Error| format!("arm {}: {error}", arm.name))
    }
}

impl TaskSettings {
    fn resolve(&mut self, folder: &Path) {
        for path in [&mut self.model, &mut self.data, &mut self.template]
            .into_iter()
            .flatten()
        {
            *path = folder.join(&*path);
        }
    }

    /// The task in a few words, without where its files lie.
    #[must_use]
    pub fn label(&self) -> String {
        let name = |path: &Option<PathBuf>, none: &str| {
            path.as_ref().and_then(|path| path.file_name()).map_or_else(
                || none.to_owned(),
                |name| name.to_string_lossy().into_owned(),
            )
        };
        let data = match self.generated {
            Some(count) => format!("{count} generated texts"),
            None => name(&self.data, "SUPPORT2 (embedded)"),
        };
        let unit = self.unit_column.as_deref().unwrap_or("row");
        format!(
            "{} on {data} by {unit}",
            name(&self.model, "embedded model")
        )
    }
}

/// Lays one table over another, tables within tables too.
fn merge(under: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (under.get_mut(key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => merge(under, over),
            _ => {
                under.insert(key.clone(), value.clone());
            }
        }
    }
}

/// Sets a value by its dotted key.
fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table
                .entry(first)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()));
            match inner {
                toml::Value::Table(inner) => set(inner, rest, value),
                _ => Err(format!("{first} is no table")),
            }
        }
    }
}

/// All combinations of a grid's values; one empty cell for an empty grid.
#[must_use]
pub fn cells(grid: &toml::Table) -> Vec<toml::Table> {
    let mut cells = vec![toml::Table::new()];
    for (key, values) in grid {
        let values = match values {
            toml::Value::Array(values) => values.clone(),
            one => vec![one.clone()],
        };
        cells = cells
            .iter()
            .flat_map(|cell| {
                values.iter().map(|value| {
                    let mut cell = cell.clone();
                    cell.insert(key.clone(), value.clone());
                    cell
                })
            })
            .collect();
    }
    cells
}

/// A cell in words.
#[must_use]
pub fn cell_label(cell: &toml::Table) -> String {
    cell.iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rldp::controller::ControllerKind;

    const TEXT: &str = r#"
        name = "tiny"
        epsilons = [1.0, 2.0]
        seeds = [1]
        reference = "ours"
        [task]
        text-column = "text"
        [trainer]
        steps = 7
        [trainer.rivals.quantile]
        target = 0.4
        [[arm]]
        name = "ours"
        [[arm]]
        name = "quantile"
        grade = "oracle"
        trainer = { controller = "quantile", rivals = { quantile = { rate = 0.1 } } }
        [arm.grid]
        learning-rate = [0.01, 0.02]
        "rivals.quantile.target" = [0.5, 0.6, 0.7]
    "#;

    fn study() -> Study {
        toml::from_str(TEXT).unwrap()
    }

    #[test]
    fn arms_lie_over_the_study_and_cells_over_arms() {
        let study = study();
        study.check().unwrap();
        let arm = &study.arms[1];
        let all = cells(&arm.grid);
        assert_eq!(all.len(), 6);
        let config = study.config(arm, &all[4], 2.0).unwrap();
        assert_eq!((config.steps, config.epsilon), (7, 2.0));
        assert_eq!(config.controller, ControllerKind::Quantile);
        assert_eq!(config.rivals.quantile.rate, 0.1);
        assert_eq!(
            (config.learning_rate, config.rivals.quantile.target),
            (0.02, 0.6)
        );
        let plain = study
            .config(&study.arms[0], &toml::Table::new(), 1.0)
            .unwrap();
        assert_eq!(plain.rivals.quantile.target, 0.4);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        type Spoil = fn(&mut Study);
        let cases: [Spoil; 5] = [
            |study| study.reference = "nobody".to_owned(),
            |study| study.arms[0].name = "quantile".to_owned(),
            |study| study.arms[0].grade = Grade::Oracle,
            |study| study.arms[1].grade = Grade::Public,
            |study| {
                study
                    .trainer
                    .insert("stepz".to_owned(), toml::Value::Integer(3));
            },
        ];
        for spoil in cases {
            let mut study = study();
            spoil(&mut study);
            assert!(study.check().is_err());
        }
    }
}
