//! The pre-trained policy that the crate ships.

use rldp_sac::Sac;

use crate::error::RldpError;

/// The policy file: 61 episodes of `pretrain_policy --curriculum examples/assets/studies/policy.toml`, on generated notes and E2E
/// restaurant descriptions alone (docs/results/compare/README.md).
const POLICY: &[u8] = include_bytes!("policy.safetensors");

/// Loads the shipped policy into an agent whose networks it fits; leaves any other agent, one with wider layers say, as it is.
pub(super) fn load(sac: &mut Sac) -> Result<(), RldpError> {
    // The loader maps files into memory.
    let write = |error: std::io::Error| RldpError::File {
        path: std::env::temp_dir(),
        source: error,
    };
    let mut file = tempfile::NamedTempFile::new().map_err(write)?;
    std::io::Write::write_all(&mut file, POLICY).map_err(write)?;
    match sac.load_policy(file.path()) {
        Ok(_) | Err(rldp_sac::SacError::Config { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
