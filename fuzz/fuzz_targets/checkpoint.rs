//! Any bytes as a base model's folder, config.json and model.safetensors: loaded, and asked for a loss.
//!
//! The first line is config.json (JSON needs no line breaks), the rest the weights.
#![no_main]

#[allow(dead_code)]
mod support;

use std::path::PathBuf;
use std::sync::LazyLock;

use burn::tensor::Device;
use libfuzzer_sys::fuzz_target;
use rldp_models::{
    Batch, CausalLm, LanguageModel as _, Llama, LlamaConfig, Row, SpecialTokens, WeightPrecision,
};

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = support::folder("checkpoint");
    let device = Device::default();
    let mut untied = LlamaConfig::new(13, 8, 1, 4, 2);
    untied.tied_head = false;
    let models = [
        ("gpt2", CausalLm::from(support::model())),
        (
            "llama",
            Llama::random(&LlamaConfig::new(13, 8, 1, 4, 2), 3, &device)
                .expect("good")
                .into(),
        ),
        (
            "untied",
            Llama::random(&untied, 3, &device).expect("good").into(),
        ),
    ];
    for (name, model) in models {
        model
            .save(&folder, &SpecialTokens::default())
            .expect("the folder can be written");
        let config = std::fs::read_to_string(folder.join("config.json")).expect("written");
        let weights = std::fs::read(folder.join("model.safetensors")).expect("written");
        let config = config.replace('\n', " ");
        support::seed(name, &[config.as_bytes(), b"\n\x01", &weights].concat());
    }
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let line = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let (config, weights) = bytes.split_at(line);
    let weights = weights.split_first().map_or(&[][..], |(_, rest)| rest);
    for (name, bytes) in [
        ("config.json", config),
        ("model.safetensors", &support::tensor_file(weights)),
    ] {
        std::fs::write(FOLDER.join(name), bytes).expect("the folder can be written");
    }
    let device = Device::default();
    for precision in [WeightPrecision::F32, WeightPrecision::Stored] {
        if let Ok(loaded) = CausalLm::load_with(&FOLDER, &device, precision, |_| {})
            && loaded.model.positions() >= 2
            && let Ok(batch) = Batch::from_rows(&[Row::new(vec![0, 0, 0])], &device)
        {
            let loss = loaded.model.per_example_loss(&batch).into_data();
            assert_eq!(loss.num_elements(), 1);
        }
    }
});
