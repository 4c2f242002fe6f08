//! Groupings, micro-batches, steps and sources.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use proptest::prelude::*;
use rldp_accounting::ledger::Event;
use rldp_accounting::pld::{PldAccountant, PldOptions};
use rldp_accounting::{AccountingError, Adjacency, Segment, pld};

use super::{devices, matrix, norm, single};
use crate::source::{GridSums, squared_norms};
use crate::{
    Accountant, Accumulator, ExampleLinear, Expansion, GradientSource, GroupGradients, Grouping,
    Layout, OneByOne, OptimError, ParameterGroups, PerExampleGradients, RowMap, SecureRandom,
    SeededRandom, StepPlan, StepRelease, UnitGradients, UnitRows, expand,
};

fn values(release: &StepRelease) -> Vec<f64> {
    let tensors = release.groups.iter().flat_map(|group| &group.gradients);
    tensors
        .flat_map(|tensor| tensor.clone().try_into_vec_as::<f64>().unwrap())
        .collect()
}

/// Flat, per group, per tensor and per layer: each bounds every one of its groups, and the whole by the root of the sum of squares.
#[test]
fn every_grouping_bounds_its_groups() {
    for (name, device) in devices() {
        let tensor = |seed: usize, width: usize| {
            let row = |r: usize| {
                (0..width)
                    .map(|j| ((seed + 3 * r + j) % 11) as f32 * 10.0 - 45.0)
                    .collect()
            };
            matrix(&(0..3).map(row).collect::<Vec<Vec<f32>>>(), &device)
        };
        let source = || {
            let groups = ["h.0.q", "h.0.v", "h.1.q"]
                .iter()
                .enumerate()
                .map(|(index, name)| {
                    GroupGradients::new(*name)
                        .with(tensor(index, 4))
                        .with(tensor(index + 5, 6))
                });
            PerExampleGradients::new(groups.collect(), RowMap::one_each(3)).unwrap()
        };
        let by_layer = Grouping::by(&source().layout(), |name| name[..3].to_owned());
        for (grouping, groups) in [
            (Grouping::Flat, 1),
            (Grouping::PerGroup, 3),
            (Grouping::PerTensor, 6),
            (by_layer, 2),
        ] {
            let gradients = grouping.gradients(source()).unwrap();
            assert_eq!(
                gradients.layout(),
                grouping.layout(&source().layout()).unwrap()
            );
            assert_eq!(gradients.groups.len(), groups);
            let norms: Vec<f64> = (0..groups).map(|l| 0.5 + l as f64).collect();
            let plan = StepPlan::new(1.0, 3, 1e-6, &norms).unwrap();
            let one = |rows: RowMap| {
                let mut step = Accumulator::begin(&plan, &gradients.layout()).unwrap();
                let again = PerExampleGradients::new(
                    gradients
                        .groups
                        .iter()
                        .map(|g| GroupGradients {
                            name: g.name.clone(),
                            tensors: g.tensors.clone(),
                        })
                        .collect(),
                    rows,
                );
                step.add(&again.unwrap(), None).unwrap();
                step.release(&mut SeededRandom::new(1), &device).unwrap()
            };
            let (all, fewer) = (one(RowMap::one_each(3)), one(RowMap::padded(2, 1)));
            let mut whole = 0.0_f64;
            for (l, (all, fewer)) in all.groups.iter().zip(&fewer.groups).enumerate() {
                let mut moved = Vec::new();
                for (all, fewer) in all.gradients.iter().zip(&fewer.gradients) {
                    let difference = (all.clone() - fewer.clone()).mul_scalar(3.0);
                    moved.extend(difference.try_into_vec_as::<f64>().unwrap());
                }
                let sensitivity = plan.sensitivity(l, Adjacency::AddRemove).unwrap();
                assert!(
                    norm(&moved) <= sensitivity * (1.0 + 1e-4),
                    "{name} {grouping:?} {l}"
                );
                assert!(
                    norm(&moved) > 0.99 * sensitivity,
                    "{name}: these gradients are all clipped"
                );
                whole += norm(&moved).powi(2);
            }
            assert!(whole.sqrt() <= plan.total_sensitivity(Adjacency::AddRemove) * (1.0 + 1e-4));
        }
    }
}

proptest! {
    #[test]
    fn micro_batches_hold_every_row_once_and_units_whole(keys in prop::collection::vec(0_u8..12, 1..60), rows in 1_usize..12) {
        let table = UnitRows::from_keys(keys.iter().copied());
        let sampled: Vec<usize> = (0..table.units()).step_by(2).collect();
        let batches = table.micro_batches(&sampled, rows);
        let of_unit = |unit: usize| {
            let key = { let mut seen = Vec::new(); for key in &keys { if !seen.contains(key) { seen.push(*key); } } seen[unit] };
            keys.iter().filter(|&&other| other == key).count()
        };
        if sampled.iter().any(|&unit| of_unit(unit) > rows) {
            let refused = matches!(batches, Err(OptimError::UnitTooLarge { .. }));
            prop_assert!(refused);
        } else {
            let batches = batches.unwrap();
            let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.rows().iter().flatten().copied()).collect();
            let total: usize = sampled.iter().map(|&unit| of_unit(unit)).sum();
            prop_assert_eq!(seen.len(), total);
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), total);
            prop_assert_eq!(batches.iter().map(|batch| batch.row_map().units()).sum::<usize>(), sampled.len());
            for batch in &batches {
                prop_assert_eq!(batch.rows().len(), rows);
                for unit in 0..batch.row_map().units() {
                    let members = batch.row_map().unit(unit);
                    let keys: Vec<u8> = members.iter().map(|&(row, _)| keys[batch.rows()[row].unwrap()]).collect();
                    prop_assert!(keys.windows(2).all(|pair| pair[0] == pair[1]));
                    let weight: f32 = members.iter().map(|&(_, weight)| weight).sum();
                    prop_assert!((weight - 1.0).abs() < 1e-5);
                }
            }
        }
    }
}

#[test]
fn units_that_do_not_exist_or_do_not_fit_are_refused() {
    let table = UnitRows::from_keys([1, 1, 2]);
    assert!(matches!(
        table.micro_batches(&[2], 4),
        Err(OptimError::UnknownUnit { units: 2 })
    ));
    assert!(matches!(
        table.micro_batches(&[0], 1),
        Err(OptimError::UnitTooLarge { rows: 1 })
    ));
    assert!(table.micro_batches(&[], 4).unwrap().is_empty());
    let plan = StepPlan::new(0.5, 2, 1.0, &[1.0]).unwrap();
    let layout = Layout::new([("g", vec![1])]);
    // Refused whatever the sample is.
    for _ in 0..8 {
        assert!(matches!(
            plan.begin(1, &layout, &table, 1, &mut SecureRandom::new().unwrap()),
            Err(OptimError::UnitTooLarge { rows: 1 })
        ));
    }
}

/// Refuses everything.
struct Closed;

impl Accountant for Closed {
    fn record(&mut self, _event: &Event) -> Result<(), AccountingError> {
        Err(AccountingError::LedgerInconsistent {
            reason: "closed".to_owned(),
        })
    }
}

#[test]
fn a_step_takes_its_own_micro_batches_once_and_tells_the_accountant() {
    let (_, device) = devices().remove(0);
    let plan = StepPlan::new(1.0, 5, 0.8, &[1.0]).unwrap();
    let layout = Layout::new([("g", vec![2])]);
    let table = UnitRows::one_each(5);
    let mut random = SecureRandom::new().unwrap();
    let gradients = || vec![GroupGradients::new("g").with(Tensor::<2>::ones([3, 2], &device))];
    let mut accountant = PldAccountant::new(PldOptions::default()).unwrap();
    let steps = 3;
    for number in 1..=steps {
        let (mut step, batches) = plan.begin(number, &layout, &table, 3, &mut random).unwrap();
        assert_eq!(batches.len(), 2);
        for batch in batches {
            step.add(batch, gradients(), None).unwrap();
        }
        step.release(&mut accountant, &mut random, &device).unwrap();
    }
    let reference = pld::epsilon_upper(&[Segment::new(1.0, 0.8, steps).unwrap()], 1e-5).unwrap();
    let epsilon = accountant.epsilon_upper(1e-5).unwrap();
    assert!(
        (epsilon / reference - 1.0).abs() < 1e-9,
        "{epsilon} for {reference}"
    );

    let begin = |random: &mut SecureRandom| plan.begin(1, &layout, &table, 3, random).unwrap();
    // Another step's micro-batch, and one that was laid out by hand.
    let (mut step, _) = begin(&mut random);
    let (_other, mut batches) = begin(&mut random);
    assert!(matches!(
        step.add(batches.remove(0), gradients(), None),
        Err(OptimError::ForeignMicroBatch)
    ));
    let by_hand = table.micro_batches(&[0, 1], 3).unwrap().remove(0);
    assert!(matches!(
        step.add(by_hand, gradients(), None),
        Err(OptimError::ForeignMicroBatch)
    ));
    // A micro-batch is missing.
    let (mut step, mut batches) = begin(&mut random);
    step.add(batches.remove(0), gradients(), None).unwrap();
    assert!(matches!(
        step.release(&mut accountant, &mut random, &device),
        Err(OptimError::MissingMicroBatch)
    ));
    // The accountant refuses: nothing is released.
    let (mut step, batches) = begin(&mut random);
    for batch in batches {
        step.add(batch, gradients(), None).unwrap();
    }
    assert!(step.release(&mut Closed, &mut random, &device).is_err());
}

/// A network of two layers, expanded and one by one.
#[derive(Module, Debug)]
struct Net {
    first: ExampleLinear,
    second: ExampleLinear,
}

impl Net {
    fn losses(&self, (x, y): (Tensor<2>, Tensor<2>)) -> Tensor<1> {
        let error = self.second.forward(self.first.forward(x).tanh()) - y;
        (error.clone() * error).sum_dim(1).squeeze_dim(1)
    }
}

fn random_matrix(rows: usize, width: usize, seed: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..rows * width)
        .map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32) / 1001.5 - 1.0)
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, width]), device)
}

#[test]
fn expansion_gives_the_gradients_of_one_example_after_the_other() {
    for (name, device) in devices() {
        let device = device.autodiff();
        let net = Net {
            first: ExampleLinear::new(5, 4, &device),
            second: ExampleLinear::new(4, 2, &device),
        };
        let groups = ParameterGroups::new()
            .with(
                "first",
                ParameterGroups::flat("", &net.first)
                    .iter()
                    .next()
                    .unwrap()
                    .1
                    .to_vec(),
            )
            .with(
                "second",
                ParameterGroups::flat("", &net.second)
                    .iter()
                    .next()
                    .unwrap()
                    .1
                    .to_vec(),
            );
        let (x, y) = (
            random_matrix(6, 5, 1, &device),
            random_matrix(6, 2, 2, &device),
        );
        let expansion = Expansion::new(groups.clone(), |net: &Net, input| net.losses(input));
        let together = expansion
            .per_example(&net, (x.clone(), y.clone()), 6)
            .unwrap();
        let one_by_one = OneByOne::new(
            groups,
            |net: &Net, (x, y): &(Tensor<2>, Tensor<2>), row: usize| {
                net.losses((
                    x.clone().slice([row..row + 1, 0..5]),
                    y.clone().slice([row..row + 1, 0..2]),
                ))
            },
        );
        let alone = one_by_one.per_example(&net, (x, y), 6).unwrap();
        let losses = |gradients: crate::ExampleGradients| -> Vec<f64> {
            gradients.losses.into_inner().try_into_vec_as().unwrap()
        };
        for (a, b) in together.groups.iter().zip(&alone.groups) {
            assert_eq!((a.name.as_str(), a.tensors.len()), (b.name.as_str(), 2));
            for (a, b) in a.tensors.iter().zip(&b.tensors) {
                assert_eq!(a.dims(), b.dims());
                let difference: Vec<f64> = (a.clone() - b.clone())
                    .flatten::<1>(0, 1)
                    .try_into_vec_as()
                    .unwrap();
                let size: Vec<f64> = a.clone().flatten::<1>(0, 1).try_into_vec_as().unwrap();
                assert!(
                    norm(&size) > 0.0 && norm(&difference) < 1e-5 * norm(&size),
                    "{name}"
                );
            }
        }
        for (a, b) in losses(together).iter().zip(losses(alone)) {
            assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{name}");
        }
    }
}

#[derive(Module, Debug)]
struct Ordinary {
    weight: Param<Tensor<2>>,
}

#[test]
fn what_cannot_be_expanded_is_refused() {
    let (_, device) = devices().remove(0);
    let ordinary = Ordinary {
        weight: Param::from_tensor(Tensor::<2>::ones([3, 2], &device.clone().autodiff())),
    };
    assert!(
        matches!(expand(&ordinary, 4), Err(OptimError::NotExpandable { shape }) if shape == [3, 2])
    );
    // Without autodiff nothing is trainable.
    assert!(matches!(
        expand(&ExampleLinear::new(2, 2, &device), 4),
        Err(OptimError::Empty)
    ));
    let trainable = ExampleLinear::new(2, 2, &device.autodiff());
    assert!(expand(&trainable, 0).is_err());
    // A loss that leaves a parameter out.
    let source = Expansion::new(
        ParameterGroups::flat("all", &trainable),
        |model: &ExampleLinear, x: Tensor<2>| {
            x.matmul(
                model
                    .weight
                    .val()
                    .slice([0..1, 0..2, 0..2])
                    .squeeze_dim::<2>(0),
            )
            .sum_dim(1)
            .squeeze_dim(1)
        },
    );
    let input = Tensor::<2>::ones([4, 2], &trainable.weight.val().device());
    assert!(matches!(
        source.per_example(&trainable, input, 4),
        Err(OptimError::NoGradient { .. })
    ));
}

/// A source of another kind, which makes one tensor at a time.
struct Lazy {
    rows: Tensor<2>,
    map: RowMap,
}

impl UnitGradients for Lazy {
    fn layout(&self) -> Layout {
        Layout::new([("g", vec![self.rows.dims()[1]])])
    }

    fn units(&self) -> usize {
        self.map.units()
    }

    fn squared_norms(&self) -> Result<Vec<Vec<f64>>, OptimError> {
        Ok(vec![squared_norms(&self.rows, &self.map)?])
    }

    fn add_scaled(&self, factors: &[Vec<f64>], sums: &mut GridSums) -> Result<(), OptimError> {
        assert!(
            sums.add_rows(1, 0, &self.rows, &self.map, &factors[0])
                .is_err()
        );
        assert!(
            sums.add_rows(0, 1, &self.rows, &self.map, &factors[0])
                .is_err()
        );
        sums.add_rows(0, 0, &self.rows, &self.map, &factors[0])
    }
}

#[test]
fn another_source_gives_the_same_release() {
    for (name, device) in devices() {
        let rows = vec![vec![3.0, -4.0, 0.5], vec![0.1, 0.0, 0.2], vec![9.0; 3]];
        let map = RowMap::averaged(&[Some(1), Some(2), Some(1)]);
        let plan = StepPlan::new(0.5, 4, 0.7, &[0.3]).unwrap();
        let mut direct = Accumulator::begin(&plan, &Layout::new([("g", vec![3])])).unwrap();
        direct
            .add(&single(&rows, map.clone(), &device), None)
            .unwrap();
        let mut other = Accumulator::begin(&plan, &Layout::new([("g", vec![3])])).unwrap();
        let lazy = Lazy {
            rows: matrix(&rows, &device),
            map,
        };
        other.add_units(&lazy, None).unwrap();
        let release =
            |step: Accumulator| values(&step.release(&mut SeededRandom::new(4), &device).unwrap());
        assert_eq!(release(direct), release(other), "{name}");
    }
}

/// Zero gradients move the weights by the noise and nothing else, step after step, as the plan says.
#[test]
fn training_on_zero_gradients_moves_the_weights_as_the_noise_says() {
    for (name, device) in devices() {
        let model = ExampleLinear::new(150, 200, &device.clone().autodiff());
        let groups = ParameterGroups::flat("all", &model);
        let layout = groups.layout();
        let start: Vec<f64> = model
            .weight
            .val()
            .flatten::<1>(0, 2)
            .try_into_vec_as()
            .unwrap();
        let mut optimizer = crate::DpOptimizer::new(burn::optim::SgdConfig::new().init(), groups);
        let plan = StepPlan::new(0.1, 80, 1.7, &[0.4]).unwrap();
        let table = UnitRows::one_each(80);
        let (mut random, mut accountant) = (
            SecureRandom::new().unwrap(),
            PldAccountant::new(PldOptions::default()).unwrap(),
        );
        let (mut model, steps, rate) = (model, 5_u32, 0.3);
        for number in 1..=steps {
            let (mut step, batches) = plan
                .begin(number.into(), &layout, &table, 4, &mut random)
                .unwrap();
            for batch in batches {
                let zeros = GroupGradients::new("all")
                    .with(Tensor::<2>::zeros([4, 30_000], &device))
                    .with(Tensor::<2>::zeros([4, 200], &device));
                step.add(batch, vec![zeros], None).unwrap();
            }
            let release = step.release(&mut accountant, &mut random, &device).unwrap();
            model = optimizer.step(rate, model, &release).unwrap();
        }
        let end: Vec<f64> = model
            .weight
            .val()
            .flatten::<1>(0, 2)
            .try_into_vec_as()
            .unwrap();
        let moved: Vec<f64> = end
            .iter()
            .zip(&start)
            .map(|(end, start)| end - start)
            .collect();
        let deviation = rate * f64::from(steps).sqrt() * 1.7 * 0.4 / 8.0;
        super::statistics::assert_normal_variance(name, &moved, deviation);
        let law = statrs::distribution::Normal::new(0.0, deviation).unwrap();
        super::statistics::assert_follows(name, &moved, |x| {
            statrs::distribution::ContinuousCDF::cdf(&law, x)
        });
    }
}
