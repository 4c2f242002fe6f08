//! Differentially private fine-tuning of language models, steered by reinforcement learning.
//!
//! This crate ties the others together:
//!
//! - [`data`]: private tables, from a file to the texts of privacy units in disjoint parts;
//! - [`budget`]: what may still be spent, and in which order;
//! - [`controller`]: who decides clipping norms, noise split and learning rate, and what they may see;
//! - [`trainer`]: the run, from encoded units to a run folder;
//! - [`full`]: training all parameters of a model, instead of adapters;
//! - [`audit`]: attacks on what a run released;
//! - [`report`]: the run's page.
//!
//! What a run guarantees is stated at [`trainer::fine_tune`] and, in words, in `docs/guarantee.md`.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadMe;

pub mod audit;
pub mod budget;
pub mod controller;
pub mod data;
mod error;
pub mod full;
pub mod report;
pub mod trainer;

pub use error::RldpError;
