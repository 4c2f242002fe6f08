//! Any bytes as a safetensors file: read tensor by tensor in every way there is, and as a PEFT adapter's weights.
#![no_main]

#[allow(dead_code)]
mod support;

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rldp_lora::peft::{load_adapter, save_adapter};
use rldp_lora::{LoraConfig, TensorFile, add_lora, remove_lora};
use rldp_models::{Gpt2, LanguageModel as _};

/// A folder with a good adapter_config.json, and the model it fits.
static GROUND: LazyLock<(PathBuf, Gpt2)> = LazyLock::new(|| {
    let folder = support::folder("safetensors");
    let model = support::model();
    let mut adapted = model.clone();
    let config = LoraConfig::new(2, adapted.default_targets());
    add_lora(&mut adapted, &config, 1).expect("the layers are there");
    save_adapter(&adapted, &config, Some("base"), &folder).expect("the folder can be written");
    support::seed_tensors("adapter", &folder.join("adapter_model.safetensors"));
    (folder, model)
});

fuzz_target!(|bytes: &[u8]| {
    let (folder, model) = &*GROUND;
    let path = folder.join("adapter_model.safetensors");
    std::fs::write(&path, support::tensor_file(bytes)).expect("the folder can be written");
    let Ok(file) = TensorFile::open(&path) else {
        return;
    };
    for name in file.names() {
        let shape = file.shape(&name).expect("it is named").to_vec();
        let read = file.read(&name);
        let stored = file.read_stored(&name, &shape);
        assert_eq!(read.is_ok(), stored.is_ok(), "{name}");
        if let Ok(tensor) = read {
            assert_eq!(tensor.data.len(), tensor.shape.iter().product::<usize>());
            assert!(tensor.data.iter().all(|value| value.is_finite()));
        }
    }
    drop(file);
    let mut model = model.clone();
    if load_adapter(&mut model, folder).is_ok() {
        remove_lora(&mut model).expect("it has adapters");
    }
});
