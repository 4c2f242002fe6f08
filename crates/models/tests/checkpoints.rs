//! Checkpoints and configurations: several files, other types, and everything that can be wrong.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;

use burn::tensor::Device;
use common::{
    MODELS, Tensors, copy, devices, golden_batch, halved, load, load_folder, model_folder,
    read_all, tensors, values, write,
};
use rldp_lora::LoraError;
use rldp_models::{CausalLm, LanguageModel, ModelError, Tokenizer, hub};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

fn device() -> Device {
    devices().remove(0).1
}

fn try_load(folder: &Path) -> Result<CausalLm, ModelError> {
    CausalLm::load(folder, &device(), |_| {}).map(|loaded| loaded.model)
}

/// What loading gives after the weights were changed.
fn with_weights(name: &str, change: impl FnOnce(&mut Tensors)) -> Result<CausalLm, ModelError> {
    let folder = copy(name);
    let mut weights = tensors(name);
    change(&mut weights);
    write(&folder.path().join("model.safetensors"), &weights);
    try_load(folder.path())
}

/// What loading gives after the settings were changed.
fn with_settings(name: &str, change: impl FnOnce(&mut Value)) -> Result<CausalLm, ModelError> {
    let folder = copy(name);
    let path = folder.path().join("config.json");
    let mut settings = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut settings);
    std::fs::write(&path, settings.to_string()).unwrap();
    try_load(folder.path())
}

#[test]
fn half_precision_files_load_as_their_rounded_values() {
    for (backend, device) in devices() {
        let io = read_all(&model_folder("llama32").join("io.safetensors"));
        let batch = golden_batch(&io, &device);
        let exact = values(load("llama32", &device).per_example_loss(&batch));
        for (dtype, limit) in [(Dtype::F16, 0.02), (Dtype::BF16, 0.15)] {
            let folder = halved("llama32", dtype);
            let found = values(load_folder(folder.path(), &device).per_example_loss(&batch));
            for (found, exact) in found.iter().zip(&exact) {
                let difference = (found - exact).abs();
                assert!(
                    difference < limit && difference > 0.0,
                    "{backend} {dtype:?}: {difference}"
                );
            }
        }
    }
}

/// Splits a fixture over two files with an index.
fn sharded(name: &str) -> TempDir {
    let folder = copy(name);
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    for (index, (tensor, value)) in tensors(name).into_iter().enumerate() {
        map.insert(
            tensor.clone(),
            json!(format!("model-{}.safetensors", index % 2)),
        );
        shards[index % 2].insert(tensor, value);
    }
    for (index, shard) in shards.iter().enumerate() {
        write(
            &folder.path().join(format!("model-{index}.safetensors")),
            shard,
        );
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    let path = folder.path().join("model.safetensors.index.json");
    std::fs::write(path, index.to_string()).unwrap();
    folder
}

#[test]
fn sharded_checkpoints_equal_single_files_and_report_progress() {
    for name in MODELS {
        let folder = sharded(name);
        let mut seen = Vec::new();
        let loaded = CausalLm::load(folder.path(), &device(), |progress| seen.push(progress));
        let single = load(name, &device());
        let found = loaded.unwrap().model.host_weights().unwrap();
        assert_eq!(found, single.host_weights().unwrap(), "{name}");
        assert!(
            seen.windows(2)
                .all(|pair| pair[0].loaded_bytes < pair[1].loaded_bytes)
        );
        let last = seen.last().unwrap();
        assert_eq!(last.loaded_bytes, last.total_bytes, "{name}");
    }
}

#[test]
fn broken_shards_are_named() {
    let folder = sharded("gpt2");
    std::fs::remove_file(folder.path().join("model-1.safetensors")).unwrap();
    match try_load(folder.path()) {
        Err(ModelError::MissingShard { shard, .. }) => assert_eq!(shard, "model-1.safetensors"),
        other => panic!("{other:?}"),
    }
    let folder = sharded("gpt2");
    let index = folder.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("model-1.", "../model-1.")).unwrap();
    match try_load(folder.path()) {
        Err(ModelError::InvalidShardName { shard, .. }) => {
            assert_eq!(shard, "../model-1.safetensors");
        }
        other => panic!("{other:?}"),
    }
    let folder = sharded("gpt2");
    std::fs::copy(
        folder.path().join("model-0.safetensors"),
        folder.path().join("model-1.safetensors"),
    )
    .unwrap();
    assert!(matches!(
        try_load(folder.path()),
        Err(ModelError::DuplicateTensor { .. })
    ));
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let norm = "model.norm.weight".to_owned();
    let missing = with_weights("mistral", |weights| {
        weights.remove(&norm);
    });
    match missing {
        Err(ModelError::MissingTensor { tensor, .. }) => assert_eq!(tensor, norm),
        other => panic!("{other:?}"),
    }
    let extra = with_weights("mistral", |weights| {
        let copy = weights[&norm].clone();
        weights.insert("model.surprise".to_owned(), copy);
    });
    match extra {
        Err(ModelError::UnexpectedTensor { tensor, .. }) => assert_eq!(tensor, "model.surprise"),
        other => panic!("{other:?}"),
    }
    let shape = with_weights("mistral", |weights| {
        weights.get_mut(&norm).unwrap().1 = vec![1, 32];
    });
    match shape {
        Err(ModelError::Lora(LoraError::WrongShape {
            tensor,
            expected,
            found,
            ..
        })) => {
            assert_eq!(
                (tensor, expected, found),
                (norm.clone(), vec![32], vec![1, 32])
            );
        }
        other => panic!("{other:?}"),
    }
    let dtype = with_weights("mistral", |weights| {
        weights.get_mut(&norm).unwrap().0 = Dtype::I32;
    });
    match dtype {
        Err(ModelError::Lora(LoraError::UnsupportedType { tensor, dtype, .. })) => {
            assert_eq!((tensor, dtype.as_str()), (norm.clone(), "I32"));
        }
        other => panic!("{other:?}"),
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let poisoned = with_weights("mistral", |weights| {
            weights.get_mut(&norm).unwrap().2[20..24].copy_from_slice(&bad.to_le_bytes());
        });
        match poisoned {
            Err(ModelError::Lora(LoraError::NonFinite { tensor, index, .. })) => {
                assert_eq!((tensor, index), (norm.clone(), 5));
            }
            other => panic!("{other:?}"),
        }
    }
    let twice = with_weights("gpt2", |weights| {
        let copy = weights["transformer.ln_f.bias"].clone();
        weights.insert("ln_f.bias".to_owned(), copy);
    });
    assert!(matches!(twice, Err(ModelError::DuplicateTensor { .. })));
}

#[test]
fn broken_files_give_typed_errors() {
    let good = std::fs::read(model_folder("gpt2").join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let with_length = |length: u64| [&length.to_le_bytes(), &good[8..]].concat();
    let json = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let cases = [
        ("empty", Vec::new()),
        ("shorter than a length", good[..5].to_vec()),
        ("header cut", good[..header / 2].to_vec()),
        ("data cut", good[..good.len() - 1].to_vec()),
        ("data beyond the end", [good.as_slice(), &[0]].concat()),
        ("header length of 2^64 - 1", with_length(u64::MAX)),
        ("header length of 2^40", with_length(1 << 40)),
        ("header length zero", with_length(0)),
        ("not JSON", json("hello")),
        (
            "offsets backwards",
            json(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#),
        ),
        (
            "shape overflows",
            json(r#"{"a":{"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,4]}}"#),
        ),
        (
            "size contradicts shape",
            json(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}"#),
        ),
        (
            "random bytes",
            (0..4000u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect(),
        ),
    ];
    let count = cases.len();
    for (case, bytes) in cases {
        let folder = copy("gpt2");
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        match try_load(folder.path()) {
            Err(ModelError::Lora(LoraError::Safetensors { .. } | LoraError::Io { .. })) => {}
            other => panic!("{case}: {other:?}"),
        }
    }
    println!("{count} broken files refused");
    let folder = copy("gpt2");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(
        try_load(folder.path()),
        Err(ModelError::NoWeights { .. })
    ));
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(matches!(
        try_load(folder.path()),
        Err(ModelError::Json { .. })
    ));
}

#[test]
fn settings_are_refused_by_name() {
    let cases = [
        ("gpt2", "activation_function", json!("swish")),
        ("gpt2", "add_cross_attention", json!(true)),
        ("gpt2", "reorder_and_upcast_attn", json!(true)),
        ("gpt2", "n_layer", json!("two")),
        ("gpt2", "n_ctx", json!(63)),
        ("gpt2", "use_flux_capacitor", json!(1)),
        (
            "gpt2",
            "architectures",
            json!(["GPT2ForSequenceClassification"]),
        ),
        ("llama32", "hidden_act", json!("gelu")),
        (
            "llama32",
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0}),
        ),
        (
            "llama32",
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 2.0}),
        ),
        ("llama32", "partial_rotary_factor", json!(0.5)),
        ("llama32", "quantization_config", json!({"bits": 4})),
        ("llama32", "sliding_window", json!(8)),
        ("llama32", "num_hidden_layers", json!(0)),
        ("mistral", "attention_bias", json!(true)),
        ("mistral", "hidden_act", json!("relu")),
        ("mistral", "eos_token_id", json!("end")),
    ];
    for (model, setting, value) in &cases {
        match with_settings(model, |settings| settings[setting] = value.clone()) {
            Err(ModelError::UnsupportedSetting { name, .. }) => assert_eq!(name, *setting),
            other => panic!("{model} {setting} = {value}: {other:?}"),
        }
    }
    println!("{} settings refused", cases.len());
    let missing = with_settings("mistral", |settings| {
        settings.as_object_mut().unwrap().remove("hidden_size");
    });
    match missing {
        Err(ModelError::MissingSetting { name, .. }) => assert_eq!(name, "hidden_size"),
        other => panic!("{other:?}"),
    }
    match with_settings("mistral", |settings| {
        settings["model_type"] = json!("mamba")
    }) {
        Err(ModelError::UnknownArchitecture { model_type, .. }) => assert_eq!(model_type, "mamba"),
        other => panic!("{other:?}"),
    }
    for (model, setting, value) in [
        ("gpt2", "n_head", json!(5)),
        ("llama32", "num_key_value_heads", json!(3)),
        ("llama32", "head_dim", json!(7)),
        ("mistral", "sliding_window", json!(0)),
    ] {
        match with_settings(model, |settings| settings[setting] = value) {
            Err(ModelError::InvalidConfig { .. }) => {}
            other => panic!("{model} {setting}: {other:?}"),
        }
    }
}

#[test]
fn saved_models_load_again_bit_for_bit() {
    for (backend, device) in devices() {
        for name in MODELS {
            let model = load(name, &device);
            let folder = tempfile::tempdir().unwrap();
            let special = rldp_models::SpecialTokens {
                bos: Some(1),
                eos: vec![2, 3],
                pad: None,
            };
            model.save(folder.path(), &special).unwrap();
            let again = CausalLm::load(folder.path(), &device, |_| {}).unwrap();
            assert_eq!(again.special_tokens, special);
            assert_eq!(
                again.model.to_settings(),
                model.to_settings(),
                "{backend} {name}"
            );
            let found = again.model.host_weights().unwrap();
            assert_eq!(found, model.host_weights().unwrap(), "{backend} {name}");
        }
    }
}

#[test]
fn gpt2_vocabulary_files_make_its_byte_level_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    // Bytes that are letters stand for themselves; a space is written as the letter below.
    let mut vocabulary = json!({"<|endoftext|>": 0, "lo": 1, "low": 2, "Ġlow": 3, "er": 4});
    for (id, letter) in (5..).zip(["l", "o", "w", "e", "r", "Ġ", "!", "Ã", "©"]) {
        vocabulary[letter] = json!(id);
    }
    std::fs::write(folder.path().join("vocab.json"), vocabulary.to_string()).unwrap();
    std::fs::write(
        folder.path().join("merges.txt"),
        "#version: 0.2\nl o\nlo w\nĠ low\ne r\n",
    )
    .unwrap();
    let tokenizer = Tokenizer::find(folder.path()).unwrap().unwrap();
    let ids = tokenizer.encode("low lower!é<|endoftext|>", true).unwrap();
    assert_eq!(ids, [2, 3, 4, 11, 12, 13, 0]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "low lower!é");
    assert_eq!(tokenizer.vocabulary(), 14);
    let json = folder.path().join("tokenizer.json");
    tokenizer.save(&json).unwrap();
    let again = Tokenizer::from_file(&json).unwrap();
    assert_eq!(again.encode("low lower!é<|endoftext|>", true).unwrap(), ids);
}

#[test]
fn models_are_found_or_the_message_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(hub::resolve(path).unwrap(), folder.path());
    for name in ["./no/such/folder", "a/b/c", "", "owner/na me"] {
        match hub::resolve(name) {
            Err(error @ ModelError::Hub { .. }) => {
                let text = error.to_string();
                assert!(text.contains("give its path instead"), "{text}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let empty = Tokenizer::find(folder.path()).unwrap();
    assert!(empty.is_none());
}
