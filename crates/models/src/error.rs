use std::path::PathBuf;

use rldp_lora::LoraError;

/// What can go wrong with models, checkpoints, tokenizers and generation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Adapters or tensor files.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A JSON file that cannot be parsed.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// `config.json` lacks a setting without which the model is not defined.
    #[error("{}: setting `{name}` is missing", path.display())]
    MissingSetting {
        /// The file.
        path: PathBuf,
        /// The setting.
        name: String,
    },
    /// A setting of `config.json` this crate does not implement, or does not know.
    #[error("{}: setting `{name}` = {value} is not supported{hint}", path.display())]
    UnsupportedSetting {
        /// The file.
        path: PathBuf,
        /// The setting.
        name: String,
        /// Its value as JSON.
        value: String,
        /// What would be accepted, as the end of the sentence; may be empty.
        hint: String,
    },
    /// No architecture of that name is registered.
    #[error("{}: model type `{model_type}` is not known; known are {}", path.display(), known.join(", "))]
    UnknownArchitecture {
        /// The file.
        path: PathBuf,
        /// The name in `config.json`.
        model_type: String,
        /// The names registered.
        known: Vec<String>,
    },
    /// The folder holds no weights in a form that can be read.
    #[error("{}: neither model.safetensors nor model.safetensors.index.json is there{hint}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What was found instead, as the end of the sentence; may be empty.
        hint: &'static str,
    },
    /// The index names a file that is not there.
    #[error("{}: shard `{shard}` named by the index is missing", folder.display())]
    MissingShard {
        /// The folder.
        folder: PathBuf,
        /// The file's name.
        shard: String,
    },
    /// A file name in the index points outside the folder.
    #[error("{}: shard name `{shard}` is not a plain file name", folder.display())]
    InvalidShardName {
        /// The folder.
        folder: PathBuf,
        /// The name.
        shard: String,
    },
    /// The model needs a tensor the checkpoint lacks.
    #[error("{}: tensor `{tensor}` is missing from the checkpoint", folder.display())]
    MissingTensor {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The checkpoint holds a tensor the model has no place for.
    #[error("{}: the checkpoint holds tensor `{tensor}`, which this model does not use", folder.display())]
    UnexpectedTensor {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Two tensors of the checkpoint stand for the same weight.
    #[error("{}: tensor `{tensor}` occurs twice", folder.display())]
    DuplicateTensor {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The device's backend has no tensors of that type.
    #[error("tensor `{tensor}` cannot be held as {dtype} on {device}: load the weights as f32")]
    UnsupportedPrecision {
        /// The tensor.
        tensor: String,
        /// The type.
        dtype: String,
        /// The device.
        device: String,
    },
    /// A model configuration that contradicts itself.
    #[error("model configuration: {problem}")]
    InvalidConfig {
        /// What is wrong.
        problem: String,
    },
    /// The model folder has no tokenizer.
    #[error("{}: no tokenizer: neither tokenizer.json nor vocab.json with merges.txt is there", folder.display())]
    MissingTokenizer {
        /// The folder.
        folder: PathBuf,
    },
    /// The tokenizer cannot be loaded, or fails on a text.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A batch without rows or a row without tokens.
    #[error("{problem}")]
    InvalidBatch {
        /// What is wrong.
        problem: String,
    },
    /// More tokens than the model has positions.
    #[error("{tokens} tokens do not fit into the model's {positions} positions")]
    ContextTooLong {
        /// Tokens needed.
        tokens: usize,
        /// Positions there are.
        positions: usize,
    },
    /// A token id the model has no embedding for.
    #[error("token id {token} is outside the model's vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The id.
        token: u32,
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// A generation option out of its range.
    #[error("generation option `{name}` must be {requirement}, got {value}")]
    InvalidOption {
        /// The option.
        name: &'static str,
        /// What it must satisfy.
        requirement: &'static str,
        /// What was given.
        value: String,
    },
    /// Logits with NaN or without any finite value.
    #[error(
        "the model's output at token {position} is not a distribution: the weights or the prompt overflow"
    )]
    NonFiniteLogits {
        /// Position of the token whose successor was asked for.
        position: usize,
    },
    /// A model with adapters was to be saved as if it had none.
    #[error(
        "the model carries adapters: merge them, or save them with rldp_lora::peft::save_adapter"
    )]
    UnmergedAdapters,
    /// The model is not a local folder and could not be fetched from the hub.
    #[error(
        "`{model}` is not a local folder and could not be fetched from the Hugging Face hub ({reason}). \
         Without a network: download the model's folder on another machine (config.json, \
         *.safetensors, tokenizer.json), copy it here, and give its path instead"
    )]
    Hub {
        /// The name that was given.
        model: String,
        /// The cause.
        reason: String,
    },
}
