//! Time and peak memory of steps of LoRA training.
//!
//! `cargo run --release -p rldp-benches --example lora_cost -- [private|plain] [mini|gpt2s] [even|sms|notes] [steps]`;
//! with `product` alone, the rate of Burn's matrix product.
//!
//! One mode per process: the peak is the process's.

use rldp_benches::{Error, LoraStep, Shape, Texts, peak_megabytes, product_rate, timed};

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |index: usize, default: &'static str| {
        arguments
            .get(index)
            .map_or(default, String::as_str)
            .to_owned()
    };
    let (mode, name, texts) = (text(0, "private"), text(1, "mini"), text(2, "even"));
    if mode == "product" {
        println!("Burn's matrix product: {:.0} GF/s", product_rate());
        return Ok(());
    }
    let steps: usize = text(3, "5").parse()?;
    let shape = match name.as_str() {
        "gpt2s" => Shape::Gpt2Small,
        _ => Shape::Mini,
    };
    let lengths = shape.lengths(match texts.as_str() {
        "sms" => Texts::Sms,
        "notes" => Texts::Notes,
        _ => Texts::Even,
    });
    let mut step = LoraStep::new(shape, &lengths)?;
    let (best, median, parts) = timed(steps, || match mode.as_str() {
        "plain" => step.plain(),
        _ => step.private(),
    })?;
    println!(
        "{mode} {name} {texts}, {} texts, {} tokens: {:.0} ms a step at best, {:.0} ms median, peak {} MB; clipping, noise and accounting {:.2} % of it",
        lengths.len(),
        lengths.iter().sum::<usize>(),
        best * 1e3,
        median * 1e3,
        peak_megabytes(),
        parts.privacy_percent(best),
    );
    Ok(())
}
