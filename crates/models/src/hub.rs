//! Finding a model: a local folder, or an id on the Hugging Face hub.

use std::path::{Path, PathBuf};

use crate::ModelError;
use crate::checkpoint::{INDEX_FILE, SINGLE_FILE};

/// The local folder of a model: `model` itself if it is one, else the hub's model of that id,
/// downloaded into the usual cache.
///
/// # Errors
///
/// [`ModelError::Hub`], whose message says what to do without a network.
pub fn resolve(model: &str) -> Result<PathBuf, ModelError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let failed = |reason: String| ModelError::Hub {
        model: without_password(model),
        reason,
    };
    if !looks_like_id(model) {
        return Err(failed("nor is it a hub id like `owner/name`".to_owned()));
    }
    download(model).map_err(|error| failed(error.to_string()))
}

/// A model's name as it may be shown: a URL may carry a password, and what is shown ends in logs.
#[must_use]
pub fn without_password(model: &str) -> String {
    match model.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => model.to_owned(),
    }
}

/// `name` or `owner/name` in the hub's alphabet; anything else is a mistyped path.
fn looks_like_id(model: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let parts: Vec<&str> = model.split('/').collect();
    (parts.len() == 1 || parts.len() == 2) && parts.into_iter().all(part)
}

fn download(model: &str) -> Result<PathBuf, hf_hub::api::sync::ApiError> {
    let api = hf_hub::api::sync::ApiBuilder::from_env()
        .with_progress(false)
        .build()?;
    let repository = api.model(model.to_owned());
    let config = repository.get("config.json")?;
    // Whichever of these the repository has; the loader says what is missing.
    for optional in ["tokenizer.json", "vocab.json", "merges.txt"] {
        let _ = repository.get(optional);
    }
    if repository.get(SINGLE_FILE).is_err() {
        let index = repository.get(INDEX_FILE)?;
        let text = std::fs::read_to_string(index)?;
        let index: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let mut shards: Vec<&str> = index["weight_map"]
            .as_object()
            .into_iter()
            .flat_map(|map| map.values().filter_map(serde_json::Value::as_str))
            .collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            repository.get(shard)?;
        }
    }
    Ok(config.parent().map(Path::to_owned).unwrap_or_default())
}
