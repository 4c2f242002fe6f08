//! From the texts of a corpus to token rows.

use rldp_models::{SpecialTokens, Tokenizer};

use super::examples::TokenUnit;
use crate::data::TextUnit;
use crate::error::RldpError;

/// How texts become token rows.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's special tokens: a row begins and ends with them, where the model has them.
    pub special_tokens: &'a SpecialTokens,
    /// Longest row in tokens; longer rows are cut.
    pub max_length: usize,
    /// Most rows of a unit that are used: the first in the table's order, which depend on that unit alone.
    pub max_rows: usize,
}

impl Encoding<'_> {
    /// Turns units of text into units of token rows. A row of fewer than two tokens has nothing to predict and is
    /// left out; a unit left without rows stays in the population, where it adds nothing.
    ///
    /// # Errors
    /// [`RldpError::Model`] when the tokenizer fails.
    pub fn units(&self, units: &[TextUnit]) -> Result<Vec<TokenUnit>, RldpError> {
        units
            .iter()
            .map(|unit| {
                let mut rows = Vec::with_capacity(unit.texts.len().min(self.max_rows));
                for text in unit.texts.iter().take(self.max_rows) {
                    let tokens = self.text(text)?;
                    if tokens.len() >= 2 {
                        rows.push(tokens);
                    }
                }
                Ok(TokenUnit { rows })
            })
            .collect()
    }

    /// One text as begin-of-text, tokens, end-of-text, cut to the maximum length.
    ///
    /// # Errors
    /// As [`Encoding::units`].
    pub fn text(&self, text: &str) -> Result<Vec<u32>, RldpError> {
        let mut tokens = self.prompt(text)?;
        tokens.extend(self.special_tokens.eos.first());
        tokens.truncate(self.max_length);
        Ok(tokens)
    }

    /// One text as begin-of-text and tokens, for a model to continue.
    ///
    /// # Errors
    /// As [`Encoding::units`].
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>, RldpError> {
        let mut tokens = self.tokenizer.encode(text, true)?;
        if let Some(bos) = self.special_tokens.bos
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }
}
