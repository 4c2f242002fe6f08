//! Canaries in the training data of a run that is to be audited.

use std::path::Path;

use rldp::audit::canary_units;
use rldp::trainer::{Encoding, RunFolder, TokenUnit};
use rldp_audit::extraction::secret::{CanarySet, Format};
use rldp_models::Tokenizer;
use rldp_optim::{Random, SecureRandom, SeededRandom};
use serde::Deserialize;

use super::settings::Settings;
use crate::error::ExampleError;

/// The file of a run's canaries: texts, and which were put in.
pub const CANARY_FILE: &str = "canaries.json";
/// Words of a secret of random words, and digits of a secret number.
const LENGTHS: (usize, usize) = (6, 8);
/// Words that a secret is drawn from, at most.
const MOST_WORDS: usize = 256;
/// Mixed into a run's seed, so that canaries and noise come from different streams.
pub const SEED_OFFSET: u64 = 0x63_616e_6172_7900;

/// Draws the canaries that the settings ask for, keeps their list in the folder, and gives the units that hold the included ones. A
/// list that is there already (of a run that was interrupted) is used again.
///
/// # Errors
/// A bad file of formats; a folder that cannot be written; no randomness.
pub fn insert(
    settings: &Settings,
    encoding: &Encoding<'_>,
    folder: &RunFolder,
) -> Result<Vec<TokenUnit>, ExampleError> {
    if settings.canaries == 0 {
        return Ok(Vec::new());
    }
    let path = folder.join(CANARY_FILE);
    let set = if path.exists() {
        read(&path)?
    } else {
        let formats = match &settings.canary_formats {
            Some(path) => formats_of_file(path)?,
            None => built_in(encoding.tokenizer)?,
        };
        let mut random: Box<dyn Random> = match settings.seed {
            Some(seed) => Box::new(SeededRandom::new(seed ^ SEED_OFFSET)),
            None => Box::new(SecureRandom::new().map_err(rldp::RldpError::from)?),
        };
        let set = CanarySet::draw(
            formats,
            &settings.canary_repeats,
            settings.canaries,
            random.as_mut(),
        )
        .map_err(rldp::RldpError::from)?;
        let text =
            serde_json::to_string(&set).map_err(|error| ExampleError::Other(error.to_string()))?;
        folder.write(CANARY_FILE, text.as_bytes())?;
        set
    };
    Ok(canary_units(&set, encoding)?)
}

/// Reads a run's canaries.
///
/// # Errors
/// A file that cannot be read or is none.
pub fn read(path: &Path) -> Result<CanarySet, ExampleError> {
    let text = std::fs::read_to_string(path).map_err(ExampleError::file(path))?;
    serde_json::from_str(&text)
        .map_err(|error| ExampleError::Other(format!("{}: {error}", path.display())))
}

/// The formats there are without a file: random words, numbers, rare facts.
///
/// # Errors
/// A tokenizer with too few words.
pub fn built_in(tokenizer: &Tokenizer) -> Result<Vec<Format>, ExampleError> {
    Ok(vec![
        Format::tokens(&words(tokenizer)?, LENGTHS.0),
        Format::numbers(LENGTHS.1),
        Format::rare_fact(),
    ])
}

/// Words of the tokenizer's vocabulary that are one token each: what random tokens look like as text that encodes back to them.
fn words(tokenizer: &Tokenizer) -> Result<Vec<String>, ExampleError> {
    let mut words = Vec::new();
    for id in 0..tokenizer.vocabulary() as u32 {
        if words.len() == MOST_WORDS {
            break;
        }
        let piece = tokenizer.decode(&[id])?;
        let word = piece.trim();
        if word.len() < 2 || !word.bytes().all(|byte| byte.is_ascii_lowercase()) {
            continue;
        }
        let spaced = format!(" {word}");
        // In the middle of a text: behind a word that every tokenizer knows how to end.
        let (with, without) = (
            tokenizer.encode(&format!("a{spaced}"), false)?,
            tokenizer.encode("a", false)?,
        );
        if with.len() == without.len() + 1 && !words.contains(&spaced) {
            words.push(spaced);
        }
    }
    if words.len() < 2 {
        return Err(ExampleError::Other(
            "the tokenizer has too few words for random ones; name a file with --canary-formats"
                .to_owned(),
        ));
    }
    Ok(words)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FormatFile {
    format: Vec<Format>,
}

fn formats_of_file(path: &Path) -> Result<Vec<Format>, ExampleError> {
    let text = std::fs::read_to_string(path).map_err(ExampleError::file(path))?;
    let file: FormatFile = toml::from_str(&text).map_err(|error| ExampleError::Toml {
        path: path.to_owned(),
        message: error.message().to_owned(),
    })?;
    Ok(file.format)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::device::{NAMES, device};
    use crate::embedded;

    #[test]
    fn random_words_are_single_tokens_and_plenty() {
        let loaded = embedded::base_model(&device(NAMES[0]).unwrap()).unwrap();
        let words = words(loaded.tokenizer().unwrap()).unwrap();
        assert!(words.len() > 100, "{}", words.len());
    }

    #[test]
    fn formats_come_from_a_file_and_unknown_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("formats.toml");
        std::fs::write(
            &path,
            "[[format]]\nname = \"pin\"\nbefore = \"PIN\"\nslots = [[\" 1\", \" 2\"], [\" 3\", \" 4\"]]\n",
        )
        .unwrap();
        let formats = formats_of_file(&path).unwrap();
        assert_eq!((formats.len(), formats[0].bits()), (1, 2.0));
        std::fs::write(
            &path,
            "[[format]]\nname = \"pin\"\nsecret = \"x\"\nslots = []\n",
        )
        .unwrap();
        assert!(formats_of_file(&path).is_err());
    }
}
