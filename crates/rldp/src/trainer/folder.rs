//! The run folder: one process at a time, whole files only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rldp_accounting::ledger::Ledger;

use super::run::{LEDGER_FILE, METRICS_FILE};
use crate::error::RldpError;

/// The file whose lock says that a process works on the folder; it stays, and is empty.
pub const LOCK_FILE: &str = "run.lock";
/// Ending of files and folders that are not finished. Whatever ends so is left from a crash and may be deleted.
pub(super) const UNFINISHED: &str = ".tmp";

/// A run folder that this process alone works on, until the value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl RunFolder {
    /// Creates the folder if need be, takes its lock, and removes what a crash left half-written.
    ///
    /// # Errors
    /// [`RldpError::FolderInUse`] while another process holds the lock, [`RldpError::File`] for a folder that cannot be
    /// written.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, RldpError> {
        let path = path.into();
        std::fs::create_dir_all(&path).map_err(RldpError::file(&path))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(RldpError::file(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RldpError::FolderInUse { path }),
            Err(TryLockError::Error(error)) => return Err(RldpError::file(lock_path)(error)),
        }
        remove_unfinished(&path)?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Whether the folder holds a run: a ledger with a whole header. Before that nothing can have been spent.
    ///
    /// # Errors
    /// A ledger that cannot be read.
    pub fn holds_run(&self) -> Result<bool, RldpError> {
        Ok(Ledger::begun(self.join(LEDGER_FILE))?)
    }

    /// Removes what a crash before the ledger's header leaves: half a header, an empty metrics file.
    pub(crate) fn clear_unbegun(&self) -> Result<(), RldpError> {
        for name in [LEDGER_FILE, METRICS_FILE] {
            let path = self.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RldpError::file(path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes a file of the folder: it holds the old bytes or the new ones, never a part, and the new ones are on the disk
    /// when this returns.
    ///
    /// # Errors
    /// [`RldpError::File`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RldpError> {
        let path = self.join(name);
        let unfinished = self.join(format!("{name}{UNFINISHED}"));
        let written = create_synced(&unfinished, bytes)
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .and_then(|()| sync_folder(&self.path));
        if written.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&unfinished);
        }
        written.map_err(RldpError::file(path))
    }

    /// Writes a sub-folder as a whole with `fill`, which is given the folder to write into: it holds the old files or the
    /// new ones.
    ///
    /// # Errors
    /// Those of `fill`, and [`RldpError::File`].
    pub fn write_folder(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<(), RldpError>,
    ) -> Result<(), RldpError> {
        let path = self.join(name);
        let unfinished = self.join(format!("{name}{UNFINISHED}"));
        let written = fresh_folder(&unfinished)
            .and_then(|()| fill(&unfinished))
            .and_then(|()| {
                sync_files(&unfinished)?;
                if path.exists() {
                    // A crash between the two leaves neither: what is written here is written again by a resumed run.
                    std::fs::remove_dir_all(&path).map_err(RldpError::file(&path))?;
                }
                std::fs::rename(&unfinished, &path)
                    .and_then(|()| sync_folder(&self.path))
                    .map_err(RldpError::file(&path))
            });
        if written.is_err() {
            let _ = std::fs::remove_dir_all(&unfinished);
        }
        written
    }
}

/// Creates an empty folder in the place of whatever is there.
pub(super) fn fresh_folder(path: &Path) -> Result<(), RldpError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(RldpError::file(path)(error));
        }
        _ => {}
    }
    std::fs::create_dir_all(path).map_err(RldpError::file(path))
}

/// Writes a file and waits for the disk.
pub(super) fn create_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Waits until every file of a folder, and its list of files, is on the disk.
pub(super) fn sync_files(folder: &Path) -> Result<(), RldpError> {
    for entry in std::fs::read_dir(folder).map_err(RldpError::file(folder))? {
        let path = entry.map_err(RldpError::file(folder))?.path();
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(RldpError::file(path))?;
    }
    sync_folder(folder).map_err(RldpError::file(folder))
}

/// Waits until a folder's list of files is on the disk. Systems that do not let a folder be opened have no way to ask.
pub(super) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    match File::open(folder) {
        Ok(folder) => folder.sync_all(),
        Err(_) if !cfg!(unix) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what a crash left: whatever ends in [`UNFINISHED`], and `.partial` files of other writers, here and one level
/// down.
fn remove_unfinished(folder: &Path) -> Result<(), RldpError> {
    for entry in std::fs::read_dir(folder).map_err(RldpError::file(folder))? {
        let entry = entry.map_err(RldpError::file(folder))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(RldpError::file(&path))?;
        if name.ends_with(UNFINISHED) || name.ends_with(".partial") {
            let removed = if kind.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            removed.map_err(RldpError::file(&path))?;
        } else if kind.is_dir() {
            remove_unfinished(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_is_for_one_process_and_free_again_after_it() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("run");
        let folder = RunFolder::open(&path).unwrap();
        assert!(matches!(
            RunFolder::open(&path),
            Err(RldpError::FolderInUse { .. })
        ));
        drop(folder);
        RunFolder::open(&path).unwrap();
    }

    #[test]
    fn what_a_crash_left_is_removed_and_nothing_else() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path();
        std::fs::create_dir_all(path.join("checkpoints/00000003.tmp")).unwrap();
        std::fs::create_dir_all(path.join("adapter")).unwrap();
        for name in [
            "report.html.tmp",
            "checkpoints/00000003.tmp/state",
            "adapter/a.safetensors.partial",
            "adapter/a.safetensors",
            "notes.txt",
        ] {
            std::fs::write(path.join(name), b"x").unwrap();
        }
        let folder = RunFolder::open(path).unwrap();
        for (name, left) in [
            ("report.html.tmp", false),
            ("checkpoints/00000003.tmp", false),
            ("adapter/a.safetensors.partial", false),
            ("adapter/a.safetensors", true),
            ("notes.txt", true),
        ] {
            assert_eq!(folder.join(name).exists(), left, "{name}");
        }
    }

    #[test]
    fn files_and_folders_are_replaced_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(temporary.path().join("run")).unwrap();
        for text in ["old", "new"] {
            folder.write("file", text.as_bytes()).unwrap();
            let fill =
                |path: &Path| std::fs::write(path.join(text), text).map_err(RldpError::file(path));
            folder.write_folder("folder", fill).unwrap();
        }
        assert_eq!(std::fs::read(folder.join("file")).unwrap(), b"new");
        assert!(folder.join("folder/new").exists() && !folder.join("folder/old").exists());
        let failed = folder.write_folder("folder", |path| {
            std::fs::write(path.join("half"), "x").map_err(RldpError::file(path))?;
            Err(RldpError::NoAdapters)
        });
        assert!(failed.is_err());
        assert!(folder.join("folder/new").exists() && !folder.join("folder.tmp").exists());
    }
}
