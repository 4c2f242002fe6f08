//! What a self-audit costs and finds for a plan of 35 adapters with telemetry: `cargo run --release -p rldp-audit --example self_audit`.

use std::time::Instant;

use burn::tensor::Device;
use rldp_audit::{AuditError, SelfAudit};
use rldp_optim::{SecureRandom, StepPlan, Telemetry};

fn main() -> Result<(), AuditError> {
    let telemetry = Telemetry {
        clip_counts: 0.01,
        loss: 0.01,
        loss_bound: 5.0,
    };
    for (groups, trials) in [(1, 4000), (35, 4000), (35, 20_000)] {
        let plan =
            StepPlan::new(0.01, 20_000, 0.7, &vec![0.1; groups])?.with_telemetry(telemetry)?;
        let start = Instant::now();
        let report =
            SelfAudit::new(trials)?.run(&plan, &Device::default(), &mut SecureRandom::new()?)?;
        println!(
            "{groups} groups, {:.2} s: {report:?}",
            start.elapsed().as_secs_f64()
        );
    }
    Ok(())
}
