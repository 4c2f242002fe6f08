"""LoRA training steps in PyTorch (not private) and Opacus (private), on the shapes of `lora_cost`.

GPT-2 architecture from transformers, adapters r = 8 on c_attn from PEFT; whole steps: forward, backward, (clipping and noise), Adam.
Uneven texts are padded to the longest of the batch and their padding left out of the loss.

    python training.py [plain|opacus] [mini|gpt2s] [even|sms|notes] [steps]

One mode per process, so that the peak memory is the mode's. Two threads. Without arguments it runs everything, ours too, in turn
(set LORA_COST to the built example), and prints the ratios; arguments such as mini-even pick some. `product` times a matrix product.
"""

import os
import resource
import sys
import time
import warnings

SHAPES = {
    "mini": dict(vocab_size=2048, n_positions=128, n_layer=4, n_embd=256, n_head=4),
    "gpt2s": dict(vocab_size=50257, n_positions=1024, n_layer=12, n_embd=768, n_head=12),
}
ROWS = {"mini": 32, "gpt2s": 8}
# Those of benches/src/lib.rs.
LENGTHS = {
    "sms": [
        12, 34, 16, 12, 41, 8, 10, 8, 28, 26, 15, 14, 31, 18, 40, 10, 11, 42, 11, 36, 6, 38, 8, 42, 24, 60, 22, 13, 9, 19, 20, 17,
    ],
    "notes": [
        63, 82, 75, 67, 65, 71, 84, 64, 68, 70, 72, 81, 68, 56, 90, 94, 60, 88, 74, 74, 85, 62, 72, 76, 82, 80, 78, 86, 77, 70, 79, 66,
    ],
}  # fmt: skip


def one(mode, name, texts, steps):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    warnings.filterwarnings("ignore")
    torch.set_num_threads(2)
    torch.manual_seed(1)
    shape = SHAPES[name]
    lengths = LENGTHS.get(texts, [128] * ROWS[name])
    width, vocabulary = max(lengths), shape["vocab_size"]
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    targets = torch.full((len(lengths), width), -100)
    for row, length in enumerate(lengths):
        tokens = torch.tensor([(row * 31 + t * 7) % vocabulary for t in range(length + 1)])
        ids[row, :length], targets[row, :length] = tokens[:-1], tokens[1:]
    counts = torch.tensor(lengths, dtype=torch.float32)

    config = GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    adapter = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(GPT2LMHeadModel(config), adapter).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    if mode == "opacus":
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset

        loader = DataLoader(TensorDataset(ids, targets), batch_size=len(lengths))
        model, optimizer, _ = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
        )

    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        logits = model(input_ids=ids).logits
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        (losses.view(targets.shape).sum(1) / counts).mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    times = sorted(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{mode} {name} {texts}, {len(lengths)} texts, {sum(lengths)} tokens ({len(lengths) * width} padded): "
        f"{times[0] * 1e3:.0f} ms a step at best, {times[len(times) // 2] * 1e3:.0f} ms median, peak {peak} MB "
        f"(torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
    )


def product_rate():
    import torch

    torch.set_num_threads(2)
    left, right = torch.rand(1024, 768), torch.rand(768, 3072)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    print(f"PyTorch's matrix product: {2 * 1024 * 768 * 3072 / min(times) * 1e-9:.0f} GF/s")


def all_in_turn():
    from turns import in_turn, ratios

    ours = os.environ.get("LORA_COST", "target/release/examples/lora_cost")
    runs = [("mini", "even", 6, 4), ("gpt2s", "even", 3, 3)]
    runs += [(name, texts, steps, rounds) for name, steps, rounds in [("mini", 8, 3), ("gpt2s", 2, 2)] for texts in LENGTHS]
    for name, texts, steps, rounds in runs:
        if len(sys.argv) > 1 and f"{name}-{texts}" not in sys.argv[1:]:
            continue
        commands = {
            "ours plain": [ours, "plain"],
            "ours private": [ours, "private"],
            "PyTorch plain": [sys.executable, __file__, "plain"],
            "Opacus private": [sys.executable, __file__, "opacus"],
        }
        commands = {label: [*command, name, texts, str(steps)] for label, command in commands.items()}
        pairs = {
            "private over plain": ("ours private", "ours plain"),
            "Opacus over ours": ("Opacus private", "ours private"),
            "PyTorch over ours": ("PyTorch plain", "ours plain"),
        }
        ratios(f"{name}, {texts}", pairs, *in_turn(commands, rounds))


if __name__ == "__main__":
    if sys.argv[1:] == ["product"]:
        product_rate()
    elif len(sys.argv) > 1 and sys.argv[1] in ("plain", "opacus"):
        arguments = sys.argv[1:] + ["mini", "even", "5"][len(sys.argv) - 2 :]
        one(arguments[0], arguments[1], arguments[2], int(arguments[3]))
    else:
        all_in_turn()
