//! A table of hostile inputs and the answer each must get.

use super::super::{DataError, Limits, ReadOptions, read_bytes};
use super::{gzip, message};

fn small() -> ReadOptions {
    let limits = Limits {
        max_bytes: 4096,
        max_field_bytes: 64,
        max_columns: 5,
    };
    ReadOptions {
        limits,
        ..ReadOptions::default()
    }
}

/// Name, bytes, and what the message must hold.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let long = "SECRET".repeat(20);
    let bomb = gzip(&vec![b'a'; 1 << 22]);
    let mut cut = gzip("a,b\nSECRET,SECRET\n".repeat(50).as_bytes());
    cut.truncate(cut.len() / 2);
    let mut damaged = gzip("a,b\nSECRET,SECRET2\nSECRET3,x\n".as_bytes());
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    let mut trailing = gzip(b"a\nSECRET\n");
    trailing.extend_from_slice(b"SECRET");
    let nested = gzip(&gzip(b"a\nSECRET\n"));
    vec![
        // CSV
        ("a.csv", b"".to_vec(), "a.csv: the file is empty"),
        ("a.csv", b" \n\t\n".to_vec(), "empty"),
        ("a.csv", b"\xef\xbb\xbf".to_vec(), "empty"),
        ("a.csv", b"a,b\n".to_vec(), "a.csv: there is no record"),
        (
            "a.csv",
            b"a,b\n1,2\nSECRET\n".to_vec(),
            "a.csv:3: 1 cells where the header has 2",
        ),
        (
            "a.csv",
            b"a,b\nSECRET,2,3\n".to_vec(),
            "a.csv:2: 3 cells where the header has 2",
        ),
        (
            "a.csv",
            b"a,a\n1,2\n".to_vec(),
            "a.csv:1: the column `a` occurs twice",
        ),
        ("a.csv", b"a, a\n1,2\n".to_vec(), "occurs twice"),
        (
            "a.csv",
            b"a,b,c,d,e,f\n1,2,3,4,5,6\n".to_vec(),
            "a.csv:1: more than 5 columns",
        ),
        (
            "a.csv",
            b"a,b\n1,\"SECRET\n".to_vec(),
            "a.csv:2: a quoted cell of the record that starts here is never closed",
        ),
        (
            "a.csv",
            b"a,b\n\"SECRET,2\n3,4\n".to_vec(),
            "a.csv:2: a quoted cell",
        ),
        (
            "a.csv",
            format!("a,b\n1,\"{long}\n").into_bytes(),
            "never closed",
        ),
        (
            "a.csv",
            format!("a,b\n1,{long}\n").into_bytes(),
            "a.csv:2: cell 2 has 120 bytes, more than the limit of 64",
        ),
        (
            "a.csv",
            format!("{},b\n1,2\n", "x".repeat(65)).into_bytes(),
            "a.csv:1: cell 1 has 65 bytes",
        ),
        (
            "a.csv",
            b"a,b\n1,2\nSECRET,\xff\n".to_vec(),
            "a.csv:3:8: not valid UTF-8",
        ),
        (
            "a.csv",
            b"a,b\n1,\xc3".to_vec(),
            "a.csv:2:3: not valid UTF-8",
        ),
        (
            "a.csv",
            b"\xff\xfea\0,\0b\0\n\0".to_vec(),
            "it looks like UTF-16",
        ),
        (
            "a.csv",
            b"a,b\n1,SEC\0RET\n".to_vec(),
            "a.csv:2:6: a NUL byte",
        ),
        (
            "a.csv",
            "x".repeat(5000).into_bytes(),
            "larger than the limit of 4096 bytes",
        ),
        // gzip
        (
            "a.csv.gz",
            bomb.clone(),
            "a.csv.gz: larger than the limit of 4096 bytes once decompressed",
        ),
        ("a.txt", bomb, "larger than the limit of 4096 bytes"),
        ("a.csv", cut, "damaged or cut off"),
        ("a.csv", damaged, "damaged or cut off"),
        ("a.csv", trailing, "damaged or cut off"),
        ("a.csv", nested, "not valid UTF-8"),
        ("a.csv", vec![0x1f, 0x8b], "damaged or cut off"),
        // JSON lines
        (
            "a.jsonl",
            b"{\"a\": 1}\n{\"a\": SECRET}\n".to_vec(),
            "a.jsonl:2:7: not valid JSON (syntax)",
        ),
        (
            "a.jsonl",
            b"{\"a\": \"SECRET".to_vec(),
            "not valid JSON (it ends too early)",
        ),
        (
            "a.jsonl",
            b"{\"a\": \"SECRET\"} SECRET\n".to_vec(),
            "not valid JSON",
        ),
        (
            "a.jsonl",
            b"[{\"a\": \"SECRET\"}]\n".to_vec(),
            "this one starts like a list",
        ),
        ("a.jsonl", b"\"SECRET\"\n".to_vec(), "starts like a string"),
        (
            "a.jsonl",
            b"SECRET\n".to_vec(),
            "starts like something else",
        ),
        (
            "a.jsonl",
            b"{\"a\": \"SECRET\", \"a\": \"SECRET\"}\n".to_vec(),
            "a.jsonl:1: the column `a` occurs twice",
        ),
        (
            "a.jsonl",
            b"{\"a\": \"SEC\\u0000RET\"}\n".to_vec(),
            "a.jsonl:1: a NUL byte",
        ),
        (
            "a.jsonl",
            b"{\"a\": \"\\ud800SECRET\"}\n".to_vec(),
            "not valid JSON",
        ),
        (
            "a.jsonl",
            b"{\"id\": 123456789012345678901234567890}\n".to_vec(),
            "column `id` is too large to be read exactly",
        ),
        ("a.jsonl", b"{\"id\": 1e999}\n".to_vec(), "not valid JSON"),
        (
            "a.jsonl",
            b"{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1}\n".to_vec(),
            "a.jsonl:1: more than 5 columns",
        ),
        (
            "a.jsonl",
            format!("{{\"a\": \"{long}\"}}\n").into_bytes(),
            "a.jsonl:1: cell 1 has 120 bytes",
        ),
        (
            "a.jsonl",
            format!("{{\"a\": {}1{}}}\n", "[".repeat(1000), "]".repeat(1000)).into_bytes(),
            "not valid JSON",
        ),
        ("a.jsonl", b"\n\n \n".to_vec(), "empty"),
        // text
        (
            "a.txt",
            format!("fine\n{long}\n").into_bytes(),
            "a.txt:2: cell 1 has 120 bytes",
        ),
        ("a.txt", b"\r\n\r\n".to_vec(), "empty"),
        ("a.pdf", b"SECRET".to_vec(), "known endings"),
    ]
}

#[test]
fn every_hostile_input_gets_its_answer() {
    let cases = hostile();
    let count = cases.len();
    for (index, (name, bytes, expected)) in cases.into_iter().enumerate() {
        let error = read_bytes(name, &bytes, &small()).unwrap_err();
        let message = message(&error);
        assert!(
            message.contains(expected),
            "case {index}: `{message}` does not contain `{expected}`"
        );
    }
    println!("{count} hostile inputs answered");
}

#[test]
fn a_bare_quote_inside_an_unquoted_cell_is_text() {
    let table = read_bytes("a.csv", b"a,b\n1,5\" pipe\n", &small()).unwrap();
    assert_eq!(table.cell(0, 1), "5\" pipe");
}

#[test]
fn limits_are_inclusive() {
    let cell = "x".repeat(64);
    let table = read_bytes("a.csv", format!("a\n{cell}\n").as_bytes(), &small()).unwrap();
    assert_eq!(table.cell(0, 0), cell);
    let bytes = "ab\n".repeat(1365) + "a"; // 4096 bytes
    assert_eq!(
        read_bytes("a.txt", bytes.as_bytes(), &small())
            .unwrap()
            .len(),
        1366
    );
    let error = read_bytes("a.txt", (bytes + "b").as_bytes(), &small()).unwrap_err();
    assert!(matches!(error, DataError::TooLarge { limit: 4096, .. }));
}
