//! Every case of the golden accounting values.
#![allow(clippy::unwrap_used, missing_docs)]

use rldp_accounting::pld::{self, PldAccountant, PldOptions};
use rldp_accounting::{
    PrivacyTarget, Segment, calibrate, epsilon_lower, epsilon_upper, gaussian, gdp, rdp,
};
use serde_json::Value;

/// Wanted certified error, as by default.
const EPSILON_ERROR: f64 = 1e-3;

fn goldens() -> Value {
    let path = match std::env::var_os("RLDP_GOLDENS") {
        Some(root) => std::path::PathBuf::from(root).join("accounting.json"),
        None => std::path::PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/fixtures/accounting.json"
        )),
    };
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A number, or a number written as a string; none for null, errors, infinity.
fn number(v: &Value) -> Option<f64> {
    v.as_f64().or_else(|| {
        v.as_str()
            .and_then(|s| s.parse().ok())
            .filter(|x: &f64| x.is_finite())
    })
}

fn cases<'a>(all: &'a Value, section: &str) -> &'a [Value] {
    all[section].as_array().map_or(&[], Vec::as_slice)
}

fn segments(record: &Value) -> Result<Vec<Segment>, rldp_accounting::AccountingError> {
    let one = |q: &Value, s: &Value, n: &Value| {
        Segment::new(number(q).unwrap(), number(s).unwrap(), n.as_u64().unwrap())
    };
    match record["segments"].as_array() {
        Some(list) => list.iter().map(|s| one(&s[0], &s[1], &s[2])).collect(),
        None => one(&record["q"], &record["sigma"], &record["steps"]).map(|s| vec![s]),
    }
}

fn close(value: f64, wanted: f64, relative: f64, what: &str) {
    assert!(
        (value - wanted).abs() <= relative * wanted.abs(),
        "{what}: {value:e}, wanted {wanted:e}"
    );
}

#[test]
fn rdp_of_one_step() {
    let all = goldens();
    let orders: Vec<f64> = all["orders"]["probe"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| number(o).unwrap())
        .collect();
    let mut checked = 0;
    for record in cases(&all, "rdp_one_step") {
        let (q, sigma) = (
            number(&record["q"]).unwrap(),
            number(&record["sigma"]).unwrap(),
        );
        for (order, truth) in orders
            .iter()
            .zip(record["truth_mpmath"].as_array().unwrap())
        {
            if let Some(truth) = number(truth) {
                close(
                    rdp::rdp(q, sigma, *order).unwrap(),
                    truth,
                    1e-9,
                    &format!("RDP({q}, {sigma}) at {order}"),
                );
                checked += 1;
            }
        }
    }
    println!("rdp_one_step: {checked} values checked");
    assert!(checked > 0);
}

#[test]
fn certified_epsilons_hold_the_truth() {
    let all = goldens();
    let (mut checked, mut refused) = (0, 0);
    for section in ["epsilon", "heterogeneous", "extreme"] {
        for record in cases(&all, section) {
            let delta = number(&record["delta"]).unwrap();
            let Ok(list) = segments(record) else {
                // A bad noise multiplier is refused with a typed error, never answered.
                assert!(record["best"].is_null(), "{record}");
                refused += 1;
                continue;
            };
            let what = format!("{section} {list:?} at {delta:e}");
            let (upper, lower) = (
                epsilon_upper(&list, delta).unwrap(),
                epsilon_lower(&list, delta).unwrap(),
            );
            assert!(lower <= upper, "{what}: {lower} above {upper}");
            let truth = number(&record["exact"]["eps"]);
            if let Some(truth) = truth {
                assert!(
                    upper >= truth - 1e-9 * truth,
                    "{what}: {upper} below the truth {truth}"
                );
                assert!(
                    lower <= truth + 1e-9 * truth,
                    "{what}: {lower} above the truth {truth}"
                );
                assert!(
                    upper <= truth + EPSILON_ERROR,
                    "{what}: {upper} far above {truth}"
                );
                assert!(
                    lower >= truth - 2.0 * EPSILON_ERROR,
                    "{what}: {lower} far below {truth}"
                );
            } else if let Some(best) = number(&record["best"]["eps"]) {
                // A pessimistic value of another library.
                assert!(
                    upper <= best + EPSILON_ERROR,
                    "{what}: {upper} far above {best}"
                );
                assert!(lower <= best, "{what}: {lower} above {best}");
            } else {
                assert!(
                    list.iter().all(|s| s.sampling_rate() == 0.0) && upper == 0.0,
                    "{what}"
                );
            }
            check_rdp(record, &list, delta, truth, &what);
            checked += 1;
        }
    }
    println!(
        "epsilon, heterogeneous, extreme: {checked} cases checked, {refused} refused with a typed error"
    );
    assert!(checked > 0);
}

fn check_rdp(record: &Value, list: &[Segment], delta: f64, truth: Option<f64>, what: &str) {
    // Some libraries report negative values; epsilon is clamped.
    let Some(reference) = number(&record["rdp_order_optimised"]["eps"]).map(|e| e.max(0.0)) else {
        return;
    };
    let order = number(&record["rdp_order_optimised"]["order"]).unwrap_or(2.0);
    let ours = rdp::epsilon_upper(list, delta).unwrap().epsilon;
    // The reference searched orders in [1.02, 4001]; ours may do better beyond.
    assert!(
        ours <= reference * (1.0 + 1e-6) + 1e-9,
        "{what}: RDP {ours}, wanted {reference}"
    );
    if order > 1.03 && order < 3999.0 {
        assert!(
            ours >= reference * (1.0 - 1e-6) - 1e-9,
            "{what}: RDP {ours}, wanted {reference}"
        );
    }
    assert!(
        truth.is_none_or(|t| ours >= t * (1.0 - 1e-9)),
        "{what}: RDP {ours} below the truth"
    );
    let mut grid = rdp::RdpAccountant::default();
    list.iter().for_each(|s| grid.compose(s).unwrap());
    let on_grid = grid.epsilon_upper(delta).unwrap().epsilon;
    assert!(
        on_grid >= ours * (1.0 - 1e-6),
        "{what}: grid {on_grid}, optimised {ours}"
    );
    if (1.05..2048.0).contains(&order) {
        assert!(
            on_grid <= ours * 1.01 + 1e-9,
            "{what}: grid {on_grid}, optimised {ours}"
        );
    }
}

#[test]
fn privacy_curves() {
    let all = goldens();
    let mut checked = 0;
    for section in ["epsilon", "heterogeneous", "extreme"] {
        for record in cases(&all, section) {
            let (Some(points), Ok(list)) =
                (record["exact"]["delta_at"].as_array(), segments(record))
            else {
                continue;
            };
            let accountant = pld::accountant(&list, PldOptions::default()).unwrap();
            for point in points {
                let epsilon = number(&point["eps"]).unwrap();
                let Some(remove) = number(&point["delta_remove"]) else {
                    continue;
                };
                let truth = remove.max(number(&point["delta_add"]).unwrap_or(0.0));
                if truth <= 1e-290 {
                    continue;
                }
                let upper = accountant.delta_upper(epsilon).unwrap();
                let lower = accountant.delta_lower(epsilon).unwrap();
                let what = format!("{list:?} delta({epsilon})");
                assert!(
                    upper >= truth * (1.0 - 1e-8),
                    "{what}: {upper:e} below {truth:e}"
                );
                assert!(
                    lower <= truth * (1.0 + 1e-8),
                    "{what}: {lower:e} above {truth:e}"
                );
                // Sparse runs, whose characteristic function hardly decays, are the loosest.
                assert!(
                    upper <= truth * 1.25,
                    "{what}: {upper:e} far above {truth:e}"
                );
                checked += 1;
            }
        }
    }
    println!("delta_at: {checked} points checked");
    assert!(checked > 0);
}

/// Mixed sequences, few and sparse steps: values of another method, whose script and source the fixture names.
#[test]
fn mixed_sequences() {
    let text = include_str!("fixtures/mixed.json");
    let all: Value = serde_json::from_str(text).unwrap();
    let mut checked = 0;
    for record in cases(&all, "cases") {
        let list = segments(record).unwrap();
        let epsilon = number(&record["epsilon"]).unwrap();
        let truth = number(&record["ln_delta"]).unwrap().exp();
        let off = number(&record["relative_uncertainty"]).unwrap();
        let accountant = pld::accountant(&list, PldOptions::default()).unwrap();
        let upper = accountant.delta_upper(epsilon).unwrap();
        let lower = accountant.delta_lower(epsilon).unwrap();
        let what = format!("{list:?} delta({epsilon})");
        assert!(
            upper >= truth * (1.0 - off),
            "{what}: {upper:e} below {truth:e}"
        );
        assert!(
            lower <= truth * (1.0 + off),
            "{what}: {lower:e} above {truth:e}"
        );
        // In epsilon, from both sides.
        assert!(
            accountant.epsilon_upper(truth * (1.0 - off)).unwrap() >= epsilon * (1.0 - 1e-9),
            "{what}"
        );
        assert!(
            accountant.epsilon_lower(truth * (1.0 + off)).unwrap() <= epsilon * (1.0 + 1e-9),
            "{what}"
        );
        checked += 1;
    }
    println!("mixed: {checked} sequences checked");
    assert!(checked > 0);
}

#[test]
fn small_delta() {
    let all = goldens();
    let mut checked = 0;
    for record in cases(&all, "small_delta") {
        let list = segments(record).unwrap();
        for row in record["rows"].as_array().unwrap() {
            let delta = number(&row["delta"]).unwrap();
            let Some(remove) = number(&row["exact_remove"]) else {
                continue;
            };
            let truth = remove.max(number(&row["exact_add"]).unwrap_or(0.0));
            let (upper, lower) = (
                epsilon_upper(&list, delta).unwrap(),
                epsilon_lower(&list, delta).unwrap(),
            );
            assert!(
                upper >= truth * (1.0 - 1e-9) && upper <= truth + EPSILON_ERROR,
                "{list:?} {delta:e}: {upper} {truth}"
            );
            assert!(
                lower <= truth * (1.0 + 1e-9) && lower >= truth - EPSILON_ERROR,
                "{list:?} {delta:e}: {lower} {truth}"
            );
            checked += 1;
        }
    }
    println!("small_delta: {checked} rows checked");
    assert!(checked > 0);
}

#[test]
fn calibration() {
    let all = goldens();
    let mut checked = 0;
    for record in cases(&all, "calibration") {
        let target = PrivacyTarget::new(
            number(&record["eps"]).unwrap(),
            number(&record["delta"]).unwrap(),
        )
        .unwrap();
        let (q, steps) = (
            number(&record["q"]).unwrap(),
            record["steps"].as_u64().unwrap(),
        );
        let sigma = calibrate::noise_multiplier(&target, q, steps).unwrap();
        let own = epsilon_upper(&[Segment::new(q, sigma, steps).unwrap()], target.delta).unwrap();
        assert!(own <= target.epsilon, "{record}: {own}");
        let Some(exact) = number(&record["sigma_exact"]) else {
            continue;
        };
        close(
            sigma,
            exact,
            1e-3,
            &format!("{target:?} q {q} steps {steps}"),
        );
        assert!(
            sigma >= exact * (1.0 - 1e-6),
            "{sigma} below the smallest that works, {exact}"
        );
        checked += 1;
    }
    println!("calibration: {checked} cases checked");
    assert!(checked > 0);
}

#[test]
fn gaussian_closed_forms() {
    let all = goldens();
    let mut checked = 0;
    for record in cases(&all["analytic_gaussian"], "sigma_for") {
        let (epsilon, delta) = (
            number(&record["eps"]).unwrap(),
            number(&record["delta"]).unwrap(),
        );
        let sigma = gaussian::sigma_for(epsilon, delta).unwrap();
        close(
            sigma,
            number(&record["sigma"]).unwrap(),
            1e-12,
            &format!("sigma_for {record}"),
        );
        close(
            gaussian::epsilon_for(sigma, delta).unwrap(),
            epsilon,
            1e-11,
            &format!("epsilon_for {record}"),
        );
        checked += 1;
    }
    for record in cases(&all["analytic_gaussian"], "delta_for") {
        let (epsilon, sigma) = (
            number(&record["eps"]).unwrap(),
            number(&record["sigma"]).unwrap(),
        );
        let wanted = number(&record["delta"]).unwrap();
        close(
            gaussian::delta_for(epsilon, sigma).unwrap(),
            wanted,
            1e-12,
            &format!("delta_for {record}"),
        );
        checked += 1;
    }
    for record in cases(&all, "epsilon")
        .iter()
        .chain(cases(&all, "heterogeneous"))
        .chain(cases(&all, "extreme"))
    {
        let (Ok(list), Some(exact)) = (segments(record), number(&record["exact"]["eps"])) else {
            continue;
        };
        if list.iter().all(|s| s.sampling_rate() == 1.0) {
            let epsilon =
                gdp::epsilon_upper(gdp::mu(&list).unwrap(), number(&record["delta"]).unwrap())
                    .unwrap();
            close(epsilon, exact, 1e-8, &format!("GDP {record}"));
            checked += 1;
        }
    }
    println!("analytic_gaussian and GDP: {checked} values checked");
    assert!(checked > 0);
}

#[test]
fn one_step_closed_form() {
    let all = goldens();
    let mut checked = 0;
    for record in cases(&all, "one_step_exact") {
        let (q, sigma) = (
            number(&record["q"]).unwrap(),
            number(&record["sigma"]).unwrap(),
        );
        let epsilon = number(&record["eps"]).unwrap();
        let delta = pld::one_step_delta(q, sigma, epsilon).unwrap();
        let (remove, add) = (
            number(&record["delta_remove"]).unwrap(),
            number(&record["delta_add"]).unwrap(),
        );
        close(delta.remove, remove, 1e-12, &format!("remove {record}"));
        close(delta.add, add, 1e-12, &format!("add {record}"));
        let mut accountant = PldAccountant::default();
        accountant
            .compose(&Segment::new(q, sigma, 1).unwrap())
            .unwrap();
        let upper = accountant.delta_upper(epsilon).unwrap();
        assert!(upper >= remove.max(add));
        close(upper, remove.max(add), 2e-12, &format!("upper {record}"));
        checked += 2;
    }
    println!("one_step_exact: {checked} values checked");
    assert!(checked > 0);
}
