//! What the binaries carry inside: a base model pre-trained by this project, and a table of real patients.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use rldp::data::{ReadOptions, Table, Template, read_bytes};
use rldp_models::{CausalLm, LoadedModel};

use crate::error::ExampleError;

/// The base model's name in adapters and reports.
pub const BASE_MODEL_NAME: &str = "rldp-base-1m (embedded)";
/// The base model's `config.json`.
pub const BASE_MODEL_CONFIG: &[u8] = include_bytes!("../assets/base-model/config.json");
/// The base model's `model.safetensors`.
pub const BASE_MODEL_WEIGHTS: &[u8] = include_bytes!("../assets/base-model/model.safetensors");
/// The base model's `tokenizer.json`.
pub const BASE_MODEL_TOKENIZER: &[u8] = include_bytes!("../assets/base-model/tokenizer.json");
/// The SUPPORT2 table (Knaus et al. 1995), CC BY 4.0: see `assets/support2/ATTRIBUTION.md`.
pub const SUPPORT2: &[u8] = include_bytes!("../assets/support2/support2.csv.gz");
/// The template that renders a patient of SUPPORT2 into a note.
pub const SUPPORT2_NOTE: &str = include_str!("../assets/support2/note.jinja");

/// Loads the embedded base model onto a device.
///
/// # Errors
/// The temporary folder that it is unpacked into cannot be written.
pub fn base_model(device: &Device) -> Result<LoadedModel, ExampleError> {
    // The loader maps files into memory, so the model passes through a folder that is deleted right after.
    let folder = tempfile::tempdir().map_err(ExampleError::file(std::env::temp_dir()))?;
    unpack_base_model(folder.path())?;
    let mut loaded = CausalLm::load(folder.path(), device, |_| {})?;
    loaded.folder = PathBuf::from(BASE_MODEL_NAME);
    Ok(loaded)
}

/// Writes the embedded base model as a Hugging Face folder, for other tools or `--model`.
///
/// # Errors
/// A file that cannot be written.
pub fn unpack_base_model(folder: &Path) -> Result<(), ExampleError> {
    std::fs::create_dir_all(folder).map_err(ExampleError::file(folder))?;
    for (name, bytes) in [
        ("config.json", BASE_MODEL_CONFIG),
        ("model.safetensors", BASE_MODEL_WEIGHTS),
        ("tokenizer.json", BASE_MODEL_TOKENIZER),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(ExampleError::file(&path))?;
    }
    Ok(())
}

/// The embedded SUPPORT2 table: 9,105 patients.
///
/// # Errors
/// Only if the embedded file is damaged.
pub fn support2() -> Result<Table, ExampleError> {
    Ok(read_bytes(
        "support2.csv.gz",
        SUPPORT2,
        &ReadOptions::default(),
    )?)
}

/// The template that renders a patient of SUPPORT2 into a note.
///
/// # Errors
/// Only if the embedded template is damaged.
pub fn support2_note() -> Result<Template, ExampleError> {
    Ok(Template::new("note.jinja", SUPPORT2_NOTE)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rldp_models::{Batch, LanguageModel, Row};

    use super::*;
    use crate::device::{NAMES, device};
    use crate::pretrain::corpus::Corpus;
    use crate::pretrain::tokenizer::END_OF_TEXT;

    #[test]
    fn base_model_fits_and_predicts_the_text_it_was_trained_on() {
        assert!(BASE_MODEL_WEIGHTS.len() <= 5_000_000);
        let device = device(NAMES[0]).unwrap();
        let loaded = base_model(&device).unwrap();
        let tokenizer = loaded.tokenizer().unwrap();
        assert_eq!(loaded.model.vocabulary(), tokenizer.vocabulary());
        let end = tokenizer.id(END_OF_TEXT).unwrap();
        assert_eq!(
            (
                loaded.special_tokens.bos,
                loaded.special_tokens.eos.as_slice()
            ),
            (Some(end), &[end][..])
        );
        let rows: Vec<Row> = Corpus::new(99)
            .unwrap()
            .texts(16)
            .unwrap()
            .iter()
            .map(|text| Row::new([vec![end], tokenizer.encode(text, false).unwrap()].concat()))
            .collect();
        let batch = Batch::from_rows(&rows, &device).unwrap();
        let loss: f32 = loaded.model.per_example_loss(&batch).mean().into_scalar();
        // Chance is ln 1024 = 6.9.
        assert!(loss < 2.5, "{loss}");
    }

    #[test]
    fn support2_is_whole_and_its_template_reads() {
        assert_eq!(support2().unwrap().len(), 9105);
        support2_note().unwrap();
    }
}
