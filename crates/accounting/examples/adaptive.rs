//! Times a 10,000-step adaptive run that asks for epsilon after every step: every step of its own noise (a filter's run), and
//! a deck of eight kinds of card in random order. Prints the median, the 99th percentile and the slowest step, and the
//! widest certified interval met.

use std::time::Instant;

use rldp_accounting::pld::{PldAccountant, PldOptions};
use rldp_accounting::{AccountingError, Segment, epsilon_lower};

const DELTA: f64 = 1e-5;
/// Each step's time is the least of so many runs of the same sequence: the machine's other work then counts less.
const REPETITIONS: usize = 3;

/// A fixed sequence of numbers in [0, 1).
fn fractions() -> impl Iterator<Item = f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    })
}

fn run(
    name: &str,
    q: f64,
    steps: usize,
    mut sigma: impl FnMut(usize) -> f64,
) -> Result<(), AccountingError> {
    let list: Vec<Segment> = (0..steps)
        .map(|i| Segment::new(q, sigma(i), 1))
        .collect::<Result<_, _>>()?;
    let mut times: Vec<(f64, usize)> = (1..=steps).map(|i| (f64::INFINITY, i)).collect();
    let mut widest = (0.0, 0);
    let mut epsilon = 0.0;
    for repetition in 0..REPETITIONS {
        let mut accountant = PldAccountant::new(PldOptions::default())?;
        for (i, step) in list.iter().enumerate() {
            let start = Instant::now();
            accountant.compose(step)?;
            epsilon = accountant.epsilon_upper(DELTA)?;
            times[i].0 = times[i].0.min(start.elapsed().as_secs_f64() * 1e3);
            // On a fresh accountant, so that this does not help the next step.
            if repetition == 0 && (i < 40 || (i + 1) % (steps / 20).max(1) == 0) {
                let gap = epsilon - epsilon_lower(accountant.segments(), DELTA)?;
                if gap > widest.0 {
                    widest = (gap, i + 1);
                }
            }
        }
    }
    let band = |from: usize, to: usize| {
        let mut part: Vec<_> = times[from.min(steps)..to.min(steps)].to_vec();
        part.sort_by(|a, b| a.0.total_cmp(&b.0));
        let n = part.len();
        if n > 0 {
            let over = part.iter().filter(|t| t.0 > 1.0).count();
            println!(
                "  steps {from:>5} to {to:>5}: median {:.3} ms, 99 % {:.3} ms, slowest {:.3} ms (step {}), {over} over 1 ms",
                part[n / 2].0,
                part[n * 99 / 100].0,
                part[n - 1].0,
                part[n - 1].1
            );
        }
    };
    println!(
        "{name}: epsilon {epsilon:.6}, widest interval {:.1e} (step {})",
        widest.0, widest.1
    );
    band(0, 10);
    band(10, 100);
    band(100, 1000);
    band(1000, steps);
    band(0, steps);
    Ok(())
}

fn main() -> Result<(), AccountingError> {
    let steps = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(10_000);
    for q in [0.01, 0.05] {
        let mut random = fractions();
        run(
            &format!("every step different, q {q}, sigma 0.8 to 1.6"),
            q,
            steps,
            |_| 0.8 + 0.8 * random.next().unwrap_or(0.5),
        )?;
        let mut random = fractions();
        run(
            &format!("deck of eight kinds, q {q}, sigma 0.8 to 1.6"),
            q,
            steps,
            |_| 0.8 + 0.1 * (8.0 * random.next().unwrap_or(0.5)).floor(),
        )?;
    }
    Ok(())
}
