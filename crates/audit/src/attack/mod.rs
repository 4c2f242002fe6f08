//! Membership inference: was this unit trained on?
//!
//! [`signals`] turns a model's token losses into scores (loss, loss over a reference model, loss over compressed size, min-k %),
//! [`lira`] calibrates a score with shadow models, and [`membership`] says how well scores separate members from
//! non-members, with confidence intervals.
//!
//! Members and non-members must come from one distribution by coin flip, or the figures measure the difference of the
//! distributions. The parts of a run are such a coin: a keyed hash assigns every unit to one.
//!
//! Scores of real members are private data, and so is every figure computed from them: no guarantee covers these. They are for
//! the data's owner, or for data that may be published. Canaries drawn apart from the data are the exception: what an attack
//! on them finds is post-processing of the released model.

pub mod lira;
mod roc;
pub mod signals;

pub use roc::{Interval, MembershipReport, TrueRateAt, loss_scores, membership};
