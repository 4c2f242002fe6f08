//! The error type of this crate.

use std::path::PathBuf;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SacError {
    /// A setting is outside its range.
    #[error("setting `{name}` is {value}, expected {expected}")]
    Config {
        /// Name of the setting.
        name: &'static str,
        /// The value given.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// An observation, action or reward is infinite or not a number.
    #[error("{what} holds the value {value} at agent {agent}, feature {feature}")]
    NonFinite {
        /// Which input.
        what: &'static str,
        /// The offending value.
        value: f64,
        /// Row of the offending value.
        agent: usize,
        /// Column of the offending value.
        feature: usize,
    },
    /// An action component lies outside [-1, 1].
    #[error(
        "action component {value} of agent {agent}, dimension {dimension}, lies outside [-1, 1]"
    )]
    ActionRange {
        /// The offending value.
        value: f64,
        /// Row of the offending value.
        agent: usize,
        /// Column of the offending value.
        dimension: usize,
    },
    /// An input has the wrong size.
    #[error("{what} is {actual}, expected {expected}")]
    Shape {
        /// Which size.
        what: &'static str,
        /// The size found.
        actual: usize,
        /// The size needed.
        expected: usize,
    },
    /// An update was asked for before any transition was observed.
    #[error("the replay buffer is empty: observe a transition before updating")]
    EmptyReplay,
    /// A loss became infinite or not a number; the parameters were left as they were.
    #[error("{name} became {value} at update {update}; parameters were left unchanged")]
    NonFiniteLoss {
        /// Which loss.
        name: &'static str,
        /// Its value.
        value: f64,
        /// Number of updates done before this one.
        update: u64,
    },
    /// A file lacks a tensor.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// Name of the tensor.
        name: String,
    },
    /// A file holds a tensor of the wrong shape or element type.
    #[error("tensor `{name}` is {actual}, expected {expected}")]
    TensorMismatch {
        /// Name of the tensor.
        name: String,
        /// What was found.
        actual: String,
        /// What is needed.
        expected: String,
    },
    /// A file is not one of ours, or of a newer version.
    #[error("`{path}` is not a readable {expected}: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What kind of file it should be.
        expected: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing a file failed.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The tensor backend would not hand data over.
    #[error("the tensor backend failed to return {what}: {reason}")]
    Backend {
        /// What was asked for.
        what: &'static str,
        /// The backend's message.
        reason: String,
    },
}
