//! Laws that hold for any input.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::{
    DataKey, Format, Fractions, ReadOptions, Splitter, Table, TextRecords, read_bytes, units,
};
use super::cells;

fn write_csv(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row
            .iter()
            .map(|cell| format!("\"{}\"", cell.replace('"', "\"\"")))
            .collect();
        cells.join(",") + "\n"
    };
    "a,b,c\n".to_owned() + &rows.iter().map(line).collect::<String>()
}

fn read(name: &str, text: &str) -> Table {
    read_bytes(name, text.as_bytes(), &ReadOptions::default()).unwrap()
}

fn rows() -> impl Strategy<Value = Vec<Vec<String>>> {
    prop::collection::vec(prop::collection::vec("[^\0]{0,12}", 3), 1..12)
}

proptest! {
    #[test]
    fn what_is_written_as_csv_is_read_back(rows in rows()) {
        let table = read("a.csv", &write_csv(&rows));
        prop_assert_eq!(cells(&table), rows);
    }

    #[test]
    fn what_is_written_as_json_is_read_back(rows in rows()) {
        let lines: Vec<_> = rows
            .iter()
            .map(|row| serde_json::json!({"a": row[0], "b": row[1], "c": row[2]}).to_string())
            .collect();
        let table = read("a.jsonl", &lines.join("\n"));
        prop_assert_eq!(cells(&table), rows);
    }

    /// No bytes whatever make a reader panic, and no error tells what they were.
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200), tidy in "[a-c,\"\n{}:\\[\\]0-9\\\\ ]{0,120}") {
        for format in [Format::Csv, Format::Tsv, Format::JsonLines, Format::Text] {
            for text_records in [TextRecords::Line, TextRecords::Paragraph] {
                let options = ReadOptions { format: Some(format), text_records, ..ReadOptions::default() };
                for input in [&bytes[..], tidy.as_bytes(), &super::gzip(&bytes)] {
                    if let Ok(table) = read_bytes("x", input, &options) {
                        prop_assert!(!table.is_empty());
                        prop_assert!(cells(&table).iter().all(|row| row.len() == table.columns().len()));
                    }
                }
            }
        }
    }

    /// A unit's part depends on the unit alone: rows may be shuffled, added or removed.
    #[test]
    fn parts_do_not_depend_on_other_rows(
        ids in prop::collection::vec(0u8..20, 2..40),
        order in any::<prop::sample::Index>(),
        seed in any::<u64>(),
        by_person in any::<bool>(),
    ) {
        let write = |ids: &[u8]| "id,x\n".to_owned() + &ids.iter().map(|id| format!("p{id},same\n")).collect::<String>();
        let splitter = Splitter::new(&DataKey::from_seed(seed), Fractions::new(0.4, 0.3, 0.3).unwrap());
        let parts = |ids: &[u8]| -> HashMap<String, _> {
            let table = read("a.csv", &write(ids));
            let all = units(&table, by_person.then_some("id")).unwrap();
            all.iter().map(|unit| (table.cell(unit.rows[0], 0).to_owned(), splitter.part(&unit.id))).collect()
        };
        let all = parts(&ids);
        let mut changed = ids.clone();
        changed.rotate_left(order.index(ids.len()));
        prop_assert_eq!(&parts(&changed), &all);
        changed.pop();
        for (id, part) in parts(&changed) {
            prop_assert_eq!(part, all[&id]);
        }
    }

    /// Every row belongs to exactly one unit.
    #[test]
    fn units_partition_the_rows(ids in prop::collection::vec(0u8..10, 1..40)) {
        let table = read("a.csv", &("id,x\n".to_owned() + &ids.iter().map(|id| format!("{id},z\n")).collect::<String>()));
        let mut seen: Vec<_> = units(&table, Some("id")).unwrap().into_iter().flat_map(|unit| unit.rows).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..ids.len()).collect::<Vec<_>>());
    }
}
