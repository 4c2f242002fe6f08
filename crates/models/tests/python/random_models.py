"""Random tiny models with their outputs by transformers and PEFT, for `examples/agreement.rs`.

Run on demand, not by the test suite:

    python3 -m venv /tmp/hf && /tmp/hf/bin/pip install torch transformers peft safetensors
    /tmp/hf/bin/python crates/models/tests/python/random_models.py OUT [CASES_PER_ARCHITECTURE] [SEED]
    cargo run --release -p rldp-models --example agreement -- OUT

Every case is a folder: the model (`config.json` as transformers 5 writes it, or in the older form), a PEFT
adapter, and `reference.safetensors`: inputs, logits and per-example losses without and with the adapter,
logits of the merged model, and every example's own gradient of its loss by every adapter tensor, in float64
(transformers computes norms, softmax and rotary tables in float32 whatever the model's type). Logits in float32 are
there too: how far transformers' own arithmetic is from the reference.
"""

import json
import os
import random
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)


def gpt2(pick):
    heads = pick([1, 2, 3, 4])
    return GPT2Config(
        vocab_size=pick([53, 80, 121]),
        n_positions=pick([24, 40]),
        n_embd=heads * pick([4, 6, 8, 10]),
        n_layer=pick([1, 2, 3]),
        n_head=heads,
        n_inner=pick([None, None, 20, 50]),
        activation_function=pick(["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"]),
        layer_norm_epsilon=pick([1e-5, 1e-6, 1e-3]),
        scale_attn_weights=pick([True, True, False]),
        scale_attn_by_inverse_layer_idx=pick([True, False]),
        tie_word_embeddings=pick([True, False]),
    )


def grouped(pick):
    """Sizes that Llama and Mistral share."""
    kv_heads = pick([1, 2, 3])
    heads = kv_heads * pick([1, 2, 3, 4])
    head_dim = pick([4, 6, 8, 10])
    given = pick([True, False])
    return dict(
        vocab_size=pick([53, 80, 121]),
        hidden_size=heads * (pick([2, 3, 5, 7]) if given else head_dim),
        intermediate_size=pick([18, 40, 66]),
        num_hidden_layers=pick([1, 2, 3]),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim if given else None,
        max_position_embeddings=pick([32, 64, 256]),
        rms_norm_eps=pick([1e-5, 1e-6, 1e-3]),
        tie_word_embeddings=pick([True, False]),
        rope_parameters=rope(pick),
    )


def rope(pick):
    theta = pick([10000.0, 500000.0, 1000.0])
    kind = pick(["default", "linear", "llama3", "llama3"])
    parameters = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        parameters["factor"] = pick([2.0, 8.0, 32.0])
    if kind == "llama3":
        parameters["low_freq_factor"] = pick([1.0, 0.5])
        parameters["high_freq_factor"] = pick([4.0, 2.5])
        parameters["original_max_position_embeddings"] = pick([16, 64, 512])
    return parameters


def llama(pick):
    return LlamaConfig(attention_bias=pick([True, False]), mlp_bias=pick([True, False]), **grouped(pick))


def mistral(pick):
    return MistralConfig(sliding_window=pick([None, 1, 3, 5, 8, 64]), **grouped(pick))


ARCHITECTURES = {
    "gpt2": (gpt2, GPT2LMHeadModel, ["c_attn", "attn.c_proj", "mlp.c_proj", "c_proj", "c_fc"]),
    "llama": (
        llama,
        LlamaForCausalLM,
        ["q_proj", "self_attn.k_proj", "v_proj", "o_proj", "gate_proj", "mlp.up_proj", "down_proj"],
    ),
    "mistral": (
        mistral,
        MistralForCausalLM,
        ["self_attn.q_proj", "k_proj", "v_proj", "self_attn.o_proj", "mlp.gate_proj", "up_proj", "down_proj"],
    ),
}


def older_form(settings):
    """What transformers 4 wrote: rotary settings at the top level."""
    parameters = settings.pop("rope_parameters", None)
    if parameters:
        settings["rope_theta"] = parameters.pop("rope_theta")
        kind = parameters.pop("rope_type")
        settings["rope_scaling"] = {"rope_type": kind, **parameters} if kind != "default" else None
    settings["torch_dtype"] = settings.pop("dtype", "float32")


def losses(logits, labels):
    """Each example's mean loss over its counted targets."""
    picked = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).double(), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    counts = (labels[:, 1:] != -100).sum(1)
    return picked.sum(1) / counts


def randomise(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        norm = "norm" in name or ".ln_" in name
        parameter.data = noise + 1.0 if norm and name.endswith("weight") else noise


def make(folder, architecture, seed):
    rng = random.Random(f"{architecture} {seed}")
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    build, model_class, suffixes = ARCHITECTURES[architecture]
    config = build(rng.choice)
    config._attn_implementation = "eager"
    model = model_class(config)
    model.tie_weights()
    randomise(model, generator)
    model.tie_weights()
    model.save_pretrained(folder)
    if rng.random() < 0.5:
        path = os.path.join(folder, "config.json")
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
        older_form(settings)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(settings, file, indent=1)
    # Read back, so that the reference is of the files as written.
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)

    rows, time = rng.choice([2, 3]), rng.choice([9, 14, 19])
    ids = torch.randint(1, config.vocab_size, (rows, time), generator=generator)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    for row in range(1, rows):
        length = rng.randrange(4, time + 1)
        mask[row, length:] = 0
        ids[row, length:] = 0
        labels[row, length:] = -100
    labels[0, : rng.randrange(0, time - 2)] = -100
    out = {"input_ids": ids, "attention_mask": mask, "labels": labels}

    # No attention mask is passed: right padding changes nothing before it, and with a sliding window a masked padding
    # token may see no key at all, which gives NaN.
    # Without adapter, in double: a second instance, since the adapter changes the first in place.
    base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    with torch.no_grad():
        logits = base(ids).logits
    out["logits"], out["losses"] = logits, losses(logits, labels)
    # What transformers itself loses in float32, to hold our differences against.
    with torch.no_grad():
        out["float32/logits"] = model(ids).logits.double()

    targets = "all-linear" if rng.random() < 0.2 else rng.sample(suffixes, rng.randrange(1, len(suffixes)))
    adapter = LoraConfig(
        r=rng.choice([1, 2, 3, 5]),
        lora_alpha=rng.choice([1, 4, 7.5, 16]),
        use_rslora=rng.random() < 0.3,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=architecture == "gpt2",
    )
    adapted = get_peft_model(model, adapter)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    adapted.save_pretrained(os.path.join(folder, "adapter"))
    with torch.no_grad():
        out["float32/lora_logits"] = adapted.eval()(ids).logits.double()
    adapted = adapted.double().eval()
    with torch.no_grad():
        logits = adapted(ids).logits
    out["lora_logits"], out["lora_losses"] = logits, losses(logits, labels)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    gradients = {name: [] for name in trained}
    for row in range(rows):
        adapted.zero_grad()
        one = slice(row, row + 1)
        losses(adapted(ids[one]).logits, labels[one]).sum().backward()
        for name, parameter in trained.items():
            gradients[name].append(parameter.grad.clone())
    for name, list_ in gradients.items():
        out["gradient/" + name.replace(".default", "")] = torch.stack(list_)
    with torch.no_grad():
        out["merged_logits"] = adapted.merge_and_unload()(ids).logits
    save_file({k: v.contiguous() for k, v in out.items()}, os.path.join(folder, "reference.safetensors"))


def main(out, cases="20", seed="0"):
    for architecture in ARCHITECTURES:
        for case in range(int(cases)):
            folder = os.path.join(out, f"{architecture}-{int(seed) + case:03}")
            make(folder, architecture, int(seed) + case)
    print(f"{3 * int(cases)} cases in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
