//! The key of a data set, from which the split and the fingerprint are derived.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use rand::TryRng;
use rand::rngs::SysRng;

use super::error::DataError;
use super::table::Table;

const SEED_CONTEXT: &str = "rldp 2026 data key from a seed, not private";
const SPLIT_CONTEXT: &str = "rldp 2026 data key to split key";
const FINGERPRINT_CONTEXT: &str = "rldp 2026 data key to fingerprint key";

/// A secret of 32 bytes; `Debug` does not print it.
///
/// A private run draws one, keeps it in a file of its own that is not published (a resumed run needs the same split
/// and the same fingerprint), and never writes it to ledger, log or report.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// A fresh key from the operating system.
    ///
    /// # Errors
    /// [`DataError::NoRandomness`].
    pub fn random() -> Result<Self, DataError> {
        let mut bytes = [0; 32];
        SysRng
            .try_fill_bytes(&mut bytes)
            .map_err(|_| DataError::NoRandomness)?;
        Ok(Self(bytes))
    }

    /// The key of a seeded run, which anyone can compute: such a run is not private.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(blake3::derive_key(SEED_CONTEXT, &seed.to_le_bytes()))
    }

    /// A key kept earlier.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key, to be kept in a private file.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0
    }

    /// The key as 64 hexadecimal digits, to be kept in a private file.
    #[must_use]
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// A key written by [`DataKey::to_hex`].
    ///
    /// # Errors
    /// [`DataError::BadKey`].
    pub fn from_hex(text: &str) -> Result<Self, DataError> {
        let hash = blake3::Hash::from_hex(text.trim()).map_err(|_| DataError::BadKey)?;
        Ok(Self(*hash.as_bytes()))
    }

    /// Writes the key to a new file that, on Unix, only its owner can read. An existing file is never overwritten: its
    /// run could not be resumed any more. The file appears whole or not at all: it is written as `path` with `.tmp` added
    /// and then renamed.
    ///
    /// # Errors
    /// [`DataError::Io`], also when the file exists.
    pub fn keep(&self, path: &Path) -> Result<(), DataError> {
        let io_error = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        if path.exists() {
            return Err(io_error(std::io::ErrorKind::AlreadyExists.into()));
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".tmp");
        let unfinished = Path::new(&unfinished);
        // A leftover might have been made with other permissions.
        let _ = std::fs::remove_file(unfinished);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options
            .open(unfinished)
            .and_then(|mut file| {
                writeln!(file, "{}", self.to_hex())?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(unfinished, path));
        if written.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(unfinished);
        }
        written.map_err(io_error)
    }

    /// Reads a key written by [`DataKey::keep`].
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::BadKey`].
    pub fn kept(path: &Path) -> Result<Self, DataError> {
        let text = std::fs::read_to_string(path).map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::from_hex(&text)
    }

    pub(crate) fn split_key(&self) -> [u8; 32] {
        self.derived(SPLIT_CONTEXT)
    }

    /// The key for one purpose: keys for different contexts tell nothing of each other.
    pub(crate) fn derived(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DataKey(..)")
    }
}

/// A fingerprint of the whole table, by which a resumed run tells that its data are the same: 64 hexadecimal digits.
///
/// It covers column names, cells and the order of rows, but not the file's name, quoting or compression.
///
/// # Guarantee
/// The hash is keyed. Whoever does not hold the key learns nothing from it, so a ledger that carries it may be
/// published; a plain hash would let anyone who has all but one record confirm the last. In a seeded run the key is
/// known and this does not hold.
#[must_use]
pub fn fingerprint(table: &Table, key: &DataKey) -> String {
    let key = key.derived(FINGERPRINT_CONTEXT);
    let mut hasher = blake3::Hasher::new_keyed(&key);
    let mut field = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    field(&table.columns().len().to_string());
    for column in table.columns() {
        field(column);
    }
    for row in 0..table.len() {
        for cell in table.row(row) {
            field(cell);
        }
    }
    hasher.finalize().to_hex().to_string()
}
