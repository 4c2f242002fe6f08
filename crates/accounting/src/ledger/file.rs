//! Reading and writing the file.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::line::{SEED, decode, encode};
use super::{Event, Header, Ledger, TornLine};
use crate::error::AccountingError;

/// Appends events, each on the disk before [`LedgerWriter::append`] returns.
#[derive(Debug)]
pub struct LedgerWriter {
    file: File,
    path: String,
    last: String,
    broken: bool,
    events: u64,
    /// Events on the disk that a repeated run has still to come by; see [`LedgerWriter::repeat`].
    ahead: VecDeque<Event>,
}

fn io(path: &str, error: &dyn std::fmt::Display) -> AccountingError {
    AccountingError::LedgerIo {
        path: path.to_string(),
        message: error.to_string(),
    }
}

impl LedgerWriter {
    /// Creates the file and writes the header. An existing file is never overwritten.
    ///
    /// # Errors
    /// A bad header, a file that exists, or any failure to write.
    pub fn create(path: impl AsRef<Path>, header: &Header) -> Result<Self, AccountingError> {
        header.check()?;
        let name = path.as_ref().display().to_string();
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(path.as_ref())
            .map_err(|e| io(&name, &e))?;
        let mut writer = Self {
            file,
            path: name,
            last: SEED.to_string(),
            broken: false,
            events: 0,
            ahead: VecDeque::new(),
        };
        writer.write(header)?;
        // The directory entry must survive a crash too. Not every system lets a directory be opened; then there is no more
        // to be done.
        let parent = path
            .as_ref()
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        if let Ok(directory) = File::open(parent) {
            let _ = directory.sync_all();
        }
        Ok(writer)
    }

    /// Opens a ledger to go on with the same run. Everything in it is spent, and so is whatever a torn last line may have
    /// been: the torn line is replaced by a note and by one event for each of `in_doubt` that its readable part does not
    /// rule out.
    ///
    /// `in_doubt` holds what the run could have been about to write: its next step at the worst, and one query of each
    /// part. [`Ledger::in_doubt`] gives the ledger's own idea of it.
    ///
    /// # Guarantee
    /// The resumed ledger never claims less than what was released: a complete line stays, a torn one is over-counted,
    /// and a crash during this call leaves again a torn line.
    ///
    /// # Errors
    /// As for [`Ledger::read`], or a header that differs from the file's in anything but its creation time; the error
    /// names the differences.
    pub fn resume(
        path: impl AsRef<Path>,
        header: &Header,
        in_doubt: &[Event],
    ) -> Result<(Self, Ledger), AccountingError> {
        let (mut writer, mut ledger, good) = Self::reopen(path.as_ref(), header)?;
        if let Some(torn) = ledger.torn.take() {
            let counted: Vec<Event> = in_doubt
                .iter()
                .filter(|event| torn.may_be(event))
                .cloned()
                .collect();
            let mut lines = vec![Event::Note {
                text: format!(
                    "line {} was torn by a crash; {} that it may have been counted as spent",
                    torn.line,
                    match counted.len() {
                        0 => "nothing".to_string(),
                        1 => "one event".to_string(),
                        more => format!("{more} events"),
                    }
                ),
            }];
            lines.extend(counted);
            writer.replace_tail(path.as_ref(), good, &lines)?;
            ledger.events.extend(lines);
        }
        writer.events = ledger.events.len() as u64;
        Ok((writer, ledger))
    }

    /// Opens the ledger of a seeded run to repeat it from after its first `done` events. What follows them in the file
    /// must come again, event by event, and is not written twice; a torn last line is cut off.
    ///
    /// # Errors
    /// As for [`LedgerWriter::resume`]; a private run, whose releases cannot be taken back; a ledger of fewer events.
    pub fn repeat(
        path: impl AsRef<Path>,
        header: &Header,
        done: u64,
    ) -> Result<(Self, Ledger), AccountingError> {
        let (mut writer, mut ledger, good) = Self::reopen(path.as_ref(), header)?;
        if ledger.header.private {
            return Err(AccountingError::LedgerInconsistent {
                reason: "a private run cannot be repeated, only resumed".to_string(),
            });
        }
        let count = ledger.events.len();
        let done = usize::try_from(done)
            .ok()
            .filter(|done| *done <= count)
            .ok_or_else(|| AccountingError::LedgerInconsistent {
                reason: format!("{done} events should be there, but only {count} are"),
            })?;
        if ledger.torn.take().is_some() {
            writer
                .file
                .set_len(good)
                .and_then(|()| writer.file.sync_all())
                .map_err(|e| io(&writer.path, &e))?;
        }
        writer.ahead = ledger.events.split_off(done).into();
        writer.events = done as u64;
        Ok((writer, ledger))
    }

    fn reopen(path: &Path, header: &Header) -> Result<(Self, Ledger, u64), AccountingError> {
        let name = path.display().to_string();
        let (ledger, last, good) = read(path)?;
        let differences = ledger.header.differences(header);
        if !differences.is_empty() {
            return Err(AccountingError::LedgerInconsistent {
                reason: format!(
                    "the run to be resumed was registered with other parameters: {}",
                    differences.join("; ")
                ),
            });
        }
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|e| io(&name, &e))?;
        let writer = Self {
            file,
            path: name,
            last,
            broken: false,
            events: 0,
            ahead: VecDeque::new(),
        };
        Ok((writer, ledger, good))
    }

    /// Writes lines over a torn tail that begins at `good`, in one go: whatever moment a crash picks, the file ends in a
    /// torn line or in these.
    fn replace_tail(
        &mut self,
        path: &Path,
        good: u64,
        events: &[Event],
    ) -> Result<(), AccountingError> {
        let mut text = String::new();
        for event in events {
            event.check()?;
            let (line, sum) = encode(&self.last, event).map_err(|e| io(&self.path, &e))?;
            text.push_str(&line);
            self.last = sum;
        }
        // An appending handle cannot write in the middle.
        let written = OpenOptions::new().write(true).open(path).and_then(|mut f| {
            f.seek(SeekFrom::Start(good))?;
            f.write_all(text.as_bytes())?;
            f.set_len(good + text.len() as u64)?;
            f.sync_all()
        });
        written.map_err(|e| {
            self.broken = true;
            io(&self.path, &e)
        })
    }

    /// How many events the run has come by, those before a resumption included.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Writes an event, flushes it to the disk, and only then returns.
    ///
    /// # Errors
    /// Bad figures (nothing is written then), or any failure to write: the step must not be used, and the writer refuses from
    /// then on. A repeated run ([`LedgerWriter::repeat`]) that comes by another event than the file holds.
    pub fn append(&mut self, event: &Event) -> Result<(), AccountingError> {
        event.check()?;
        self.check_whole()?;
        if let Some(expected) = self.ahead.pop_front() {
            // On the disk already; the run must come by the same.
            if expected != *event {
                self.broken = true;
                return Err(AccountingError::LedgerInconsistent {
                    reason: format!(
                        "event {} of the repeated run differs from the one on the disk",
                        self.events + 1
                    ),
                });
            }
        } else {
            self.write(event)?;
        }
        self.events += 1;
        Ok(())
    }

    fn check_whole(&self) -> Result<(), AccountingError> {
        if self.broken {
            return Err(io(
                &self.path,
                &"an earlier write failed; read the ledger and resume",
            ));
        }
        Ok(())
    }

    fn write<T: serde::Serialize>(&mut self, record: &T) -> Result<(), AccountingError> {
        self.check_whole()?;
        let (line, sum) = encode(&self.last, record).map_err(|e| io(&self.path, &e))?;
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.broken = true;
            return Err(io(&self.path, &error));
        }
        self.last = sum;
        Ok(())
    }
}

impl Ledger {
    /// Whether the file is there and its header whole. If not, nothing was ever spent through it: the header is on the
    /// disk before any event.
    ///
    /// # Errors
    /// A file that is there but cannot be read.
    pub fn begun(path: impl AsRef<Path>) -> Result<bool, AccountingError> {
        match std::fs::read(path.as_ref()) {
            Ok(bytes) => Ok(bytes.contains(&b'\n')),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io(&path.as_ref().display().to_string(), &error)),
        }
    }

    /// Reads a ledger. A torn last line is reported in [`Ledger::torn`]; any other damage is an error.
    ///
    /// # Errors
    /// No such file, no header, another version, or a damaged line.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, AccountingError> {
        read(path.as_ref()).map(|(ledger, _, _)| ledger)
    }

    /// Writes the whole ledger to a new file, each line as [`LedgerWriter`] writes it.
    ///
    /// # Errors
    /// As for [`LedgerWriter::create`] and [`LedgerWriter::append`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), AccountingError> {
        let mut writer = LedgerWriter::create(path, &self.header)?;
        self.events
            .iter()
            .try_for_each(|event| writer.append(event))
    }
}

/// The ledger, the last good line's checksum, and the length of the good part.
fn read(path: &Path) -> Result<(Ledger, String, u64), AccountingError> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .map_err(|e| io(&name, &e))?;
    let mut last = SEED.to_string();
    let mut header: Option<Header> = None;
    let mut events = Vec::new();
    let mut torn = None;
    let mut good = 0usize;
    let mut number = 0;
    while good < bytes.len() {
        number += 1;
        let rest = &bytes[good..];
        let (line, whole, end) = match rest.iter().position(|&b| b == b'\n') {
            Some(i) => (&rest[..i], true, good + i + 1),
            None => (rest, false, bytes.len()),
        };
        let text = String::from_utf8_lossy(line);
        let is_last = end == bytes.len();
        // A line without its newline was not finished, whatever it says.
        let problem = if !whole {
            "it has no end".to_string()
        } else if header.is_some() {
            match decode::<Event>(&last, &text) {
                Ok((event, sum)) => {
                    event.check().map_err(|e| AccountingError::LedgerDamaged {
                        line: number,
                        reason: e.to_string(),
                    })?;
                    events.push(event);
                    last = sum;
                    good = end;
                    continue;
                }
                Err(reason) => reason,
            }
        } else {
            match decode::<Header>(&last, &text) {
                Ok((record, sum)) => {
                    record.check()?;
                    header = Some(record);
                    last = sum;
                    good = end;
                    continue;
                }
                Err(reason) => {
                    // Another version may have other fields: say so if that is the reason.
                    if let Some(found) = version_of(&text).filter(|v| *v != super::LEDGER_VERSION) {
                        return Err(AccountingError::LedgerVersion {
                            found,
                            supported: super::LEDGER_VERSION,
                        });
                    }
                    reason
                }
            }
        };
        // Only an append cut short is forgiven: the last line, without its newline.
        if is_last && !whole && header.is_some() {
            torn = Some(TornLine {
                line: number,
                text: text.into_owned(),
            });
            break;
        }
        return Err(AccountingError::LedgerDamaged {
            line: number,
            reason: problem,
        });
    }
    let header = header.ok_or(AccountingError::LedgerEmpty)?;
    Ok((
        Ledger {
            header,
            events,
            torn,
        },
        last,
        good as u64,
    ))
}

fn version_of(line: &str) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_str(line).ok()?;
    value
        .get("record")?
        .get("version")?
        .as_u64()
        .and_then(|v| u32::try_from(v).ok())
}
