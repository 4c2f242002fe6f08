//! `generate`: continues a text with the embedded model, any Hugging Face model, or either with a trained adapter.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use rand::SeedableRng as _;
use rand::rngs::{ChaCha20Rng, SysRng};
use rldp::trainer::Encoding;
use rldp_examples::device::{NAMES, device};
use rldp_examples::embedded;
use rldp_examples::error::{ExampleError, finish};
use rldp_lora::peft;
use rldp_models::{
    CausalLm, GenerationOptions, LanguageModel as _, LoadedModel, Tokenizer, generate, hub,
};

/// Continues a text, token by token.
///
/// Without --model: the base model embedded in this program. With --adapter: the model as `finetune` changed it.
#[derive(Parser)]
#[command(name = "generate", version)]
struct Arguments {
    /// A Hugging Face folder (config.json, *.safetensors, tokenizer.json) or a hub id [default: the embedded model]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// A PEFT adapter folder, such as RUN/adapter, or the run's folder itself
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Text to continue; without it the model begins a text of its own
    #[arg(long, default_value = "")]
    prompt: String,
    /// Most tokens to add
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Below 1 more predictable, above 1 more varied; 0 is --greedy
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Choose among this many most likely tokens [default: all]
    #[arg(long)]
    top_k: Option<usize>,
    /// Choose among the most likely tokens that together have this probability
    #[arg(long, default_value_t = 0.95)]
    top_p: f64,
    /// Repeat the same choices [default: new ones every time]
    #[arg(long)]
    seed: Option<u64>,
    /// Always take the most likely token
    #[arg(long)]
    greedy: bool,
    /// Device to compute on
    #[arg(long, default_value = NAMES[0])]
    device: String,
}

fn main() -> ExitCode {
    finish(run())
}

fn run() -> Result<(), ExampleError> {
    let arguments = Arguments::try_parse().map_err(ExampleError::Usage)?;
    let device = device(&arguments.device)?;
    let mut loaded = match &arguments.model {
        None => embedded::base_model(&device)?,
        Some(name) => CausalLm::load(&hub::resolve(name)?, &device, |_| {})?,
    };
    if let Some(folder) = &arguments.adapter {
        peft::load_adapter(&mut loaded.model, &adapter_folder(folder))?;
    }
    let options = GenerationOptions {
        max_new_tokens: arguments.max_tokens,
        temperature: if arguments.greedy {
            0.0
        } else {
            arguments.temperature
        },
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        stop_tokens: loaded.special_tokens.eos.clone(),
    };
    let prompt = prompt_tokens(&loaded, &arguments.prompt)?;
    let mut random = match arguments.seed {
        Some(seed) => ChaCha20Rng::seed_from_u64(seed),
        None => ChaCha20Rng::try_from_rng(&mut SysRng)
            .map_err(|error| ExampleError::Other(error.to_string()))?,
    };

    say(&arguments.prompt)?;
    let mut stream = Stream::new(loaded.tokenizer()?, &prompt);
    let mut failed = None;
    generate(
        &loaded.model,
        &prompt,
        &options,
        &device,
        &mut random,
        |token| match stream.push(token) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    match failed {
        Some(error) => Err(error),
        None => say("\n"),
    }
}

/// The adapter's folder, also when the run's was given.
fn adapter_folder(given: &Path) -> PathBuf {
    let inside = given.join("adapter");
    let is_run =
        !given.join("adapter_config.json").exists() && inside.join("adapter_config.json").exists();
    if is_run { inside } else { given.to_owned() }
}

/// The prompt as training encoded its texts: begin-of-text, then the tokens.
fn prompt_tokens(loaded: &LoadedModel, prompt: &str) -> Result<Vec<u32>, ExampleError> {
    let encoding = Encoding {
        tokenizer: loaded.tokenizer()?,
        special_tokens: &loaded.special_tokens,
        max_length: loaded.model.positions(),
        max_rows: 1,
    };
    Ok(encoding.prompt(prompt)?)
}

/// Prints tokens as they come. Tokens are pieces of bytes, so only the text they make together is sure.
struct Stream<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<u32>,
    printed: String,
}

impl<'a> Stream<'a> {
    fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        let printed = tokenizer.decode(prompt).unwrap_or_default();
        Self {
            tokenizer,
            tokens: prompt.to_vec(),
            printed,
        }
    }

    fn push(&mut self, token: u32) -> Result<(), ExampleError> {
        self.tokens.push(token);
        let text = self.tokenizer.decode(&self.tokens)?;
        // An unfinished character decodes to the replacement mark: wait for its other bytes.
        if let Some(new) = text
            .strip_prefix(&self.printed)
            .filter(|new| !new.ends_with('\u{fffd}'))
        {
            say(new)?;
            self.printed = text;
        }
        Ok(())
    }
}

/// Prints at once. A reader that went away is an error, not a panic.
fn say(text: &str) -> Result<(), ExampleError> {
    let mut out = std::io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(ExampleError::file("standard output"))
}
