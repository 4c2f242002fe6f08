//! Studies as a user makes them, at a tiny size.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const STUDY: &str = r#"
name = "tiny"
epsilons = [4.0]
seeds = [1, 2]
oracle-seeds = [1]
reference = "sac"
curve-every = 2
[task]
[trainer]
steps = 4
decisions = 2
batch-size = 6.0
max-length = 24
held-out-units = 12
agent = { updates = 2, warm-up = 0 }
[attacks]
canaries = 12
canary-repeats = [1, 2]
people = 8
exposure-samples = 20
generations = 1
[[arm]]
name = "sac"
[[arm]]
name = "quantile"
grade = "defaults"
trainer = { controller = "quantile" }
[[arm]]
name = "decay (oracle)"
grade = "oracle"
trainer = { controller = "decay", budget = "deck", post-processing = { tail-averaging = 0.5, denoising-gain = 0.7 } }
[arm.grid]
learning-rate = [0.001, 0.01]
"#;

fn run(binary: &str, arguments: &[&str]) -> Output {
    let output = Command::new(binary).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn compare(folder: &Path, more: &[&str]) -> String {
    let study = folder.join("tiny.toml");
    let out = folder.join("out");
    let mut arguments = vec![
        "--study",
        study.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    arguments.extend(more);
    let output = run(env!("CARGO_BIN_EXE_compare"), &arguments);
    String::from_utf8(output.stdout).unwrap()
}

/// A study goes on where it stopped, makes no finished run again, and comes to the same runs in whatever order.
#[test]
fn a_study_is_made_in_parts_and_never_twice() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.toml"), STUDY).unwrap();
    let told = compare(folder.path(), &["--runs", "3"]);
    assert!(
        told.starts_with("3 runs made, 3 of 6 known runs left"),
        "{told}"
    );
    let told = compare(folder.path(), &[]);
    // One comparison and two tuning runs were left; then the tuned arm's two seeds were known.
    assert!(
        told.starts_with("5 runs made, 0 of 8 known runs left"),
        "{told}"
    );
    let store = std::fs::read_to_string(folder.path().join("out/runs.jsonl")).unwrap();
    let told = compare(folder.path(), &[]);
    assert!(told.starts_with("0 runs made"), "{told}");
    assert_eq!(
        std::fs::read_to_string(folder.path().join("out/runs.jsonl")).unwrap(),
        store
    );
    let page = std::fs::read_to_string(folder.path().join("out/report.html")).unwrap();
    assert!(page.contains("NOT PRIVATE") && !page.contains("Unfinished"));
    let csv = std::fs::read_to_string(folder.path().join("out/runs.csv")).unwrap();
    assert_eq!(csv.lines().count(), 9);
    // All models of the comparison were attacked, those of the tuning were not.
    let attacked = std::fs::read_to_string(folder.path().join("out/attacks.csv")).unwrap();
    assert_eq!(attacked.lines().count(), 7, "{attacked}");
    for line in attacked.lines().skip(1) {
        // Areas and shares: arm, epsilon, seed and perplexity come first, exposure and the bound are no shares.
        let cells: Vec<f64> = line
            .split(',')
            .skip(4)
            .map(|cell| cell.parse().unwrap())
            .collect();
        for share in [cells[0], cells[2], cells[4], cells[5]] {
            assert!((0.0..=1.0).contains(&share), "{line}");
        }
        assert!(cells[1] > 0.0 && (0.0..4.0).contains(&cells[3]), "{line}");
    }
    assert!(page.contains("sac less every other arm"));
    // The same run made anew has the same losses, to the last bit.
    let line = |text: &str| -> serde_json::Value {
        let last = text.lines().next().unwrap();
        serde_json::from_str::<serde_json::Value>(last).unwrap()["curve"].clone()
    };
    let again = tempfile::tempdir().unwrap();
    std::fs::write(again.path().join("tiny.toml"), STUDY).unwrap();
    compare(again.path(), &["--runs", "1"]);
    let other = std::fs::read_to_string(again.path().join("out/runs.jsonl")).unwrap();
    assert_eq!(line(&store), line(&other));
}

/// A policy is pre-trained in parts, and `compare` and `finetune` take it.
#[test]
fn a_policy_is_pretrained_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let curriculum = folder.path().join("policy.toml");
    let text = |episodes: u32| {
        format!(
            "name = \"tiny\"\nepsilon = [1.0, 8.0]\nlearning-rate-factor = [0.5, 2.0]\nclipping-norm-factor = [0.5, 2.0]\n\
             episodes = {episodes}\n[[task]]\ngenerated = 200\n[trainer]\nsteps = 4\ndecisions = 4\nbatch-size = 6.0\n\
             max-length = 24\nheld-out-units = 12\nagent = {{ updates = 2, warm-up = 0 }}\n"
        )
    };
    let out = folder.path().join("out");
    for episodes in [1, 2] {
        std::fs::write(&curriculum, text(episodes)).unwrap();
        let arguments = [
            "--curriculum",
            curriculum.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
        ];
        run(env!("CARGO_BIN_EXE_pretrain_policy"), &arguments);
        let lines = std::fs::read_to_string(out.join("episodes.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), episodes as usize);
        let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        assert_eq!(last["transitions"], 4 * episodes);
    }
    let run_folder = folder.path().join("run");
    let policy = out.join("policy.safetensors");
    run(
        env!("CARGO_BIN_EXE_finetune"),
        &[
            "--steps",
            "3",
            "--batch-size",
            "6",
            "--held-out-units",
            "12",
            "--decisions",
            "3",
            "--max-length",
            "24",
            "--policy",
            policy.to_str().unwrap(),
            "--out",
            run_folder.to_str().unwrap(),
            "--noise-correction",
            "1",
            "--denoising-gain",
            "0.7",
            "--averaging-decay",
            "0.9",
        ],
    );
    assert!(
        run_folder
            .join("adapter/adapter_model.safetensors")
            .is_file()
    );
}
