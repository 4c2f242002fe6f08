//! The finished runs of a study: one JSON line each, appended as they end.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::run::RunResult;
use crate::error::ExampleError;

/// The store's file in a study's folder.
pub const RUNS_FILE: &str = "runs.jsonl";

/// A study's store. Several processes may append to one: a line is written whole by one call.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// The store in a folder, which is made if it does not exist.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn open(folder: &Path) -> Result<Self, ExampleError> {
        std::fs::create_dir_all(folder).map_err(ExampleError::file(folder))?;
        Ok(Self {
            path: folder.join(RUNS_FILE),
        })
    }

    /// All finished runs by key; of two with the same key the first. A line that is not whole, as a killed process
    /// leaves it, counts for nothing: its run is made again.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(&self) -> Result<BTreeMap<String, RunResult>, ExampleError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(ExampleError::file(&self.path)(error)),
        };
        let mut runs = BTreeMap::new();
        for line in text.lines() {
            if let Ok(run) = serde_json::from_str::<RunResult>(line) {
                runs.entry(run.key.clone()).or_insert(run);
            }
        }
        Ok(runs)
    }

    /// Appends a run, and has it on the disk before this returns.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn append(&self, run: &RunResult) -> Result<(), ExampleError> {
        let json = serde_json::to_string(run)
            .map_err(|error| ExampleError::Other(format!("a run as JSON: {error}")))?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .map_err(ExampleError::file(&self.path))?;
        // The line before may be torn: it must not take this one with it. Empty lines are skipped.
        let torn = std::fs::read(&self.path)
            .map_err(ExampleError::file(&self.path))?
            .last()
            .is_some_and(|last| *last != b'\n');
        let line = format!("{}{json}\n", if torn { "\n" } else { "" });
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(ExampleError::file(&self.path))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compare::study::Grade;

    pub(crate) fn result(arm: &str, epsilon: f64, seed: u64, loss: f64) -> RunResult {
        RunResult {
            key: format!("{arm}|{epsilon}|{seed}"),
            arm: arm.to_owned(),
            grade: Grade::Ours,
            tuning: false,
            cell: String::new(),
            controller: "rule".to_owned(),
            epsilon,
            seed,
            steps: 10,
            loss_before: 2.0,
            loss,
            curve: vec![(0, 2.0), (5, 1.0 + loss / 2.0), (10, loss)],
            epsilon_upper: epsilon,
            delta: 1e-5,
            course: Vec::new(),
            adapters: 2,
            seconds: 1.0,
            controller_seconds: 0.01,
            attacked: None,
        }
    }

    #[test]
    fn finished_runs_are_found_again_and_a_torn_line_is_not_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.read().unwrap().is_empty());
        let (first, second) = (
            result("a", 1.0, 1, 0.5),
            result("a", 1.0, 2, 0.123_456_789_012_345_67),
        );
        store.append(&first).unwrap();
        let path = folder.path().join(RUNS_FILE);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(&text.clone()[..40]);
        std::fs::write(&path, text).unwrap();
        assert_eq!(store.read().unwrap().len(), 1);
        store.append(&second).unwrap();
        let runs = store.read().unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[&first.key], first);
        assert_eq!(runs[&second.key], second);
    }
}
