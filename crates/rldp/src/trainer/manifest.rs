//! What lies in a run folder, and what of it the guarantee covers.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint::CHECKPOINT_FOLDER;
use super::folder::{LOCK_FILE, RunFolder};
use super::run::{ADAPTER_FOLDER, LEDGER_FILE, METRICS_FILE};
use crate::error::RldpError;

/// The manifest's file in a run folder. It is written last, so that it also says that the run is complete.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Version of the format written here.
pub const MANIFEST_VERSION: u32 = 1;

/// Whether a file may be shown to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// Made of released and public values only: covered by the run's guarantee.
    Covered,
    /// Holds nothing of the private table, but what the user wrote, such as paths.
    Settings,
    /// Must not be published.
    Secret,
    /// Not written by this crate.
    Unknown,
}

/// A kind of file in a run folder: its name or folder, what it holds, and whether it may be shown.
pub const ARTEFACTS: [(&str, &str, Coverage); 15] = [
    (
        "report.html",
        "the run on one page: guarantee, plots, settings, a text the model wrote",
        Coverage::Covered,
    ),
    (
        ADAPTER_FOLDER,
        "the LoRA adapter in PEFT form",
        Coverage::Covered,
    ),
    (
        "model",
        "the whole model, of a full-parameter run",
        Coverage::Covered,
    ),
    (
        LEDGER_FILE,
        "every mechanism the run used, settings, keyed fingerprints of the data",
        Coverage::Covered,
    ),
    (
        METRICS_FILE,
        "released figures of every step, query and decision",
        Coverage::Covered,
    ),
    (
        "sac_policy.safetensors",
        "what the agent learned from released figures",
        Coverage::Covered,
    ),
    (
        CHECKPOINT_FOLDER,
        "the last two checkpoints: adapters, optimizer, agent, counters; no noise key, no text",
        Coverage::Covered,
    ),
    (
        "config.toml",
        "the settings as given, with the paths in them",
        Coverage::Settings,
    ),
    (
        "data.key",
        "the key of the split and of the fingerprints",
        Coverage::Secret,
    ),
    (
        LOCK_FILE,
        "nothing: its lock says that a process works on the folder",
        Coverage::Settings,
    ),
    (
        "audit.json",
        "attacks on mechanism and canaries: post-processing of what was released",
        Coverage::Covered,
    ),
    (
        "canaries.json",
        "made-up texts with secrets, and which of them were put in",
        Coverage::Covered,
    ),
    (
        "audit-private.json",
        "attacks on the people themselves",
        Coverage::Secret,
    ),
    (
        "audit-private.html",
        "attacks on the people themselves, as a page",
        Coverage::Secret,
    ),
    (MANIFEST_FILE, "this list", Coverage::Covered),
];

/// One file of a finished run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path within the run folder, with `/`.
    pub file: String,
    /// What it holds.
    pub contains: String,
    /// Whether it may be shown.
    pub coverage: Coverage,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes; none for secrets.
    pub blake3: Option<String>,
}

/// The list of files of a finished run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// False for a seeded run: then "covered" means nothing.
    pub private: bool,
    /// The guarantee in words; for a seeded run, that there is none.
    pub guarantee: String,
    /// The files, by name.
    pub files: Vec<Entry>,
}

impl Manifest {
    /// Lists the files of a run folder.
    ///
    /// # Errors
    /// [`RldpError::File`].
    pub fn of(folder: &RunFolder, private: bool, guarantee: String) -> Result<Self, RldpError> {
        let mut files = Vec::new();
        list(folder.path(), "", &mut files)?;
        files.sort_by(|a: &Entry, b: &Entry| a.file.cmp(&b.file));
        Ok(Self {
            version: MANIFEST_VERSION,
            private,
            guarantee,
            files,
        })
    }

    /// Writes the list into the folder: from then on the run counts as complete.
    ///
    /// # Errors
    /// [`RldpError::File`].
    pub fn write(&self, folder: &RunFolder) -> Result<(), RldpError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|source| RldpError::Json {
            what: "the manifest",
            source,
        })?;
        text.push('\n');
        folder.write(MANIFEST_FILE, text.as_bytes())
    }
}

fn list(folder: &Path, prefix: &str, files: &mut Vec<Entry>) -> Result<(), RldpError> {
    for entry in std::fs::read_dir(folder).map_err(RldpError::file(folder))? {
        let entry = entry.map_err(RldpError::file(folder))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let file = format!("{prefix}{name}");
        if path.is_dir() {
            list(&path, &format!("{file}/"), files)?;
            continue;
        }
        let top = file.split('/').next().unwrap_or_default();
        let (contains, coverage) = ARTEFACTS
            .iter()
            .find(|(known, _, _)| *known == top)
            .map_or(("not written by rldp", Coverage::Unknown), |known| {
                (known.1, known.2)
            });
        if file == MANIFEST_FILE {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(RldpError::file(&path))?;
        files.push(Entry {
            contains: contains.to_owned(),
            coverage,
            bytes: bytes.len() as u64,
            blake3: (coverage != Coverage::Secret)
                .then(|| blake3::hash(&bytes).to_hex().to_string()),
            file,
        });
    }
    Ok(())
}
