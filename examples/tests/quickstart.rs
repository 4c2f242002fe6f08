//! The binaries as a user runs them, at a tiny size.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use rldp_accounting::ledger::{Event, Ledger};

/// `finetune` with settings that take seconds; later flags win.
fn finetune(out: &Path, more: &[&str]) -> Output {
    let tiny = [
        "--steps",
        "3",
        "--batch-size",
        "6",
        "--held-out-units",
        "12",
        "--decisions",
        "2",
        "--max-length",
        "24",
    ];
    Command::new(env!("CARGO_BIN_EXE_finetune"))
        .args(tiny)
        .args(["--out", out.to_str().unwrap()])
        .args(more)
        .output()
        .unwrap()
}

fn assert_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn account(arguments: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_account"))
        .args(arguments)
        .output()
        .unwrap();
    assert_success(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_writes_what_it_promises_and_its_ledger_alone_gives_its_epsilon() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = finetune(&out, &[]);
    assert_success(&output);
    for file in [
        "ledger.jsonl",
        "metrics.jsonl",
        "report.html",
        "config.toml",
        "data.key",
        "sac_policy.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ] {
        assert!(out.join(file).is_file(), "{file} is missing");
    }
    let ledger_path = out.join("ledger.jsonl");
    let ledger = Ledger::read(&ledger_path).unwrap();
    assert!(ledger.header.private);
    assert_eq!(ledger.steps(), 3);
    let queries = |name: &str| {
        ledger
            .events
            .iter()
            .filter(|event| matches!(event, Event::Query { part, .. } if part == name))
            .count()
    };
    // The number of units, one loss before training and one after each decision; two losses for the test.
    assert_eq!((queries("validation"), queries("test")), (4, 3));

    let answer = account(&["ledger", ledger_path.to_str().unwrap(), "--json"]);
    let epsilon = answer["overall"].as_f64().unwrap();
    assert!(epsilon <= 8.0 && epsilon > 7.9, "epsilon {epsilon}");
    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(!report.contains("NOT PRIVATE"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("-differentially private"), "{told}");
    let again = finetune(&out, &[]);
    assert!(
        !again.status.success(),
        "a second run in the same folder was not refused"
    );
}

#[test]
fn a_seeded_run_repeats_itself_and_says_that_it_is_not_private() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    for out in [&first, &second] {
        assert_success(&finetune(out, &["--seed", "5"]));
    }
    for file in [
        "adapter/adapter_model.safetensors",
        "metrics.jsonl",
        "sac_policy.safetensors",
    ] {
        let bytes = |out: &Path| std::fs::read(out.join(file)).unwrap();
        assert_eq!(bytes(&first), bytes(&second), "{file} differs");
    }
    assert!(
        !Ledger::read(first.join("ledger.jsonl"))
            .unwrap()
            .header
            .private
    );
    let report = std::fs::read_to_string(first.join("report.html"))
        .unwrap()
        .to_lowercase();
    assert!(report.contains("not private"));
}

#[test]
fn two_private_runs_differ() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    for out in [&first, &second] {
        assert_success(&finetune(out, &["--controller", "rule"]));
    }
    let bytes = |out: &Path| std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    assert_ne!(bytes(&first), bytes(&second));
}

#[test]
fn every_budget_and_controller_runs() {
    let folder = tempfile::tempdir().unwrap();
    for (budget, controller) in [("deck", "random"), ("filter", "constant"), ("deck", "sac")] {
        let out = folder.path().join(format!("{budget}-{controller}"));
        assert_success(&finetune(
            &out,
            &["--budget", budget, "--controller", controller],
        ));
        let ledger = Ledger::read(out.join("ledger.jsonl")).unwrap();
        let delta = ledger.header.target.delta;
        let epsilon = ledger.epsilon_upper(delta).unwrap().overall;
        assert!(epsilon <= 8.0 + 1e-9, "{budget}: epsilon {epsilon}");
    }
}

#[test]
fn a_persons_rows_are_one_unit() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("visits.csv");
    let rows: String = (0..400)
        .map(|row| {
            format!(
                "p{},{}\n",
                row % 200,
                ["a cough", "a fall", "a fever"][row % 3]
            )
        })
        .collect();
    std::fs::write(&table, format!("person,reason\n{rows}")).unwrap();
    let template = folder.path().join("note.jinja");
    std::fs::write(&template, "Seen for {{ reason }}.").unwrap();
    let out = folder.path().join("run");
    assert_success(&finetune(
        &out,
        &[
            "--data",
            table.to_str().unwrap(),
            "--template",
            template.to_str().unwrap(),
            "--unit-column",
            "person",
        ],
    ));
    let header = Ledger::read(out.join("ledger.jsonl")).unwrap().header;
    assert_eq!(header.unit, "all rows with the same person");
    assert_eq!(header.parameters["units"], 200);
}

#[test]
fn what_cannot_run_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("visits.csv");
    std::fs::write(&table, "person,reason\n1,cough\n2,fall\n").unwrap();
    let table = table.to_str().unwrap();
    let cases: [(&[&str], &str); 8] = [
        (&["--data", table], "reason"),
        (&["--data", table, "--text-column", "note"], "note"),
        (&["--data", "no-such-file.csv"], "no-such-file.csv"),
        (&["--model", "no-such/model"], "no-such/model"),
        (&["--epsilon", "0"], "epsilon"),
        (&["--batch-size", "1e9"], "batch size"),
        (&["--lora-rank", "0"], "rank"),
        (&["--device", "abacus"], "abacus"),
    ];
    for (index, (arguments, named)) in cases.iter().enumerate() {
        let output = finetune(&folder.path().join(index.to_string()), arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?} was not refused");
        assert!(error.contains(named), "{arguments:?} said: {error}");
        assert!(
            !error.contains("panicked"),
            "{arguments:?} panicked: {error}"
        );
        assert!(
            !error.contains("cough"),
            "{arguments:?} showed private text: {error}"
        );
    }
}

#[test]
fn account_answers_agree_with_each_other() {
    let sigma = account(&[
        "sigma",
        "--epsilon",
        "2",
        "--delta",
        "1e-5",
        "--q",
        "0.01",
        "--steps",
        "500",
        "--json",
    ]);
    let noise_multiplier = sigma["noise_multiplier"].as_f64().unwrap().to_string();
    let answer = account(&[
        "epsilon",
        "--q",
        "0.01",
        "--sigma",
        &noise_multiplier,
        "--steps",
        "500",
        "--delta",
        "1e-5",
        "--json",
    ]);
    let epsilon = answer["rows"][0]["epsilon"].as_f64().unwrap();
    assert!(epsilon <= 2.0 && epsilon > 1.99, "epsilon {epsilon}");
    let bad = Command::new(env!("CARGO_BIN_EXE_account"))
        .args(["epsilon", "--q", "1.5", "--sigma", "1", "--steps", "1"])
        .output()
        .unwrap();
    assert!(!bad.status.success());
}

#[test]
fn account_answers_for_every_adjacency_or_refuses() {
    let epsilon = |q: &str, adjacency: &str| {
        account(&[
            "epsilon",
            "--q",
            q,
            "--sigma",
            "4",
            "--steps",
            "10",
            "--adjacency",
            adjacency,
            "--json",
        ])
    };
    let first = |answer: &serde_json::Value| answer["rows"][0]["epsilon"].as_f64().unwrap();
    let plain = first(&epsilon("1", "add-remove"));
    assert_eq!(first(&epsilon("1", "zero-out")), plain);
    let replaced = epsilon("1", "replace-one");
    // Twice the sensitivity.
    assert!(first(&replaced) > 1.9 * plain);
    assert_eq!(replaced["adjacency"], "replace_one");
    let sigma = |adjacency: &str| {
        let answer = account(&[
            "sigma",
            "--epsilon",
            "2",
            "--q",
            "1",
            "--steps",
            "10",
            "--adjacency",
            adjacency,
            "--json",
        ]);
        assert!(answer["epsilon_upper"].as_f64().unwrap() <= 2.0);
        answer["noise_multiplier"].as_f64().unwrap()
    };
    assert_eq!(sigma("replace-one"), 2.0 * sigma("add-remove"));
    // Under Poisson sampling no dominating pair is known: refused, in words.
    for question in [
        ["epsilon", "--sigma", "4", "--steps", "10"].as_slice(),
        &["sigma", "--epsilon", "2", "--steps", "10"],
        &["steps", "--epsilon", "2", "--sigma", "4"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_account"))
            .args(question)
            .args(["--q", "0.1", "--adjacency", "replace-one"])
            .output()
            .unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(error.contains("replace"), "{error}");
    }
}
