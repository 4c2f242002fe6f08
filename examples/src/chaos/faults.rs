//! What is done to a run.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::ChaCha20Rng;
use rldp::trainer::{CHECKPOINT_FOLDER, LEDGER_FILE};

use super::worker::Work;
use crate::error::ExampleError;

/// When a worker is killed.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    /// So long after its start.
    After(Duration),
    /// So long after the ledger has this many lines.
    Lines(usize, Duration),
}

/// How a worker ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status; none if it was killed.
    pub status: Option<ExitStatus>,
    /// What it said.
    pub stderr: String,
}

fn command(work: &Work, limit: Option<u64>) -> Result<Command, ExampleError> {
    let program = std::env::current_exe().map_err(ExampleError::file("chaos"))?;
    let mut command = match limit {
        None => Command::new(program),
        Some(blocks) => {
            // A write beyond the limit fails with EFBIG where the signal is ignored.
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(format!(
                    "trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""
                ))
                .arg(program);
            shell
        }
    };
    command.arg("worker");
    for (flag, value) in [
        ("--folder", work.folder.display().to_string()),
        ("--witness", work.witness.display().to_string()),
        ("--budget", work.budget.to_string()),
        ("--controller", work.controller.to_string()),
        ("--checkpoint-every", work.checkpoint_every.to_string()),
    ] {
        command.arg(flag).arg(value);
    }
    if work.full {
        command.arg("--full");
    }
    if let Some(seed) = work.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// Lets a worker end by itself; with a limit, no file may grow beyond so many blocks (of 512 or 1,024 bytes, as the shell has it).
///
/// # Errors
/// A process that cannot be started.
pub fn run(work: &Work, limit: Option<u64>) -> Result<Ended, ExampleError> {
    let output = command(work, limit)?
        .stderr(Stdio::piped())
        .output()
        .map_err(ExampleError::file("chaos worker"))?;
    Ok(Ended {
        status: Some(output.status),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Kills a worker (SIGKILL) at a moment, unless it ends before.
///
/// # Errors
/// A process that cannot be started or waited for.
pub fn kill(work: &Work, moment: Moment) -> Result<Ended, ExampleError> {
    let failed = ExampleError::file("chaos worker");
    // A pipe that nobody reads could fill up and stop the worker: what it says goes into a file.
    let said = work.witness.with_extension("stderr");
    let file = std::fs::File::create(&said).map_err(ExampleError::file(&said))?;
    let mut child = match command(work, None)?.stderr(file).spawn() {
        Ok(child) => child,
        Err(error) => return Err(failed(error)),
    };
    let begun = Instant::now();
    let mut reached: Option<Instant> = None;
    let ledger = work.folder.join(LEDGER_FILE);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) => {}
            Err(error) => return Err(failed(error)),
        }
        let due = match moment {
            Moment::After(delay) => begun.elapsed() >= delay,
            Moment::Lines(lines, delay) => {
                if reached.is_none() && count_lines(&ledger) >= lines {
                    reached = Some(Instant::now());
                }
                reached.is_some_and(|reached| reached.elapsed() >= delay)
            }
        };
        if due {
            // It may have ended just now; either way it is gone afterwards.
            let _ = child.kill();
            if let Err(error) = child.wait() {
                return Err(failed(error));
            }
            break None;
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    let stderr = std::fs::read_to_string(&said).unwrap_or_default();
    Ok(Ended { status, stderr })
}

/// Lines of a file that may not be there.
#[must_use]
pub fn count_lines(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

/// Appends the beginning of a line to the ledger, as a power cut during an append leaves it: nothing of it was used, but who
/// reads the ledger cannot know.
///
/// # Errors
/// A ledger that cannot be written.
pub fn tear(folder: &Path, random: &mut ChaCha20Rng) -> Result<(), ExampleError> {
    let path = folder.join(LEDGER_FILE);
    let text = std::fs::read_to_string(&path).map_err(ExampleError::file(&path))?;
    // Any event of the file stands for the next one; what an earlier tear left is not one.
    let lines: Vec<&str> = text
        .split_inclusive('\n')
        .skip(1)
        .filter(|line| line.len() > 2 && line.ends_with('\n'))
        .collect();
    let Some(line) = (!lines.is_empty()).then(|| lines[random.random_range(0..lines.len())]) else {
        return Ok(());
    };
    // Neither all of it nor its line end.
    let length = random.random_range(1..line.len() - 1);
    OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(&line.as_bytes()[..length]))
        .map_err(ExampleError::file(&path))
}

/// Damages a file of the newest checkpoint if there is an older one to fall back on; tells whether it did.
///
/// # Errors
/// A checkpoint that cannot be written.
pub fn damage(folder: &Path, random: &mut ChaCha20Rng) -> Result<bool, ExampleError> {
    let mut checkpoints: Vec<PathBuf> = entries(&folder.join(CHECKPOINT_FOLDER))
        .into_iter()
        .filter(|path| path.extension().is_none())
        .collect();
    checkpoints.sort();
    let [.., _, newest] = checkpoints.as_slice() else {
        return Ok(false);
    };
    let files = entries(newest);
    if files.is_empty() {
        return Ok(false);
    }
    let path = &files[random.random_range(0..files.len())];
    let mut bytes = std::fs::read(path).map_err(ExampleError::file(path))?;
    let place = random.random_range(0..bytes.len().max(1));
    if random.random_bool(0.5) || bytes.is_empty() {
        bytes.truncate(place);
    } else {
        bytes[place] ^= 0x10;
    }
    std::fs::write(path, bytes).map_err(ExampleError::file(path))?;
    Ok(true)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    paths.sort();
    paths
}

/// A small file system of its own, where this process may mount one.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a tmpfs of so many KiB; none where that is not allowed.
    #[must_use]
    pub fn mount(path: &Path, kib: u64) -> Option<Self> {
        std::fs::create_dir_all(path).ok()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"])
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status
            .is_ok_and(|status| status.success())
            .then(|| Self(path.to_owned()))
    }

    /// Makes room.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn grow(&self, kib: u64) -> Result<(), ExampleError> {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,size={kib}k")])
            .arg(&self.0)
            .status()
            .map_err(ExampleError::file(&self.0))?;
        if status.success() {
            Ok(())
        } else {
            Err(ExampleError::Other(format!(
                "cannot remount {}",
                self.0.display()
            )))
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing is left to be done if it fails: the folder is a temporary one.
        let _ = Command::new("umount")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}
