//! Texts in, equally long runs of tokens out: tokenized texts end to end, an end-of-text token before each.

use rldp_models::Row;
use tokenizers::Tokenizer;

use crate::error::ExampleError;
use crate::pretrain::corpus::Corpus;
use crate::pretrain::tokenizer::END_OF_TEXT;

/// An endless stream of packed sequences out of a corpus. Every text is used once; nothing is padded or dropped.
#[derive(Debug)]
pub struct Packer<'a> {
    corpus: Corpus,
    tokenizer: &'a Tokenizer,
    separator: u32,
    waiting: Vec<u32>,
}

impl<'a> Packer<'a> {
    /// Packs the texts of `corpus`.
    ///
    /// # Errors
    /// A tokenizer without an end-of-text token.
    pub fn new(corpus: Corpus, tokenizer: &'a Tokenizer) -> Result<Self, ExampleError> {
        let separator = tokenizer
            .token_to_id(END_OF_TEXT)
            .ok_or_else(|| ExampleError::Tokenizer(format!("it has no token {END_OF_TEXT}")))?;
        Ok(Self {
            corpus,
            tokenizer,
            separator,
            waiting: Vec::new(),
        })
    }

    /// The next `rows` sequences of `length + 1` tokens: `length` predictions each. A row begins with the token the row
    /// before it ended with, so every token is predicted once.
    ///
    /// # Errors
    /// As the corpus and the tokenizer.
    pub fn rows(&mut self, rows: usize, length: usize) -> Result<Vec<Row>, ExampleError> {
        let mut packed = Vec::with_capacity(rows);
        for _ in 0..rows {
            while self.waiting.len() <= length {
                let text = self.corpus.text()?;
                let encoded = self
                    .tokenizer
                    .encode(text, false)
                    .map_err(|error| ExampleError::Tokenizer(error.to_string()))?;
                self.waiting.push(self.separator);
                self.waiting.extend(encoded.get_ids());
            }
            packed.push(Row::new(self.waiting[..=length].to_vec()));
            self.waiting.drain(..length);
        }
        Ok(packed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pretrain::tokenizer::train;

    #[test]
    fn rows_join_without_gap_into_the_texts() {
        let texts = Corpus::new(4).unwrap().texts(200).unwrap();
        let tokenizer = train(&texts, 400).unwrap();
        let mut packer = Packer::new(Corpus::new(4).unwrap(), &tokenizer).unwrap();
        let mut rows = packer.rows(5, 32).unwrap();
        rows.extend(packer.rows(2, 64).unwrap());
        let mut joined = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            assert_eq!(row.tokens.len(), if index < 5 { 33 } else { 65 });
            if index > 0 {
                assert_eq!(joined.pop(), Some(row.tokens[0]));
            }
            joined.extend(&row.tokens);
        }
        let expected: Vec<u32> = texts
            .iter()
            .flat_map(|text| {
                let ids = tokenizer
                    .encode(text.as_str(), false)
                    .unwrap()
                    .get_ids()
                    .to_vec();
                std::iter::once(tokenizer.token_to_id(END_OF_TEXT).unwrap()).chain(ids)
            })
            .take(joined.len())
            .collect();
        assert_eq!(joined, expected);
    }
}
