//! The ledger: what was written is what is read, damage is found, and epsilon never falls below the truth.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::PathBuf;

use rldp_accounting::ledger::{BudgetRecord, Event, Header, LEDGER_VERSION, Ledger, LedgerWriter};
use rldp_accounting::{
    AccountingError, Adjacency, PrivacyTarget, Segment, epsilon_upper, gdp, rdp,
};

fn header(budget: BudgetRecord) -> Header {
    Header {
        version: LEDGER_VERSION,
        created: "2026-01-01T00:00:00Z".into(),
        unit: "row".into(),
        adjacency: Adjacency::AddRemove,
        target: PrivacyTarget::new(8.0, 1e-5).unwrap(),
        private: true,
        budget,
        parameters: serde_json::json!({"population": 1000, "tenth": 0.1}),
    }
}

fn fixed(steps: u64) -> BudgetRecord {
    BudgetRecord::Fixed {
        segment: Segment::new(0.05, 1.0, steps).unwrap(),
    }
}

fn step(step: u64, noise_multiplier: f64) -> Event {
    Event::Step {
        step,
        sampling_rate: 0.05,
        noise_multiplier,
        group_noise_multipliers: vec![noise_multiplier * 2f64.sqrt(); 2],
        clipping_norms: vec![1.0, 0.1],
        telemetry: vec![],
    }
}

fn query(part: &str, noise_multiplier: f64) -> Event {
    Event::Query {
        part: part.into(),
        name: "loss".into(),
        noise_multiplier,
    }
}

fn written(budget: BudgetRecord, events: &[Event]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.ledger");
    let mut writer = LedgerWriter::create(&path, &header(budget)).unwrap();
    events.iter().for_each(|e| writer.append(e).unwrap());
    (dir, path)
}

#[test]
fn round_trip_and_accounting() {
    let events = [
        step(0, 1.0),
        query("validation", 20.0),
        step(1, 1.0),
        query("validation", 30.0),
        Event::Note { text: "é".into() },
    ];
    let (_dir, path) = written(fixed(100), &events);
    let ledger = Ledger::read(&path).unwrap();
    assert_eq!(ledger.header, header(fixed(100)));
    assert_eq!(ledger.events, events);
    assert!(ledger.torn.is_none());
    assert_eq!(
        ledger.segments().unwrap(),
        [Segment::new(0.05, 1.0, 2).unwrap()]
    );
    let epsilon = ledger.epsilon_upper(1e-5).unwrap();
    let registered = epsilon_upper(&[Segment::new(0.05, 1.0, 100).unwrap()], 1e-5).unwrap();
    let played = epsilon_upper(&[Segment::new(0.05, 1.0, 2).unwrap()], 1e-5).unwrap();
    let held_out = gdp::epsilon_upper((1.0 / 400.0 + 1.0 / 900.0f64).sqrt(), 1e-5).unwrap();
    assert_eq!(
        (epsilon.training.guarantee, epsilon.training.played),
        (registered, Some(played))
    );
    assert_eq!(epsilon.parts.len(), 1);
    assert!((epsilon.parts[0].epsilon - held_out).abs() < 1e-12);
    assert_eq!(epsilon.overall, registered.max(held_out));
    // Held-out parts can be the larger.
    let (_dir, path) = written(fixed(1), &[query("test", 0.5)]);
    let epsilon = Ledger::read(&path).unwrap().epsilon_upper(1e-5).unwrap();
    assert_eq!(epsilon.overall, epsilon.parts[0].epsilon);
    assert!(epsilon.training.played.is_none());
    // Queries of the training part are composed with the steps.
    let (_dir, path) = written(fixed(100), &[query("training", 5.0)]);
    let epsilon = Ledger::read(&path).unwrap().epsilon_upper(1e-5).unwrap();
    let both = [
        Segment::new(0.05, 1.0, 100).unwrap(),
        Segment::new(1.0, 5.0, 1).unwrap(),
    ];
    assert_eq!(
        epsilon.training.guarantee,
        epsilon_upper(&both, 1e-5).unwrap()
    );
}

#[test]
fn a_torn_line_is_reported_and_counted() {
    let (_dir, path) = written(fixed(100), &[step(0, 1.0), step(1, 1.0)]);
    let whole = fs::read(&path).unwrap();
    let last_line = whole[..whole.len() - 1]
        .iter()
        .rposition(|&b| b == b'\n')
        .unwrap()
        + 1;
    for length in [last_line + 1, last_line + 40, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let ledger = Ledger::read(&path).unwrap();
        assert_eq!(ledger.torn.as_ref().map(|t| t.line), Some(3));
        assert_eq!(ledger.events.len(), 1);
        let epsilon = ledger.epsilon_upper(1e-5).unwrap();
        // Never less than with the torn step taken.
        assert_eq!(
            epsilon.training.played,
            Some(epsilon_upper(&[Segment::new(0.05, 1.0, 2).unwrap()], 1e-5).unwrap())
        );
        assert!(epsilon.torn);
    }
    // A resumed run counts the torn step as spent, says so, and goes on after it.
    let in_doubt = Ledger::read(&path).unwrap().in_doubt().unwrap();
    let (mut writer, resumed) =
        LedgerWriter::resume(&path, &header(fixed(100)), &in_doubt).unwrap();
    assert_eq!(writer.events(), 3);
    writer.append(&step(3, 1.0)).unwrap();
    let ledger = Ledger::read(&path).unwrap();
    assert!(ledger.torn.is_none());
    assert_eq!(ledger.events[..3], resumed.events);
    assert_eq!(ledger.steps(), 3);
    assert!(matches!(&ledger.events[1], Event::Note { text } if text.contains("torn")));
}

/// Whatever event is cut wherever: the resumed ledger counts at least that event, and nothing that it cannot have been.
#[test]
fn a_line_torn_anywhere_is_over_counted() {
    let before = [query("validation", 20.0), query("test", 10.0), step(1, 1.0)];
    let next = [
        step(2, 1.0),
        query("validation", 20.0),
        query("test", 10.0),
        Event::Note { text: "x".into() },
    ];
    for event in next {
        let (_dir, path) = written(fixed(100), &before);
        let start = fs::read(&path).unwrap().len();
        let (mut writer, _) = LedgerWriter::resume(&path, &header(fixed(100)), &[]).unwrap();
        writer.append(&event).unwrap();
        let whole = fs::read(&path).unwrap();
        let spent = |ledger: &Ledger| {
            let count = |wanted: &str| {
                ledger
                    .events
                    .iter()
                    .filter(|e| matches!(e, Event::Query { part, .. } if part == wanted))
                    .count() as u64
            };
            [ledger.steps(), count("validation"), count("test")]
        };
        let truth = spent(&Ledger::read(&path).unwrap());
        for length in start + 1..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let torn = Ledger::read(&path).unwrap();
            let in_doubt = torn.in_doubt().unwrap();
            let (_, resumed) = LedgerWriter::resume(&path, &header(fixed(100)), &in_doubt).unwrap();
            assert_eq!(Ledger::read(&path).unwrap(), resumed);
            let counted = spent(&resumed);
            for (counted, truth) in counted.iter().zip(truth) {
                assert!(
                    *counted >= truth,
                    "{event:?} cut at {length}: under-counted"
                );
            }
            // As soon as the line says what it is, nothing else is counted.
            if length > start + 80 {
                assert_eq!(counted, truth, "{event:?} cut at {length}");
            }
            if (length - start) % 50 != 1 {
                continue;
            }
            // What the torn file reported is what the resumed one reports.
            let reported = torn.epsilon_upper(1e-5).unwrap();
            let after = resumed.epsilon_upper(1e-5).unwrap();
            assert_eq!(reported.overall, after.overall);
            assert_eq!(reported.training.steps, after.training.steps);
            assert_eq!(reported.parts, after.parts);
        }
        // Bytes that are the beginning of no line may have been anything.
        fs::write(&path, [&whole[..start], &[0; 7]].concat()).unwrap();
        assert_eq!(Ledger::read(&path).unwrap().in_doubt().unwrap().len(), 3);
    }
}

#[test]
fn a_seeded_run_is_repeated_and_a_private_one_is_not() {
    let seeded = Header {
        private: false,
        ..header(fixed(100))
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.ledger");
    let mut writer = LedgerWriter::create(&path, &seeded).unwrap();
    for number in 1..=3 {
        writer.append(&step(number, 1.0)).unwrap();
    }
    let whole = fs::read(&path).unwrap();
    let torn = [&whole[..], b"{\"checks"].concat();
    fs::write(&path, &torn).unwrap();
    let (mut writer, ledger) = LedgerWriter::repeat(&path, &seeded, 1).unwrap();
    assert_eq!((ledger.steps(), writer.events()), (1, 1));
    writer.append(&step(2, 1.0)).unwrap();
    writer.append(&step(3, 1.0)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), whole);
    writer.append(&step(4, 1.0)).unwrap();
    drop(writer);
    assert_eq!(Ledger::read(&path).unwrap().steps(), 4);
    // Another event than before is no repetition, and nothing may follow it.
    let (mut writer, _) = LedgerWriter::repeat(&path, &seeded, 1).unwrap();
    assert!(matches!(
        writer.append(&step(2, 1.5)),
        Err(AccountingError::LedgerInconsistent { .. })
    ));
    assert!(writer.append(&step(3, 1.0)).is_err());
    assert!(LedgerWriter::repeat(&path, &seeded, 5).is_err());
    let (_dir, path) = written(fixed(100), &[step(1, 1.0)]);
    assert!(LedgerWriter::repeat(&path, &header(fixed(100)), 0).is_err());
}

#[test]
fn a_resumption_under_other_parameters_names_them() {
    let (_dir, path) = written(fixed(5), &[]);
    let mut other = header(fixed(5));
    other.target = PrivacyTarget::new(4.0, 1e-5).unwrap();
    other.parameters["population"] = serde_json::json!(999);
    let error = LedgerWriter::resume(&path, &other, &[])
        .unwrap_err()
        .to_string();
    for named in [
        "target.epsilon was 8.0 and is now 4.0",
        "parameters.population was 1000 and is now 999",
    ] {
        assert!(error.contains(named), "{error}");
    }
    // The time of creation may differ.
    let mut later = header(fixed(5));
    later.created = "2027".into();
    assert!(LedgerWriter::resume(&path, &later, &[]).is_ok());
}

#[test]
fn damage_is_found() {
    let (_dir, path) = written(fixed(100), &[step(0, 1.0), step(1, 1.0), step(2, 1.0)]);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let damaged = |lines: &[&str]| {
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        Ledger::read(&path)
    };
    // A step taken out, two exchanged, a figure changed, a whole last line damaged.
    assert!(matches!(
        damaged(&[lines[0], lines[1], lines[3]]),
        Err(AccountingError::LedgerDamaged { line: 3, .. })
    ));
    assert!(matches!(
        damaged(&[lines[0], lines[2], lines[1], lines[3]]),
        Err(AccountingError::LedgerDamaged { line: 2, .. })
    ));
    let louder = lines[2].replace("\"noise_multiplier\":1.0", "\"noise_multiplier\":9.0");
    assert_ne!(louder, lines[2]);
    assert!(matches!(
        damaged(&[lines[0], lines[1], &louder, lines[3]]),
        Err(AccountingError::LedgerDamaged { line: 3, .. })
    ));
    assert!(matches!(
        damaged(&[lines[0], lines[1], &louder]),
        Err(AccountingError::LedgerDamaged { line: 3, .. })
    ));
    assert!(matches!(
        damaged(&[lines[1], lines[2]]),
        Err(AccountingError::LedgerDamaged { line: 1, .. })
    ));
    fs::write(&path, "").unwrap();
    assert_eq!(Ledger::read(&path), Err(AccountingError::LedgerEmpty));
    assert!(matches!(
        Ledger::read(path.join("nowhere")),
        Err(AccountingError::LedgerIo { .. })
    ));
}

#[test]
fn contradictions_are_refused() {
    let inconsistent = |budget, events: &[Event]| {
        let (_dir, path) = written(budget, events);
        Ledger::read(&path).unwrap().epsilon_upper(1e-5)
    };
    let is = |r: Result<_, AccountingError>| {
        matches!(
            r.map(|_: rldp_accounting::ledger::LedgerEpsilon| ()),
            Err(AccountingError::LedgerInconsistent { .. })
        )
    };
    assert!(is(inconsistent(fixed(1), &[step(0, 1.0), step(1, 1.0)])));
    assert!(is(inconsistent(fixed(5), &[step(0, 0.9)])));
    let deck = BudgetRecord::Deck {
        cards: vec![
            Segment::new(0.05, 1.0, 1).unwrap(),
            Segment::new(0.05, 2.0, 3).unwrap(),
        ],
    };
    assert!(inconsistent(deck.clone(), &[step(0, 2.0), step(1, 1.0)]).is_ok());
    assert!(is(inconsistent(deck, &[step(0, 1.0), step(1, 1.0)])));
    let filter = BudgetRecord::Filter {
        floor: 1.0,
        ceiling: 2.0,
        order: 6.0,
    };
    assert!(is(inconsistent(filter, &[step(0, 0.5)])));
    // A step that claims more noise than its groups and telemetry give is not even written.
    let (_dir, path) = written(fixed(5), &[]);
    let (mut writer, _) = LedgerWriter::resume(&path, &header(fixed(5)), &[]).unwrap();
    let boast = Event::Step {
        step: 0,
        sampling_rate: 0.05,
        noise_multiplier: 1.0,
        group_noise_multipliers: vec![1.0; 24],
        clipping_norms: vec![],
        telemetry: vec![],
    };
    assert!(matches!(
        writer.append(&boast),
        Err(AccountingError::LedgerInconsistent { .. })
    ));
    assert_eq!(Ledger::read(&path).unwrap().steps(), 0);
    // Nor is a run resumed under other parameters, or a ledger overwritten.
    assert!(matches!(
        LedgerWriter::resume(&path, &header(fixed(6)), &[]),
        Err(AccountingError::LedgerInconsistent { .. })
    ));
    assert!(matches!(
        LedgerWriter::create(&path, &header(fixed(5))),
        Err(AccountingError::LedgerIo { .. })
    ));
    let mut later = header(fixed(5));
    later.version = 99;
    assert!(matches!(
        LedgerWriter::create(path.with_extension("2"), &later),
        Err(AccountingError::LedgerVersion { found: 99, .. })
    ));
}

#[test]
fn a_filters_ledger_is_replayed_at_its_order() {
    let budget = BudgetRecord::Filter {
        floor: 1.0,
        ceiling: 2.0,
        order: 6.0,
    };
    let (_dir, path) = written(budget.clone(), &[step(0, 1.0), step(1, 1.5)]);
    let ledger = Ledger::read(&path).unwrap();
    let epsilon = ledger.epsilon_upper(1e-5).unwrap();
    let total = rdp::rdp(0.05, 1.0, 6.0).unwrap() + rdp::rdp(0.05, 1.5, 6.0).unwrap();
    let wanted = rdp::epsilon_from_rdp_upper(total, 6.0, 1e-5).unwrap();
    assert!((epsilon.overall - wanted).abs() < 1e-9);
    let (_dir, path) = written(budget, &[]);
    assert_eq!(
        Ledger::read(&path).unwrap().epsilon_upper(1e-5),
        Err(AccountingError::LedgerEmpty)
    );
}

#[test]
fn sequences_convert_both_ways() {
    let list = [
        Segment::new(0.05, 1.0, 3).unwrap(),
        Segment::new(0.05, 2.0, 2).unwrap(),
        Segment::new(0.05, 1.0, 1).unwrap(),
    ];
    let deck = BudgetRecord::Deck {
        cards: list.to_vec(),
    };
    let ledger = Ledger::from_segments(header(deck), &list).unwrap();
    assert_eq!(ledger.segments().unwrap(), list);
    assert_eq!(
        ledger.epsilon_upper(1e-5).unwrap().overall,
        epsilon_upper(&list, 1e-5).unwrap()
    );
    let dir = tempfile::tempdir().unwrap();
    ledger.write(dir.path().join("copy")).unwrap();
    assert_eq!(Ledger::read(dir.path().join("copy")).unwrap(), ledger);
}

#[test]
fn a_run_without_privacy_has_no_epsilon_and_cannot_call_itself_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let lying = header(BudgetRecord::Unprotected);
    assert!(matches!(
        LedgerWriter::create(&path, &lying),
        Err(AccountingError::Unprotected)
    ));
    let honest = Header {
        private: false,
        ..lying
    };
    drop(LedgerWriter::create(&path, &honest).unwrap());
    let ledger = Ledger::read(&path).unwrap();
    assert_eq!(ledger.header, honest);
    assert!(matches!(
        ledger.epsilon_upper(0.5),
        Err(AccountingError::Unprotected)
    ));
}
