//! A DP optimizer of one's own, built from the parts of `rldp-optim`, on a table: who of SUPPORT2's patients will die in hospital?
//!
//! `cargo run --release -p rldp-examples --bin custom_optimizer`
use std::error::Error;

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig, momentum::MomentumConfig};
use burn::tensor::{Device, Tensor, activation};
use rldp_accounting::pld::{PldAccountant, PldOptions};
use rldp_accounting::print::AtLeast;
use rldp_accounting::{PrivacyTarget, calibrate};
use rldp_examples::support2::{Patients, area_under_curve};
use rldp_optim::query::noisy_mean;
use rldp_optim::{
    ClipRule, ExampleLinear, Expansion, GradientSource, ParameterGroups, Private, SecureRandom,
    StepPlan, StepRelease, UnitRows, register,
};

/// The model: any module whose trainable parameters have a leading dimension of one.
#[derive(Module, Debug)]
struct Classifier {
    hidden: ExampleLinear,
    output: ExampleLinear,
}

impl Classifier {
    fn logits(&self, x: Tensor<2>) -> Tensor<1> {
        let hidden = self.hidden.forward(x).tanh();
        self.output.forward(hidden).squeeze_dim(1)
    }
}

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

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::default().autodiff();
    let (training, held_out) = Patients::load()?.split();
    let (patients, steps, target) = (training.len(), 300, PrivacyTarget::new(1.0, 1e-5)?);
    let rate = 256.0 / patients as f64;
    let noise = calibrate::noise_multiplier(&target, rate, steps)?;
    let plan = StepPlan::new(rate, patients, noise, &[0.7, 0.7])?
        .with_rule(ClipRule::Normalize { stability: 0.01 })?;

    let mut model = Classifier {
        hidden: ExampleLinear::new(Patients::features(), 16, &device),
        output: ExampleLinear::new(16, 1, &device),
    };
    let groups = ParameterGroups::each([("hidden", &model.hidden), ("output", &model.output)]);
    let loss = |model: &Classifier, (x, y): (Tensor<2>, Tensor<1>)| {
        let logits = model.logits(x);
        activation::softplus(logits.clone(), 1.0) - y * logits
    };
    let source = Expansion::new(groups.clone(), loss);
    let momentum = MomentumConfig::new().with_momentum(0.9);
    let sgd = SgdConfig::new().with_momentum(Some(momentum));
    let mut optimizer = ShrunkMomentum(sgd.init(), groups.clone());

    let (mut random, people) = (SecureRandom::new()?, UnitRows::one_each(patients));
    let mut accountant = PldAccountant::new(PldOptions::default())?;
    for number in 1..=steps {
        let (mut step, batches) = plan.begin(number, &groups.layout(), &people, 64, &mut random)?;
        for batch in batches {
            let input = training.rows(&batch.filled(0), &device);
            let gradients = source.per_example(&model, input, 64)?.groups;
            step.add(batch, gradients, None)?;
        }
        let release = step.release(&mut accountant, &mut random, &device)?;
        model = optimizer.step(model, &release)?;
    }

    let everyone: Vec<usize> = (0..held_out.len()).collect();
    let (x, _) = held_out.rows(&everyone, &device);
    let logits: Vec<f32> = model.logits(x).inner().try_into_vec_as()?;
    let right = logits.iter().zip(held_out.deaths());
    let right = right.map(|(&logit, &death)| f64::from(u8::from((logit > 0.0) == (death > 0.5))));
    // Held-out people are people too: the accuracy is one query of their own budget.
    let query = calibrate::gaussian_queries(&target, 1)?;
    let expected = held_out.len() as f64;
    let accuracy = noisy_mean(Private::new(right), 1.0, expected, query, &mut random)?;
    println!(
        "trained on {patients} patients with (epsilon, delta) = ({:.4}, {:e}) from {steps} ledger events of noise {:.4}",
        AtLeast(accountant.epsilon_upper(target.delta)?),
        target.delta,
        AtLeast(noise)
    );
    println!(
        "held-out accuracy, released with noise at the same epsilon: {:.3}",
        accuracy.value()
    );
    println!(
        "held-out AUC, exact, and so outside the guarantee (this table is public): {:.3}",
        area_under_curve(&logits, held_out.deaths())
    );
    Ok(())
}
