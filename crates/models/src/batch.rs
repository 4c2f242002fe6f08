use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::ModelError;

/// Tokenised examples, padded on the right to one length.
///
/// At position `t` the model reads `input_ids[.., t]` and is scored on `targets[.., t]`, the next
/// token, where `mask[.., t]` is 1.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[examples, time]`.
    pub input_ids: Tensor<2, Int>,
    /// `[examples, time]`.
    pub targets: Tensor<2, Int>,
    /// `[examples, time]`: 1 where the target counts, 0 elsewhere.
    pub mask: Tensor<2>,
}

/// The tokens of one example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// All tokens, special ones included.
    pub tokens: Vec<u32>,
    /// How many tokens at the start are a prompt and do not count as targets.
    pub prompt: usize,
}

impl Row {
    /// An example of which every token counts.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self { tokens, prompt: 0 }
    }
}

impl Batch {
    /// Builds a batch as long as its longest row needs.
    ///
    /// A row of one token, or all prompt, has no target; its loss is zero.
    ///
    /// # Errors
    ///
    /// [`ModelError::InvalidBatch`] for no rows, or a row without tokens.
    pub fn from_rows(rows: &[Row], device: &Device) -> Result<Self, ModelError> {
        let invalid = |problem: &str| ModelError::InvalidBatch {
            problem: problem.to_owned(),
        };
        let longest = rows.iter().map(|row| row.tokens.len()).max();
        let time = longest
            .ok_or_else(|| invalid("a batch needs at least one row"))?
            .saturating_sub(1)
            .max(1);
        if rows.iter().any(|row| row.tokens.is_empty()) {
            return Err(invalid("a row has no tokens"));
        }
        let shape = [rows.len(), time];
        let (mut inputs, mut targets, mut mask) = (
            vec![0i64; rows.len() * time],
            vec![0i64; rows.len() * time],
            vec![0f32; rows.len() * time],
        );
        for (index, row) in rows.iter().enumerate() {
            let start = index * time;
            for (t, token) in row.tokens.iter().take(time).enumerate() {
                inputs[start + t] = i64::from(*token);
            }
            for (t, token) in row.tokens.iter().skip(1).enumerate() {
                targets[start + t] = i64::from(*token);
                mask[start + t] = if t + 1 >= row.prompt { 1.0 } else { 0.0 };
            }
        }
        Ok(Self {
            input_ids: Tensor::from_data(TensorData::new(inputs, shape), device),
            targets: Tensor::from_data(TensorData::new(targets, shape), device),
            mask: Tensor::from_data(TensorData::new(mask, shape), device),
        })
    }

    /// How many examples.
    pub fn examples(&self) -> usize {
        self.mask.dims()[0]
    }

    /// How many counted targets each example has.
    pub fn counts(&self) -> Tensor<1> {
        let examples = self.examples();
        self.mask.clone().sum_dim(1).reshape([examples])
    }
}
