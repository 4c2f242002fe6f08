//! Laws over whole runs of several kinds of step, through the public interface.
//!
//! The truth is not known here, but two certified intervals of it cannot contradict each other.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use rldp_accounting::pld::{self, EpsilonInterval, PldAccountant, PldOptions};
use rldp_accounting::{AccountingError, Segment, gaussian, rdp};

/// Runs of one to four kinds of step, now and then one that always samples.
fn run() -> impl Strategy<Value = Vec<Segment>> {
    let segment = (-2.7..0.1f64, -0.2..0.6f64, 1.0..3.0f64).prop_map(|(q, sigma, steps)| {
        let q = 10f64.powf(q).min(1.0);
        Segment::new(q, 10f64.powf(sigma), 10f64.powf(steps) as u64).unwrap()
    });
    prop::collection::vec(segment, 1..5)
}

fn delta() -> impl Strategy<Value = f64> {
    (-9.0..-2.5f64).prop_map(|d| 10f64.powf(d))
}

fn interval(list: &[Segment], delta: f64) -> EpsilonInterval {
    let accountant = pld::accountant(list, PldOptions::default()).unwrap();
    accountant.epsilon_interval(delta).unwrap()
}

/// The same, with epsilon asked for after every segment.
fn growing(list: &[Segment], delta: f64) -> EpsilonInterval {
    let mut accountant = PldAccountant::default();
    for s in list {
        accountant.compose(s).unwrap();
        accountant.epsilon_upper(delta).unwrap();
    }
    accountant.epsilon_interval(delta).unwrap()
}

/// Whether both can hold one truth.
fn agree(a: EpsilonInterval, b: EpsilonInterval) -> bool {
    a.lower <= b.upper && b.lower <= a.upper
}

fn each(
    list: &[Segment],
    change: impl Fn(&Segment) -> Result<Segment, AccountingError>,
) -> Vec<Segment> {
    list.iter().map(|s| change(s).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// More sampling, less noise, more steps and a smaller delta each lose more: never certainly less, and by a quarter more of the
    /// first three certainly more, since epsilon then moves by more than the intervals are wide.
    #[test]
    fn more_of_anything_loses_more(list in run(), d in delta(), which in 0usize..4) {
        let small = interval(&list, d);
        let changed = |q: f64, noise: f64, steps: u64, i: usize| {
            let mut list = list.clone();
            let i = i % list.len();
            let s = list[i];
            list[i] =
                Segment::new((s.sampling_rate() * q).min(1.0), s.noise_multiplier() * noise, s.steps() + steps).unwrap();
            list
        };
        for (q, noise, steps) in [(1.01, 1.0, 0), (1.0, 0.99, 0), (1.0, 1.0, 1)] {
            let more = interval(&changed(q, noise, steps, which), d);
            prop_assert!(small.lower <= more.upper, "{q} {noise} {steps}: {small:?} {more:?}");
        }
        prop_assert!(small.lower <= interval(&list, 0.99 * d).upper);
        prop_assert!(small.upper - small.lower <= 1e-3, "{small:?}");
        if small.lower > 0.05 {
            let quieter = each(&list, |s| s.scaled(0.8));
            let longer = each(&list, |s| s.with_steps(2 * s.steps()));
            let denser = each(&list, |s| Segment::new(1.25 * s.sampling_rate(), s.noise_multiplier(), s.steps()).or(s.scaled(0.8)));
            for list in [quieter, longer, denser] {
                let more = interval(&list, d);
                prop_assert!(small.upper < more.lower, "{list:?}: {small:?} {more:?}");
            }
            let rarer = interval(&list, 0.1 * d);
            prop_assert!(small.upper < rarer.lower, "{small:?} {rarer:?}");
        }
    }

    /// In whatever order and in however many parts a run is composed, at once or asked after each part.
    #[test]
    fn order_and_parts_do_not_matter(list in run(), d in delta(), parts in 2u64..5, turn in 0usize..5) {
        let whole = interval(&list, d);
        let mut pieces: Vec<Segment> = list
            .iter()
            .flat_map(|s| {
                let (share, rest) = (s.steps() / parts, s.steps() % parts);
                (0..parts).map(move |i| s.with_steps(share + u64::from(i < rest)))
            })
            .collect::<Result<_, _>>()
            .unwrap();
        let places = pieces.len();
        pieces.rotate_left(turn % places);
        pieces.reverse();
        let at_once = interval(&pieces, d);
        prop_assert_eq!(whole.upper, at_once.upper);
        prop_assert_eq!(whole.lower, at_once.lower);
        let (grown, other_way) = (growing(&list, d), growing(&pieces, d));
        prop_assert!(agree(whole, grown) && agree(whole, other_way), "{whole:?} {grown:?} {other_way:?}");
    }

    /// Renyi accounting never certifies less than what is certainly lost, at its best order or at those on offer.
    #[test]
    fn renyi_is_above(list in run(), d in delta()) {
        let certain = interval(&list, d);
        let best = rdp::epsilon_upper(&list, d).unwrap().epsilon;
        let mut grid = rdp::RdpAccountant::default();
        for s in &list {
            grid.compose(s).unwrap();
        }
        let grid = grid.epsilon_upper(d).unwrap().epsilon;
        prop_assert!(certain.lower <= best && certain.lower <= grid, "{certain:?} {best} {grid}");
        // And it is the looser of the two, up to what may be off.
        prop_assert!(certain.upper <= best * (1.0 + 1e-9) + 1e-3, "{certain:?} {best}");
    }

    /// Where an exact answer is known: Gaussians of different noise beside steps that sample nobody, ...
    #[test]
    fn gaussians_have_the_exact_answer_between(
        list in prop::collection::vec((0.4..30.0f64, 1u64..400), 1..5), d in delta(), nobody in 0u64..3,
    ) {
        let mut run: Vec<Segment> = list.iter().map(|&(sigma, n)| Segment::new(1.0, sigma, n).unwrap()).collect();
        if nobody > 0 {
            run.push(Segment::new(0.0, 1.0, nobody).unwrap());
        }
        let mu2: f64 = list.iter().map(|(sigma, n)| *n as f64 / (sigma * sigma)).sum();
        let exact = gaussian::epsilon_for(1.0 / mu2.sqrt(), d).unwrap();
        let found = interval(&run, d);
        let off = 1e-13 * exact;
        prop_assert!(found.lower <= exact + off && exact - off <= found.upper, "{found:?} {exact}");
        prop_assert!(found.upper - found.lower <= 1e-9 * (1.0 + exact));
    }

    /// ... and one subsampled step, whose delta has a closed form in both directions.
    #[test]
    fn one_step_has_the_exact_answer_between(q in -6.0..-0.01f64, sigma in -0.7..1.5f64, epsilon in 1e-3..8.0f64) {
        let (q, sigma) = (10f64.powf(q), 10f64.powf(sigma));
        let delta = pld::one_step_delta(q, sigma, epsilon).unwrap();
        let delta = delta.remove.max(delta.add);
        prop_assume!(delta > 1e-290);
        let run = [Segment::new(q, sigma, 1).unwrap(), Segment::new(0.0, 1.0, 7).unwrap()];
        let found = interval(&run, delta);
        let off = 1e-9 * (1.0 + epsilon);
        prop_assert!(found.lower <= epsilon + off && epsilon - off <= found.upper, "{delta:e} {found:?} {epsilon}");
    }

    /// The privacy curve: never rising, and both its bounds on their sides.
    #[test]
    fn the_privacy_curve_falls(list in run(), d in delta(), share in 0.3..0.95f64) {
        let accountant = pld::accountant(&list, PldOptions::default()).unwrap();
        let far = accountant.epsilon_upper(d).unwrap();
        let near = share * far;
        let (lower, upper) = (accountant.delta_lower(far).unwrap(), accountant.delta_upper(near).unwrap());
        prop_assert!(lower <= d * (1.0 + 1e-9));
        prop_assert!(lower <= upper && accountant.delta_lower(near).unwrap() <= upper);
        prop_assert!(upper >= d * (1.0 - 1e-9), "{upper:e} below {d:e} at {near}");
    }
}
