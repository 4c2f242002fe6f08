//! Pre-training of the small base model from scratch, on text that the project itself generates.
//!
//! [`corpus`] writes the text, [`tokenizer`] learns a byte-level vocabulary from it, [`train`] fits a GPT-2 model and
//! saves a Hugging Face folder. No private table and no foreign text is involved.

pub mod clinical;
pub mod corpus;
pub mod grammar;
pub mod packing;
pub mod random;
pub mod schedule;
pub mod tokenizer;
pub mod train;
