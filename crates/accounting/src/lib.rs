//! Certified differential-privacy accounting for DP-SGD: mechanisms in, epsilon out, in plain f64 Rust.
//!
//! ```
//! use rldp_accounting::{Segment, epsilon_upper};
//!
//! let run = [Segment::new(0.01, 1.0, 10_000)?];
//! let epsilon = epsilon_upper(&run, 1e-5)?;
//! assert!((epsilon - 6.1877).abs() < 1e-3);
//! # Ok::<(), rldp_accounting::AccountingError>(())
//! ```

// Comparisons are negated on purpose: NaN must land on the refusing side.
#![allow(clippy::neg_cmp_op_on_partial_ord)]

pub mod adjacency;
pub mod budget;
pub mod calibrate;
pub mod curve;
pub mod effective;
pub mod error;
pub mod gaussian;
pub mod gdp;
pub mod ledger;
pub mod pld;
pub mod print;
pub mod rdp;
pub mod segment;
mod special;
pub mod summary;
mod tilt;
pub mod views;

pub use adjacency::Adjacency;
pub use error::AccountingError;
pub use pld::{epsilon_lower, epsilon_upper};
pub use segment::{PrivacyTarget, Segment};
