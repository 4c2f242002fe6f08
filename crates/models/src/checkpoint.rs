//! Weights from Hugging Face checkpoints, one file or several, with every tensor accounted for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;
use rldp_lora::{LoraError, TensorFile};
use serde::Deserialize;

use crate::ModelError;
use crate::precision::{WeightPrecision, check_supported};

/// The usual name of a checkpoint in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The usual name of the index of a checkpoint in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the checkpoint taken so far.
    pub loaded_bytes: u64,
    /// Bytes of the whole checkpoint.
    pub total_bytes: u64,
}

/// Where a model's weights come from: a checkpoint, or a random start.
pub trait Weights {
    /// The tensor called `name`, in the shape the model needs.
    ///
    /// # Errors
    ///
    /// A checkpoint's: missing, of the wrong shape or type, or with non-finite values.
    fn take<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        start: Start,
    ) -> Result<Tensor<D>, ModelError>;
}

/// How a weight starts when a model is trained from nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean zero and this standard deviation.
    Normal(f64),
}

/// An open checkpoint from which tensors are taken one by one.
pub struct Checkpoint<'a> {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// From the name the model uses to the file and the name there.
    tensors: BTreeMap<String, (usize, String)>,
    device: Device,
    precision: WeightPrecision,
    progress: Progress,
    report: &'a mut dyn FnMut(Progress),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl<'a> Checkpoint<'a> {
    /// Opens the checkpoint of a model folder and checks all its headers.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoWeights`], [`ModelError::MissingShard`], [`ModelError::DuplicateTensor`], or
    /// a broken file's [`ModelError::Lora`].
    pub fn open(
        folder: &Path,
        device: &Device,
        report: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        let index = folder.join(INDEX_FILE);
        let names = if folder.join(SINGLE_FILE).is_file() {
            vec![SINGLE_FILE.to_owned()]
        } else if index.is_file() {
            shards(folder, &index)?
        } else {
            return Err(ModelError::NoWeights {
                folder: folder.to_owned(),
                hint: if folder.join("pytorch_model.bin").is_file() {
                    "; pytorch_model.bin is a Python pickle, which is not read: convert it to safetensors"
                } else {
                    ""
                },
            });
        };
        let files = names
            .iter()
            .map(|name| TensorFile::open(&folder.join(name)))
            .collect::<Result<Vec<_>, _>>()?;
        Self::from_files(folder, files, device, report)
    }

    /// A checkpoint made of one named file, whatever the folder's other contents.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn open_file(
        file: &Path,
        device: &Device,
        report: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        let folder = file.parent().unwrap_or(Path::new(""));
        Self::from_files(folder, vec![TensorFile::open(file)?], device, report)
    }

    fn from_files(
        folder: &Path,
        files: Vec<TensorFile>,
        device: &Device,
        report: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        let mut tensors = BTreeMap::new();
        let mut total = 0;
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                total += file.bytes(&name).unwrap_or_default() as u64;
                if tensors
                    .insert(name.clone(), (index, name.clone()))
                    .is_some()
                {
                    return Err(ModelError::DuplicateTensor {
                        folder: folder.to_owned(),
                        tensor: name,
                    });
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            tensors,
            device: device.clone().without_autodiff(),
            precision: WeightPrecision::F32,
            progress: Progress {
                loaded_bytes: 0,
                total_bytes: total,
            },
            report,
        })
    }

    /// The same checkpoint with its matrices held in another type than f32.
    #[must_use]
    pub fn with_precision(mut self, precision: WeightPrecision) -> Self {
        self.precision = precision;
        self
    }

    /// The device the tensors go to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether a tensor is there and not yet taken.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Renames tensors to the names the model uses, and drops those for which `rename` gives
    /// nothing: buffers that are no weights.
    ///
    /// # Errors
    ///
    /// [`ModelError::DuplicateTensor`] when two names become one.
    pub fn rename(&mut self, rename: impl Fn(&str) -> Option<String>) -> Result<(), ModelError> {
        for (name, place) in std::mem::take(&mut self.tensors) {
            let Some(name) = rename(&name) else {
                continue;
            };
            if self.tensors.insert(name.clone(), place).is_some() {
                return Err(ModelError::DuplicateTensor {
                    folder: self.folder.clone(),
                    tensor: name,
                });
            }
        }
        Ok(())
    }

    /// Ends the load.
    ///
    /// # Errors
    ///
    /// [`ModelError::UnexpectedTensor`] naming a tensor that nobody took.
    pub fn finish(self) -> Result<(), ModelError> {
        match self.tensors.into_keys().next() {
            Some(tensor) => Err(ModelError::UnexpectedTensor {
                folder: self.folder,
                tensor,
            }),
            None => Ok(()),
        }
    }

    fn take_data(&mut self, name: &str, shape: &[usize]) -> Result<TensorData, ModelError> {
        let (file, stored) =
            self.tensors
                .remove(name)
                .ok_or_else(|| ModelError::MissingTensor {
                    folder: self.folder.clone(),
                    tensor: name.to_owned(),
                })?;
        let file = &self.files[file];
        // Vectors (norms and biases) weigh nothing and are added to f32 values.
        let precision = match shape.len() {
            0 | 1 => WeightPrecision::F32,
            _ => self.precision,
        };
        let data = match precision {
            WeightPrecision::F32 => {
                let tensor = file.read_shaped(&stored, shape)?;
                TensorData::new(tensor.data, tensor.shape)
            }
            WeightPrecision::Stored => file.read_stored(&stored, shape)?,
            WeightPrecision::Bf16 => {
                let data = file.read_stored(&stored, shape)?;
                match data.dtype() {
                    DType::BF16 => data,
                    _ => round(file, &stored, data)?,
                }
            }
        };
        check_supported(name, data.dtype(), &self.device)?;
        self.progress.loaded_bytes += file.bytes(&stored).unwrap_or_default() as u64;
        (self.report)(self.progress);
        Ok(data)
    }
}

/// To bf16, refusing values beyond its range.
fn round(file: &TensorFile, name: &str, data: TensorData) -> Result<TensorData, ModelError> {
    let rounded: Vec<bf16> = data.iter::<f32>().map(bf16::from_f32).collect();
    match rounded.iter().position(|value| !value.is_finite()) {
        None => Ok(TensorData::new(rounded, data.shape().clone())),
        Some(index) => Err(LoraError::NonFinite {
            path: file.path().to_owned(),
            tensor: name.to_owned(),
            index,
        }
        .into()),
    }
}

impl Weights for Checkpoint<'_> {
    fn take<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        _start: Start,
    ) -> Result<Tensor<D>, ModelError> {
        let data = self.take_data(name, &shape)?;
        let dtype = data.dtype();
        Ok(Tensor::from_data(data, (&self.device, dtype)))
    }
}

/// The files an index names, each once.
fn shards(folder: &Path, index: &Path) -> Result<Vec<String>, ModelError> {
    let text = std::fs::read_to_string(index).map_err(|source| ModelError::Io {
        path: index.to_owned(),
        source,
    })?;
    let index: Index = serde_json::from_str(&text).map_err(|source| ModelError::Json {
        path: index.to_owned(),
        source,
    })?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    for shard in &names {
        // An index is data from elsewhere: it must not lead out of the folder.
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            return Err(ModelError::InvalidShardName {
                folder: folder.to_owned(),
                shard: shard.clone(),
            });
        }
        if !folder.join(shard).is_file() {
            return Err(ModelError::MissingShard {
                folder: folder.to_owned(),
                shard: shard.clone(),
            });
        }
    }
    Ok(names)
}
