//! Tests of the data modules. Every private cell in them contains `SECRET`, and no error may.

#![allow(clippy::unwrap_used)]

mod hostile;
mod properties;
mod templates;
mod units;

use std::io::Write;

use super::{DataError, Format, ReadOptions, Table, read_bytes};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn table(name: &str, text: &str) -> Table {
    read_bytes(name, text.as_bytes(), &ReadOptions::default()).unwrap()
}

fn cells(table: &Table) -> Vec<Vec<&str>> {
    (0..table.len())
        .map(|row| table.row(row).collect())
        .collect()
}

/// The error's message, after checking that neither it nor its debug form shows private text.
fn message(error: &DataError) -> String {
    let (shown, debugged) = (error.to_string(), format!("{error:?}"));
    assert!(!shown.contains("SECRET"), "{shown}");
    assert!(!debugged.contains("SECRET"), "{debugged}");
    shown
}

#[test]
fn csv_quotes_line_breaks_bom_and_missing_cells() {
    let table = table(
        "a.csv",
        "\u{feff}name, age ,note\r\n\"O\"\"Hara, J\",41,\"two\nlines\"\r\nB,,\r\n",
    );
    assert_eq!(table.columns(), ["name", "age", "note"]);
    assert_eq!(
        cells(&table),
        [["O\"Hara, J", "41", "two\nlines"], ["B", "", ""]]
    );
    assert_eq!(table.place(0).line, 2);
    assert_eq!(table.place(1).line, 4, "a line break inside quotes counts");
    assert_eq!(table.cell(9, 0), "");
    assert_eq!(table.cell(0, 9), "");
}

#[test]
fn tabs_and_unnamed_columns() {
    let table = table("a.TSV", "\tb\n1\tx,y\n");
    assert_eq!(table.columns(), ["column_1", "b"]);
    assert_eq!(cells(&table), [["1", "x,y"]]);
}

#[test]
fn json_lines_keep_order_and_fill_gaps() {
    let text = "{\"z\": \"a\", \"n\": 12}\n\n{\"n\": 0.5, \"more\": [1, {\"k\": null}], \"z\": null, \"b\": true}\n";
    let table = table("a.jsonl", text);
    assert_eq!(table.columns(), ["z", "n", "more", "b"]);
    assert_eq!(
        cells(&table),
        [["a", "12", "", ""], ["", "0.5", "[1,{\"k\":null}]", "true"]]
    );
    assert_eq!(table.place(1).line, 3);
}

#[test]
fn text_by_line_and_by_paragraph() {
    let text = "one\ntwo\n\n \nthree\n";
    let lines = table("a.txt", text);
    assert_eq!(lines.columns(), ["text"]);
    assert_eq!(cells(&lines), [["one"], ["two"], ["three"]]);
    assert_eq!(lines.place(2).line, 5);
    let options = ReadOptions {
        text_records: super::TextRecords::Paragraph,
        ..ReadOptions::default()
    };
    let paragraphs = read_bytes("a.txt", text.as_bytes(), &options).unwrap();
    assert_eq!(cells(&paragraphs), [["one\ntwo"], ["three"]]);
    assert_eq!(paragraphs.place(1).line, 5);
}

#[test]
fn gzip_is_told_by_its_bytes_not_its_name() {
    let plain = b"a,b\n1,2\n";
    for name in ["x.csv", "x.csv.gz"] {
        for bytes in [
            plain.to_vec(),
            gzip(plain),
            [gzip(b"a,b\n"), gzip(b"1,2\n")].concat(),
        ] {
            let table = read_bytes(name, &bytes, &ReadOptions::default()).unwrap();
            assert_eq!(cells(&table), [["1", "2"]]);
        }
    }
}

#[test]
fn files_read_as_bytes_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.csv");
    for bytes in [b"a,b\n1,2\n".to_vec(), gzip(b"a,b\n1,2\n")] {
        std::fs::write(&path, bytes).unwrap();
        let table = super::read_table(&path, &ReadOptions::default()).unwrap();
        assert_eq!(cells(&table), [["1", "2"]]);
    }
    let missing =
        super::read_table(&folder.path().join("no.csv"), &ReadOptions::default()).unwrap_err();
    assert!(matches!(missing, DataError::Io { .. }));
    let folder_error = super::read_table(
        folder.path(),
        &ReadOptions {
            format: Some(Format::Csv),
            ..ReadOptions::default()
        },
    );
    assert!(matches!(folder_error, Err(DataError::Io { .. })));
}

#[test]
fn formats_by_name() {
    for (name, format) in [
        ("a.csv", Format::Csv),
        ("b/C.CSV.GZ", Format::Csv),
        ("a.tsv", Format::Tsv),
        ("a.jsonl.gz", Format::JsonLines),
        ("a.ndjson", Format::JsonLines),
        ("a.txt", Format::Text),
    ] {
        assert_eq!(Format::of_name(name).unwrap(), format, "{name}");
    }
    for name in ["a.parquet", "a", "a.gz", ""] {
        assert!(
            matches!(Format::of_name(name), Err(DataError::UnknownFormat { .. })),
            "{name}"
        );
    }
}

#[test]
fn debug_output_shows_no_cell() {
    let table = table("a.csv", "a,b\nSECRET,SECRET\n");
    assert!(!format!("{table:?}").contains("SECRET"));
}

#[test]
fn blank_lines_in_csv_are_skipped_and_counted() {
    for newline in ["\n", "\r\n"] {
        let text = ["", "a,b", "", "1,2", "", "", "\"3\n\",4", "5,6"].join(newline);
        let table = table("a.csv", &text);
        let lines: Vec<_> = (0..table.len()).map(|row| table.place(row).line).collect();
        assert_eq!(lines, [4, 7, 9], "{newline:?}");
    }
}
