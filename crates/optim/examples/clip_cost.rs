//! What clipping, summing and noise cost for the adapters of two models: `cargo run --release -p rldp-optim --example clip_cost`.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use rldp_optim::{
    Accumulator, GroupGradients, Kernel, OptimError, PerExampleGradients, RowMap, SecureRandom,
    StepPlan,
};

fn main() -> Result<(), OptimError> {
    let device = Device::default();
    // LoRA of rank 8 on c_attn: layers, width, batch.
    for (name, layers, width, batch) in [
        ("mini", 4, 256, 32),
        ("gpt2s", 12, 768, 8),
        ("gpt2s, batch 32", 12, 768, 32),
    ] {
        let random =
            |shape: [usize; 3]| Tensor::<3>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let groups = (0..layers)
            .map(|layer| {
                GroupGradients::new(format!("layer {layer}"))
                    .with(random([batch, width, 8]))
                    .with(random([batch, 8, 3 * width]))
            })
            .collect();
        let gradients = PerExampleGradients::new(groups, RowMap::one_each(batch))?;
        let layout = gradients.layout();
        let parameters: usize = layout.groups.iter().map(|group| group.dimension()).sum();
        let plan = StepPlan::new(0.01, 100 * batch, 1.0, &vec![1.0; layers])?;
        let mut random = SecureRandom::new()?;
        for kernel in [Kernel::Native, Kernel::Reference] {
            let (mut clipping, mut noise) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..10 {
                let start = Instant::now();
                let mut step = Accumulator::begin(&plan, &layout)?.with_kernel(kernel);
                step.add(&gradients, None)?;
                clipping = clipping.min(start.elapsed().as_secs_f64());
                let start = Instant::now();
                step.release(&mut random, &device)?;
                noise = noise.min(start.elapsed().as_secs_f64());
            }
            println!(
                "{name}: {batch} x {parameters} parameters, {kernel:?}: clip and sum {:.2} ms, noise {:.2} ms",
                1e3 * clipping,
                1e3 * noise
            );
        }
    }
    Ok(())
}
