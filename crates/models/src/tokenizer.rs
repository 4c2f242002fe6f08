use std::fmt;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::ModelError;

/// GPT-2's only special token.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Text to token ids and back, as the model's authors defined it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    path: PathBuf,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocabulary", &self.vocabulary())
            .finish()
    }
}

impl Tokenizer {
    /// The tokenizer of a model folder, if there is one: `tokenizer.json`, or GPT-2's `vocab.json`
    /// with `merges.txt`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`] for a file that cannot be read.
    pub fn find(folder: &Path) -> Result<Option<Self>, ModelError> {
        let path = folder.join("tokenizer.json");
        if path.is_file() {
            return Self::from_file(&path).map(Some);
        }
        let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        if vocabulary.is_file() && merges.is_file() {
            return Self::from_vocabulary(&vocabulary, &merges).map(Some);
        }
        Ok(None)
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`].
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let mut inner = Inner::from_file(path).map_err(|error| failure(path, error))?;
        // Cutting and padding are the batch's business; a file may ask for both.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|error| failure(path, error))?;
        Ok(Self {
            inner,
            path: path.to_owned(),
        })
    }

    /// Builds GPT-2's byte-level tokenizer from its two files.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`].
    pub fn from_vocabulary(vocabulary: &Path, merges: &Path) -> Result<Self, ModelError> {
        let fail = |error| failure(vocabulary, error);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let model = BPE::from_file(&text(vocabulary), &text(merges))
            .build()
            .map_err(fail)?;
        let mut inner = Inner::new(model);
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::default()));
        if inner.token_to_id(END_OF_TEXT).is_some() {
            inner.add_special_tokens(&[AddedToken::from(END_OF_TEXT, true)]);
        }
        Ok(Self {
            inner,
            path: vocabulary.to_owned(),
        })
    }

    /// The ids of a text, with the special tokens the tokenizer adds (such as a first `<s>`) or
    /// without.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`] for text the model's vocabulary cannot express.
    pub fn encode(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, special_tokens);
        let encoding = encoding.map_err(|error| failure(&self.path, error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, without special tokens.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner
            .decode(ids, true)
            .map_err(|error| failure(&self.path, error))
    }

    /// How many tokens there are, special ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, if there is one.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, if there is one.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Writes a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Tokenizer`].
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        self.inner
            .save(path, false)
            .map_err(|error| failure(path, error))
    }
}

fn failure(path: &Path, error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
