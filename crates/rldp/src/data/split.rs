//! Training, validation and test parts, by unit.

use std::fmt;

use super::error::DataError;
use super::key::DataKey;
use super::unit::UnitId;

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// What the model learns from.
    Train,
    /// What decisions during training are taken on, through a budget of its own.
    Validation,
    /// What the final figures are measured on, through a budget of its own.
    Test,
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

/// How large the parts are on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fractions {
    train: f64,
    validation: f64,
}

impl Default for Fractions {
    /// 80 % training, 10 % validation, 10 % test.
    fn default() -> Self {
        Self {
            train: 0.8,
            validation: 0.1,
        }
    }
}

impl Fractions {
    /// Three fractions that add up to one.
    ///
    /// # Errors
    /// [`DataError::Fractions`] if one is negative or not a number, if there is no training part, or if the sum is
    /// off by more than 1e-9.
    pub fn new(train: f64, validation: f64, test: f64) -> Result<Self, DataError> {
        let sound = train > 0.0
            && validation >= 0.0
            && test >= 0.0
            && (train + validation + test - 1.0).abs() <= 1e-9;
        if !sound {
            return Err(DataError::Fractions {
                train,
                validation,
                test,
            });
        }
        Ok(Self { train, validation })
    }

    /// Part for training.
    #[must_use]
    pub fn train(&self) -> f64 {
        self.train
    }

    /// Part for validation.
    #[must_use]
    pub fn validation(&self) -> f64 {
        self.validation
    }

    /// Part for the test.
    #[must_use]
    pub fn test(&self) -> f64 {
        (1.0 - self.train - self.validation).max(0.0)
    }
}

/// Assigns units to parts.
///
/// # Guarantee
/// A unit's part is a function of its own id, the key and the fractions, and of nothing else: not of other units, their
/// number or their order. So adding or removing one unit changes one part, by that unit, and the mechanisms run on
/// the three parts compose in parallel. This holds whether or not the key is known.
pub struct Splitter {
    key: [u8; 32],
    fractions: Fractions,
}

impl Splitter {
    /// A splitter under a key derived from `key`.
    #[must_use]
    pub fn new(key: &DataKey, fractions: Fractions) -> Self {
        Self {
            key: key.split_key(),
            fractions,
        }
    }

    /// The unit's part.
    #[must_use]
    pub fn part(&self, id: &UnitId) -> Part {
        let hash = blake3::keyed_hash(&self.key, id.as_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        // 53 bits, so that the quotient is exact.
        let uniform =
            (u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 11) as f64 / (1u64 << 53) as f64;
        // Compared from above, so that a test part of zero stays empty whatever the rounding of the sum.
        if uniform < self.fractions.train {
            Part::Train
        } else if uniform < 1.0 - self.fractions.test() {
            Part::Validation
        } else {
            Part::Test
        }
    }
}

impl fmt::Debug for Splitter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Splitter")
            .field("fractions", &self.fractions)
            .finish_non_exhaustive()
    }
}
