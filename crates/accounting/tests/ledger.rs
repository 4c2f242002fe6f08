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
    // A resumed run goes on from the last whole line, and says what happened.
    let (mut writer, _) = LedgerWriter::resume(&path, &header(fixed(100))).unwrap();
    writer.append(&step(1, 1.0)).unwrap();
    let ledger = Ledger::read(&path).unwrap();
    assert!(ledger.torn.is_none());
    assert_eq!(ledger.steps(), 2);
    assert!(matches!(&ledger.events[1], Event::Note { text } if text.contains("torn")));
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
    let (mut writer, _) = LedgerWriter::resume(&path, &header(fixed(5))).unwrap();
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
        LedgerWriter::resume(&path, &header(fixed(6))),
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
