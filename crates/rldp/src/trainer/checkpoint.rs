//! Checkpoints on the disk: folders that are there whole or not at all, the last two kept.
//!
//! ```text
//! checkpoints/00000012/state.json          the small things, and a checksum of every other file
//!                      tensors.safetensors adapters and running statistics
//!                      optimizer.bpk       the inner optimizer
//!                      ...                 what the controller puts there
//! ```
//! A checkpoint is written beside its place, flushed, and renamed; `state.json` ends in a checksum of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::folder::{RunFolder, UNFINISHED, create_synced, fresh_folder, sync_files, sync_folder};
use crate::error::RldpError;

/// The folder of checkpoints in a run folder.
pub const CHECKPOINT_FOLDER: &str = "checkpoints";
/// Version of the format written here.
pub const CHECKPOINT_VERSION: u32 = 1;
const STATE_FILE: &str = "state.json";
/// How many are kept: the newest, and one to fall back on.
const KEPT: usize = 2;

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    /// BLAKE3 of every other file of the checkpoint.
    files: BTreeMap<String, String>,
    state: T,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The checkpoints of one run.
pub(super) struct Checkpoints {
    folder: PathBuf,
    next: u64,
}

/// A checkpoint that was read, its files checked.
pub(super) struct Loaded<T> {
    /// Where its files are.
    pub folder: PathBuf,
    /// The small things.
    pub state: T,
    /// Newer ones that were damaged.
    pub damaged: Vec<RldpError>,
}

impl Checkpoints {
    /// Opens the checkpoints of a run folder and reads the newest good one, if there is any at all. Damaged ones that are
    /// newer are removed.
    ///
    /// # Errors
    /// [`RldpError::CheckpointVersion`]; [`RldpError::Damaged`] if there are checkpoints and none is good.
    pub fn open<T: DeserializeOwned>(
        run: &RunFolder,
    ) -> Result<(Self, Option<Loaded<T>>), RldpError> {
        let folder = run.join(CHECKPOINT_FOLDER);
        std::fs::create_dir_all(&folder)
            .and_then(|()| sync_folder(run.path()))
            .map_err(RldpError::file(&folder))?;
        let numbers = numbers(&folder)?;
        let next = numbers.last().map_or(1, |last| last + 1);
        let checkpoints = Self { folder, next };
        let mut damaged = Vec::new();
        for number in numbers.iter().rev() {
            let path = checkpoints.path(*number);
            match read(&path) {
                Ok(state) => {
                    for newer in numbers.iter().filter(|newer| *newer > number) {
                        checkpoints.remove(*newer)?;
                    }
                    let loaded = Loaded {
                        folder: path,
                        state,
                        damaged,
                    };
                    return Ok((checkpoints, Some(loaded)));
                }
                Err(error @ RldpError::CheckpointVersion { .. }) => return Err(error),
                Err(error) => damaged.push(error),
            }
        }
        match damaged.into_iter().next() {
            Some(error) => Err(error),
            None => Ok((checkpoints, None)),
        }
    }

    /// Writes a checkpoint: `fill` puts files into the folder it is given and returns the small things.
    ///
    /// # Guarantee
    /// When this returns, the checkpoint is on the disk; if it does not return, the earlier ones are as they were.
    ///
    /// # Errors
    /// Those of `fill`, and [`RldpError::File`].
    pub fn write<T: Serialize>(
        &mut self,
        fill: impl FnOnce(&Path) -> Result<T, RldpError>,
    ) -> Result<(), RldpError> {
        let path = self.path(self.next);
        let unfinished = self.unfinished(self.next);
        let written = fresh_folder(&unfinished)
            .and_then(|()| fill(&unfinished))
            .and_then(|state| seal(&unfinished, state))
            .and_then(|()| {
                std::fs::rename(&unfinished, &path)
                    .and_then(|()| sync_folder(&self.folder))
                    .map_err(RldpError::file(&path))
            });
        if let Err(error) = written {
            // The first error is the one to report.
            let _ = std::fs::remove_dir_all(&unfinished);
            return Err(error);
        }
        self.next += 1;
        let numbers = numbers(&self.folder)?;
        for number in numbers.iter().rev().skip(KEPT) {
            self.remove(*number)?;
        }
        Ok(())
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:08}"))
    }

    fn unfinished(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:08}{UNFINISHED}"))
    }

    /// Renamed before it is removed, so that a crash leaves no checkpoint with files missing.
    fn remove(&self, number: u64) -> Result<(), RldpError> {
        let doomed = self.unfinished(number);
        std::fs::rename(self.path(number), &doomed)
            .and_then(|()| std::fs::remove_dir_all(&doomed))
            .map_err(RldpError::file(doomed))
    }
}

/// Numbers of the checkpoints, ascending.
fn numbers(folder: &Path) -> Result<Vec<u64>, RldpError> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(RldpError::file(folder))? {
        let name = entry.map_err(RldpError::file(folder))?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Flushes the files of a checkpoint and writes its state with their checksums.
fn seal<T: Serialize>(folder: &Path, state: T) -> Result<(), RldpError> {
    let envelope = Envelope {
        version: CHECKPOINT_VERSION,
        files: checksums(folder)?,
        state,
    };
    let body = serde_json::to_string(&envelope).map_err(|source| RldpError::Json {
        what: "a checkpoint's state",
        source,
    })?;
    let sum = blake3::hash(body.as_bytes()).to_hex();
    let path = folder.join(STATE_FILE);
    create_synced(&path, format!("{body}\n{sum}\n").as_bytes()).map_err(RldpError::file(path))?;
    sync_files(folder)
}

fn checksums(folder: &Path) -> Result<BTreeMap<String, String>, RldpError> {
    let mut sums = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(RldpError::file(folder))? {
        let entry = entry.map_err(RldpError::file(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != STATE_FILE {
            let bytes = std::fs::read(entry.path()).map_err(RldpError::file(entry.path()))?;
            sums.insert(name, blake3::hash(&bytes).to_hex().to_string());
        }
    }
    Ok(sums)
}

/// Reads a checkpoint and checks every byte of it.
fn read<T: DeserializeOwned>(folder: &Path) -> Result<T, RldpError> {
    let path = folder.join(STATE_FILE);
    let text = std::fs::read_to_string(&path).map_err(RldpError::file(&path))?;
    let damaged = |reason: String| RldpError::Damaged {
        path: path.clone(),
        reason,
    };
    let (body, sum) = text
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once('\n'))
        .ok_or_else(|| damaged("the checkpoint is cut short".to_owned()))?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != sum {
        return Err(damaged("the checkpoint's checksum does not fit".to_owned()));
    }
    let unreadable =
        |error: serde_json::Error| damaged(format!("not a checkpoint's state: {error}"));
    // Another version may have other fields.
    let VersionOnly { version } = serde_json::from_str(body).map_err(unreadable)?;
    if version != CHECKPOINT_VERSION {
        return Err(RldpError::CheckpointVersion {
            path: folder.to_owned(),
            found: version,
            supported: CHECKPOINT_VERSION,
        });
    }
    let envelope: Envelope<T> = serde_json::from_str(body).map_err(unreadable)?;
    if checksums(folder)? != envelope.files {
        return Err(RldpError::Damaged {
            path: folder.to_owned(),
            reason: "a file of the checkpoint is damaged or missing".to_owned(),
        });
    }
    Ok(envelope.state)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(checkpoints: &mut Checkpoints, value: u32) {
        let fill = |folder: &Path| {
            std::fs::write(folder.join("data"), value.to_string())
                .map_err(RldpError::file(folder))?;
            Ok(value)
        };
        checkpoints.write(fill).unwrap();
    }

    fn newest(run: &RunFolder) -> Result<Option<u32>, RldpError> {
        Ok(Checkpoints::open::<u32>(run)?.1.map(|loaded| loaded.state))
    }

    fn names(run: &RunFolder) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(run.join(CHECKPOINT_FOLDER))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_two_are_kept_and_numbers_go_on() {
        let temporary = tempfile::tempdir().unwrap();
        let run = RunFolder::open(temporary.path()).unwrap();
        assert_eq!(newest(&run).unwrap(), None);
        let (mut checkpoints, _) = Checkpoints::open::<u32>(&run).unwrap();
        for value in 1..=4 {
            write(&mut checkpoints, value);
            assert_eq!(newest(&run).unwrap(), Some(value));
        }
        assert_eq!(names(&run), ["00000003", "00000004"]);
        let (mut checkpoints, _) = Checkpoints::open::<u32>(&run).unwrap();
        write(&mut checkpoints, 5);
        assert_eq!(names(&run), ["00000004", "00000005"]);
    }

    /// Every single damaged byte of a file, and every cut, is found, and the one before is used.
    #[test]
    fn damage_anywhere_falls_back_on_the_one_before() {
        let temporary = tempfile::tempdir().unwrap();
        let run = RunFolder::open(temporary.path()).unwrap();
        let (mut checkpoints, _) = Checkpoints::open::<u32>(&run).unwrap();
        write(&mut checkpoints, 7);
        write(&mut checkpoints, 8);
        let newest_path = run.join(CHECKPOINT_FOLDER).join("00000002");
        for file in ["data", STATE_FILE] {
            let path = newest_path.join(file);
            let whole = std::fs::read(&path).unwrap();
            for index in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[index] ^= 0x01;
                for damaged in [&flipped[..], &whole[..index]] {
                    std::fs::write(&path, damaged).unwrap();
                    assert!(read::<u32>(&newest_path).is_err(), "{file} at {index}");
                }
            }
            std::fs::write(&path, &whole).unwrap();
        }
        std::fs::remove_file(newest_path.join("data")).unwrap();
        let (mut checkpoints, loaded) = Checkpoints::open::<u32>(&run).unwrap();
        let loaded = loaded.unwrap();
        assert_eq!((loaded.state, loaded.damaged.len()), (7, 1));
        assert_eq!(names(&run), ["00000001"]);
        write(&mut checkpoints, 9);
        assert_eq!(newest(&run).unwrap(), Some(9));
    }

    #[test]
    fn a_run_whose_checkpoints_are_all_damaged_or_newer_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let run = RunFolder::open(temporary.path()).unwrap();
        let (mut checkpoints, _) = Checkpoints::open::<u32>(&run).unwrap();
        write(&mut checkpoints, 7);
        let path = run
            .join(CHECKPOINT_FOLDER)
            .join("00000001")
            .join(STATE_FILE);
        let body = "{\"version\":9,\"new\":true}";
        let sum = blake3::hash(body.as_bytes()).to_hex();
        std::fs::write(&path, format!("{body}\n{sum}\n")).unwrap();
        assert!(matches!(
            newest(&run),
            Err(RldpError::CheckpointVersion { found: 9, .. })
        ));
        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(newest(&run), Err(RldpError::Damaged { .. })));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_the_others() {
        let temporary = tempfile::tempdir().unwrap();
        let run = RunFolder::open(temporary.path()).unwrap();
        let (mut checkpoints, _) = Checkpoints::open::<u32>(&run).unwrap();
        write(&mut checkpoints, 7);
        let full = checkpoints.write(|_| -> Result<u32, RldpError> { Err(RldpError::NoAdapters) });
        assert!(full.is_err());
        assert_eq!(names(&run), ["00000001"]);
        assert_eq!(newest(&run).unwrap(), Some(7));
    }
}
