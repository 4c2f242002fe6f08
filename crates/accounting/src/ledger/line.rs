//! One line of the file: `{"checksum":"16 hex digits","record":...}`, the checksum chained to the line before.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(super) const HEAD: &str = "{\"checksum\":\"";
pub(super) const MIDDLE: &str = "\",\"record\":";
/// Hex digits of the checksum.
pub(super) const DIGITS: usize = 16;

/// The checksum before the first line.
pub(super) const SEED: &str = "rldp ledger";

fn checksum(previous: &str, body: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous.as_bytes());
    hasher.update(b"\n");
    hasher.update(body.as_bytes());
    hasher.finalize().to_hex()[..DIGITS].to_string()
}

/// The line (with its newline) and its checksum.
pub(super) fn encode<T: Serialize>(previous: &str, record: &T) -> Result<(String, String), String> {
    let body = serde_json::to_string(record).map_err(|e| e.to_string())?;
    let sum = checksum(previous, &body);
    Ok((format!("{HEAD}{sum}{MIDDLE}{body}}}\n"), sum))
}

/// The record and the line's checksum; the line without its newline.
pub(super) fn decode<T: DeserializeOwned>(
    previous: &str,
    line: &str,
) -> Result<(T, String), String> {
    let rest = line
        .strip_prefix(HEAD)
        .ok_or("it does not start with a checksum")?;
    let sum = rest.get(..DIGITS).ok_or("its checksum is cut short")?;
    let body = rest[DIGITS..]
        .strip_prefix(MIDDLE)
        .and_then(|r| r.strip_suffix('}'))
        .ok_or("it has no whole record")?;
    if checksum(previous, body) != sum {
        return Err("its checksum does not match its text and the line before".to_string());
    }
    let record = serde_json::from_str(body).map_err(|e| e.to_string())?;
    Ok((record, sum.to_string()))
}
