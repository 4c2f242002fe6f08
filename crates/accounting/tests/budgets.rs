//! Decks, filters and the odometer under adaptive play.
#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use rldp_accounting::budget::{Deck, GdpFilter, Odometer, RenyiFilter};
use rldp_accounting::{AccountingError, PrivacyTarget, Segment, epsilon_upper, gaussian, rdp};

/// A finite pair (P, Q) on three outcomes.
type Pair = [(f64, f64); 3];

fn pair() -> impl Strategy<Value = Pair> {
    (
        [0.05..1.0f64, 0.05..1.0, 0.05..1.0],
        [0.05..1.0f64, 0.05..1.0, 0.05..1.0],
    )
        .prop_map(|(p, q)| {
            let (a, b): (f64, f64) = (p.iter().sum(), q.iter().sum());
            [
                (p[0] / a, q[0] / b),
                (p[1] / a, q[1] / b),
                (p[2] / a, q[2] / b),
            ]
        })
}

/// All (P, Q) masses of complete plays: the next card depends on the outputs so far through a hash, and so does stopping.
fn play(
    cards: &[Pair],
    seed: u64,
    stops: bool,
    path: u64,
    mass: (f64, f64),
    out: &mut Vec<(f64, f64)>,
) {
    let choice = (path ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    if cards.is_empty() || (stops && choice.is_multiple_of(4)) {
        out.push(mass);
        return;
    }
    let mut rest = cards.to_vec();
    let card = rest.remove((choice / 4) as usize % cards.len());
    for (i, (p, q)) in card.iter().enumerate() {
        play(
            &rest,
            seed,
            stops,
            path * 5 + i as u64 + 1,
            (mass.0 * p, mass.1 * q),
            out,
        );
    }
}

fn hockey_stick(masses: &[(f64, f64)], epsilon: f64) -> f64 {
    masses
        .iter()
        .map(|(p, q)| (p - epsilon.exp() * q).max(0.0))
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// The deck theorem, exactly, on finite mechanisms: no adaptive order or stopping beats the product.
    #[test]
    fn adaptive_order_costs_nothing(cards in prop::collection::vec(pair(), 1..6), seed: u64, stops: bool) {
        let mut product = vec![(1.0, 1.0)];
        for card in &cards {
            product = product.iter().flat_map(|m| card.iter().map(move |c| (m.0 * c.0, m.1 * c.1))).collect();
        }
        let mut played = Vec::new();
        play(&cards, seed, stops, 1, (1.0, 1.0), &mut played);
        for i in -8..=8 {
            let epsilon = 0.35 * f64::from(i);
            let (adaptive, fixed) = (hockey_stick(&played, epsilon), hockey_stick(&product, epsilon));
            prop_assert!(adaptive <= fixed + 1e-12, "epsilon {}: {} above {}", epsilon, adaptive, fixed);
            if !stops {
                prop_assert!((adaptive - fixed).abs() <= 1e-12);
            }
        }
    }

    /// A filter never allows what a brute-force sum at its order forbids, and refuses before spending.
    #[test]
    fn the_filter_is_never_fooled(e in 1.0..8.0f64, sigmas in prop::collection::vec(0.8..2.5f64, 1..400), q in 0.01..0.3f64) {
        let target = PrivacyTarget::new(e, 1e-5).unwrap();
        let mut filter = RenyiFilter::new(target, q, 0.8, 2.5).unwrap();
        let order = filter.order();
        let mut total = 0.0;
        for sigma in sigmas {
            let step = Segment::new(q, sigma, 1).unwrap();
            let cost = rdp::rdp(q, sigma, order).unwrap();
            let fits = rdp::epsilon_from_rdp_upper(total + cost, order, 1e-5).unwrap() <= e;
            let allowed = filter.would_allow(&step);
            prop_assert!(!allowed || fits);
            let before = filter.clone();
            match filter.spend(&step) {
                Ok(()) => {
                    prop_assert!(allowed);
                    total += cost;
                }
                Err(AccountingError::BudgetExceeded { .. }) => {
                    prop_assert!(!allowed);
                    prop_assert_eq!(&filter, &before);
                    // It refuses for want of budget, not out of caution.
                    let spare = rdp::epsilon_from_rdp_upper((total + cost) * (1.0 + 1e-9), order, 1e-5).unwrap();
                    prop_assert!(spare > e * (1.0 - 1e-9));
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
            prop_assert!(filter.epsilon_spent() <= e);
        }
    }

    #[test]
    fn the_gdp_filter_is_exact(e in 0.5..8.0f64, sigmas in prop::collection::vec(1.0..30.0f64, 1..300)) {
        let mut filter = GdpFilter::new(PrivacyTarget::new(e, 1e-6).unwrap()).unwrap();
        let mut mu2: f64 = 0.0;
        for sigma in sigmas {
            if filter.spend(&Segment::new(1.0, sigma, 1).unwrap()).is_ok() {
                mu2 += sigma.powi(-2);
            }
        }
        prop_assert!(mu2 == 0.0 || gaussian::epsilon_for(1.0 / mu2.sqrt(), 1e-6).unwrap() <= e * (1.0 + 1e-12));
    }

    /// At every moment the odometer reports at least the non-adaptive truth.
    #[test]
    fn the_odometer_never_understates(sigmas in prop::collection::vec(0.7..2.0f64, 1..60)) {
        let mut odometer = Odometer::new(1e-5, 8.0, 0.05).unwrap();
        let mut done = Vec::new();
        let mut last = 0.0;
        for (i, sigma) in sigmas.iter().enumerate() {
            let step = Segment::new(0.02, *sigma, 1).unwrap();
            odometer.record(&step);
            done.push(step);
            let reported = odometer.epsilon_upper().unwrap();
            prop_assert!(reported >= last);
            last = reported;
            if i % 20 == 0 {
                prop_assert!(reported >= epsilon_upper(&done, 1e-5).unwrap() - 1e-3);
            }
        }
    }
}

#[test]
fn a_deck_runs_out() {
    let mut deck = Deck::new(vec![
        Segment::new(0.1, 1.0, 2).unwrap(),
        Segment::new(0.1, 2.0, 1).unwrap(),
    ])
    .unwrap();
    let whole = deck.epsilon_upper(1e-5).unwrap();
    assert_eq!(deck.nearest(1.9), Some(1));
    let card = deck.play(1).unwrap();
    assert_eq!((card.sampling_rate, card.noise_multiplier), (0.1, 2.0));
    assert_eq!(
        deck.play(1),
        Err(AccountingError::DeckExhausted { card: 1 })
    );
    assert_eq!(deck.nearest(1.9), Some(0));
    assert_eq!(
        deck.play(7),
        Err(AccountingError::NoSuchCard { card: 7, cards: 2 })
    );
    deck.play(0).unwrap();
    deck.play(0).unwrap();
    assert_eq!(deck.remaining(), [0, 0]);
    assert!(deck.nearest(1.0).is_none());
    assert_eq!(deck.epsilon_upper(1e-5).unwrap(), whole);
    assert_eq!(epsilon_upper(&deck.played(), 1e-5).unwrap(), whole);
}

#[test]
fn a_filter_keeps_to_its_registration() {
    let target = PrivacyTarget::new(4.0, 1e-5).unwrap();
    let mut filter = RenyiFilter::new(target, 0.05, 1.0, 2.0).unwrap();
    let step = |q, sigma| Segment::new(q, sigma, 1).unwrap();
    assert!(matches!(
        filter.spend(&step(0.06, 1.5)),
        Err(AccountingError::SamplingRateChanged { .. })
    ));
    assert!(matches!(
        filter.spend(&step(0.05, 0.99)),
        Err(AccountingError::OutsideRange { .. })
    ));
    assert_eq!(filter.spent(), 0.0);
    let left = filter.steps_left(1.0);
    filter
        .spend(&Segment::new(0.05, 1.0, left).unwrap())
        .unwrap();
    assert!(!filter.would_allow(&step(0.05, 1.0)));
    // At the floor it allows what the best RDP order allows, within its optimisation.
    let best = rdp::epsilon_upper(&[Segment::new(0.05, 1.0, left + 1).unwrap()], 1e-5).unwrap();
    assert!(best.epsilon > 4.0 - 1e-3, "{best:?}");
}
