//! Mutated files for every reader: each is answered by a value or a typed error, never by a panic.
//!
//! By default a few thousand executions for each reader; `RLDP_FUZZ_EXECUTIONS=1000000` asks for more (in release mode, with
//! `--nocapture` to see the figures). The mutations are blind; `fuzz/` holds coverage-guided targets for the same readers.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use burn::tensor::Device;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use rldp::data::{Corpus, CorpusOptions, DataKey, Limits, ReadOptions, read_bytes};
use rldp_accounting::ledger::{BudgetRecord, Event, Header, LEDGER_VERSION, Ledger, LedgerWriter};
use rldp_accounting::{Adjacency, PrivacyTarget, Segment};
use rldp_lora::peft::{load_adapter, read_config, save_adapter};
use rldp_lora::{LoraConfig, TensorFile, add_lora, remove_lora};
use rldp_models::{Gpt2, Gpt2Config, LanguageModel as _};
use rldp_sac::{Policy, PolicyContents, Sac, SacConfig};

/// Executions asked for.
fn executions(usual: u64) -> u64 {
    std::env::var("RLDP_FUZZ_EXECUTIONS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

/// Words that formats are made of, and numbers at the edges of types.
const WORDS: [&[u8]; 24] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\n",
    b"\r\n",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"18446744073709551615",
    b"9223372036854775808",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\0",
    b"\xef\xbb\xbf",
    b"\\u0000",
    b"\"steps\":",
    b"\"shape\":[",
    b"\"data_offsets\":[0,",
];

/// One to eight random changes.
fn mutate(seeds: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..9) {
        let place = random.random_range(0..=bytes.len());
        match random.random_range(0..9) {
            0 if place < bytes.len() => bytes[place] ^= 1 << random.random_range(0..8),
            1 if place < bytes.len() => bytes[place] = random.random(),
            2 => bytes.truncate(place),
            3 => {
                let end = (place + random.random_range(1..16)).min(bytes.len());
                bytes.drain(place.min(end)..end);
            }
            4 => {
                let end = (place + random.random_range(1..64)).min(bytes.len());
                let copy = bytes[place..end].to_vec();
                let at = random.random_range(0..=bytes.len());
                bytes.splice(at..at, copy);
            }
            5 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                bytes.truncate(place);
                bytes.extend_from_slice(&other[from..]);
            }
            6 if place < bytes.len() && bytes[place].is_ascii_digit() => {
                bytes[place] = b'0' + random.random_range(0..10);
            }
            _ => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes.splice(place..place, word.iter().copied());
            }
        }
    }
    bytes
}

/// Feeds mutated seeds to a reader; gives how many it accepted.
fn feed(name: &str, usual: u64, seeds: &[Vec<u8>], mut read: impl FnMut(&[u8]) -> bool) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let count = executions(usual);
    let mut accepted = 0_u64;
    for _ in 0..count {
        accepted += u64::from(read(&mutate(seeds, &mut random)));
    }
    println!(
        "{name}: {count} executions, {accepted} accepted, the others refused by a typed error"
    );
    // A reader that refuses everything would not be tried at all beyond its first line.
    assert!(accepted > 0, "{name}: nothing was accepted");
}

fn header(budget: BudgetRecord) -> Header {
    Header {
        version: LEDGER_VERSION,
        created: "then".into(),
        unit: "one row".into(),
        adjacency: Adjacency::AddRemove,
        target: PrivacyTarget::new(8.0, 1e-5).unwrap(),
        private: true,
        budget,
        parameters: serde_json::json!({"units": 100}),
    }
}

/// Gives every line of a ledger the checksum that its text asks for, so that mutations reach what lies behind it.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut last = "rldp ledger".to_owned();
    let mut fixed = Vec::new();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let body = line
            .strip_suffix(b"}\n")
            .and_then(|line| line.get("{\"checksum\":\"0123456789abcdef\",\"record\":".len()..));
        let Some(body) = body else {
            fixed.extend_from_slice(line);
            continue;
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(last.as_bytes()).update(b"\n").update(body);
        last = hasher.finalize().to_hex()[..16].to_owned();
        fixed.extend_from_slice(format!("{{\"checksum\":\"{last}\",\"record\":").as_bytes());
        fixed.extend_from_slice(body);
        fixed.extend_from_slice(b"}\n");
    }
    fixed
}

#[test]
fn ledgers() {
    let folder = tempfile::tempdir().unwrap();
    let segment = |steps| Segment::new(0.05, 1.0, steps).unwrap();
    let budgets = [
        BudgetRecord::Fixed {
            segment: segment(9),
        },
        BudgetRecord::Deck {
            cards: vec![segment(3), Segment::new(0.05, 2.0, 3).unwrap()],
        },
        BudgetRecord::Filter {
            floor: 0.5,
            ceiling: 2.0,
            order: 8.0,
        },
    ];
    let seeds: Vec<Vec<u8>> = budgets
        .into_iter()
        .enumerate()
        .map(|(index, budget)| {
            let path = folder.path().join(index.to_string());
            let mut writer = LedgerWriter::create(&path, &header(budget)).unwrap();
            for step in 1..3 {
                let event = Event::Step {
                    step,
                    sampling_rate: 0.05,
                    noise_multiplier: 1.0,
                    group_noise_multipliers: vec![2_f64.sqrt(); 2],
                    clipping_norms: vec![1.0, 0.1],
                    telemetry: vec![],
                };
                writer.append(&event).unwrap();
                let query = Event::Query {
                    part: "test".into(),
                    name: "loss".into(),
                    noise_multiplier: 20.0,
                };
                writer.append(&query).unwrap();
            }
            std::fs::read(path).unwrap()
        })
        .collect();
    let path = folder.path().join("mutated");
    let mut turn = false;
    feed("ledgers", 3_000, &seeds, |bytes| {
        turn = !turn;
        let bytes = if turn {
            bytes.to_vec()
        } else {
            with_checksums(bytes)
        };
        std::fs::write(&path, bytes).unwrap();
        let _ = Ledger::begun(&path).unwrap();
        let Ok(ledger) = Ledger::read(&path) else {
            return false;
        };
        if let Ok(in_doubt) = ledger.in_doubt()
            && let Ok((_, resumed)) = LedgerWriter::resume(&path, &ledger.header, &in_doubt)
        {
            assert!(resumed.steps() >= ledger.steps());
            assert_eq!(Ledger::read(&path).unwrap(), resumed);
        }
        true
    });
}

#[test]
fn tables() {
    let seeds = [
        b"a,b\n1,\"x, y\"\n2,\"z \"\"q\"\"\"\n".to_vec(),
        b"a\tb\n1\tx\n2\ty\n".to_vec(),
        b"{\"a\": 1, \"b\": \"x\"}\n{\"a\": null, \"c\": [1, {\"d\": 2.5}]}\n".to_vec(),
        b"one line\n\nanother\n".to_vec(),
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03KT\xd2I\xd2\xe12\xd41\x02\x00\x8d\x1f\x9d\x9e\x0a\x00\x00\x00".to_vec(),
    ];
    let options = ReadOptions {
        limits: Limits {
            max_bytes: 1 << 16,
            max_field_bytes: 1 << 10,
            max_columns: 64,
        },
        ..ReadOptions::default()
    };
    let mut turn = 0;
    feed("tables", 20_000, &seeds, |bytes| {
        turn = (turn + 1) % 4;
        let name = ["t.csv", "t.tsv", "t.jsonl", "t.txt"][turn];
        let Ok(table) = read_bytes(name, bytes, &options) else {
            return false;
        };
        let options = CorpusOptions {
            text_column: table.columns().first().cloned(),
            ..CorpusOptions::default()
        };
        let _ = Corpus::build(&table, &options, &DataKey::from_seed(1));
        true
    });
}

fn model() -> Gpt2 {
    Gpt2::random(&Gpt2Config::new(13, 8, 1, 4, 2), 3, &Device::default()).unwrap()
}

fn adapter(folder: &Path) -> LoraConfig {
    let mut model = model();
    let config = LoraConfig::new(2, model.default_targets());
    add_lora(&mut model, &config, 1).unwrap();
    save_adapter(&model, &config, Some("base"), folder).unwrap();
    config
}

#[test]
fn safetensors() {
    let folder = tempfile::tempdir().unwrap();
    adapter(folder.path());
    let path = folder.path().join("adapter_model.safetensors");
    let seeds = [std::fs::read(&path).unwrap()];
    let mut model = model();
    feed("safetensors", 3_000, &seeds, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let Ok(file) = TensorFile::open(&path) else {
            return false;
        };
        for name in file.names() {
            let _ = file.read(&name);
        }
        if load_adapter(&mut model, folder.path()).is_ok() {
            remove_lora(&mut model).unwrap();
        }
        true
    });
}

#[test]
fn peft_configs() {
    let folder = tempfile::tempdir().unwrap();
    adapter(folder.path());
    let path = folder.path().join("adapter_config.json");
    let seeds = [std::fs::read(&path).unwrap()];
    feed("PEFT configs", 10_000, &seeds, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        read_config(&path).is_ok()
    });
}

#[test]
fn policies() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::default();
    let config = SacConfig::default().with_hidden(vec![4]);
    let mut agent = Sac::new(config, 3, 2, 1, &device).unwrap();
    let seeds: Vec<Vec<u8>> = [PolicyContents::Actor, PolicyContents::ActorAndCritics]
        .into_iter()
        .map(|contents| {
            let path = folder.path().join("seed");
            agent
                .save_policy(&path, contents, serde_json::json!({"n": 1}))
                .unwrap();
            std::fs::read(path).unwrap()
        })
        .collect();
    let path = folder.path().join("mutated");
    feed("policies", 3_000, &seeds, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let read = Policy::load(&path, &device);
        let _ = agent.load_policy(&path);
        read.is_ok()
    });
}
