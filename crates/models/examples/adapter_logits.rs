//! Logits of a model with an adapter, and the adapter as this project saves it, for comparison with
//! Python PEFT (`crates/lora/tests/python/peft_round_trip.py`).
//!
//! `cargo run --release -p rldp-models --example adapter_logits -- MODEL ADAPTER OUT`
#![allow(clippy::unwrap_used)]

use std::path::Path;

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use rldp_lora::peft::{load_adapter, save_adapter};
use rldp_lora::{LoraConfig, adapters, add_lora, set_adapters};
use rldp_models::{CausalLm, LanguageModel, ModelError};

fn main() -> Result<(), ModelError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_folder, adapter, out] = arguments.as_slice() else {
        eprintln!("usage: adapter_logits MODEL ADAPTER OUT");
        std::process::exit(2);
    };
    let (adapter, out) = (Path::new(adapter), Path::new(out));
    let device = Device::default();
    let mut model = CausalLm::load(Path::new(model_folder), &device, |_| {})?.model;
    let config = if adapter.is_dir() {
        load_adapter(&mut model, adapter)?
    } else {
        let config = LoraConfig::new(4, model.default_targets());
        add_lora(&mut model, &config, 7)?;
        // A fresh adapter does nothing; give its second factor some weight.
        let mut list = adapters(&model);
        for layer in &mut list.layers {
            let noise = |b: Tensor<3>| {
                let device = b.device().without_autodiff();
                let noise = Tensor::random(b.shape(), Distribution::Normal(0.0, 0.05), &device);
                noise.autodiff().require_grad()
            };
            layer.b = layer.b.clone().map(noise);
        }
        set_adapters(&mut model, list)?;
        config
    };
    save_adapter(&model, &config, Some(model_folder), &out.join("adapter"))?;
    let ids: Vec<i64> = (0..24).map(|t| 3 + (t * 7) % 90).collect();
    let tokens: Tensor<2, Int> = Tensor::from_data(TensorData::new(ids.clone(), [1, 24]), &device);
    let vocabulary = model.vocabulary();
    let logits: Vec<f32> = model.forward(tokens).into_data().iter::<f32>().collect();
    let rows: Vec<&[f32]> = logits.chunks(vocabulary).collect();
    let json = serde_json::json!({"input_ids": ids, "logits": rows});
    std::fs::write(out.join("logits.json"), json.to_string()).unwrap();
    println!("wrote {}", out.display());
    Ok(())
}
