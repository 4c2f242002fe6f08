//! The parts of the `compare` and `pretrain_policy` binaries: studies of controllers on the same task.

pub mod attacks;
pub mod plan;
pub mod policy;
pub mod report;
mod report_attacks;
pub mod run;
pub mod statistics;
pub mod store;
pub mod study;
pub mod task;
