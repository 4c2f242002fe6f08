//! The pre-trained policy that the crate ships.

use rldp_sac::Sac;

use crate::error::RldpError;

/// The policy file: 238 episodes of `pretrain_policy --curriculum examples/assets/studies/policy.toml`, on generated notes and E2E
/// restaurant descriptions alone (docs/results/compare/README.md).
const POLICY: &[u8] = include_bytes!("policy.safetensors");

/// The bytes of the shipped policy's file.
#[must_use]
pub fn shipped_policy() -> &'static [u8] {
    POLICY
}

/// Loads the shipped policy into an agent whose networks it fits; leaves any other agent, one with wider layers say, as it is.
pub(super) fn load(sac: &mut Sac) -> Result<(), RldpError> {
    match sac.load_policy_bytes(POLICY) {
        Ok(_) | Err(rldp_sac::SacError::Config { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
