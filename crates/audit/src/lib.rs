//! Audits: attack what is released, and turn the attacks' success into lower bounds on epsilon.
//!
//! * [`SelfAudit`] runs the real clip-noise-release step with a worst-case canary in or out, before any private data are
//!   touched, and compares the lower bound it finds with the claim.
//! * [`bounds`] turns counts of right and wrong guesses into bounds with a stated confidence.
//! * [`attack`] evaluates membership inference from scores.
#![doc = include_str!("../README.md")]

pub mod attack;
pub mod bounds;
mod canary;
mod error;
mod mechanism;

pub use canary::{SelfAudit, SelfAuditReport};
pub use error::AuditError;
pub use mechanism::{Mechanism, StepMechanism};
