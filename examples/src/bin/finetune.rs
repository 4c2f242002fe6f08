//! `finetune`: fine-tunes a language model under differential privacy; see `finetune --help`.

use std::process::ExitCode;

use rldp_examples::error::finish;
use rldp_examples::finetune::run::run;
use rldp_examples::finetune::settings::Settings;

fn main() -> ExitCode {
    finish(Settings::from_arguments(std::env::args_os()).and_then(|settings| run(&settings)))
}
