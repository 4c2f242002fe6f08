//! Writes a sharded bf16 checkpoint of made-up random weights in Llama-3.2-1B's shape (1.24 billion
//! parameters, 2.3 GiB), to try loading and one step on something large.
//!
//! `cargo run --release -p rldp-models --example large_checkpoint -- FOLDER [LAYERS]`
#![allow(clippy::unwrap_used)]

use std::borrow::Cow;
use std::path::Path;

use half::bf16;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use rldp_models::LlamaConfig;
use rldp_models::rotary::RopeScaling;
use safetensors::tensor::{Dtype, View};
use serde_json::json;

/// Blocks in one file.
const BLOCKS_PER_SHARD: usize = 8;

struct Matrix {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Matrix {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(folder) = arguments.first().map(Path::new) else {
        eprintln!("usage: large_checkpoint FOLDER [LAYERS]");
        std::process::exit(2);
    };
    let layers = arguments.get(1).map_or(16, |text| text.parse().unwrap());
    let mut config = LlamaConfig::new(128_256, 131_072, layers, 2048, 32);
    config.kv_heads = 8;
    config.inner = 8192;
    config.rope.theta = 500_000.0;
    config.rope.scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };

    std::fs::create_dir_all(folder).unwrap();
    let mut settings = config.to_settings();
    settings["torch_dtype"] = json!("bfloat16");
    std::fs::write(folder.join("config.json"), settings.to_string()).unwrap();

    let width = config.width;
    let head = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![config.vocabulary, width],
        ),
        ("model.norm.weight".to_owned(), vec![width]),
    ];
    let blocks: Vec<usize> = (0..layers).collect();
    let mut shards = vec![head];
    for numbers in blocks.chunks(BLOCKS_PER_SHARD) {
        shards.push(numbers.iter().flat_map(|n| block(&config, *n)).collect());
    }

    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut map, mut total) = (serde_json::Map::new(), 0);
    let count = shards.len();
    for (index, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        let tensors: Vec<(String, Matrix)> = shard
            .into_iter()
            .map(|(name, shape)| (name, random(shape, &mut rng)))
            .collect();
        for (name, matrix) in &tensors {
            map.insert(name.clone(), json!(file));
            total += matrix.bytes.len();
        }
        let views = tensors.iter().map(|(name, matrix)| (name.as_str(), matrix));
        safetensors::serialize_to_file(views, None, &folder.join(file)).unwrap();
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    println!("{} parameters, {total} bytes, {count} files", total / 2);
}

fn block(config: &LlamaConfig, number: usize) -> Vec<(String, Vec<usize>)> {
    let (width, inner) = (config.width, config.inner);
    let (queries, keys) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    [
        ("input_layernorm", vec![width]),
        ("post_attention_layernorm", vec![width]),
        ("self_attn.q_proj", vec![queries, width]),
        ("self_attn.k_proj", vec![keys, width]),
        ("self_attn.v_proj", vec![keys, width]),
        ("self_attn.o_proj", vec![width, queries]),
        ("mlp.gate_proj", vec![inner, width]),
        ("mlp.up_proj", vec![inner, width]),
        ("mlp.down_proj", vec![width, inner]),
    ]
    .map(|(part, shape)| (format!("model.layers.{number}.{part}.weight"), shape))
    .into()
}

/// Uniform with deviation 0.02; ones for norms.
fn random(shape: Vec<usize>, rng: &mut ChaCha8Rng) -> Matrix {
    let count: usize = shape.iter().product();
    let value = |_| match shape.len() {
        1 => bf16::ONE,
        _ => bf16::from_f32((rng.random::<f32>() - 0.5) * 0.0693),
    };
    let bytes = (0..count).map(value).flat_map(bf16::to_le_bytes).collect();
    Matrix { shape, bytes }
}
