//! Generation: cached against uncached, sampling rules, a real model's known continuation.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{MODELS, devices, load, values};
use rand::{SeedableRng, rngs::ChaCha12Rng};
use rldp_models::{
    CausalLm, GenerationOptions, Gpt2, Gpt2Config, LanguageModel, ModelError, generate,
};

fn rng() -> ChaCha12Rng {
    ChaCha12Rng::seed_from_u64(7)
}

fn go_on(_: u32) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn last_logits(model: &CausalLm, tokens: &[u32], device: &Device) -> Vec<f64> {
    let ids: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
    let ids: Tensor<2, Int> = Tensor::from_data(TensorData::new(ids, [1, tokens.len()]), device);
    let logits = model.forward(ids);
    values(logits.narrow(1, tokens.len() - 1, 1))
}

fn argmax(logits: &[f64]) -> u32 {
    let best = logits.iter().cloned().fold(f64::MIN, f64::max);
    logits.iter().position(|logit| *logit == best).unwrap() as u32
}

#[test]
fn greedy_with_cache_equals_the_uncached_forward() {
    for (backend, device) in devices() {
        for name in MODELS {
            let model = load(name, &device);
            let prompt = [3, 14, 15, 92, 65];
            let options = GenerationOptions::greedy(30);
            let cached = generate(&model, &prompt, &options, &device, &mut rng(), go_on).unwrap();
            let mut tokens = prompt.to_vec();
            for token in &cached {
                assert_eq!(
                    *token,
                    argmax(&last_logits(&model, &tokens, &device)),
                    "{backend} {name}"
                );
                tokens.push(*token);
            }
            assert_eq!(cached.len(), 30);
        }
    }
}

#[test]
fn sampling_obeys_its_options() {
    for (_, device) in devices() {
        let model = load("gpt2", &device);
        let sample = |options: &GenerationOptions, seed| {
            let mut rng = ChaCha12Rng::seed_from_u64(seed);
            generate(&model, &[1, 2, 3], options, &device, &mut rng, go_on).unwrap()
        };
        let greedy = sample(&GenerationOptions::greedy(8), 1);
        let base = GenerationOptions {
            max_new_tokens: 8,
            ..Default::default()
        };
        let one = GenerationOptions {
            top_k: Some(1),
            ..base.clone()
        };
        assert_eq!(sample(&one, 2), greedy);
        let narrow = GenerationOptions {
            top_p: 1e-9,
            ..base.clone()
        };
        assert_eq!(sample(&narrow, 3), greedy);
        let cold = GenerationOptions {
            temperature: 1e-4,
            ..base.clone()
        };
        assert_eq!(sample(&cold, 4), greedy);
        assert_eq!(sample(&base, 5), sample(&base, 5), "same seed, same text");
        assert_ne!(sample(&base, 5), sample(&base, 6), "other seed, other text");

        let stop = GenerationOptions {
            stop_tokens: vec![greedy[3]],
            ..GenerationOptions::greedy(8)
        };
        let before = greedy.iter().position(|token| *token == greedy[3]).unwrap();
        assert_eq!(sample(&stop, 1), greedy[..before]);

        // First tokens follow the softmax: a chi-square test over the more likely tokens,
        // false alarm below 1e-6 (23 degrees of freedom at most, limit 80).
        let logits = last_logits(&model, &[1, 2, 3], &device);
        let total: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let draws = 2000;
        let mut counts = vec![0.0; logits.len()];
        let first = GenerationOptions {
            max_new_tokens: 1,
            ..base
        };
        for seed in 0..draws {
            counts[sample(&first, seed)[0] as usize] += 1.0;
        }
        let mut degrees = 0;
        let statistic: f64 = logits
            .iter()
            .zip(&counts)
            .map(|(logit, count)| (logit.exp() / total * draws as f64, count))
            .filter(|(expected, _)| *expected > 25.0)
            .take(23)
            .map(|(expected, count)| {
                degrees += 1;
                (count - expected).powi(2) / expected
            })
            .sum();
        assert!(
            degrees > 5 && statistic < 80.0,
            "{statistic} over {degrees} tokens"
        );
    }
}

#[test]
fn top_k_and_top_p_choose_among_the_most_likely() {
    let (_, device) = devices().remove(0);
    let model = load("llama32", &device);
    let prompt = [5, 6, 7];
    let temperature = 1.5;
    let logits = last_logits(&model, &prompt, &device);
    let mut ranked: Vec<(usize, f64)> = logits
        .iter()
        .map(|logit| (logit / temperature).exp())
        .enumerate()
        .collect();
    ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
    let total: f64 = ranked.iter().map(|(_, weight)| weight).sum();
    let mut nucleus = 0;
    let mut mass = 0.0;
    while mass < 0.4 * total {
        mass += ranked[nucleus].1;
        nucleus += 1;
    }
    assert!(nucleus > 2, "{nucleus} tokens test nothing");
    let base = GenerationOptions {
        max_new_tokens: 1,
        temperature,
        ..Default::default()
    };
    for (what, options, count) in [
        (
            "top_k",
            GenerationOptions {
                top_k: Some(4),
                ..base.clone()
            },
            4,
        ),
        (
            "top_p",
            GenerationOptions {
                top_p: 0.4,
                ..base.clone()
            },
            nucleus,
        ),
    ] {
        let mut counts = vec![0.0; logits.len()];
        let draws = 3000;
        for seed in 0..draws {
            let mut rng = ChaCha12Rng::seed_from_u64(seed);
            let made = generate(&model, &prompt, &options, &device, &mut rng, go_on).unwrap();
            counts[made[0] as usize] += 1.0;
        }
        let kept: f64 = ranked[..count].iter().map(|(_, weight)| weight).sum();
        for (token, _) in &ranked[count..] {
            assert_eq!(counts[*token], 0.0, "{what}: token {token} was left out");
        }
        for (token, weight) in &ranked[..count] {
            let expected = weight / kept * draws as f64;
            // Six standard deviations of a Poisson count: false alarm below 1e-6 for all tokens.
            let limit = 6.0 * expected.sqrt() + 1.0;
            let found = counts[*token];
            assert!(
                (found - expected).abs() < limit,
                "{what} {token}: {found} {expected}"
            );
        }
    }
}

#[test]
fn the_callback_sees_every_token_and_can_stop() {
    let (_, device) = devices().remove(0);
    let model = load("llama32", &device);
    let mut seen = Vec::new();
    let options = GenerationOptions::greedy(20);
    let made = generate(&model, &[1], &options, &device, &mut rng(), |token| {
        seen.push(token);
        match seen.len() {
            5 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert_eq!(made.unwrap(), seen);
    assert_eq!(seen.len(), 5);
}

#[test]
fn generation_ends_where_the_positions_end() {
    let (_, device) = devices().remove(0);
    let model = Gpt2::random(&Gpt2Config::new(20, 8, 1, 8, 2), 1, &device).unwrap();
    let run = |prompt: &[u32], options: &GenerationOptions| {
        generate(&model, prompt, options, &device, &mut rng(), go_on)
    };
    // Eight positions are read; the last of them still predicts one token more.
    assert_eq!(
        run(&[1, 2, 3], &GenerationOptions::greedy(100))
            .unwrap()
            .len(),
        6
    );
    let greedy = GenerationOptions::greedy(1);
    assert!(matches!(
        run(&[1; 9], &greedy),
        Err(ModelError::ContextTooLong {
            tokens: 9,
            positions: 8
        })
    ));
    assert!(matches!(
        run(&[], &greedy),
        Err(ModelError::InvalidBatch { .. })
    ));
    assert!(matches!(
        run(&[20], &greedy),
        Err(ModelError::TokenOutOfRange { token: 20, .. })
    ));
    for (name, options) in [
        (
            "temperature",
            GenerationOptions {
                temperature: -1.0,
                ..greedy.clone()
            },
        ),
        (
            "top_p",
            GenerationOptions {
                top_p: 0.0,
                ..greedy.clone()
            },
        ),
        (
            "top_k",
            GenerationOptions {
                top_k: Some(0),
                ..greedy.clone()
            },
        ),
    ] {
        match run(&[1], &options) {
            Err(ModelError::InvalidOption { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{other:?}"),
        }
    }
}

/// The real model is not part of this repository: the test says so and ends where it is absent.
#[test]
fn stories260k_continues_as_its_readme_says() {
    const EXPECTED: &str = ", there was a little girl named Lily. She loved to play outside in the \
        park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.";
    let root = std::env::var_os("RLDP_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    let folder = root.join("models/stories260k");
    if !folder.is_dir() {
        println!(
            "NOT CHECKED: no stories260k in {} (set RLDP_SHARED)",
            folder.display()
        );
        return;
    }
    for (backend, device) in devices() {
        let loaded = CausalLm::load(&folder, &device, |_| {}).unwrap();
        let tokenizer = loaded.tokenizer().unwrap();
        let prompt = tokenizer.encode("Once upon a time", true).unwrap();
        assert_eq!(prompt[0], 1, "the tokenizer adds the start token");
        let options = GenerationOptions::greedy(90);
        let made = generate(&loaded.model, &prompt, &options, &device, &mut rng(), go_on).unwrap();
        let text = tokenizer.decode(&[prompt, made].concat()).unwrap();
        let continuation = text.strip_prefix("Once upon a time").unwrap();
        assert!(
            continuation.starts_with(EXPECTED),
            "{backend}: {continuation}"
        );
        println!("{backend}: stories260k continues as expected");
    }
}
