//! The base model's tokenizer: byte-level byte-pair encoding in which every digit is a token of its own.

use std::path::Path;

use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::byte_level::ByteLevel as ByteLevelProcessor;
use tokenizers::{
    AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer, TokenizerBuilder,
};

use crate::error::ExampleError;

/// The token that separates texts; also the model's begin and end token.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Learns a vocabulary of `vocabulary` tokens, [`END_OF_TEXT`] being number 0, from these texts.
///
/// # Errors
/// What the trainer reports.
pub fn train(texts: &[String], vocabulary: usize) -> Result<Tokenizer, ExampleError> {
    // Each digit alone; the first one of a number takes the blank before it along, which saves a token a number.
    let digit = Split::new(
        SplitPattern::Regex(r" ?\d".to_owned()),
        SplitDelimiterBehavior::Isolated,
        false,
    )
    .map_err(failed)?;
    let digits_then_bytes = Sequence::new(vec![
        PreTokenizerWrapper::Split(digit),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ]);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(digits_then_bytes))
        .with_post_processor(Some(ByteLevelProcessor::new(false, false, true)))
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()
        .map_err(failed)?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocabulary)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    tokenizer
        .train(&mut trainer, texts.iter().map(String::as_str))
        .map_err(failed)?;
    // Through the general type, which is what every loader reads.
    let json = tokenizer.to_string(true).map_err(failed)?;
    json.parse().map_err(failed)
}

/// Writes `tokenizer.json` and the small `tokenizer_config.json` that Hugging Face's Python library expects beside it.
///
/// # Errors
/// A file that cannot be written.
pub fn save(tokenizer: &Tokenizer, folder: &Path, max_length: usize) -> Result<(), ExampleError> {
    tokenizer
        .save(folder.join("tokenizer.json"), true)
        .map_err(failed)?;
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": false,
    });
    std::fs::write(
        folder.join("tokenizer_config.json"),
        format!("{config:#}\n"),
    )
    .map_err(|e| failed(e.into()))
}

fn failed(error: tokenizers::Error) -> ExampleError {
    ExampleError::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pretrain::corpus::Corpus;

    #[test]
    fn round_trip_digits_and_determinism() {
        let texts = Corpus::new(0).unwrap().texts(800).unwrap();
        let tokenizer = train(&texts, 512).unwrap();
        assert_eq!(tokenizer.get_vocab_size(true), 512);
        assert_eq!(tokenizer.token_to_id(END_OF_TEXT), Some(0));
        let strange = [
            "",
            "pH 7.28, 1024 ml/h",
            "naïve Ärzte 42 °C \n\ttab",
            "日本 🙂",
        ]
        .map(String::from);
        for text in texts.iter().take(200).chain(&strange) {
            let ids = tokenizer.encode(text.as_str(), false).unwrap();
            assert_eq!(&tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
        let number = tokenizer.encode("1024", false).unwrap();
        assert_eq!(number.get_tokens(), ["1", "0", "2", "4"]);
        let again = train(&texts, 512).unwrap();
        assert_eq!(
            tokenizer.to_string(false).unwrap(),
            again.to_string(false).unwrap()
        );
    }

    #[test]
    fn saved_file_loads() {
        let texts = Corpus::new(0).unwrap().texts(200).unwrap();
        let tokenizer = train(&texts, 320).unwrap();
        let folder = tempfile::tempdir().unwrap();
        save(&tokenizer, folder.path(), 256).unwrap();
        let loaded = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let text = "Heart rate 104, temperature 38.2.";
        assert_eq!(
            loaded.encode(text, false).unwrap().get_ids(),
            tokenizer.encode(text, false).unwrap().get_ids()
        );
    }
}
