//! The parts of the `chaos` binary: short runs that are killed, starved of disk and damaged, and what must hold afterwards.

pub mod campaign;
pub mod check;
pub mod faults;
pub mod worker;
