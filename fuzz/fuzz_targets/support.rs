//! Shared by the targets whose readers end in tensors: a file in the temporary folder, and a header length that fits.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use rldp_models::{Gpt2, Gpt2Config};

/// A folder of this process in the temporary folder, which stays: a fuzzer ends by being killed.
pub fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("rldp-fuzz-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    folder
}

/// The bytes of a safetensors file: as they are if the first byte is even, else with the header length that reaches to the
/// last closing brace, so that mutations of the header get behind its length.
pub fn tensor_file(bytes: &[u8]) -> Vec<u8> {
    let Some((first, rest)) = bytes.split_first() else {
        return Vec::new();
    };
    let mut file = rest.to_vec();
    if first % 2 == 1
        && file.len() > 8
        && let Some(end) = file[8..].windows(2).rposition(|pair| pair == b"}}")
    {
        file[..8].copy_from_slice(&(end as u64 + 2).to_le_bytes());
    }
    file
}

/// Writes a good input into the folder that `RLDP_FUZZ_SEEDS` names, if it does: where the files in `seeds/` come from.
pub fn seed(name: &str, bytes: &[u8]) {
    if let Some(folder) = std::env::var_os("RLDP_FUZZ_SEEDS") {
        std::fs::write(PathBuf::from(folder).join(name), bytes).expect("the folder is there");
    }
}

/// A safetensors file as an input of [`tensor_file`].
pub fn seed_tensors(name: &str, path: &Path) {
    let file = std::fs::read(path).expect("it was just written");
    for (ending, first) in [("as-is", 0), ("mended", 1)] {
        seed(&format!("{name}-{ending}"), &[&[first], &file[..]].concat());
    }
}

/// The tiny model that adapters are read into.
pub fn model() -> Gpt2 {
    Gpt2::random(&Gpt2Config::new(13, 8, 1, 4, 2), 3, &Device::default())
        .expect("the settings are good")
}
