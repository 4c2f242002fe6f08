//! `audit` as a user runs it on a run of `finetune`, at a tiny size.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn finetune(out: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_finetune"))
        .args([
            "--steps",
            "3",
            "--batch-size",
            "6",
            "--held-out-units",
            "40",
            "--decisions",
            "2",
        ])
        .args([
            "--max-length",
            "24",
            "--canaries",
            "24",
            "--canary-repeats",
            "1,2",
        ])
        .args(["--out", out.to_str().unwrap()])
        .args(more)
        .output()
        .unwrap()
}

fn audit(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_audit"))
        .args(arguments)
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

const QUICK: [&str; 8] = [
    "--people",
    "60",
    "--exposure-samples",
    "40",
    "--generations",
    "2",
    "--mechanism-canaries",
    "50",
];

#[test]
fn an_audit_keeps_what_is_private_out_of_what_may_be_published() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    assert_success(&finetune(&out, &["--controller", "rule"]));
    let run = out.to_str().unwrap();
    let before = std::fs::read_to_string(out.join("report.html")).unwrap();
    let output = audit(&[&["--run", run, "--shadows", "2"], &QUICK[..]].concat());
    assert_success(&output);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        told.contains("no guarantee covers") && told.contains("LiRA"),
        "{told}"
    );

    let covered: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("audit.json")).unwrap()).unwrap();
    let claimed = covered["claimed_epsilon"].as_f64().unwrap();
    assert!(claimed <= 8.0 && claimed > 7.9);
    assert!(
        covered["mechanism"]["bound"]["epsilon_lower"]
            .as_f64()
            .unwrap()
            <= claimed
    );
    assert_eq!(covered["canaries"]["canaries"], 24);
    assert!(
        covered.get("attacks").is_none(),
        "people stand among what is covered"
    );

    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.len() > before.len());
    for part in [
        "Claim and lower bounds",
        "Membership of canaries",
        "rate (log)",
    ] {
        assert!(report.contains(part), "{part} is missing from the report");
    }
    assert!(
        !report.contains("Membership of people"),
        "the report shows people"
    );
    let page = std::fs::read_to_string(out.join("audit-private.html")).unwrap();
    assert!(page.contains("Membership of people") && page.contains("PRIVATE"));
    #[cfg(unix)]
    for file in ["audit-private.html", "audit-private.json"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(out.join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "others can read {file}");
    }

    // A second audit replaces the first.
    assert_success(&audit(
        &[&["--run", run], &QUICK[2..], &["--people", "0"]].concat(),
    ));
    let again = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(again.matches("Claim and lower bounds").count(), 1);

    let table = audit(&["--table", run]);
    assert_success(&table);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(
        lines[0].split(',').count(),
        lines[1].split(',').count(),
        "{text}"
    );

    // Another table is not the run's.
    let other = folder.path().join("other.csv");
    std::fs::write(&other, "sno,age\n1,2\n2,3\n").unwrap();
    let refused = audit(
        &[
            &["--run", run, "--data", other.to_str().unwrap()],
            &QUICK[..],
        ]
        .concat(),
    );
    assert!(!refused.status.success());
}

#[test]
fn a_run_without_privacy_says_so_everywhere_and_claims_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let output = finetune(&out, &["--non-private", "--seed", "3"]);
    assert_success(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("NOT PRIVATE"));
    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("NOT PRIVATE") && report.contains("No privacy"));
    assert!(!report.contains("-differentially private"));
    let ledger = std::fs::read_to_string(out.join("ledger.jsonl")).unwrap();
    assert!(ledger.contains("NOT private") && ledger.contains("unprotected"));
    let account = Command::new(env!("CARGO_BIN_EXE_account"))
        .args(["ledger", out.join("ledger.jsonl").to_str().unwrap()])
        .output()
        .unwrap();
    assert!(
        !account.status.success(),
        "an epsilon was given for a run without noise"
    );
    assert!(String::from_utf8_lossy(&account.stderr).contains("no epsilon"));

    let run = out.to_str().unwrap();
    assert_success(&audit(&[&["--run", run], &QUICK[..]].concat()));
    let covered: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("audit.json")).unwrap()).unwrap();
    assert!(covered["claimed_epsilon"].is_null() && covered["mechanism"].is_null());
}

#[test]
fn a_run_over_all_parameters_is_audited_too() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    assert_success(&finetune(&out, &["--trainable", "full"]));
    let run = out.to_str().unwrap();
    assert_success(&audit(&[&["--run", run], &QUICK[..]].concat()));
    let covered: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("audit.json")).unwrap()).unwrap();
    assert!(covered["claimed_epsilon"].as_f64().unwrap() <= 8.0);
    assert!(
        !audit(&[&["--run", run, "--shadows", "2"], &QUICK[..]].concat())
            .status
            .success()
    );
}

#[test]
fn what_cannot_be_audited_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    let both = finetune(
        &folder.path().join("both"),
        &["--non-private", "--trainable", "full"],
    );
    assert!(
        !both.status.success(),
        "a run without privacy over all parameters would have been private"
    );
    for (arguments, named) in [
        (vec!["--run", empty], "no finished run"),
        (vec!["--table", empty], "audit.json"),
        (vec![], "--run"),
    ] {
        let output = audit(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(named),
            "{arguments:?} said: {error}"
        );
    }
}
