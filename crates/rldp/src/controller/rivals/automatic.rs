//! Automatic clipping: every gradient is normalised, so there is no norm to tune.

use super::{AutomaticOptions, positive};
use crate::controller::{
    ClipCounts, Clipping, Controller, Decision, Observation, Outcome, stateless,
};
use crate::error::RldpError;

/// AUTO-S of Bu et al. 2023 (equation 4.1): every unit's gradient is multiplied by `R / (norm + gamma)`.
#[derive(Clone, Debug)]
pub struct AutomaticController {
    options: AutomaticOptions,
}

impl AutomaticController {
    /// The rival. It looks at nothing and pays for nothing.
    ///
    /// # Errors
    /// [`RldpError::OutOfRange`] for a norm that is not positive, or a negative stability.
    pub fn new(options: AutomaticOptions) -> Result<Self, RldpError> {
        positive("the automatic clipping norm", options.clipping_norm)?;
        if !(options.stability.is_finite() && options.stability >= 0.0) {
            return Err(RldpError::OutOfRange {
                what: "the stability of automatic clipping",
                value: options.stability,
                range: "[0, infinity)",
            });
        }
        Ok(Self { options })
    }
}

impl Controller for AutomaticController {
    fn name(&self) -> &'static str {
        "automatic"
    }

    fn decide(&mut self, observation: &Observation) -> Result<Decision, RldpError> {
        let adapters = observation.adapters.len();
        let norm = self.options.clipping_norm;
        let decision = if self.options.per_adapter {
            let count = adapters.max(1) as f64;
            Decision::per_adapter(vec![norm; adapters], vec![1.0 / count; adapters])
        } else {
            Decision::flat(norm)
        };
        Ok(Decision {
            clipping: Clipping {
                flat: !self.options.per_adapter,
                normalize: Some(self.options.stability),
            },
            clip_counts: ClipCounts::None,
            ..decision
        })
    }

    fn outcome(&mut self, _outcome: &Outcome) -> Result<(), RldpError> {
        Ok(())
    }

    stateless!();
}
