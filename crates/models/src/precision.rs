use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// The type a model's matrices are held in: linear weights, embeddings, the output projection.
///
/// Arithmetic is in f32 and adapters are f32 in any case; norms and biases too. Half precision halves
/// the memory of the base model. It is meant for frozen weights: training all parameters in it loses
/// small updates.
///
/// # Precision
///
/// Values stored as f16 or bf16 are held without loss, so [`Self::Stored`] computes the same as
/// [`Self::F32`] on such a file. [`Self::Bf16`] rounds others to 8 significant bits: relative 2^-9.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightPrecision {
    /// f32, whatever the file holds.
    #[default]
    F32,
    /// The file's own type: f32, f16 or bf16.
    Stored,
    /// bf16; f32 and f16 are rounded to nearest, ties to even.
    Bf16,
}

impl WeightPrecision {
    const NAMES: [(&'static str, Self); 3] = [
        ("f32", Self::F32),
        ("stored", Self::Stored),
        ("bf16", Self::Bf16),
    ];
}

impl fmt::Display for WeightPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, value)| value == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for WeightPrecision {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| ModelError::InvalidOption {
                name: "weights",
                requirement: "f32, stored or bf16",
                value: text.to_owned(),
            })
    }
}

/// Refuses a type the device's backend has no tensors of.
pub(crate) fn check_supported(
    tensor: &str,
    dtype: DType,
    device: &Device,
) -> Result<(), ModelError> {
    match device.supports_dtype(dtype) {
        true => Ok(()),
        false => Err(ModelError::UnsupportedPrecision {
            tensor: tensor.to_owned(),
            dtype: format!("{dtype:?}"),
            device: format!("{device:?}"),
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::WeightPrecision;

    #[test]
    fn names_are_read_and_others_refused() {
        for (name, value) in WeightPrecision::NAMES {
            assert_eq!(name.parse::<WeightPrecision>().unwrap(), value);
            assert_eq!(value.to_string(), name);
            let json = serde_json::to_string(&value).unwrap();
            assert_eq!(json, format!("\"{name}\""));
        }
        let refused = "int4".parse::<WeightPrecision>().unwrap_err().to_string();
        assert!(refused.contains("f32, stored or bf16"), "{refused}");
    }
}
