//! Adapters in PEFT's files: names, layout, and everything that can be wrong.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::path::Path;

use common::{MODELS, devices, golden_batch, load, model_folder, read_all, values};
use rldp_lora::peft::{load_adapter, save_adapter};
use rldp_lora::{LoraConfig, LoraError, adapter_parameters, add_lora, merge_adapters, remove_lora};
use rldp_models::{CausalLm, LanguageModel, ModelError};
use serde_json::{Value, json};

fn json_file(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_peft_adapter_comes_back_as_the_same_bytes_under_the_same_names() {
    for (backend, device) in devices() {
        for name in MODELS {
            let source = model_folder(name).join("adapter");
            let mut model = load(name, &device);
            let config = load_adapter(&mut model, &source).unwrap();
            let folder = tempfile::tempdir().unwrap();
            save_adapter(&model, &config, Some("base"), folder.path()).unwrap();
            let weights = "adapter_model.safetensors";
            let (ours, theirs) = (folder.path().join(weights), source.join(weights));
            let (ours, theirs) = (read_all(&ours), read_all(&theirs));
            assert!(
                ours.keys().eq(theirs.keys()),
                "{backend} {name}: other names"
            );
            for (key, golden) in &theirs {
                assert_eq!(ours[key].shape, golden.shape, "{backend} {name} {key}");
                assert_eq!(ours[key].values, golden.values, "{backend} {name} {key}");
            }
            // Every setting we write is one PEFT has, with PEFT's value.
            let theirs = json_file(&source.join("adapter_config.json"));
            for (key, value) in json_file(&folder.path().join("adapter_config.json"))
                .as_object()
                .unwrap()
            {
                if key != "base_model_name_or_path" {
                    assert_eq!(Some(value), theirs.get(key), "{name} {key}");
                }
            }
            remove_lora(&mut model).unwrap();
            assert_eq!(load_adapter(&mut model, folder.path()).unwrap(), config);
        }
    }
}

#[test]
fn fresh_adapters_change_nothing_and_depend_on_seed_and_name_only() {
    for (backend, device) in devices() {
        let base = load("llama32", &device);
        let batch = golden_batch(
            &read_all(&model_folder("llama32").join("io.safetensors")),
            &device,
        );
        let make = |targets: &[&str], seed| {
            let mut model = base.clone();
            add_lora(
                &mut model,
                &LoraConfig::new(4, targets.iter().copied()),
                seed,
            )
            .unwrap();
            model
        };
        let all = make(&["all-linear"], 9);
        assert_eq!(adapter_parameters(&all).len(), 14);
        let (expected, found) = (base.per_example_loss(&batch), all.per_example_loss(&batch));
        assert_eq!(values(expected), values(found), "{backend}");
        let few = make(&["q_proj", "layers.1.mlp.up_proj"], 9);
        let names: Vec<String> = adapter_parameters(&few)
            .into_iter()
            .map(|a| a.name)
            .collect();
        assert_eq!(
            names,
            [
                "model.layers.0.self_attn.q_proj",
                "model.layers.1.self_attn.q_proj",
                "model.layers.1.mlp.up_proj"
            ]
        );
        let a_of = |model: &CausalLm, name: &str| {
            let list = rldp_lora::adapters(model).layers;
            let adapter = list
                .into_iter()
                .find(|adapter| adapter.name == name)
                .unwrap();
            values(adapter.a.val())
        };
        let same = a_of(&few, &names[1]);
        assert_eq!(a_of(&all, &names[1]), same);
        assert_ne!(a_of(&make(&["q_proj"], 10), &names[1]), same);
        let bound = 1.0 / 32f64.sqrt();
        assert!(same.iter().all(|value| value.abs() <= bound));
        // Pinned: a change breaks reproducibility and belongs in the changelog.
        let pinned = a_of(&few, &names[0]);
        let expected = [0.005_345_484_7, 0.085_664_644, 0.070_492_014];
        assert!(
            pinned
                .iter()
                .zip(expected)
                .all(|(found, pin)| (found - pin).abs() < 1e-7)
        );
    }
}

#[test]
fn scaling_follows_rank_and_kind() {
    let config = LoraConfig {
        alpha: 16.0,
        ..LoraConfig::new(4, ["x"])
    };
    assert_eq!(config.scaling(), 4.0);
    let stable = LoraConfig {
        use_rslora: true,
        ..config
    };
    assert_eq!(stable.scaling(), 8.0);
}

#[test]
fn dropout_acts_while_training_only() {
    for (backend, device) in devices() {
        let mut model = load("gpt2", &device);
        let folder = model_folder("gpt2");
        load_adapter(&mut model, &folder.join("adapter")).unwrap();
        let batch = golden_batch(&read_all(&folder.join("io.safetensors")), &device);
        let plain = values(model.per_example_loss(&batch));
        let mut adapters = rldp_lora::adapters(&model);
        for adapter in &mut adapters.layers {
            adapter.dropout = 0.5;
        }
        rldp_lora::set_adapters(&mut model, adapters).unwrap();
        assert_eq!(
            values(model.per_example_loss(&batch)),
            plain,
            "{backend}: at rest"
        );
        let expanded = rldp_lora::expand_adapters(&model, batch.examples()).unwrap();
        assert_ne!(
            values(expanded.per_example_loss(&batch)),
            plain,
            "{backend}: training"
        );
    }
}

#[test]
fn wrong_uses_are_refused() {
    let (_, device) = devices().remove(0);
    let mut model = load("gpt2", &device);
    match add_lora(&mut model, &LoraConfig::new(4, ["c_attn", "q_proj"]), 1) {
        Err(LoraError::UnmatchedTarget { target, available }) => {
            assert_eq!(target, "q_proj");
            assert_eq!(available, ["c_attn", "c_fc", "c_proj"]);
        }
        other => panic!("{other:?}"),
    }
    for (name, config) in [
        ("rank", LoraConfig::new(0, ["c_attn"])),
        (
            "alpha",
            LoraConfig {
                alpha: f64::NAN,
                ..LoraConfig::new(1, ["c_attn"])
            },
        ),
        (
            "dropout",
            LoraConfig {
                dropout: 1.0,
                ..LoraConfig::new(1, ["c_attn"])
            },
        ),
        ("target_modules", LoraConfig::new(1, Vec::<String>::new())),
    ] {
        match add_lora(&mut model, &config, 1) {
            Err(LoraError::InvalidSetting { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        adapter_parameters(&model).is_empty(),
        "refusals leave the model alone"
    );
    assert!(matches!(
        rldp_lora::expand_adapters(&model, 2),
        Err(LoraError::NoAdapters)
    ));
    assert!(matches!(
        merge_adapters(&mut model),
        Err(LoraError::NoAdapters)
    ));

    let config = LoraConfig::new(4, ["c_attn"]);
    add_lora(&mut model, &config, 1).unwrap();
    assert!(matches!(
        add_lora(&mut model, &config, 1),
        Err(LoraError::AlreadyAdapted { .. })
    ));
    assert!(matches!(
        rldp_lora::expand_adapters(&model, 0),
        Err(LoraError::EmptyBatch)
    ));
    let mut expanded = rldp_lora::expand_adapters(&model, 3).unwrap();
    assert!(matches!(
        merge_adapters(&mut expanded),
        Err(LoraError::Expanded { examples: 3, .. })
    ));
    let folder = tempfile::tempdir().unwrap();
    let saved = save_adapter(&expanded, &config, None, folder.path());
    assert!(matches!(
        saved,
        Err(LoraError::Expanded { examples: 3, .. })
    ));
    let other = LoraConfig::new(8, ["c_attn"]);
    let saved = save_adapter(&model, &other, None, folder.path());
    assert!(matches!(saved, Err(LoraError::InvalidSetting { .. })));
    let saved = model.save(folder.path(), &Default::default());
    assert!(matches!(saved, Err(ModelError::UnmergedAdapters)));
    merge_adapters(&mut model).unwrap();
    assert!(matches!(
        merge_adapters(&mut model),
        Err(LoraError::MergeState { .. })
    ));
    assert!(matches!(
        remove_lora(&mut model),
        Err(LoraError::MergeState { .. })
    ));
    let expanded = rldp_lora::expand_adapters(&model, 2);
    assert!(matches!(expanded, Err(LoraError::MergeState { .. })));
}

#[test]
fn foreign_adapter_settings_are_refused_by_name() {
    let (_, device) = devices().remove(0);
    let source = model_folder("gpt2").join("adapter");
    let cases = [
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"c_attn": 8})),
        ("layers_to_transform", json!([0])),
        ("init_lora_weights", json!("pissa")),
        ("target_modules", json!(".*attn.*")),
        ("peft_type", json!("IA3")),
        ("lora_bias", json!(true)),
        ("something_new", json!("x")),
    ];
    for (setting, value) in &cases {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = json_file(&source.join("adapter_config.json"));
        settings[setting] = value.clone();
        let path = folder.path().join("adapter_config.json");
        std::fs::write(path, settings.to_string()).unwrap();
        match load_adapter(&mut load("gpt2", &device), folder.path()) {
            Err(LoraError::UnsupportedSetting { name, .. }) => assert_eq!(name, *setting),
            other => panic!("{setting}: {other:?}"),
        }
    }
    println!("{} settings refused", cases.len());
    // Weights for other layers than the configuration names, and of another rank.
    for (setting, value) in [("target_modules", json!(["c_attn"])), ("r", json!(2))] {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = json_file(&source.join("adapter_config.json"));
        settings[setting] = value;
        let path = folder.path().join("adapter_config.json");
        std::fs::write(path, settings.to_string()).unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(source.join(weights), folder.path().join(weights)).unwrap();
        let mut model = load("gpt2", &device);
        let loaded = load_adapter(&mut model, folder.path());
        assert!(matches!(
            loaded,
            Err(LoraError::UnexpectedTensor { .. } | LoraError::WrongShape { .. })
        ));
        assert!(adapter_parameters(&model).is_empty());
    }
}
