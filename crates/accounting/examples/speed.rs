//! Times the work that `benches/peers/accounting.py` times in Python, with the standard clock: median of several runs.

use std::time::Instant;

use rldp_accounting::pld::{self, PldOptions};
use rldp_accounting::{AccountingError, PrivacyTarget, Segment, calibrate, rdp};

fn median(
    mut work: impl FnMut() -> Result<f64, AccountingError>,
) -> Result<(f64, f64), AccountingError> {
    let mut times = Vec::new();
    let mut value = 0.0;
    for _ in 0..15 {
        let start = Instant::now();
        value = work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((times[7], value))
}

fn main() -> Result<(), AccountingError> {
    let delta = 1e-5;
    let show = |name: &str, (seconds, value): (f64, f64)| {
        println!("{name:<58} {:>10.3} ms   {value:.9}", seconds * 1e3)
    };
    let one = [Segment::new(0.01, 1.0, 10_000)?];
    show(
        "PLD upper: q 0.01, sigma 1, 10,000 steps",
        median(|| pld::epsilon_upper(&one, delta))?,
    );
    show(
        "PLD lower of the same",
        median(|| pld::epsilon_lower(&one, delta))?,
    );
    let hundred: Vec<Segment> = (0..100)
        .map(|i| Segment::new(0.01, 0.8 + 0.01 * f64::from(i), 100))
        .collect::<Result<_, _>>()?;
    show(
        "PLD upper: 100 segments, sigma 0.80 to 1.79, 100 steps each",
        median(|| pld::epsilon_upper(&hundred, delta))?,
    );
    show(
        "PLD lower of the same",
        median(|| pld::epsilon_lower(&hundred, delta))?,
    );
    // One step of its own noise after another, asking epsilon after each.
    let mut accountant = pld::accountant(&hundred, PldOptions::default())?;
    accountant.epsilon_upper(delta)?;
    let mut times = Vec::new();
    for i in 0..500 {
        let start = Instant::now();
        accountant.compose(&Segment::new(0.01, 0.9 + 1e-3 * f64::from(i), 1)?)?;
        let epsilon = accountant.epsilon_upper(delta)?;
        times.push((start.elapsed().as_secs_f64(), epsilon));
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    show("one incremental step, median of 500 distinct", times[250]);
    show("one incremental step, slowest of 500 distinct", times[499]);
    let target = PrivacyTarget::new(2.0, delta)?;
    show(
        "calibration: (2, 1e-5), q 0.01, 1,000 steps",
        median(|| calibrate::noise_multiplier(&target, 0.01, 1000))?,
    );
    let orders: Vec<f64> = (0..100).map(|i| 1.1 + 0.5 * f64::from(i)).collect();
    show(
        "RDP over 100 orders, q 0.01, sigma 1",
        median(|| {
            let mut rdp = rdp::RdpAccountant::new(orders.clone())?;
            rdp.compose(&one[0])?;
            Ok(rdp.epsilon_upper(delta)?.epsilon)
        })?,
    );
    Ok(())
}
