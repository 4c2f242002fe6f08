//! Safetensors files: memory-mapped on the way in, replaced atomically on the way out.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, View};

use crate::LoraError;

/// A memory-mapped safetensors file with a checked header.
///
/// Only the pages of tensors that are read come into memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl TensorFile {
    /// Maps the file and checks its header against its length.
    ///
    /// # Errors
    ///
    /// [`LoraError::Io`]; [`LoraError::Safetensors`] for a truncated file, a header length beyond
    /// the file (or beyond 100 MB), overlapping or missing byte ranges.
    pub fn open(path: &Path) -> Result<Self, LoraError> {
        let io = |source| LoraError::Io {
            path: path.to_owned(),
            source,
        };
        let broken = |source| LoraError::Safetensors {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        if !file.metadata().map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        // SAFETY: the map is read-only and private to this struct. As with every memory map, another
        // process that truncates the file meanwhile makes reads fail; the usual contract of weights
        // on disk is that nobody does.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(broken)?;
        // Eight bytes of header length, the header, then the data.
        let data_start = header + 8;
        Ok(Self {
            path: path.to_owned(),
            map,
            metadata,
            data_start,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors in the order of their bytes.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// Bytes a tensor takes in the file, if it is there.
    pub fn bytes(&self, name: &str) -> Option<usize> {
        let info = self.metadata.info(name)?;
        Some(info.data_offsets.1 - info.data_offsets.0)
    }

    /// Reads a tensor as f32, from f32, f16 or bf16.
    ///
    /// # Errors
    ///
    /// [`LoraError::MissingTensor`], [`LoraError::UnsupportedType`], [`LoraError::NonFinite`].
    pub fn read(&self, name: &str) -> Result<HostTensor, LoraError> {
        let (info, bytes) = self.find(name)?;
        let data = decode(info.dtype, bytes).ok_or_else(|| LoraError::UnsupportedType {
            path: self.path.clone(),
            tensor: name.to_owned(),
            dtype: format!("{:?}", info.dtype),
        })?;
        if !all_finite(&data) {
            let index = data.iter().position(|value| !value.is_finite());
            return Err(self.non_finite(name, index.unwrap_or_default()));
        }
        Ok(HostTensor {
            name: name.to_owned(),
            shape: info.shape.clone(),
            data,
        })
    }

    /// Reads a tensor that must have the given shape in the type it is stored in: f32, f16 or bf16.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read_shaped`].
    pub fn read_stored(&self, name: &str, expected: &[usize]) -> Result<TensorData, LoraError> {
        self.check_shape(name, expected)?;
        let (info, bytes) = self.find(name)?;
        let shape = info.shape.clone();
        let exponent = match info.dtype {
            Dtype::F16 => 0x7c00,
            Dtype::BF16 => 0x7f80,
            _ => {
                let tensor = self.read(name)?;
                return Ok(TensorData::new(tensor.data, tensor.shape));
            }
        };
        if let Some(index) = first_non_finite(bytes, exponent) {
            return Err(self.non_finite(name, index));
        }
        Ok(match info.dtype {
            Dtype::F16 => TensorData::new(words(bytes).map(f16::from_bits).collect(), shape),
            _ => TensorData::new(words(bytes).map(bf16::from_bits).collect(), shape),
        })
    }

    /// A tensor's entry in the header and its bytes.
    fn find(&self, name: &str) -> Result<(&TensorInfo, &[u8]), LoraError> {
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| LoraError::MissingTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
            })?;
        let (start, end) = info.data_offsets;
        Ok((
            info,
            &self.map[self.data_start + start..self.data_start + end],
        ))
    }

    fn non_finite(&self, name: &str, index: usize) -> LoraError {
        LoraError::NonFinite {
            path: self.path.clone(),
            tensor: name.to_owned(),
            index,
        }
    }

    /// The shape comes first: a wrong one must not cost a conversion of gigabytes.
    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<(), LoraError> {
        match self.shape(name).filter(|found| *found != expected) {
            None => Ok(()),
            Some(found) => Err(LoraError::WrongShape {
                path: self.path.clone(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            }),
        }
    }

    /// Reads a tensor that must have the given shape.
    ///
    /// # Errors
    ///
    /// Those of [`Self::read`] and [`LoraError::WrongShape`].
    pub fn read_shaped(&self, name: &str, expected: &[usize]) -> Result<HostTensor, LoraError> {
        self.check_shape(name, expected)?;
        self.read(name)
    }
}

/// A tensor in host memory, row-major f32, under its name in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub data: Vec<f32>,
}

impl HostTensor {
    /// Moves the tensor to a device.
    ///
    /// # Panics
    ///
    /// If the rank is not `D`; callers check the shape first.
    pub fn into_tensor<const D: usize>(self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.data, self.shape), (device, DType::F32))
    }

    /// Copies a tensor from its device.
    ///
    /// # Errors
    ///
    /// [`LoraError::Readback`].
    pub fn from_tensor<const D: usize>(name: &str, tensor: Tensor<D>) -> Result<Self, LoraError> {
        let shape = tensor.dims().to_vec();
        let readback = |reason: String| LoraError::Readback {
            tensor: name.to_owned(),
            reason,
        };
        let data = tensor
            .without_autodiff()
            .try_into_data_dtype(DType::F32)
            .map_err(|error| readback(format!("{error:?}")))?
            .try_into_vec::<f32>()
            .map_err(|error| readback(format!("{error:?}")))?;
        Ok(Self {
            name: name.to_owned(),
            shape,
            data,
        })
    }
}

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.data.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.data.len() * size_of::<f32>()
    }
}

/// Writes tensors as f32 with the metadata `format = pt`, which Python loaders insist on.
///
/// The file appears under its name only when complete.
///
/// # Errors
///
/// [`LoraError::Io`] or [`LoraError::Safetensors`].
pub fn write_tensors(path: &Path, tensors: &[HostTensor]) -> Result<(), LoraError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let io = |source| LoraError::Io {
        path: path.to_owned(),
        source,
    };
    let partial = path.with_extension("safetensors.partial");
    // The library writes through a private temporary file; an empty one made here first tells which
    // permissions the user's umask wants.
    let permissions = File::create(&partial)
        .and_then(|file| file.metadata())
        .map_err(io)?
        .permissions();
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    safetensors::serialize_to_file(views, Some(metadata), &partial).map_err(
        |source| match source {
            SafeTensorError::IoError(source) => io(source),
            source => LoraError::Safetensors {
                path: path.to_owned(),
                source,
            },
        },
    )?;
    std::fs::set_permissions(&partial, permissions).map_err(io)?;
    std::fs::rename(&partial, path).map_err(io)
}

/// Little-endian bytes as f32; `None` for types that are not plain floats.
fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        // bf16 is the upper half of an f32.
        Dtype::BF16 => words(bytes)
            .map(|bits| f32::from_bits(u32::from(bits) << 16))
            .collect(),
        Dtype::F16 => words(bytes)
            .map(|bits| f16::from_bits(bits).to_f32())
            .collect(),
        _ => return None,
    })
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes
        .chunks_exact(2)
        .map(|b| u16::from_le_bytes([b[0], b[1]]))
}

/// The first of little-endian halves whose exponent bits are all set, looked for in a form the
/// compiler can vectorise.
fn first_non_finite(bytes: &[u8], exponent: u16) -> Option<usize> {
    const CHUNK: usize = 8192;
    let bad = |bits: u16| bits & exponent == exponent;
    bytes.chunks(CHUNK).enumerate().find_map(|(index, chunk)| {
        match words(chunk).fold(false, |any, bits| any | bad(bits)) {
            false => None,
            true => words(chunk)
                .position(bad)
                .map(|within| index * (CHUNK / 2) + within),
        }
    })
}

/// Whether all values are finite, in a form the compiler can vectorise.
fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values.chunks(4096).all(|chunk| {
        let bad = chunk.iter().fold(0u32, |bad, v| {
            bad | u32::from(v.to_bits() & EXPONENT == EXPONENT)
        });
        bad == 0
    })
}
