//! Differentially private fine-tuning of language models, steered by reinforcement learning.
//!
//! This crate ties the others together; each module says what it guarantees.

pub mod data;
pub mod report;
