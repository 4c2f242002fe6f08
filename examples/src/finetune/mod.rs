//! The parts of the `finetune` binary.

pub mod canaries;
pub mod clock;
pub mod plain;
pub mod progress;
pub mod run;
pub mod settings;
