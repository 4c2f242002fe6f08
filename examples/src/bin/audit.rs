//! `audit`: attacks what a finished run released; see `audit --help`.

use std::process::ExitCode;

use clap::Parser as _;
use rldp_examples::audit::run::run;
use rldp_examples::audit::settings::Settings;
use rldp_examples::error::{ExampleError, finish};

fn main() -> ExitCode {
    finish(
        Settings::try_parse()
            .map_err(ExampleError::Usage)
            .and_then(|settings| run(&settings)),
    )
}
