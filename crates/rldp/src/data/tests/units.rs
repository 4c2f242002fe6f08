//! Units, splits, fingerprints, corpora.

use super::super::{
    Corpus, CorpusOptions, DataError, DataKey, Fractions, Part, Splitter, fingerprint,
    public_texts, units,
};
use super::{message, table};

#[test]
fn rows_of_one_person_are_one_unit() {
    let table = table("a.csv", "id,x\nA,1\nB,2\n A ,3\na,4\n");
    let people = units(&table, Some("id")).unwrap();
    let rows: Vec<_> = people.iter().map(|unit| unit.rows.clone()).collect();
    assert_eq!(rows, [vec![0, 2], vec![1], vec![3]]);
    assert_eq!(units(&table, None).unwrap().len(), 4);
    assert!(!format!("{people:?}").contains('A'));
}

#[test]
fn a_missing_unit_is_refused_with_its_line() {
    for missing in ["", "  ", "NA", "?", "null"] {
        let table = table("a.csv", &format!("id,x\nSECRET,1\n{missing},SECRET\n"));
        let error = units(&table, Some("id")).unwrap_err();
        assert!(
            message(&error).starts_with("a.csv:3: the unit column `id` is empty"),
            "{error}"
        );
    }
    let table = table("a.csv", "id,x\nSECRET,1\n");
    let text = message(&units(&table, Some("person")).unwrap_err());
    assert!(
        text.contains("no column `person` for --unit-column; the columns are: id, x"),
        "{text}"
    );
}

#[test]
fn fractions_are_checked() {
    assert_eq!(Fractions::default(), Fractions::new(0.8, 0.1, 0.1).unwrap());
    for (train, validation, test) in [
        (0.0, 0.5, 0.5),
        (0.8, 0.3, -0.1),
        (0.8, 0.1, 0.2),
        (f64::NAN, 0.1, 0.1),
        (1.5, -0.25, -0.25),
        (f64::INFINITY, 0.0, 0.0),
    ] {
        assert!(
            matches!(
                Fractions::new(train, validation, test),
                Err(DataError::Fractions { .. })
            ),
            "{train}"
        );
    }
}

#[test]
fn parts_without_a_fraction_stay_empty() {
    let text: String = std::iter::once("x\n".to_owned())
        .chain((0..2000).map(|i| format!("{i}\n")))
        .collect();
    let table = table("a.csv", &text);
    let all = units(&table, None).unwrap();
    for (fractions, empty) in [
        (Fractions::new(0.9, 0.1, 0.0).unwrap(), Part::Test),
        (Fractions::new(0.7, 0.0, 0.3).unwrap(), Part::Validation),
    ] {
        let splitter = Splitter::new(&DataKey::from_seed(3), fractions);
        assert!(all.iter().all(|unit| splitter.part(&unit.id) != empty));
    }
}

/// The size of each part is binomial; six standard deviations, a false alarm below 1e-8.
#[test]
fn parts_have_their_sizes() {
    let count = 20_000;
    let text: String = std::iter::once("x\n".to_owned())
        .chain((0..count).map(|i| format!("{i}\n")))
        .collect();
    let table = table("a.csv", &text);
    let all = units(&table, Some("x")).unwrap();
    for seed in 0..5 {
        let splitter = Splitter::new(&DataKey::from_seed(seed), Fractions::default());
        for (part, fraction) in [
            (Part::Train, 0.8),
            (Part::Validation, 0.1),
            (Part::Test, 0.1),
        ] {
            let size = all
                .iter()
                .filter(|unit| splitter.part(&unit.id) == part)
                .count() as f64;
            let mean = f64::from(count) * fraction;
            let deviation = (mean * (1.0 - fraction)).sqrt();
            assert!((size - mean).abs() < 6.0 * deviation, "{part}: {size}");
        }
    }
}

/// Pinned: a change here would move people between the parts of a resumed run.
#[test]
fn seeded_splits_are_stable() {
    let table = table("a.csv", "id,x\nA,1\nB,2\nC,3\nD,4\nE,5\nF,6\n");
    let parts = |column| -> String {
        let splitter = Splitter::new(
            &DataKey::from_seed(42),
            Fractions::new(0.4, 0.3, 0.3).unwrap(),
        );
        let all = units(&table, column).unwrap();
        all.iter()
            .map(|unit| splitter.part(&unit.id).to_string().remove(0))
            .collect()
    };
    assert_eq!(parts(Some("id")), "vtttvv");
    assert_eq!(parts(None), "vttvvv");
    assert_eq!(
        fingerprint(&table, &DataKey::from_seed(42)).get(..16),
        Some("e0c90bf2690fd3cd")
    );
}

#[test]
fn keys_round_trip_and_hide() {
    let key = DataKey::random().unwrap();
    assert_ne!(key, DataKey::random().unwrap());
    assert_eq!(DataKey::from_hex(&key.to_hex()).unwrap(), key);
    assert_eq!(DataKey::from_bytes(key.to_bytes()), key);
    assert_eq!(format!("{key:?}"), "DataKey(..)");
    for bad in ["", "12", &"g".repeat(64), &"0".repeat(65)] {
        assert!(matches!(DataKey::from_hex(bad), Err(DataError::BadKey)));
    }
}

#[test]
fn a_kept_key_is_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.key");
    let key = DataKey::random().unwrap();
    key.keep(&path).unwrap();
    assert_eq!(DataKey::kept(&path).unwrap(), key);
    assert!(matches!(
        DataKey::from_seed(1).keep(&path),
        Err(DataError::Io { .. })
    ));
    assert_eq!(DataKey::kept(&path).unwrap(), key);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
    std::fs::write(&path, "SECRET").unwrap();
    message(&DataKey::kept(&path).unwrap_err());
    assert!(matches!(
        DataKey::kept(&folder.path().join("absent")),
        Err(DataError::Io { .. })
    ));
}

#[test]
fn fingerprints_see_every_change() {
    let key = DataKey::from_seed(1);
    let base = fingerprint(&table("a.csv", "a,b\n1,2\n3,4\n"), &key);
    assert_eq!(
        base,
        fingerprint(&table("other.csv", "a,b\r\n\"1\",2\r\n3,4"), &key),
        "quoting and names do not count"
    );
    for changed in [
        "a,b\n1,2\n3,5\n",
        "a,c\n1,2\n3,4\n",
        "a,b\n3,4\n1,2\n",
        "a,b\n1,2\n",
        "a,b\n12,\n3,4\n",
        "a,b\n,12\n3,4\n",
    ] {
        assert_ne!(
            base,
            fingerprint(&table("a.csv", changed), &key),
            "{changed}"
        );
    }
    assert_ne!(
        base,
        fingerprint(&table("a.csv", "a,b\n1,2\n3,4\n"), &DataKey::from_seed(2))
    );
}

#[test]
fn a_corpus_from_end_to_end() {
    let table = table("a.csv", "id,text\nA,one\nB,\nA,two\nC,three\nA,\n");
    let options = CorpusOptions {
        text_column: Some("text".into()),
        unit_column: Some("id".into()),
        fractions: Fractions::new(1.0, 0.0, 0.0).unwrap(),
        ..CorpusOptions::default()
    };
    let corpus = Corpus::build(&table, &options, &DataKey::from_seed(1)).unwrap();
    let texts: Vec<_> = corpus
        .train
        .iter()
        .map(|unit| unit.texts.join("+"))
        .collect();
    assert_eq!(texts, ["one+two", "three"]);
    assert_eq!(corpus.units_without_text, 1);
    assert_eq!(corpus.unit, "all rows with the same id");
    assert!(corpus.part(Part::Test).is_empty());
    assert!(!format!("{corpus:?}").contains("three"));
    assert_eq!(
        public_texts(&table, Some("text"), None).unwrap(),
        ["one", "two", "three"]
    );
}

#[test]
fn a_corpus_without_any_text_is_refused() {
    let table = table("a.csv", "id,text\nA, \nB,\n");
    let options = CorpusOptions {
        text_column: Some("text".into()),
        ..CorpusOptions::default()
    };
    let error = Corpus::build(&table, &options, &DataKey::from_seed(1)).unwrap_err();
    assert!(matches!(error, DataError::NoText { .. }));
    assert!(matches!(
        public_texts(&table, Some("text"), None),
        Err(DataError::NoText { .. })
    ));
}
