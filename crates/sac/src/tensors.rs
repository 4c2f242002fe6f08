//! Named host tensors and the safetensors files they travel in.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::error::SacError;

/// One `f32` tensor on the host, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

/// Tensors by name. Linear weights are stored `[out, in]`, as PyTorch does, so that either side reads the other's files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorMap {
    tensors: BTreeMap<String, HostTensor>,
}

impl TensorMap {
    /// Adds a tensor, replacing one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, shape: Vec<usize>, values: Vec<f32>) {
        self.tensors
            .insert(name.into(), HostTensor { shape, values });
    }

    /// The tensor of that name and shape.
    ///
    /// # Errors
    ///
    /// [`SacError::MissingTensor`] or [`SacError::TensorMismatch`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&[f32], SacError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| SacError::MissingTensor {
                name: name.to_owned(),
            })?;
        if tensor.shape != shape || tensor.values.len() != shape.iter().product::<usize>() {
            return Err(SacError::TensorMismatch {
                name: name.to_owned(),
                actual: format!("{:?}", tensor.shape),
                expected: format!("{shape:?}"),
            });
        }
        Ok(&tensor.values)
    }

    /// Whether a tensor of that name is there.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HostTensor)> {
        self.tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
    }
}

struct Bytes<'a>(&'a HostTensor);

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(
            self.0
                .values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )
    }

    fn data_len(&self) -> usize {
        self.0.values.len() * 4
    }
}

/// Writes tensors and one metadata entry. The file appears whole or not at all: it is written beside its final place,
/// flushed to disk and renamed.
pub(crate) fn write(
    path: &Path,
    map: &TensorMap,
    key: &str,
    metadata: String,
) -> Result<(), SacError> {
    let views = map
        .tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), Bytes(tensor)));
    let header = HashMap::from([(key.to_owned(), metadata)]);
    let bytes = safetensors::serialize(views, Some(header)).map_err(|error| SacError::Format {
        path: path.to_owned(),
        expected: "safetensors file",
        reason: error.to_string(),
    })?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let io = |action: &'static str| {
        let path = path.to_owned();
        move |source| SacError::Io {
            action,
            path,
            source,
        }
    };
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
    if written.is_err() {
        // A partial file is of no use to anyone; the first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(io("write"))?;
    std::fs::rename(&temporary, path).map_err(io("rename the finished file to"))
}

/// Reads a file written by [`write`]: its tensors and the metadata entry `key`.
pub(crate) fn read(
    path: &Path,
    key: &str,
    expected: &'static str,
) -> Result<(TensorMap, String), SacError> {
    let bytes = std::fs::read(path).map_err(|source| SacError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    parse(&bytes, path, key, expected)
}

/// As [`read`], from the bytes of such a file; `path` is what errors call it.
pub(crate) fn parse(
    bytes: &[u8],
    path: &Path,
    key: &str,
    expected: &'static str,
) -> Result<(TensorMap, String), SacError> {
    let format = |reason: String| SacError::Format {
        path: path.to_owned(),
        expected,
        reason,
    };
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|error| format(error.to_string()))?;
    let metadata = header
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(key))
        .cloned()
        .ok_or_else(|| format(format!("no `{key}` entry in its header")))?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| format(error.to_string()))?;
    let mut map = TensorMap::default();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(SacError::TensorMismatch {
                name,
                actual: format!("{:?}", view.dtype()),
                expected: "F32".to_owned(),
            });
        }
        let values = view
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&chunk| f32::from_le_bytes(chunk))
            .collect();
        map.insert(name, view.shape().to_vec(), values);
    }
    Ok((map, metadata))
}
