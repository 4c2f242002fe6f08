//! Reading and writing the file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
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

    /// Opens a ledger to go on with the same run. A torn last line, whose step was never used, is replaced by a note.
    ///
    /// # Errors
    /// As for [`Ledger::read`], or a header that differs from the file's in anything but its creation time.
    pub fn resume(
        path: impl AsRef<Path>,
        header: &Header,
    ) -> Result<(Self, Ledger), AccountingError> {
        let name = path.as_ref().display().to_string();
        let (mut ledger, last, good) = read(path.as_ref())?;
        let same = Header {
            created: ledger.header.created.clone(),
            ..header.clone()
        };
        if same != ledger.header {
            return Err(AccountingError::LedgerInconsistent {
                reason: "the run to be resumed was registered with other parameters".to_string(),
            });
        }
        let file = OpenOptions::new()
            .append(true)
            .open(path.as_ref())
            .map_err(|e| io(&name, &e))?;
        let mut writer = Self {
            file,
            path: name,
            last,
            broken: false,
        };
        if let Some(torn) = ledger.torn.take() {
            writer
                .file
                .set_len(good)
                .map_err(|e| io(&writer.path, &e))?;
            let note = Event::Note {
                text: format!("line {} was torn by a crash: {}", torn.line, torn.text),
            };
            writer.append(&note)?;
            ledger.events.push(note);
        }
        Ok((writer, ledger))
    }

    /// Writes an event, flushes it to the disk, and only then returns.
    ///
    /// # Errors
    /// Bad figures (nothing is written then), or any failure to write: the step must not be used, and the writer refuses from
    /// then on.
    pub fn append(&mut self, event: &Event) -> Result<(), AccountingError> {
        event.check()?;
        self.write(event)
    }

    fn write<T: serde::Serialize>(&mut self, record: &T) -> Result<(), AccountingError> {
        if self.broken {
            return Err(io(
                &self.path,
                &"an earlier write failed; read the ledger and resume",
            ));
        }
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
