//! What a resumed run is recognised by: the encoded data and the base model.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Int, Tensor, TensorData};

use super::examples::TokenUnit;
use crate::data::DataKey;

const TOKENS_CONTEXT: &str = "rldp 2026 data key to token fingerprint key";

/// A fingerprint of the units as the model is trained on them: 64 hexadecimal digits. It changes with the template, the
/// columns, the split, the tokenizer and the limits on rows, where the table's own [`fingerprint`](crate::data::fingerprint)
/// does not.
///
/// # Guarantee
/// The hash is keyed: whoever does not hold the key learns nothing from it.
#[must_use]
pub fn token_fingerprint(parts: &[&[TokenUnit]], key: &DataKey) -> String {
    let mut hasher = blake3::Hasher::new_keyed(&key.derived(TOKENS_CONTEXT));
    let mut number = |value: usize| {
        hasher.update(&(value as u64).to_le_bytes());
    };
    number(parts.len());
    for units in parts {
        number(units.len());
        for unit in *units {
            number(unit.rows.len());
            for row in &unit.rows {
                number(row.len());
                row.iter().for_each(|token| number(*token as usize));
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// A fingerprint of a model's weights, in the model's own order: 64 hexadecimal digits. Take it before adapters are added.
/// It is not keyed: base models are public.
#[must_use]
pub fn model_fingerprint<M: Module>(model: &M) -> String {
    struct Weights(blake3::Hasher);
    impl Weights {
        fn add(&mut self, data: &TensorData) {
            let shape = data.shape().to_vec();
            self.0
                .update(format!("{:?} {shape:?};", data.dtype()).as_bytes());
            self.0.update(data.as_bytes());
        }
    }
    impl ModuleVisitor for Weights {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.add(&param.val().without_autodiff().into_data());
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            self.add(&param.val().into_data());
        }
        fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
            self.add(&param.val().into_data());
        }
    }
    let mut weights = Weights(blake3::Hasher::new());
    model.visit(&mut weights);
    weights.0.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(rows: &[&[u32]]) -> TokenUnit {
        TokenUnit {
            rows: rows.iter().map(|row| row.to_vec()).collect(),
        }
    }

    #[test]
    fn no_two_ways_to_cut_the_same_tokens_agree() {
        let key = DataKey::from_seed(1);
        let all = [
            vec![vec![unit(&[&[1, 2], &[3]])]],
            vec![vec![unit(&[&[1], &[2, 3]])]],
            vec![vec![unit(&[&[1, 2]]), unit(&[&[3]])]],
            vec![vec![unit(&[&[1, 2, 3]])]],
            vec![vec![], vec![unit(&[&[1, 2], &[3]])]],
        ]
        .map(|parts| {
            let parts: Vec<&[TokenUnit]> = parts.iter().map(Vec::as_slice).collect();
            token_fingerprint(&parts, &key)
        });
        for (index, fingerprint) in all.iter().enumerate() {
            assert!(!all[..index].contains(fingerprint), "{index}");
        }
        let units = [unit(&[&[1, 2], &[3]])];
        let other = token_fingerprint(&[&units], &DataKey::from_seed(2));
        assert_ne!(all[0], other, "the key takes no part");
    }
}
