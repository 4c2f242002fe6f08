//! Scores from the losses of single tokens. All are larger for likelier members.
//!
//! A unit's tokens are those of all its rows. Nothing here needs the model itself: whoever has token losses, of whatever model
//! and library, can attack.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::error::{AuditError, open_unit};

/// What is observed of one unit: `-ln p` of each of its tokens, under the attacked model and under a reference model, and the
/// size of its text when compressed.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// Token losses under the attacked model, in nats.
    pub target: Vec<f64>,
    /// Token losses of the same tokens under the reference model, such as the base model without its adapter.
    pub reference: Vec<f64>,
    /// Bytes of the unit's text after zlib, from [`compressed_bytes`].
    pub compressed: usize,
}

/// An attack that needs no model of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Signal {
    /// The mean token loss (Yeom et al. 2018).
    Loss,
    /// How far the mean token loss lies below the reference model's (Carlini et al. 2021; Watson et al. 2022).
    Reference,
    /// The summed loss over the size of the compressed text (Carlini et al. 2021): zlib's entropy stands for how hard the
    /// text is for anyone.
    Zlib,
    /// The mean over the share of tokens with the largest loss (Shi et al. 2024, "Min-K% Prob"); the share is in (0, 1].
    MinK(f64),
}

impl Signal {
    /// The attacks with the literature's settings.
    pub const ALL: [Self; 4] = [Self::Loss, Self::Reference, Self::Zlib, Self::MinK(0.2)];

    /// A name for tables.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Loss => "loss".to_owned(),
            Self::Reference => "reference".to_owned(),
            Self::Zlib => "zlib".to_owned(),
            Self::MinK(share) => format!("min-{:.0}%", 100.0 * share),
        }
    }

    /// The unit's score.
    ///
    /// # Errors
    /// [`AuditError::TooFew`] without tokens; [`AuditError::Observations`] if the reference has another number of them; a share
    /// outside (0, 1].
    pub fn score(&self, observed: &Observed) -> Result<f64, AuditError> {
        let losses = &observed.target;
        if losses.is_empty() {
            return Err(AuditError::TooFew {
                what: "tokens of a unit",
                found: 0,
                needed: 1,
            });
        }
        Ok(match self {
            Self::Loss => -mean(losses),
            Self::Reference => {
                if observed.reference.len() != losses.len() {
                    return Err(AuditError::Observations {
                        expected: losses.len(),
                        found: observed.reference.len(),
                    });
                }
                mean(&observed.reference) - mean(losses)
            }
            Self::Zlib => -losses.iter().sum::<f64>() / observed.compressed.max(1) as f64,
            Self::MinK(share) => {
                if *share != 1.0 {
                    open_unit("the share of tokens", *share)?;
                }
                let mut sorted = losses.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let count = ((share * losses.len() as f64).ceil() as usize).clamp(1, losses.len());
                -mean(&sorted[..count])
            }
        })
    }

    /// The scores of many units.
    ///
    /// # Errors
    /// As [`Signal::score`].
    pub fn scores(&self, observed: &[Observed]) -> Result<Vec<f64>, AuditError> {
        observed.iter().map(|one| self.score(one)).collect()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Bytes of a text after zlib at its best level.
#[must_use]
pub fn compressed_bytes(text: &str) -> usize {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    // Writing to memory cannot fail; were it to, the uncompressed size is an honest stand-in.
    encoder
        .write_all(text.as_bytes())
        .and_then(|()| encoder.finish())
        .map_or(text.len(), |bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn observed() -> Observed {
        Observed {
            target: vec![1.0, 4.0, 2.0, 0.5, 0.5],
            reference: vec![2.0, 4.0, 3.0, 0.5, 1.0],
            compressed: 16,
        }
    }

    #[test]
    fn each_signal_is_its_formula() {
        let one = observed();
        let close = |signal: Signal, value: f64| {
            let found = signal.score(&one).unwrap();
            assert!(
                (found - value).abs() < 1e-12,
                "{}: {found} is not {value}",
                signal.name()
            );
        };
        close(Signal::Loss, -1.6);
        close(Signal::Reference, 2.1 - 1.6);
        close(Signal::Zlib, -0.5);
        close(Signal::MinK(0.2), -4.0);
        // Two fifths and a bit are three tokens: a share is rounded up.
        close(Signal::MinK(0.41), -(4.0 + 2.0 + 1.0) / 3.0);
        close(Signal::MinK(1.0), -1.6);
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let empty = Observed {
            target: Vec::new(),
            ..observed()
        };
        assert!(Signal::Loss.score(&empty).is_err());
        let other = Observed {
            reference: vec![1.0],
            ..observed()
        };
        assert!(Signal::Reference.score(&other).is_err());
        assert!(Signal::MinK(0.0).score(&observed()).is_err());
        assert!(Signal::MinK(f64::NAN).score(&observed()).is_err());
    }

    #[test]
    fn repetition_compresses() {
        assert!(compressed_bytes(&"no news ".repeat(20)) < 40);
        assert!(compressed_bytes("") > 0);
    }
}
