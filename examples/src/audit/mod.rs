//! The parts of the `audit` binary.

pub mod folder;
pub mod results;
pub mod run;
pub mod settings;
