//! Audits: attack what is released, and turn the attacks' success into lower bounds on epsilon.
//!
//! * [`SelfAudit`] runs the real clip-noise-release step with a worst-case canary in or out, before any private data are
//!   touched, and compares the lower bound it finds with the claim.
//! * [`training`] does the same for whole runs, sampling included: many runs with one canary, or one run with many.
//! * [`bounds`] turns counts of right and wrong guesses into bounds with a stated confidence, [`mod@one_run`] the guesses on the
//!   canaries of a single run.
//! * [`attack`] is membership inference: scores from token losses, shadow models, operating curves.
//! * [`extraction`] makes canary texts, and measures exposure and overlap.
//!
//! No language model is needed here: attacks read losses and tokens, whoever computed them. `rldp::audit` computes them.
#![doc = include_str!("../README.md")]

pub mod attack;
pub mod bounds;
mod error;
pub mod extraction;
mod mechanism;
pub mod one_run;
mod self_audit;
pub mod training;

pub use error::AuditError;
pub use mechanism::{Mechanism, StepMechanism};
pub use self_audit::{SelfAudit, SelfAuditReport};
pub use training::{TrainingAudit, audit_in_one_run};
