//! Losses of single tokens.

use burn::tensor::Device;
use burn::tensor::activation::log_softmax;
use rldp_models::{Batch, LanguageModel, Row};

use crate::error::RldpError;

/// Numbers in the logits of one batch at most: 256 MB of f32.
const MOST_LOGITS: usize = 1 << 26;

/// `-ln p` in nats of every token of every row but the row's first, under `model`. Rows of fewer than two tokens have none.
///
/// # Errors
/// [`RldpError::Model`] for a row without tokens.
pub fn token_losses<M: LanguageModel>(
    model: &M,
    rows: &[&[u32]],
    micro_batch: usize,
    device: &Device,
) -> Result<Vec<Vec<f64>>, RldpError> {
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(1);
    let fitting = MOST_LOGITS / (longest * model.vocabulary()).max(1);
    let micro_batch = micro_batch.min(fitting).max(1);
    // Rows of like length share a batch, so that little padding is computed.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|index| rows[*index].len());
    let mut losses = vec![Vec::new(); rows.len()];
    for chunk in order.chunks(micro_batch) {
        let tokens: Vec<Row> = chunk
            .iter()
            .map(|index| Row::new(rows[*index].to_vec()))
            .collect();
        let batch = Batch::from_rows(&tokens, device)?;
        let [count, time] = batch.mask.dims();
        let picked = log_softmax(model.forward(batch.input_ids), 2)
            .gather(2, batch.targets.unsqueeze_dim::<3>(2))
            .reshape([count, time]);
        let values: Vec<f32> = picked.into_data().iter::<f32>().collect();
        for (place, index) in chunk.iter().enumerate() {
            let length = rows[*index].len().saturating_sub(1);
            losses[*index] = values[place * time..place * time + length]
                .iter()
                .map(|value| -f64::from(*value))
                .collect();
        }
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rldp_models::{Gpt2, Gpt2Config};

    use super::*;

    #[test]
    fn they_add_up_to_the_models_own_loss_whatever_the_batches() {
        let device = Device::default();
        let model = Gpt2::random(&Gpt2Config::new(31, 16, 2, 8, 2), 3, &device).unwrap();
        let rows: [&[u32]; 4] = [&[1, 2, 3, 4, 5, 6], &[7, 8], &[9], &[3, 1, 4, 1]];
        for micro_batch in [1, 2, 64] {
            let found = token_losses(&model, &rows, micro_batch, &device).unwrap();
            for (row, losses) in rows.iter().zip(&found) {
                assert_eq!(losses.len(), row.len() - 1);
                let batch = Batch::from_rows(&[Row::new(row.to_vec())], &device).unwrap();
                let sum: f32 = model.per_example_token_loss(&batch).sums.into_scalar();
                let total: f64 = losses.iter().sum();
                assert!(
                    (total - f64::from(sum)).abs() < 1e-4,
                    "{total} is not {sum}"
                );
            }
        }
        assert!(token_losses(&model, &[&[]], 1, &device).is_err());
        assert!(token_losses(&model, &[], 1, &device).unwrap().is_empty());
    }
}
