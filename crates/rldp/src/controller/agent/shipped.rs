//! The pre-trained policy that the crate ships.

use rldp_sac::Sac;

use crate::error::RldpError;

/// The policy file, made by `pretrain_policy` on public and synthetic text; `None` while there is none, and agents then start
/// from the warm-up rule.
const POLICY: Option<&[u8]> = None;

/// Loads the shipped policy into an agent whose networks it fits; leaves any other agent, one with wider layers say, as it is.
pub(super) fn load(sac: &mut Sac) -> Result<(), RldpError> {
    let Some(bytes) = POLICY else {
        return Ok(());
    };
    // The loader maps files into memory.
    let write = |error: std::io::Error| RldpError::File {
        path: std::env::temp_dir(),
        source: error,
    };
    let mut file = tempfile::NamedTempFile::new().map_err(write)?;
    std::io::Write::write_all(&mut file, bytes).map_err(write)?;
    match sac.load_policy(file.path()) {
        Ok(_) | Err(rldp_sac::SacError::Config { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
