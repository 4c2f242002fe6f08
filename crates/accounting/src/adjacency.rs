//! Neighbouring relations, as a type and never as a silent default.

use serde::{Deserialize, Serialize};

use crate::error::AccountingError;
use crate::segment::Segment;

/// Which two tables count as neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Adjacency {
    /// One unit is added or removed.
    AddRemove,
    /// One unit's contribution is replaced by zero. With a sum divided by the expected (public) batch size this has the
    /// dominating pairs of add/remove.
    ZeroOut,
    /// One unit is replaced by another: twice the sensitivity. Known here only without subsampling; under Poisson sampling
    /// it is refused.
    ReplaceOne,
}

impl std::fmt::Display for Adjacency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::AddRemove => "add/remove",
            Self::ZeroOut => "zero-out",
            Self::ReplaceOne => "replace-one",
        })
    }
}

impl Adjacency {
    /// The add/remove segment with the same dominating pairs.
    ///
    /// # Errors
    /// [`AccountingError::AdjacencyUndefined`] for replace-one under Poisson sampling.
    pub fn as_add_remove(self, segment: &Segment) -> Result<Segment, AccountingError> {
        match self {
            Self::AddRemove | Self::ZeroOut => Ok(*segment),
            Self::ReplaceOne
                if segment.sampling_rate() == 1.0 || segment.sampling_rate() == 0.0 =>
            {
                segment.scaled(0.5)
            }
            Self::ReplaceOne => Err(AccountingError::AdjacencyUndefined {
                adjacency: self,
                sampling_rate: segment.sampling_rate(),
            }),
        }
    }

    /// [`Adjacency::as_add_remove`] for a sequence.
    ///
    /// # Errors
    /// As for one segment.
    pub fn all_as_add_remove(self, segments: &[Segment]) -> Result<Vec<Segment>, AccountingError> {
        segments.iter().map(|s| self.as_add_remove(s)).collect()
    }
}
