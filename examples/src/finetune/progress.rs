//! What someone who waits for a run sees.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rldp::trainer::{Record, Watcher};
use rldp_accounting::print::AtLeast;

/// A progress bar on a terminal, a line now and then elsewhere.
pub struct Progress {
    bar: ProgressBar,
    target: f64,
    begun: Instant,
    last_line: Option<Instant>,
    latest: Latest,
}

#[derive(Default)]
struct Latest {
    step: u64,
    steps: u64,
    epsilon: f64,
    radius: f64,
    loss: Option<f64>,
}

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// A display for a run with the given target epsilon.
    #[must_use]
    pub fn new(target: f64) -> Self {
        Self {
            bar: ProgressBar::hidden(),
            target,
            begun: Instant::now(),
            last_line: None,
            latest: Latest::default(),
        }
    }

    fn text(&self) -> String {
        let loss = self.latest.loss.map_or_else(String::new, |loss| {
            format!(
                "validation loss {loss:.3} (perplexity {:.2}) | ",
                loss.exp()
            )
        });
        format!(
            "{loss}epsilon {:.2} of {:.2} | mean radius {:.4}",
            AtLeast(self.latest.epsilon),
            self.target,
            self.latest.radius
        )
    }

    fn line(&mut self) {
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if !(self.bar.is_hidden() && (due || self.latest.step == self.latest.steps)) {
            return;
        }
        self.last_line = Some(Instant::now());
        let elapsed = self.begun.elapsed().as_secs_f64();
        let left = self.latest.steps.saturating_sub(self.latest.step) as f64;
        let pace = elapsed / self.latest.step.max(1) as f64;
        eprintln!(
            "step {}/{} | {} | {:.2} steps/s | {:.0} s left",
            self.latest.step,
            self.latest.steps,
            self.text(),
            1.0 / pace.max(1e-9),
            left * pace
        );
    }
}

impl Watcher for Progress {
    fn phase(&mut self, text: &str) {
        eprintln!("{text}");
    }

    fn begin(&mut self, steps: u64) {
        self.begun = Instant::now();
        self.latest.steps = steps;
        self.bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template(
            "{bar:30} step {pos}/{len} | {msg} | {per_sec} | {eta} left",
        ) {
            self.bar.set_style(style);
        }
    }

    fn record(&mut self, record: &Record) {
        match record {
            Record::Step(step) => {
                let count = step.clipping_norms.len().max(1) as f64;
                self.latest.step = step.step;
                self.latest.epsilon = step.epsilon_spent;
                self.latest.radius = step.clipping_norms.iter().sum::<f64>() / count;
                self.bar.set_message(self.text());
                self.bar.set_position(step.step);
                self.line();
            }
            Record::HeldOut(held_out) if held_out.part != "test" => {
                self.latest.loss = Some(held_out.loss);
                self.bar.set_message(self.text());
            }
            Record::HeldOut(_) | Record::Decision(_) => {}
        }
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}
