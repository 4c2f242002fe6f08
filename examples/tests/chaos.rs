//! A small fault campaign; the large one is `cargo run --release -p rldp-examples --bin chaos -- --kills 200`.
#![allow(clippy::unwrap_used)]

use std::process::Command;

#[cfg(unix)]
#[test]
fn killed_and_starved_runs_resume_and_count_all_they_released() {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--kills", "8", "--no-mount", "--json"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(figures["kills"].as_u64().unwrap() >= 8, "{figures}");
    assert!(figures["comparisons"].as_u64().unwrap() >= 8, "{figures}");
    assert!(
        figures["seeded_identical"].as_u64().unwrap() >= 1,
        "{figures}"
    );
}
