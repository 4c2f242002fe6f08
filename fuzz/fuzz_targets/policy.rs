//! Any bytes as a policy file: read to act with, and to go on learning from.
#![no_main]

#[allow(dead_code)]
mod support;

use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use burn::tensor::Device;
use libfuzzer_sys::fuzz_target;
use rldp_sac::{Observation, Policy, PolicyContents, Sac, SacConfig};

static GROUND: LazyLock<(PathBuf, Mutex<Sac>)> = LazyLock::new(|| {
    let config = SacConfig::default().with_hidden(vec![4]);
    let agent = Sac::new(config, 3, 2, 1, &Device::default()).expect("the settings are good");
    let path = support::folder("policy").join("policy.safetensors");
    for (name, contents) in [
        ("actor", PolicyContents::Actor),
        ("critics", PolicyContents::ActorAndCritics),
    ] {
        agent
            .save_policy(&path, contents, serde_json::json!({"n": 1}))
            .expect("the folder can be written");
        support::seed_tensors(name, &path);
    }
    (path, Mutex::new(agent))
});

fuzz_target!(|bytes: &[u8]| {
    let (path, agent) = &*GROUND;
    std::fs::write(path, support::tensor_file(bytes)).expect("the folder can be written");
    let read = Policy::load(path, &Device::default());
    let mut agent = agent.lock().expect("one thread");
    if let Ok(policy) = read {
        let observation = Observation {
            agents: vec![vec![0.5; policy.obs_dim()]],
            ..Observation::default()
        };
        let _ = policy.act(&observation, None);
    }
    let _ = agent.load_policy(path);
});
