//! Clipping in coordinates that follow the gradients' own spread.

use std::path::Path;

use rldp_optim::{AdaClip, AdaClipOptions, AffineTransform, Layout};

use super::{AdaClipRivalOptions, positive};
use crate::controller::{ClipCounts, Controller, Decision, Observation, Outcome, StepView};
use crate::error::RldpError;

/// The estimates' file in a checkpoint: means and variances in turn, as 64-bit floats, little-endian.
const ESTIMATES_FILE: &str = "adaclip.bin";
/// The name of the one group.
const ALL: &str = "all";

/// AdaCliP (Pichapati et al. 2019, Algorithm 1): every unit's gradient is shifted by a running mean and divided by
/// `b_j = sqrt(s_j) sqrt(s_1 + ... + s_d)` coordinate by coordinate, clipped to norm 1 over all parameters, summed, noised, and
/// turned back. Mean and deviations s follow from the releases.
#[derive(Clone, Debug)]
pub struct AdaClipController {
    norm: f64,
    estimates: AdaClip,
}

impl AdaClipController {
    /// The rival for adapters of these dimensions. It looks at nothing but releases and pays for nothing.
    ///
    /// # Errors
    /// [`RldpError::NoAdapters`]; [`RldpError::OutOfRange`] or [`RldpError::Optim`] for a number out of range.
    pub fn new(dimensions: &[usize], options: &AdaClipRivalOptions) -> Result<Self, RldpError> {
        if dimensions.is_empty() {
            return Err(RldpError::NoAdapters);
        }
        let [low, high] = [options.smallest_variance, options.largest_variance];
        positive("the smallest variance of AdaClip", low)?;
        positive("the largest variance of AdaClip", high)?;
        let layout = Layout::new([(ALL, dimensions.to_vec())]);
        let deviation = options
            .initial_deviation
            .unwrap_or_else(|| (low * high).sqrt().sqrt());
        Ok(Self {
            norm: positive("the clipping norm of AdaClip", options.clipping_norm)?,
            estimates: AdaClip::new(
                &layout,
                AdaClipOptions {
                    mean_decay: options.mean_decay,
                    variance_decay: options.variance_decay,
                    initial_deviation: deviation,
                    variance_bounds: [low, high],
                },
            )?,
        })
    }
}

impl Controller for AdaClipController {
    fn name(&self) -> &'static str {
        "adaclip"
    }

    fn decide(&mut self, _observation: &Observation) -> Result<Decision, RldpError> {
        Ok(Decision {
            clip_counts: ClipCounts::None,
            ..Decision::flat(self.norm)
        })
    }

    fn transforms(&self) -> Result<Option<Vec<AffineTransform>>, RldpError> {
        Ok(Some(self.estimates.transforms()?))
    }

    fn step(&mut self, step: &StepView<'_>, _decision: &mut Decision) -> Result<(), RldpError> {
        let release = step.release.clone().joined(ALL);
        Ok(self.estimates.update(step.plan, &release)?)
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    fn save_state(&self, folder: &Path) -> Result<serde_json::Value, RldpError> {
        let path = folder.join(ESTIMATES_FILE);
        let numbers = self.estimates.estimates();
        let bytes: Vec<u8> = numbers
            .iter()
            .flatten()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        std::fs::write(&path, bytes).map_err(|source| RldpError::File { path, source })?;
        Ok(serde_json::Value::from(numbers.len()))
    }

    fn restore_state(&mut self, state: &serde_json::Value, folder: &Path) -> Result<(), RldpError> {
        let path = folder.join(ESTIMATES_FILE);
        let damaged = |reason: String| RldpError::Damaged {
            path: path.clone(),
            reason,
        };
        let bytes = std::fs::read(&path).map_err(|source| RldpError::File {
            path: path.clone(),
            source,
        })?;
        let (pairs, rest) = bytes.as_chunks::<16>();
        if !rest.is_empty() || state.as_u64() != Some(pairs.len() as u64) {
            return Err(damaged("not the estimates that were saved".to_owned()));
        }
        let estimates: Vec<[f64; 2]> = pairs
            .iter()
            .map(|pair| {
                let (numbers, _) = pair.as_chunks::<8>();
                [
                    f64::from_le_bytes(numbers[0]),
                    f64::from_le_bytes(numbers[1]),
                ]
            })
            .collect();
        self.estimates
            .set_estimates(&estimates)
            .map_err(|error| damaged(error.to_string()))
    }
}
