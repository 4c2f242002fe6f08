//! Any bytes as an adapter_config.json: read, and used to load an adapter's weights and to write them again.
#![no_main]

#[allow(dead_code)]
mod support;

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rldp_lora::peft::{load_adapter, read_config, save_adapter};
use rldp_lora::{LoraConfig, add_lora};
use rldp_models::{Gpt2, LanguageModel as _};

/// A folder with a good adapter_model.safetensors, and the model it fits.
static GROUND: LazyLock<(PathBuf, Gpt2)> = LazyLock::new(|| {
    let folder = support::folder("peft");
    let model = support::model();
    let mut adapted = model.clone();
    let config = LoraConfig::new(2, adapted.default_targets());
    add_lora(&mut adapted, &config, 1).expect("the layers are there");
    save_adapter(&adapted, &config, Some("base"), &folder).expect("the folder can be written");
    let config = std::fs::read(folder.join("adapter_config.json")).expect("it was just written");
    support::seed("written", &config);
    (folder, model)
});

fuzz_target!(|bytes: &[u8]| {
    let (folder, model) = &*GROUND;
    let path = folder.join("adapter_config.json");
    std::fs::write(&path, bytes).expect("the folder can be written");
    let mut loaded = model.clone();
    let read = read_config(&path);
    if let Ok(config) = load_adapter(&mut loaded, folder) {
        assert_eq!(
            Ok(&config),
            read.as_ref().map_err(|_| ()),
            "two readings differ"
        );
        let again = folder.join("again");
        save_adapter(&loaded, &config, None, &again).expect("what was read can be written");
        let written = read_config(&again.join("adapter_config.json"));
        assert_eq!(
            Ok(&config),
            written.as_ref().map_err(|_| ()),
            "what was written differs"
        );
    }
});
