use std::path::PathBuf;

/// What can go wrong with adapters and their files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// A configuration value is out of its range.
    #[error("LoRA setting `{name}` must be {requirement}, got {value}")]
    InvalidSetting {
        /// The setting's name.
        name: &'static str,
        /// What the value must satisfy.
        requirement: &'static str,
        /// What was given.
        value: String,
    },
    /// A target module name matches no linear layer of the model.
    #[error("target module `{target}` matches no layer; the layers are: {}", available.join(", "))]
    UnmatchedTarget {
        /// The name that matched nothing.
        target: String,
        /// Last parts of the names of the layers there are.
        available: Vec<String>,
    },
    /// The layer already has an adapter.
    #[error("layer `{layer}` already has an adapter; remove or merge it first")]
    AlreadyAdapted {
        /// The layer's name.
        layer: String,
    },
    /// The model has no adapter at all.
    #[error("the model has no adapters: call add_lora or load one first")]
    NoAdapters,
    /// Expansion to zero examples; an empty batch needs no forward pass.
    #[error("adapters cannot be expanded to an empty batch; an empty batch has the zero gradient")]
    EmptyBatch,
    /// The gradient of an adapter is not in the container: the loss does not depend on it.
    #[error("no gradient for adapter `{adapter}`: was the loss computed with the expanded model?")]
    MissingGradient {
        /// The adapter's name.
        adapter: String,
    },
    /// Two lists of adapters that should be about the same model are not.
    #[error("adapter `{found}` where `{expected}` was expected")]
    AdapterMismatch {
        /// The name this model has at that place.
        expected: String,
        /// The name that was given.
        found: String,
    },
    /// A merge was asked for while adapters are expanded to a batch.
    #[error("adapter `{adapter}` is expanded to {examples} examples and cannot be merged or saved")]
    Expanded {
        /// The adapter's name.
        adapter: String,
        /// The leading dimension found.
        examples: usize,
    },
    /// The adapter is merged (or not) while the call needs the opposite.
    #[error("layer `{layer}`: {problem}")]
    MergeState {
        /// The layer's name.
        layer: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A setting of `adapter_config.json` that this crate does not implement.
    #[error("{}: setting `{name}` = {value} is not supported", path.display())]
    UnsupportedSetting {
        /// The file.
        path: PathBuf,
        /// The setting's name.
        name: String,
        /// Its value as JSON.
        value: String,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
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
    /// A safetensors file with a broken header or length.
    #[error("{} is not a valid safetensors file (truncated or corrupt): {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: safetensors::SafeTensorError,
    },
    /// The file lacks a tensor.
    #[error("{}: tensor `{tensor}` is missing", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The file holds a tensor nobody asked for.
    #[error("{}: unexpected tensor `{tensor}`", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the model needs.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a type other than f32, f16, bf16.
    #[error("{}: tensor `{tensor}` has type {dtype}; supported are F32, F16 and BF16", path.display())]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type in the file.
        dtype: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("{}: tensor `{tensor}` holds a non-finite value at element {index}", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such element.
        index: usize,
    },
    /// A tensor could not be read back from the device.
    #[error("tensor `{tensor}` could not be read from its device: {reason}")]
    Readback {
        /// The tensor.
        tensor: String,
        /// The cause, in the backend's words.
        reason: String,
    },
}
