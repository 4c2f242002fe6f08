//! Reading `config.json` so that no setting is silently ignored.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ModelError;

/// Settings without influence on what the model computes here: bookkeeping, defaults of other
/// tools, ids of special tokens (read separately), and the base model's own dropouts, which are not
/// applied (adapters have their own).
const INERT: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "bos_token_id",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_length",
    "model_type",
    "output_past",
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
];

/// The settings of a `config.json`, taken out one by one; what is left at the end is an error.
#[derive(Debug, Clone)]
pub struct Settings {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`ModelError::Io`] or [`ModelError::Json`].
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
            path: path.to_owned(),
            source,
        })?;
        let fields = serde_json::from_str(&text).map_err(|source| ModelError::Json {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            fields,
        })
    }

    /// Settings from memory; `path` appears in error messages.
    pub fn from_map(path: &Path, fields: Map<String, Value>) -> Self {
        Self {
            path: path.to_owned(),
            fields,
        }
    }

    /// A setting's value without taking it.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether a setting is there, be it null.
    pub fn contains(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// Takes a setting; null counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a whole number.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedSetting`] for a value of another kind.
    pub fn take_usize(&mut self, name: &str) -> Result<Option<usize>, ModelError> {
        self.take_as(name, "a whole number", |value| {
            value.as_u64().and_then(|value| usize::try_from(value).ok())
        })
    }

    /// Takes a whole number above zero that must be there.
    ///
    /// # Errors
    ///
    /// [`ModelError::MissingSetting`] or [`ModelError::UnsupportedSetting`].
    pub fn require_usize(&mut self, name: &str) -> Result<usize, ModelError> {
        let value = self
            .take_usize(name)?
            .ok_or_else(|| ModelError::MissingSetting {
                path: self.path.clone(),
                name: name.to_owned(),
            })?;
        if value == 0 {
            return Err(self.refuse(name, &Value::from(0), "must be above 0"));
        }
        Ok(value)
    }

    /// Takes a finite number.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedSetting`] for a value of another kind.
    pub fn take_f64(&mut self, name: &str) -> Result<Option<f64>, ModelError> {
        self.take_as(name, "a number", Value::as_f64)
    }

    /// Takes a truth value.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedSetting`] for a value of another kind.
    pub fn take_bool(&mut self, name: &str) -> Result<Option<bool>, ModelError> {
        self.take_as(name, "true or false", Value::as_bool)
    }

    /// Takes a text.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedSetting`] for a value of another kind.
    pub fn take_string(&mut self, name: &str) -> Result<Option<String>, ModelError> {
        self.take_as(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// Takes a setting of which only one value is implemented.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedSetting`] for any other.
    pub fn only(&mut self, name: &str, value: impl Into<Value>) -> Result<(), ModelError> {
        let accepted = value.into();
        match self.take(name) {
            Some(found) if found != accepted => {
                Err(self.refuse(name, &found, &format!("only {accepted} is")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses whatever has not been taken, except settings without influence.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedSetting`] naming the first one.
    pub fn finish(self) -> Result<(), ModelError> {
        let unknown = self.fields.iter().find(|(name, value)| {
            !value.is_null() && !name.starts_with('_') && !INERT.contains(&name.as_str())
        });
        match unknown {
            Some((name, value)) => Err(self.refuse(name, value, "it is not known to this crate")),
            None => Ok(()),
        }
    }

    /// The error that refuses a setting; `reason` explains in a few words.
    pub fn refuse(&self, name: &str, value: &Value, reason: &str) -> ModelError {
        ModelError::UnsupportedSetting {
            path: self.path.clone(),
            name: name.to_owned(),
            value: value.to_string(),
            hint: format!(" ({reason})"),
        }
    }

    /// The architecture's name.
    ///
    /// # Errors
    ///
    /// [`ModelError::MissingSetting`], or [`ModelError::UnsupportedSetting`] when `architectures`
    /// says that the checkpoint is not a causal language model.
    pub fn model_type(&self) -> Result<String, ModelError> {
        if let Some(Value::Array(list)) = self.peek("architectures") {
            let causal = |name: &Value| {
                name.as_str().is_some_and(|name| {
                    name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel")
                })
            };
            if !list.is_empty() && !list.iter().any(causal) {
                let value = Value::from(list.clone());
                return Err(self.refuse("architectures", &value, "not a causal language model"));
            }
        }
        self.peek("model_type")
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| ModelError::MissingSetting {
                path: self.path.clone(),
                name: "model_type".to_owned(),
            })
    }

    /// The ids of special tokens.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnsupportedSetting`] for something that is not an id or a list of ids.
    pub fn special_tokens(&self) -> Result<SpecialTokens, ModelError> {
        let ids = |name: &str| -> Result<Vec<u32>, ModelError> {
            let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
            let ids = match self.peek(name) {
                None => Some(Vec::new()),
                Some(Value::Array(list)) => list.iter().map(id).collect(),
                // Some configurations write -1 for "none".
                Some(value) if value.as_i64() == Some(-1) => Some(Vec::new()),
                Some(value) => id(value).map(|id| vec![id]),
            };
            ids.ok_or_else(|| {
                let value = self.peek(name).cloned().unwrap_or_default();
                self.refuse(name, &value, "expected a token id or a list of them")
            })
        };
        Ok(SpecialTokens {
            bos: ids("bos_token_id")?.first().copied(),
            eos: ids("eos_token_id")?,
            pad: ids("pad_token_id")?.first().copied(),
        })
    }

    fn take_as<T>(
        &mut self,
        name: &str,
        kind: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match read(&value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.refuse(name, &value, &format!("expected {kind}"))),
        }
    }
}

/// Ids of the tokens with a meaning of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Ends of text; some models have several.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
}
