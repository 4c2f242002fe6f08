//! Bad inputs on the command line of `finetune`, and the answers they get. The answers make `docs/bad-inputs.md`: run with
//! `RLDP_WRITE_DOCS=1` to write it anew.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Text that stands in every table here and must never be seen again.
const MARKER: &str = "XQZPRIVATEXQZ";
/// A secret of the hub's.
const TOKEN: &str = "hf_XQZTOKENXQZ";

fn finetune(arguments: &[String]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_finetune"))
        .args(arguments)
        .env("HF_TOKEN", TOKEN)
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// One bad input: what is wrong, the flags, and what the answer must say.
struct Case {
    what: &'static str,
    flags: Vec<String>,
    answer: &'static str,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The embedded base model as a folder, in which one file is then broken.
fn broken_model(folder: &Path, name: &str, break_it: impl FnOnce(&Path)) -> String {
    let path = folder.join(name);
    rldp_examples::embedded::unpack_base_model(&path).unwrap();
    break_it(&path);
    path.display().to_string()
}

fn data_cases(folder: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut number = 0;
    let mut file = |what, name: &str, bytes: &[u8], more: &[&str], answer| {
        number += 1;
        let sub = folder.join(format!("data-{number}"));
        std::fs::create_dir_all(&sub).unwrap();
        let path = sub.join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut flags = vec!["--data".to_owned(), path.display().to_string()];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        cases.push(Case {
            what,
            flags,
            answer,
        });
    };
    let text = ["--text-column", "a"];
    let m = MARKER;
    file(
        "an empty file",
        "t.csv",
        b"",
        &text,
        "t.csv: the file is empty",
    );
    file(
        "a header and no record",
        "t.csv",
        b"a,b\n",
        &text,
        "there is no record",
    );
    let bytes = format!("a,b\n{m},1\n{m}\n");
    file(
        "a record with a cell too few",
        "t.csv",
        bytes.as_bytes(),
        &text,
        "t.csv:3: 1 cells where the header has 2",
    );
    let bytes = format!("a,b\n\"{m},1\n{m},2\n");
    file(
        "a quote that is never closed",
        "t.csv",
        bytes.as_bytes(),
        &text,
        "never closed",
    );
    let bytes = [format!("a,b\n{m},1\n").as_bytes(), b"\xff\xfe,2\n"].concat();
    file(
        "bytes that are not UTF-8",
        "t.csv",
        &bytes,
        &text,
        "t.csv:3:1: not valid UTF-8",
    );
    let bytes: Vec<u8> = format!("\u{feff}a,b\n{m},1\n")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    file("UTF-16", "t.csv", &bytes, &text, "it looks like UTF-16");
    let bytes = format!("a,b\n{m}\0,1\n");
    file("a NUL byte", "t.csv", bytes.as_bytes(), &text, "a NUL byte");
    let bytes = format!("a,a\n{m},1\n");
    file(
        "two columns of one name",
        "t.csv",
        bytes.as_bytes(),
        &text,
        "the column `a` occurs twice",
    );
    let bytes = format!("a,b\n{},1\n", m.repeat(100_000));
    file(
        "a cell of 1.3 MB",
        "t.csv",
        bytes.as_bytes(),
        &text,
        "more than the limit of 1048576",
    );
    let mut bytes = gzip(format!("a,b\n{m},1\n").repeat(50).as_bytes());
    bytes.truncate(bytes.len() / 2);
    file(
        "a gzip file cut in half",
        "t.csv.gz",
        &bytes,
        &text,
        "damaged or cut off",
    );
    let bytes = gzip(&vec![b'a'; (1 << 30) + 1]);
    file(
        "a gzip bomb (1 GiB from 5 MB)",
        "t.csv.gz",
        &bytes,
        &text,
        "larger than the limit of 1073741824 bytes once decompressed",
    );
    let bytes = format!("{{\"a\": \"{m}\"}}\n{{\"a\": {m}}}\n");
    file(
        "a line that is not JSON",
        "t.jsonl",
        bytes.as_bytes(),
        &text,
        "t.jsonl:2:7: not valid JSON",
    );
    let bytes = format!("[\"{m}\"]\n");
    file(
        "a line that is not an object",
        "t.jsonl",
        bytes.as_bytes(),
        &text,
        "this one starts like a list",
    );
    let bytes = format!("{{\"a\": \"{m}\", \"id\": 123456789012345678901}}\n");
    file(
        "an identifier beyond exact numbers",
        "t.jsonl",
        bytes.as_bytes(),
        &text,
        "too large to be read exactly",
    );
    let bytes = format!("{}{m}{}\n", "{\"a\":".repeat(5000), "}".repeat(5000));
    file(
        "objects nested 5,000 deep",
        "t.jsonl",
        bytes.as_bytes(),
        &text,
        "not valid JSON",
    );
    let bytes = format!("a\n{m}\n");
    file(
        "an unknown ending",
        "t.pdf",
        bytes.as_bytes(),
        &text,
        "known endings",
    );
    let bytes = format!("a,b\n ,{m}\n,{m}\n");
    file(
        "records whose text is empty",
        "t.csv",
        bytes.as_bytes(),
        &text,
        "no record has any text",
    );
    let bytes = format!("a,b\n{m},1\n{m},2\n");
    file(
        "a text column that is not there",
        "t.csv",
        bytes.as_bytes(),
        &["--text-column", "note"],
        "there is no column `note` for --text-column",
    );
    file(
        "two columns and no word which is the text",
        "t.csv",
        bytes.as_bytes(),
        &[],
        "--text-column NAME",
    );
    let missing = format!("a,b\n{m},1\n{m},\n");
    file(
        "a record of nobody",
        "t.csv",
        missing.as_bytes(),
        &["--text-column", "a", "--unit-column", "b"],
        "t.csv:3: the unit column `b` is empty",
    );
    file(
        "a table of one person",
        "t.csv",
        format!("a\n{m}\n").as_bytes(),
        &text,
        "part holds no privacy unit",
    );
    let rows: String = (0..600).map(|row| format!("{m} said {row}\n")).collect();
    let rows = format!("a\n{rows}");
    file(
        "a batch larger than the table",
        "t.csv",
        rows.as_bytes(),
        &["--text-column", "a", "--batch-size", "1000"],
        "batch size is 1000, which is outside (0, units in training]",
    );
    cases
}

fn other_cases(folder: &Path) -> Vec<Case> {
    let table = folder.join("good.csv");
    std::fs::write(
        &table,
        format!("a,b\n{}", format!("{MARKER} was seen,1\n").repeat(200)),
    )
    .unwrap();
    let good = ["--data", table.to_str().unwrap(), "--text-column", "a"];
    let mut cases = Vec::new();
    let mut with = |what, flags: &[&str], answer| {
        let flags = good.iter().chain(flags).map(|flag| (*flag).to_owned());
        cases.push(Case {
            what,
            flags: flags.collect(),
            answer,
        });
    };
    let written = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };

    with(
        "--epsilon 0",
        &["--epsilon", "0"],
        "epsilon is 0, which is outside (0, infinity)",
    );
    with("--epsilon NaN", &["--epsilon", "NaN"], "epsilon is NaN");
    with("--epsilon inf", &["--epsilon", "inf"], "epsilon is inf");
    with("--epsilon -1", &["--epsilon", "-1"], "epsilon is -1");
    with("--epsilon eight", &["--epsilon", "eight"], "--epsilon");
    with(
        "--delta 0",
        &["--delta", "0"],
        "delta is 0, which is outside (0, 1)",
    );
    with("--delta 1", &["--delta", "1"], "delta is 1");
    with("--steps 0", &["--steps", "0"], "steps is 0");
    with("--batch-size 0", &["--batch-size", "0"], "batch size is 0");
    with(
        "--batch-size NaN",
        &["--batch-size", "NaN"],
        "batch size is NaN",
    );
    with(
        "--micro-batch 0",
        &["--micro-batch", "0"],
        "micro-batch is 0",
    );
    with(
        "--checkpoint-every 0",
        &["--checkpoint-every", "0"],
        "--checkpoint-every 0",
    );
    with("--lora-rank 0", &["--lora-rank", "0"], "LoRA rank is 0");
    with(
        "--lora-alpha -2",
        &["--lora-alpha", "-2"],
        "LoRA alpha is -2",
    );
    with(
        "--lora-targets of no layer",
        &["--lora-targets", "nothing"],
        "target module `nothing` matches no layer",
    );
    with(
        "--learning-rate NaN",
        &["--learning-rate", "NaN"],
        "learning rate is NaN",
    );
    with(
        "--clipping-norm 0",
        &["--clipping-norm", "0"],
        "clipping norm is 0",
    );
    with("--decisions 0", &["--decisions", "0"], "decisions is 0");
    with(
        "--loss-bound inf",
        &["--loss-bound", "inf"],
        "loss bound is inf",
    );
    with(
        "--max-length 1",
        &["--max-length", "1"],
        "maximum length is 1",
    );
    with(
        "--held-out-units 0",
        &["--held-out-units", "0"],
        "held-out units is 0",
    );
    with(
        "--device abacus",
        &["--device", "abacus"],
        "--device abacus is not compiled in",
    );
    with(
        "--budget free",
        &["--budget", "free"],
        "known are fixed, deck, filter",
    );
    with(
        "--controller nobody",
        &["--controller", "nobody"],
        "unknown controller 'nobody'",
    );
    with("an unknown flag", &["--epsilom", "1"], "--epsilom");
    with(
        "a settings file that is a table",
        &["--config", table.to_str().unwrap()],
        "line 1 is not valid TOML",
    );
    let bad = written("unknown.toml", b"epsilom = 1.0\n");
    with(
        "an unknown key in a settings file",
        &["--config", &bad],
        "epsilom",
    );
    with(
        "a settings file that is not there",
        &["--config", "no-such.toml"],
        "no-such.toml",
    );

    let bad = written("open.jinja", b"{% if a %}");
    let template = |path: &str| vec!["--template".to_owned(), path.to_owned()];
    let data = vec!["--data".to_owned(), table.display().to_string()];
    let mut plain = |what, flags: Vec<String>, answer| {
        cases.push(Case {
            what,
            flags,
            answer,
        });
    };
    plain(
        "a template that does not end",
        [data.clone(), template(&bad)].concat(),
        "open.jinja, line",
    );
    let bad = written("variable.jinja", b"{{ nothing }}");
    plain(
        "a template with a variable that is no column",
        [data.clone(), template(&bad)].concat(),
        "unknown variable `nothing`",
    );
    let bad = written("endless.jinja", b"{% for i in range(1000000000) %}{% for j in range(1000000000) %}{{ a }}{% endfor %}{% endfor %}");
    plain(
        "a template that never finishes",
        [data, template(&bad)].concat(),
        "endless.jinja",
    );
    plain(
        "a table that is not there",
        vec!["--data".into(), "no-such.csv".into()],
        "no-such.csv",
    );
    plain(
        "a folder for a table",
        vec!["--data".into(), folder.display().to_string()],
        "known endings",
    );

    let mut with = |what, flags: &[&str], answer| {
        let flags = good.iter().chain(flags).map(|flag| (*flag).to_owned());
        cases.push(Case {
            what,
            flags: flags.collect(),
            answer,
        });
    };
    with(
        "a model that is nowhere",
        &["--model", "no-such/model"],
        "no-such/model",
    );
    with(
        "a model given as a URL with a password",
        &["--model", "https://user:XQZPRIVATEXQZ@host/x"],
        "***@host/x",
    );
    let model = broken_model(folder, "no-config", |path| {
        std::fs::remove_file(path.join("config.json")).unwrap()
    });
    with(
        "a model without config.json",
        &["--model", &model],
        "config.json",
    );
    let model = broken_model(folder, "bad-config", |path| {
        std::fs::write(path.join("config.json"), "{\"n_layer\": ").unwrap()
    });
    with(
        "a config.json cut short",
        &["--model", &model],
        "config.json",
    );
    let cut = |path: &Path, length: usize| {
        let weights = std::fs::read(path.join("model.safetensors")).unwrap();
        std::fs::write(
            path.join("model.safetensors"),
            &weights[..weights.len().min(length)],
        )
        .unwrap();
    };
    let model = broken_model(folder, "cut", |path| cut(path, 100_000));
    with(
        "weights cut short",
        &["--model", &model],
        "model.safetensors",
    );
    let model = broken_model(folder, "none", |path| cut(path, 0));
    with(
        "an empty weights file",
        &["--model", &model],
        "model.safetensors",
    );
    let model = broken_model(folder, "nan", |path| {
        let file = path.join("model.safetensors");
        let mut weights = std::fs::read(&file).unwrap();
        let end = weights.len();
        weights[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(file, weights).unwrap();
    });
    with(
        "weights that are not numbers",
        &["--model", &model],
        "model.safetensors",
    );
    let model = broken_model(folder, "tokens", |path| {
        std::fs::write(path.join("tokenizer.json"), "{}").unwrap()
    });
    with(
        "a tokenizer.json that is none",
        &["--model", &model],
        "tokenizer",
    );
    let bad = written("policy.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}");
    with(
        "a policy with a header of 2^63 bytes",
        &["--policy", &bad],
        "policy.safetensors",
    );
    let shipped = "../crates/rldp/src/controller/agent/policy.safetensors";
    let mut poisoned = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(shipped)).unwrap();
    let last = poisoned.len() - 4;
    poisoned[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let poisoned = written("nan.safetensors", &poisoned);
    with(
        "a policy with a weight that is no number",
        &["--policy", &poisoned],
        "holds a NaN",
    );
    with(
        "a table for a policy",
        &["--policy", table.to_str().unwrap()],
        "good.csv",
    );

    let file = written("a-file", b"x");
    with("a run folder that is a file", &["--out", &file], "a-file");
    with(
        "a run folder that cannot be made",
        &["--out", "/proc/no-such-place/run"],
        "/proc/no-such-place",
    );
    with(
        "resuming where there is no run",
        &["--resume", folder.to_str().unwrap()],
        "holds no run to resume",
    );
    cases
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// No word of the table and no secret in what was said or written.
fn assert_silent(what: &str, output: &Output, out: &Path) {
    for secret in [MARKER, TOKEN] {
        assert!(!said(output).contains(secret), "{what}: {}", said(output));
        for path in files(out) {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !holds(&bytes, secret),
                "{what}: found in {}",
                path.display()
            );
        }
    }
    assert!(
        !said(output).contains("panicked"),
        "{what}: {}",
        said(output)
    );
}

#[test]
fn every_bad_input_is_answered_and_no_answer_tells_a_secret() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let cases = [data_cases(folder), other_cases(folder)].concat_cases();
    let mut page = String::from(
        "# Bad inputs and their answers\n\nMade by running `finetune` on each of them (`examples/tests/hostile.rs`, which also checks that \
         no answer, no file and no panic message holds a word of the table, and that nothing is trained). `DIR` stands for a \
         folder. Readers are tried on more: `crates/rldp/src/data/tests/hostile.rs`, `crates/models/tests/checkpoints.rs`, and the \
         fuzz targets.\n\n| input | answer |\n| --- | --- |\n",
    );
    for (index, case) in cases.iter().enumerate() {
        let out = folder.join(format!("out-{index}"));
        let mut flags = case.flags.clone();
        if !flags
            .iter()
            .any(|flag| flag == "--out" || flag == "--resume")
        {
            flags.extend(["--out".to_owned(), out.display().to_string()]);
        }
        let output = finetune(&flags);
        let text = said(&output);
        assert!(!output.status.success(), "{} was accepted", case.what);
        assert!(text.contains(case.answer), "{}: {text}", case.what);
        assert_silent(case.what, &output, &out);
        assert!(
            !out.join("ledger.jsonl").exists(),
            "{}: a run was begun",
            case.what
        );
        let last = text
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_default()
            .trim_start_matches("error: ")
            .replace(&folder.display().to_string(), "DIR")
            .replace('|', "\\|");
        writeln!(page, "| {} | {last} |", case.what).unwrap();
    }
    println!("{} bad inputs answered", cases.len());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bad-inputs.md");
    if std::env::var_os("RLDP_WRITE_DOCS").is_some() {
        std::fs::write(path, page).unwrap();
    } else {
        let written = std::fs::read_to_string(path).unwrap();
        let rows = |text: &str| text.lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(
            rows(&written),
            rows(&page),
            "docs/bad-inputs.md is out of date"
        );
    }
}

trait Concat {
    fn concat_cases(self) -> Vec<Case>;
}

impl Concat for [Vec<Case>; 2] {
    fn concat_cases(self) -> Vec<Case> {
        self.into_iter().flatten().collect()
    }
}

const TINY: [&str; 14] = [
    "--text-column",
    "a",
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
    "--controller",
    "rule",
];

fn table(folder: &Path) -> PathBuf {
    let path = folder.join("table.csv");
    let rows: String = (0..200)
        .map(|row| format!("{MARKER} came on day {row} with a cough\n"))
        .collect();
    std::fs::write(&path, format!("a\n{rows}")).unwrap();
    path
}

fn run_in(out: &Path, table: &Path, more: &[&str]) -> Output {
    let flags = TINY
        .iter()
        .copied()
        .chain(["--data", table.to_str().unwrap()])
        .chain(more.iter().copied());
    let place = if more.contains(&"--resume") {
        Vec::new()
    } else {
        vec!["--out".to_owned(), out.display().to_string()]
    };
    let flags: Vec<String> = flags.map(str::to_owned).chain(place).collect();
    finetune(&flags)
}

/// A whole run: no word of the table in any file it leaves, a manifest of all files, a warning for a careless delta; then
/// resumptions that must be refused, and the one that finds nothing left to do.
#[test]
fn a_run_keeps_the_tables_words_and_the_hubs_secret_to_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let table = table(temporary.path());
    let out = temporary.path().join("run");
    let output = run_in(&out, &table, &["--delta", "0.01"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_silent("a whole run", &output, &out);
    assert!(
        said(&output).contains("warning: delta"),
        "{}",
        said(&output)
    );
    let report = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(report.contains("not below 1/N"));

    let text = std::fs::read_to_string(out.join("manifest.json")).unwrap();
    let manifest: rldp::trainer::Manifest = serde_json::from_str(&text).unwrap();
    assert!(manifest.private);
    let listed: Vec<&str> = manifest
        .files
        .iter()
        .map(|entry| entry.file.as_str())
        .collect();
    for path in files(&out) {
        let name = path
            .strip_prefix(&out)
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/");
        assert!(
            name == "manifest.json" || listed.contains(&name.as_str()),
            "{name} is not listed"
        );
    }
    for entry in &manifest.files {
        assert_ne!(
            entry.coverage,
            rldp::trainer::Coverage::Unknown,
            "{}",
            entry.file
        );
        assert_eq!(
            entry.coverage == rldp::trainer::Coverage::Secret,
            entry.file == "data.key"
        );
    }

    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/run-folder.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for (name, _, _) in rldp::trainer::ARTEFACTS {
        assert!(
            docs.contains(&format!("| `{name}")),
            "docs/run-folder.md lacks {name}"
        );
    }

    let resume = ["--resume", out.to_str().unwrap()];
    let again = run_in(&out, &table, &resume);
    assert!(
        again.status.success() && said(&again).contains("complete already"),
        "{}",
        said(&again)
    );
    // Without its manifest it is a run to be finished; with other settings it is refused, and the difference named.
    std::fs::remove_file(out.join("manifest.json")).unwrap();
    for (flags, named) in [
        (["--epsilon", "4"], "target.epsilon was 8.0 and is now 4.0"),
        (["--steps", "4"], "steps was 3 and is now 4"),
        (["--text-column", "b"], "there is no column `b`"),
        (["--seed", "3"], "private was true and is now false"),
        (["--lora-rank", "4"], "lora.rank was 8 and is now 4"),
    ] {
        let refused = run_in(&out, &table, &[&resume[..], &flags[..]].concat());
        assert!(!refused.status.success(), "{flags:?} was accepted");
        assert!(
            said(&refused).contains(named),
            "{flags:?}: {}",
            said(&refused)
        );
        assert_silent("a refused resumption", &refused, &out);
    }
    let text = std::fs::read_to_string(&table).unwrap();
    std::fs::write(&table, text.replace("cough", "cold")).unwrap();
    let refused = run_in(&out, &table, &resume);
    assert!(
        said(&refused).contains("parameters.fingerprint was"),
        "{}",
        said(&refused)
    );
    assert_silent("other data", &refused, &out);
    std::fs::write(&table, text).unwrap();
    let finished = run_in(&out, &table, &resume);
    assert!(finished.status.success(), "{}", said(&finished));
    assert!(out.join("manifest.json").exists());
}

/// A run killed in the middle is resumed from its folder alone; meanwhile the folder belongs to one process.
#[cfg(unix)]
#[test]
fn a_killed_run_is_resumed_from_its_folder_and_locked_while_it_works() {
    for (trainable, result) in [
        ("lora", "adapter/adapter_model.safetensors"),
        ("full", "model/model.safetensors"),
    ] {
        killed_and_resumed(trainable, result);
    }
}

fn killed_and_resumed(trainable: &str, result: &str) {
    let temporary = tempfile::tempdir().unwrap();
    let table = table(temporary.path());
    let out = temporary.path().join("run");
    let mut child = Command::new(env!("CARGO_BIN_EXE_finetune"))
        .args(TINY)
        .args(["--steps", "40", "--trainable", trainable])
        .args(["--out", out.to_str().unwrap()])
        .args(["--data", table.to_str().unwrap()])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let steps = || {
        std::fs::read_to_string(out.join("ledger.jsonl"))
            .map_or(0, |text| text.matches("\"event\":\"step\"").count())
    };
    while steps() < 3 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "the run ended by itself"
        );
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let resume = ["--resume", out.to_str().unwrap()];
    let second = finetune(&resume.map(str::to_owned));
    assert!(
        said(&second).contains("in use by another process"),
        "{}",
        said(&second)
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let before = steps();
    let output = finetune(&resume.map(str::to_owned));
    assert!(output.status.success(), "{}", said(&output));
    assert_silent("a resumed run", &output, &out);
    assert!(
        before < 40 && steps() == 40,
        "{before} and {} steps",
        steps()
    );
    assert!(out.join(result).exists(), "{result} is missing");
    let ledger = rldp_accounting::ledger::Ledger::read(out.join("ledger.jsonl")).unwrap();
    let delta = ledger.header.target.delta;
    assert!(ledger.epsilon_upper(delta).unwrap().overall <= 8.0 + 1e-9);
}
