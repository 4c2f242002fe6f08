//! The binaries' error type, and how a binary ends.

use std::path::PathBuf;
use std::process::ExitCode;

use thiserror::Error;

/// What can go wrong in a binary.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExampleError {
    /// The command line; clap has its own words, and `--help` comes this way too.
    #[error(transparent)]
    Usage(clap::Error),
    /// A settings file.
    #[error("{path}: {message}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A flag's value.
    #[error("--{flag} {value}: {reason}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A device that is unknown or not compiled in.
    #[error(
        "--device {given} is not compiled in: there are {known} (rebuild with --features {given} for others)"
    )]
    UnknownDevice {
        /// The name given.
        given: String,
        /// The names known.
        known: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// From the library.
    #[error(transparent)]
    Rldp(#[from] rldp::RldpError),
    /// From the data readers.
    #[error(transparent)]
    Data(#[from] rldp::data::DataError),
    /// From the models.
    #[error(transparent)]
    Model(#[from] rldp_models::ModelError),
    /// From the adapters.
    #[error(transparent)]
    Lora(#[from] rldp_lora::LoraError),
    /// From the accountant.
    #[error(transparent)]
    Accounting(#[from] rldp_accounting::AccountingError),
    /// The grammar of the pre-training corpus.
    #[error("grammar: {0}")]
    Grammar(String),
    /// A tokenizer that could not be trained or saved.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl ExampleError {
    /// Wraps an input or output error with the path it happened at.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// Ends a binary: prints an error as one line, clap's messages as clap does, and gives the exit status.
#[must_use]
pub fn finish(result: Result<(), ExampleError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(ExampleError::Usage(error)) => {
            let failed = error.use_stderr();
            // Printing can only fail where nobody reads.
            let _ = error.print();
            if failed {
                ExitCode::from(2)
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error) => {
            eprintln!("error: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line, each cause that the text before it does not tell already.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let cause = || std::io::Error::other("the disk is on fire");
        let told = ExampleError::file("a.txt")(cause());
        assert_eq!(with_causes(&told), "a.txt: the disk is on fire");
        let silent = rldp_sac::SacError::Io {
            action: "write",
            path: "p".into(),
            source: cause(),
        };
        let silent = ExampleError::Rldp(silent.into());
        assert!(with_causes(&silent).ends_with(": the disk is on fire"));
    }
}
