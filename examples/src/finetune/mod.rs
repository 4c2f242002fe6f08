//! The parts of the `finetune` binary.

pub mod clock;
pub mod progress;
pub mod run;
pub mod settings;
