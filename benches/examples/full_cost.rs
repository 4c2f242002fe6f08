//! Time and peak memory of a private full-parameter step next to the ordinary one.
//!
//! `cargo run --release -p rldp-benches --example full_cost -- [private|plain] [mini|gpt2s] [batch] [rows at a time] [tokens] [steps]`
//!
//! Both take whole steps: forward, backward, (clipping, noise) and Adam, over all parameters of a GPT-2. `mini` is 4 layers of
//! width 256, 2,048 tokens; `gpt2s` GPT-2 small. Run it once per mode: the peak is the process's.

use rldp_benches::{Error, FullStep, Shape, peak_megabytes, timed};

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text =
        |index: usize, default: &'static str| arguments.get(index).map_or(default, String::as_str);
    let number = |index, default| text(index, default).parse::<usize>();
    let (mode, name) = (text(0, "private"), text(1, "mini"));
    let (examples, at_a_time) = (number(2, "32")?, number(3, "4")?);
    let (time, steps) = (number(4, "128")?, number(5, "5")?);
    let shape = match name {
        "gpt2s" => Shape::Gpt2Small,
        _ => Shape::Mini,
    };
    let mut step = FullStep::new(shape, &vec![time; examples], at_a_time)?;
    let (best, median, parts) = timed(steps, || match mode {
        "plain" => step.plain(),
        _ => step.private(),
    })?;
    println!(
        "{mode} {name} batch {examples} x {time}, {at_a_time} rows at a time: {:.0} ms a step at best, {:.0} ms median, peak {} MB; clipping {:.0} ms, noise and accounting {:.0} ms, {:.2} % of it",
        best * 1e3,
        median * 1e3,
        peak_megabytes(),
        parts.clipping * 1e3,
        parts.noise * 1e3,
        parts.privacy_percent(best),
    );
    Ok(())
}
