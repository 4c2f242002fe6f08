//! Extraction: can what was trained on be got out again?
//!
//! [`secret`] makes canaries, texts with a secret of known randomness; [`exposure`] says how far a model prefers a secret to
//! others that might have been (Carlini et al. 2019); [`overlap`] finds runs of training text in what a model writes.

pub mod exposure;
pub mod overlap;
pub mod secret;
