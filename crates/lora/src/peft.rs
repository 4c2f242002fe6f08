//! The adapter format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::ALL_LINEAR;
use crate::layers::check_targets;
use crate::{
    HostTensor, LinearLayers, LoraAdapter, LoraConfig, LoraError, TensorFile, write_tensors,
};

/// Name of the configuration file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the weights file.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before the name a layer has in its model.
const PREFIX: &str = "base_model.model.";

/// Settings that say nothing about what the adapter computes.
const INERT: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "eva_config",
    "arrow_config",
];

/// Writes the adapters of `model` where Python PEFT finds them.
///
/// `base_model` is the hub id or folder written down as the base. FFA-LoRA's frozen `A` is saved
/// like any other; PEFT has no setting for it.
///
/// # Errors
///
/// [`LoraError::NoAdapters`], [`LoraError::Expanded`], [`LoraError::InvalidSetting`] when `config`
/// is not the one the adapters were made with, [`LoraError::Io`].
pub fn save_adapter<M: LinearLayers>(
    model: &M,
    config: &LoraConfig,
    base_model: Option<&str>,
    folder: &Path,
) -> Result<(), LoraError> {
    config.validate()?;
    let mut tensors = Vec::new();
    let mut names = Vec::new();
    let mut result = Ok(());
    model.visit_linears(&mut |name, layer| {
        if let (Some(adapter), Ok(())) = (&layer.adapter, &result) {
            names.push(name.to_owned());
            match factors(name, adapter, config) {
                Ok(pair) => tensors.extend(pair),
                Err(error) => result = Err(error),
            }
        }
    });
    result?;
    if tensors.is_empty() {
        return Err(LoraError::NoAdapters);
    }
    std::fs::create_dir_all(folder).map_err(|source| LoraError::Io {
        path: folder.to_owned(),
        source,
    })?;
    write_tensors(&folder.join(WEIGHTS_FILE), &tensors)?;
    let settings = settings(config, base_model, &names, model.fan_in_fan_out());
    let path = folder.join(CONFIG_FILE);
    let mut text = format!("{settings:#}");
    text.push('\n');
    std::fs::write(&path, text).map_err(|source| LoraError::Io { path, source })
}

/// Attaches an adapter saved by this crate or by Python PEFT and returns its configuration.
///
/// # Errors
///
/// [`LoraError::UnsupportedSetting`] naming a setting of the file this crate does not implement;
/// missing, unexpected, wrong-shaped or non-finite tensors by name; targets as
/// [`add_lora`](crate::add_lora). In every case the model is unchanged.
pub fn load_adapter<M: LinearLayers>(
    model: &mut M,
    folder: &Path,
) -> Result<LoraConfig, LoraError> {
    let config = read_config(&folder.join(CONFIG_FILE))?;
    check_targets(model, &config)?;
    let file = TensorFile::open(&folder.join(WEIGHTS_FILE))?;
    let mut unused = file.names();
    let mut loaded = Vec::new();
    let mut result = Ok(());
    model.visit_linears(&mut |name, layer| {
        if !config.targets(name) || result.is_err() {
            return;
        }
        let [inputs, outputs] = layer.shape();
        let device = layer.weight.val().device().without_autodiff();
        let [a_name, b_name] = tensor_names(name);
        let pair = file
            .read_shaped(&a_name, &[config.rank, inputs])
            .and_then(|a| Ok((a, file.read_shaped(&b_name, &[outputs, config.rank])?)));
        match pair {
            Ok((a, b)) => {
                unused.retain(|known| *known != a_name && *known != b_name);
                let a = a.into_tensor::<2>(&device).swap_dims(0, 1);
                let b = b.into_tensor::<2>(&device).swap_dims(0, 1);
                let (a, b) = (a.unsqueeze::<3>(), b.unsqueeze::<3>());
                loaded.push(LoraAdapter::from_factors(name, a, b, &config));
            }
            Err(error) => result = Err(error),
        }
    });
    result?;
    if let Some(tensor) = unused.into_iter().next() {
        return Err(LoraError::UnexpectedTensor {
            path: file.path().to_owned(),
            tensor,
        });
    }
    let mut loaded = loaded.into_iter();
    model.visit_linears_mut(&mut |name, layer| {
        if config.targets(name) {
            layer.adapter = loaded.next();
        }
    });
    Ok(config)
}

/// Reads `adapter_config.json`.
///
/// # Errors
///
/// [`LoraError::Io`], [`LoraError::Json`], or [`LoraError::UnsupportedSetting`]: settings are
/// refused by name, never ignored.
pub fn read_config(path: &Path) -> Result<LoraConfig, LoraError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoraError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut fields: Map<String, Value> =
        serde_json::from_str(&text).map_err(|source| LoraError::Json {
            path: path.to_owned(),
            source,
        })?;
    let refuse = |name: &str, value: &Value| LoraError::UnsupportedSetting {
        path: path.to_owned(),
        name: name.to_owned(),
        value: value.to_string(),
    };
    let mut take = |name: &str| fields.remove(name).unwrap_or(Value::Null);

    let peft_type = take("peft_type");
    if peft_type != "LORA" {
        return Err(refuse("peft_type", &peft_type));
    }
    let rank = take("r");
    let alpha = take("lora_alpha");
    let dropout = take("lora_dropout");
    let targets = take("target_modules");
    let rslora = take("use_rslora");
    let bias = take("bias");
    if !(bias.is_null() || bias == "none") {
        return Err(refuse("bias", &bias));
    }
    // Other initialisations than these change the base weights, which the adapter then fits.
    let init = take("init_lora_weights");
    if !(init.is_null() || init.is_boolean() || init == "gaussian") {
        return Err(refuse("init_lora_weights", &init));
    }
    for name in INERT {
        take(name);
    }
    if let Some((name, value)) = fields.iter().find(|(_, value)| !is_unset(value)) {
        return Err(refuse(name, value));
    }

    let config = LoraConfig {
        rank: rank
            .as_u64()
            .and_then(|r| usize::try_from(r).ok())
            .ok_or_else(|| refuse("r", &rank))?,
        alpha: alpha.as_f64().ok_or_else(|| refuse("lora_alpha", &alpha))?,
        dropout: match dropout {
            Value::Null => 0.0,
            value => value
                .as_f64()
                .ok_or_else(|| refuse("lora_dropout", &value))?,
        },
        use_rslora: match rslora {
            Value::Null => false,
            value => value
                .as_bool()
                .ok_or_else(|| refuse("use_rslora", &value))?,
        },
        freeze_a: false,
        target_modules: match &targets {
            // A single string is a regular expression to PEFT.
            Value::String(name) if name == ALL_LINEAR => vec![name.clone()],
            Value::Array(names) => names
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| refuse("target_modules", &targets))?,
            _ => return Err(refuse("target_modules", &targets)),
        },
    };
    config.validate()?;
    Ok(config)
}

/// Null, false, `{}` and `[]` are how PEFT writes "not used".
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

fn tensor_names(layer: &str) -> [String; 2] {
    ["A", "B"].map(|factor| format!("{PREFIX}{layer}.lora_{factor}.weight"))
}

fn factors(
    name: &str,
    adapter: &LoraAdapter,
    config: &LoraConfig,
) -> Result<[HostTensor; 2], LoraError> {
    let examples = adapter.examples();
    if examples != 1 {
        return Err(LoraError::Expanded {
            adapter: name.to_owned(),
            examples,
        });
    }
    let rank = adapter.reference().a_shape[1];
    if rank != config.rank || adapter.scaling != config.scaling() {
        return Err(LoraError::InvalidSetting {
            name: "rank and alpha",
            requirement: "those the adapters were made with",
            value: format!("rank {}, scaling {}", config.rank, config.scaling()),
        });
    }
    let [a_name, b_name] = tensor_names(name);
    let host = |name: &str, value: burn::tensor::Tensor<3>| {
        let [_, rows, columns] = value.dims();
        HostTensor::from_tensor(name, value.reshape([rows, columns]).swap_dims(0, 1))
    };
    Ok([
        host(&a_name, adapter.a.val())?,
        host(&b_name, adapter.b.val())?,
    ])
}

fn settings(
    config: &LoraConfig,
    base_model: Option<&str>,
    names: &[String],
    fan_in_fan_out: bool,
) -> Value {
    let mut targets = config.target_modules.clone();
    if targets.iter().any(|target| target == ALL_LINEAR) {
        // PEFT resolves this word when it makes an adapter, not when it loads one.
        targets = names
            .iter()
            .filter_map(|name| name.rsplit('.').next().map(str::to_owned))
            .collect();
    }
    targets.sort();
    targets.dedup();
    // PEFT writes a whole alpha as an integer.
    let alpha = if config.alpha.fract() == 0.0 && config.alpha < 1e15 {
        json!(config.alpha as u64)
    } else {
        json!(config.alpha)
    };
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": config.use_rslora,
    })
}
