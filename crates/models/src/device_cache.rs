use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Tensor};

/// How many constants a cache keeps: a run uses few shapes, and old ones must not pile up.
const CAPACITY: usize = 8;

/// Constant tensors that depend on a small key and the device, shared by all clones of a model.
#[derive(Clone)]
pub(crate) struct DeviceCache<K, const N: usize> {
    entries: Arc<Mutex<Vec<Entry<K, N>>>>,
}

type Entry<K, const N: usize> = (K, Device, [Tensor<4>; N]);

impl<K: PartialEq + Copy, const N: usize> DeviceCache<K, N> {
    /// The cached tensors, made by `make` on first use.
    pub(crate) fn get(
        &self,
        key: K,
        device: &Device,
        make: impl FnOnce(&Device) -> [Tensor<4>; N],
    ) -> [Tensor<4>; N] {
        // Constants must not join a graph, so they live on the plain device.
        let device = device.clone().without_autodiff();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, found)) = entries
            .iter()
            .find(|(known, on, _)| *known == key && *on == device)
        {
            return found.clone();
        }
        let made = make(&device);
        if entries.len() == CAPACITY {
            entries.remove(0);
        }
        entries.push((key, device, made.clone()));
        made
    }
}

impl<K, const N: usize> Default for DeviceCache<K, N> {
    fn default() -> Self {
        Self {
            entries: Arc::default(),
        }
    }
}

impl<K, const N: usize> fmt::Debug for DeviceCache<K, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceCache")
    }
}
