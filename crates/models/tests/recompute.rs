//! Recomputed activations against kept ones on the golden models, on every backend.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{
    MODELS, devices, golden_batch, load, max_difference, model_folder, norm, read_all, values,
};
use rldp_lora::peft::load_adapter;
use rldp_models::{Activations, per_example_pass};

#[test]
fn recomputed_equals_kept() {
    let mut compared = 0;
    for (backend, device) in devices() {
        for name in MODELS {
            let folder = model_folder(name);
            let batch = golden_batch(&read_all(&folder.join("io.safetensors")), &device);
            let mut model = load(name, &device);
            load_adapter(&mut model, &folder.join("adapter")).unwrap();
            let kept = per_example_pass(&model, &batch, Activations::Kept).unwrap();
            let again = per_example_pass(&model, &batch, Activations::Recomputed).unwrap();
            let losses = [kept.losses, again.losses].map(values);
            let worst = max_difference(&losses[1], &losses[0], |_| true);
            assert!(worst < 2e-6, "{backend} {name}: losses differ by {worst:e}");
            for (kept, again) in kept.gradients.into_iter().zip(again.gradients) {
                let what = format!("{backend} {name} {}", kept.name);
                for (kept, again) in [(kept.a.unwrap(), again.a.unwrap()), (kept.b, again.b)] {
                    let (kept, again) = (values(kept), values(again));
                    let worst = max_difference(&again, &kept, |_| true);
                    assert!(worst <= 2e-6 * norm(&kept), "{what}: {worst:e}");
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} gradient tensors compared");
    assert!(compared >= 90 * devices().len());
}
