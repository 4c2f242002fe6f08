//! The `generate` binary, run as a user runs it.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use rldp_examples::device::{NAMES, device};
use rldp_examples::embedded;
use rldp_lora::{LoraConfig, add_lora, peft};
use rldp_models::LanguageModel as _;

fn generate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_generate"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn embedded_model_continues_the_prompt_and_a_seed_repeats_it() {
    let sampled = |seed| {
        text(&generate(&[
            "--prompt",
            "The patient was",
            "--max-tokens",
            "40",
            "--temperature",
            "1.2",
            "--top-p",
            "1",
            "--seed",
            seed,
        ]))
    };
    let first = sampled("1");
    assert!(first.starts_with("The patient was"), "{first}");
    assert!(first.len() > "The patient was\n".len() + 10, "{first}");
    assert_eq!(first, sampled("1"));
    assert_ne!(first, sampled("2"));
}

#[test]
fn a_fresh_adapter_changes_nothing_and_a_run_folder_is_understood() {
    let device = device(NAMES[0]).unwrap();
    let mut model = embedded::base_model(&device).unwrap().model;
    let config = LoraConfig::new(2, model.default_targets());
    add_lora(&mut model, &config, 3).unwrap();
    let run = tempfile::tempdir().unwrap();
    peft::save_adapter(&model, &config, None, &run.path().join("adapter")).unwrap();
    let base = ["--prompt", "Heart rate", "--max-tokens", "25", "--greedy"];
    let expected = text(&generate(&base));
    for folder in [run.path().to_owned(), run.path().join("adapter")] {
        let with_adapter = [&base[..], &["--adapter", folder.to_str().unwrap()]].concat();
        assert_eq!(text(&generate(&with_adapter)), expected);
    }
}

#[test]
fn an_unpacked_base_model_is_an_ordinary_model_folder() {
    let folder = tempfile::tempdir().unwrap();
    embedded::unpack_base_model(folder.path()).unwrap();
    let base = ["--prompt", "One day", "--max-tokens", "20", "--greedy"];
    let given = [&base[..], &["--model", folder.path().to_str().unwrap()]].concat();
    assert_eq!(text(&generate(&given)), text(&generate(&base)));
}

#[test]
fn errors_are_one_line_and_name_the_culprit() {
    let output = generate(&["--adapter", "/nowhere/at/all"]);
    assert!(!output.status.success());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("/nowhere/at/all"), "{message}");
    assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    assert_eq!(generate(&["--no-such-flag"]).status.code(), Some(2));
}
