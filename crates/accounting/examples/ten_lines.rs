//! The accountant in ten lines: calibrate noise, certify epsilon, compare accountants, draw the privacy curve.

use rldp_accounting::print::AtLeast;
use rldp_accounting::{Adjacency, PrivacyTarget, Segment, calibrate, curve, pld, summary::summary};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let target = PrivacyTarget::new(2.0, 1e-5)?;
    let sigma = calibrate::noise_multiplier(&target, 0.01, 1_000)?;
    let run = [Segment::new(0.01, sigma, 1_000)?];
    println!(
        "noise multiplier {:.4}\n{}",
        AtLeast(sigma),
        summary(&run, target.delta, Adjacency::AddRemove)?
    );
    let accountant = pld::accountant(&run, pld::PldOptions::default())?;
    let points = curve::privacy_curve(&accountant, 4.0, 60)?;
    let mark = curve::Point {
        epsilon: target.epsilon,
        delta: target.delta,
    };
    std::fs::write(
        std::env::temp_dir().join("curve.svg"),
        curve::privacy_curve_svg("Privacy curve", &[("run", &points)], Some(mark)),
    )?;
    Ok(())
}
