//! Bad input gives typed errors: no panic, no epsilon 0.
#![allow(clippy::unwrap_used, missing_docs)]

use rldp_accounting::budget::{Deck, GdpFilter, Odometer, RenyiFilter};
use rldp_accounting::pld::{self, PldAccountant, PldOptions};
use rldp_accounting::{
    AccountingError, Adjacency, PrivacyTarget, Segment, calibrate, effective, epsilon_lower,
    epsilon_upper, gaussian, gdp, rdp, views,
};

const BAD: [f64; 5] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0];

#[test]
fn segments_and_targets() {
    for q in [f64::NAN, -1e-9, 1.0 + 1e-9, f64::INFINITY] {
        assert!(matches!(
            Segment::new(q, 1.0, 1),
            Err(AccountingError::SamplingRate { .. })
        ));
    }
    for sigma in BAD {
        assert!(matches!(
            Segment::new(0.1, sigma, 1),
            Err(AccountingError::NoiseMultiplier { .. })
        ));
        assert!(rdp::rdp(0.1, sigma, 2.0).is_err());
        assert!(gaussian::delta_for(1.0, sigma).is_err());
        assert!(effective::effective_noise_multiplier(&[1.0, sigma]).is_err());
        assert!(effective::split(1.0, &[1.0, sigma]).is_err());
        assert!(PrivacyTarget::new(sigma, 1e-5).is_err());
    }
    assert_eq!(Segment::new(0.1, 1.0, 0), Err(AccountingError::ZeroSteps));
    assert_eq!(
        effective::effective_noise_multiplier(&[]),
        Err(AccountingError::NoGroups)
    );
    for delta in [0.0, 1.0, -0.1, 2.0, f64::NAN] {
        let s = [Segment::new(0.1, 1.0, 1).unwrap()];
        assert!(matches!(
            epsilon_upper(&s, delta),
            Err(AccountingError::Delta { .. })
        ));
        assert!(matches!(
            epsilon_lower(&s, delta),
            Err(AccountingError::Delta { .. })
        ));
        assert!(rdp::epsilon_upper(&s, delta).is_err());
        assert!(gdp::clt_epsilon_underestimate(&s, delta).is_err());
        assert!(PrivacyTarget::new(1.0, delta).is_err());
        assert!(Odometer::new(delta, 2.0, 1.0).is_err());
    }
    for order in [1.0, 0.5, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            rdp::rdp(0.1, 1.0, order),
            Err(AccountingError::Order { .. })
        ));
        assert!(rdp::RdpAccountant::new(vec![2.0, order]).is_err());
    }
    let text = r#"{"sampling_rate": 2.0, "noise_multiplier": 1.0, "steps": 3}"#;
    assert!(serde_json::from_str::<Segment>(text).is_err());
}

#[test]
fn empty_is_refused() {
    assert_eq!(epsilon_upper(&[], 1e-5), Err(AccountingError::NoSegments));
    assert_eq!(epsilon_lower(&[], 1e-5), Err(AccountingError::NoSegments));
    assert_eq!(
        PldAccountant::default().epsilon_upper(1e-5),
        Err(AccountingError::NoSegments)
    );
    assert_eq!(
        PldAccountant::default().epsilon_lower(1e-5),
        Err(AccountingError::NoSegments)
    );
    assert_eq!(
        PldAccountant::default().delta_upper(1.0),
        Err(AccountingError::NoSegments)
    );
    assert_eq!(
        rdp::RdpAccountant::default().epsilon_upper(1e-5),
        Err(AccountingError::NoSegments)
    );
    assert!(rdp::RdpAccountant::new(vec![]).is_err());
    assert!(Deck::new(vec![]).is_err());
    assert!(calibrate::deck_scale(&PrivacyTarget::new(1.0, 1e-5).unwrap(), &[]).is_err());
    assert!(gdp::mu(&[]).is_err());
}

#[test]
fn overflows_are_refused() {
    let many = Segment::new(0.1, 1.0, u64::MAX).unwrap();
    assert_eq!(
        epsilon_upper(&[many, many], 1e-5),
        Err(AccountingError::StepsOverflow)
    );
    let mut accountant = PldAccountant::default();
    accountant.compose(&many).unwrap();
    assert_eq!(
        accountant.compose(&many),
        Err(AccountingError::StepsOverflow)
    );
    let loud = [Segment::new(1.0, 1e-170, 1_000_000).unwrap()];
    assert!(epsilon_upper(&loud, 1e-5).is_err());
    assert!(rdp::epsilon_upper(&loud, 1e-5).is_err());
    assert!(Deck::new(vec![many, many]).is_err());
}

#[test]
fn hardly_any_noise_is_answered_or_refused_and_never_zero() {
    for sigma in [1e-4, 1e-3, 0.006, 0.02] {
        let s = [Segment::new(0.3, sigma, 3).unwrap()];
        if let Ok(epsilon) = epsilon_upper(&s, 1e-5) {
            assert!(
                epsilon > 1.0 / (2.0 * sigma * sigma) * 0.5,
                "{sigma}: {epsilon}"
            );
        }
        assert!(epsilon_lower(&s, 1e-5).unwrap() <= epsilon_upper(&s, 1e-5).unwrap());
    }
}

/// A grid that grew with the noise would take for ever: a damaged ledger could stop its reader.
#[test]
fn noise_beyond_any_use_is_answered_at_once() {
    for noise_multiplier in [1e3_f64, 1e5, 1e6, 1e9, 1e12, 1e19, 1e50, 1e100, 1e150] {
        // At order 2, E r^2 - 1 = q^2 (e^(1/sigma^2) - 1).
        let exact = (0.05_f64.powi(2) * noise_multiplier.powi(-2).exp_m1()).ln_1p();
        let found = rdp::rdp(0.05, noise_multiplier, 2.0).unwrap();
        assert!(
            (found / exact - 1.0).abs() < 1e-10,
            "{noise_multiplier} {found} {exact}"
        );
        for order in [1.5, 64.0] {
            assert!(rdp::rdp(0.05, noise_multiplier, order).unwrap() >= 0.0);
        }
        let segment = Segment::new(0.05, noise_multiplier, 3).unwrap();
        let epsilon = epsilon_upper(&[segment], 1e-12).unwrap();
        assert!(
            (0.0..2e-3).contains(&epsilon),
            "{noise_multiplier} {epsilon}"
        );
    }
}

#[test]
fn undefined_adjacency_is_refused() {
    let subsampled = Segment::new(0.1, 1.0, 10).unwrap();
    let options = PldOptions {
        adjacency: Adjacency::ReplaceOne,
        ..PldOptions::default()
    };
    let error = pld::accountant(&[subsampled], options).unwrap_err();
    assert!(matches!(
        error,
        AccountingError::AdjacencyUndefined {
            adjacency: Adjacency::ReplaceOne,
            ..
        }
    ));
    let plain = Segment::new(1.0, 4.0, 10).unwrap();
    let replaced = pld::accountant(&[plain], options)
        .unwrap()
        .epsilon_upper(1e-5)
        .unwrap();
    let doubled = epsilon_upper(&[Segment::new(1.0, 2.0, 10).unwrap()], 1e-5).unwrap();
    assert_eq!(replaced, doubled);
    let options = PldOptions {
        adjacency: Adjacency::ZeroOut,
        ..PldOptions::default()
    };
    let zeroed = pld::accountant(&[subsampled], options)
        .unwrap()
        .epsilon_upper(1e-5)
        .unwrap();
    assert_eq!(zeroed, epsilon_upper(&[subsampled], 1e-5).unwrap());
    assert!(
        PldAccountant::new(PldOptions {
            epsilon_error: 0.0,
            ..PldOptions::default()
        })
        .is_err()
    );
}

#[test]
fn gdp_refuses_subsampling() {
    let s = Segment::new(0.1, 1.0, 10).unwrap();
    assert_eq!(
        gdp::mu(&[s]),
        Err(AccountingError::Subsampled { sampling_rate: 0.1 })
    );
    let filter = GdpFilter::new(PrivacyTarget::new(1.0, 1e-5).unwrap()).unwrap();
    assert!(!filter.would_allow(&s));
}

#[test]
fn unreachable_targets_are_refused() {
    let target = PrivacyTarget::new(1e-9, 1e-12).unwrap();
    assert!(matches!(
        calibrate::noise_multiplier(&target, 0.5, 1_000_000),
        Err(AccountingError::Unreachable { .. })
    ));
    assert!(RenyiFilter::new(target, 0.0, 1.0, 2.0).is_err());
    assert!(RenyiFilter::new(target, 0.1, 2.0, 1.0).is_err());
    let broken = PrivacyTarget {
        epsilon: f64::NAN,
        delta: 1e-5,
    };
    assert!(calibrate::noise_multiplier(&broken, 0.1, 10).is_err());
}

#[test]
fn nothing_sampled_loses_nothing() {
    let s = [Segment::new(0.0, 1.0, 1000).unwrap()];
    assert_eq!(epsilon_upper(&s, 1e-5), Ok(0.0));
    assert_eq!(rdp::epsilon_upper(&s, 1e-5).unwrap().epsilon, 0.0);
}

#[test]
fn views_check_their_figures() {
    assert!(views::advantage_upper(-1.0, 1e-5).is_err());
    assert!(views::bayes_risk_lower(1.5, 1.0, 1e-5).is_err());
    assert!(views::false_negative_rate_lower(f64::NAN, 1.0, 1e-5).is_err());
}
