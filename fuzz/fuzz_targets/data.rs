//! Any bytes as a table in any format: answered by a table or a typed error, and no error holds a cell.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../crates/rldp/src/data/mod.rs"]
mod data;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else {
        return;
    };
    let names = ["t.csv", "t.tsv", "t.jsonl", "t.txt"];
    let options = data::ReadOptions {
        limits: data::Limits {
            max_bytes: 1 << 16,
            max_field_bytes: 1 << 10,
            max_columns: 64,
        },
        ..data::ReadOptions::default()
    };
    if let Ok(table) = data::read_bytes(names[usize::from(first) % names.len()], rest, &options) {
        let column = table.columns().first().cloned();
        for row in 0..table.len() {
            assert_eq!(table.row(row).count(), table.columns().len());
        }
        let options = data::CorpusOptions {
            text_column: column,
            ..data::CorpusOptions::default()
        };
        let _ = data::Corpus::build(&table, &options, &data::DataKey::from_seed(1));
    }
});
