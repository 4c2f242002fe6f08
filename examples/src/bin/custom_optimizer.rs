//! A DP optimizer of one's own, built from the parts of `rldp-optim`, on a table: who of SUPPORT2's patients will die in hospital?
//!
//! `cargo run --release -p rldp-examples --bin custom_optimizer`
use std::error::Error;

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig, momentum::MomentumConfig};
use burn::tensor::{Device, Tensor, activation};
use rldp_accounting::pld::{PldAccountant, PldOptions};
use rldp_accounting::{PrivacyTarget, calibrate, print::AtLeast};
use rldp_examples::support2::{Patients, area_under_curve};
use rldp_optim::{ExampleLinear, Expansion, GradientSource as _, ParameterGroups};
use rldp_optim::{SecureRandom, StepPlan, StepRelease, UnitRows, register};

/// The optimizer: SGD with momentum on a released gradient that is shrunk by the noise it is known to hold (James and Stein 1961).
/// It may do as it likes: whatever it computes from releases costs no privacy.
struct ShrunkMomentum(ModuleOptimizer, ParameterGroups);

impl ShrunkMomentum {
    fn step<M: Module>(&mut self, model: M, release: &StepRelease) -> Result<M, Box<dyn Error>> {
        let mut gradients = GradientsParams::new();
        for ((_, slots), group) in self.1.iter().zip(&release.groups) {
            for (slot, gradient) in slots.iter().zip(&group.gradients) {
                let noise = gradient.dims()[0] as f64 * group.noise_std.powi(2);
                let square = gradient.clone().powi_scalar(2).sum().into_scalar::<f64>();
                let shrunk = gradient.clone() * (1.0 - noise / square).max(0.1);
                register(&mut gradients, slot, shrunk)?;
            }
        }
        Ok(self.0.step(0.5, model, gradients))
    }
}

/// The loss of each example. A model may be any module whose trainable parameters have a leading dimension of one.
fn losses(model: &ExampleLinear, (x, died): (Tensor<2>, Tensor<1>)) -> Tensor<1> {
    let logits = model.forward(x).squeeze_dim(1);
    activation::softplus(logits.clone(), 1.0) - died * logits
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default().autodiff();
    let (training, held_out) = Patients::load()?.split();
    let (patients, steps, target) = (training.len(), 300, PrivacyTarget::new(1.0, 1e-5)?);
    let rate = 256.0 / patients as f64;
    let noise = calibrate::noise_multiplier(&target, rate, steps)?;
    let plan = StepPlan::new(rate, patients, noise, &[1.0])?;

    let mut model = ExampleLinear::new(Patients::features(), 1, &device);
    let groups = ParameterGroups::each([("model", &model)]);
    let source = Expansion::new(groups.clone(), losses);
    let sgd = SgdConfig::new().with_momentum(Some(MomentumConfig::new().with_momentum(0.9)));
    let mut optimizer = ShrunkMomentum(sgd.init(), groups.clone());
    let (mut random, people) = (SecureRandom::new()?, UnitRows::one_each(patients));
    let mut accountant = PldAccountant::new(PldOptions::default())?;
    for number in 1..=steps {
        let (mut step, batches) = plan.begin(number, &groups.layout(), &people, 64, &mut random)?;
        for batch in batches {
            let input = training.rows(&batch.filled(0), &device);
            step.add(batch, source.per_example(&model, input, 64)?.groups, None)?;
        }
        let release = step.release(&mut accountant, &mut random, &device)?;
        model = optimizer.step(model, &release)?;
    }

    let (x, _) = held_out.rows(&Vec::from_iter(0..held_out.len()), &device);
    let logits: Vec<f32> = model.forward(x).inner().try_into_vec_as()?;
    let epsilon = AtLeast(accountant.epsilon_upper(target.delta)?);
    println!("epsilon {epsilon:.4} at delta {:e}", target.delta);
    // Exact, and so outside the guarantee: this table is public.
    let area = area_under_curve(&logits, held_out.deaths());
    println!("area under the curve of the patients held out: {area:.3}");
    Ok(())
}
