"""Full-parameter training steps in PyTorch (not private) and Opacus (private), on the shapes of `full_cost`.

GPT-2 architecture from transformers; whole steps: forward, backward, clipping and noise, Adam. Opacus refuses a tied head for ghost
clipping, so its ghost mode has an untied one (0.5 million parameters more on `mini`); its hooks take the tied model.

    python full_parameter.py [mini|gpt2s] [plain|ghost|hooks] [steps]

One mode per process, so that the peak memory is the mode's. Two threads. Without arguments it runs `mini`, ours too, in turn (set
FULL_COST to the built example), and prints the ratios.
"""

import os
import resource
import sys
import time
import warnings

import torch
from transformers import GPT2Config, GPT2LMHeadModel

warnings.filterwarnings("ignore")
torch.set_num_threads(2)
torch.manual_seed(1)

SHAPES = {
    "mini": dict(vocab_size=2048, n_positions=128, n_layer=4, n_embd=256, n_head=4, batch=32),
    "gpt2s": dict(vocab_size=50257, n_positions=1024, n_layer=12, n_embd=768, n_head=12, batch=8),
}
TOKENS = 128


def build(shape, tied):
    shape = dict(shape)
    shape.pop("batch")
    config = GPT2Config(
        **shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied, use_cache=False,
        bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).train()


class Logits(torch.nn.Module):
    """Logits with position ids of every example, which per-example hooks on the position table need."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        positions = torch.arange(ids.shape[1]).repeat(ids.shape[0], 1)
        return self.model(input_ids=ids, position_ids=positions).logits


def per_example(logits, targets):
    """Mean over each example's tokens."""
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


class ExampleLoss(torch.nn.Module):
    """The loss in the form that Opacus' ghost clipping wants: reduction known, one value per example without it."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, logits, targets):
        losses = per_example(logits, targets)
        return losses.mean() if self.reduction == "mean" else losses


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "mini"
    mode = sys.argv[2] if len(sys.argv) > 2 else "plain"
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    shape = SHAPES[name]
    batch = shape["batch"]
    tokens = torch.tensor(
        [[(row * 31 + t * 7) % shape["vocab_size"] for t in range(TOKENS + 1)] for row in range(batch)]
    )
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    model = Logits(build(shape, tied=mode != "ghost"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    criterion = ExampleLoss()
    if mode != "plain":
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset

        loader = DataLoader(TensorDataset(ids, targets), batch_size=batch)
        engine = PrivacyEngine()
        made = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            criterion=criterion,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
            grad_sample_mode="ghost" if mode == "ghost" else "hooks",
        )
        if mode == "ghost":
            model, optimizer, criterion, _ = made
        else:
            model, optimizer, _ = made

    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        criterion(model(ids), targets).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    times = sorted(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{mode} {name} batch {batch} x {TOKENS}, {parameters} parameters: {times[0] * 1e3:.0f} ms a step at best, "
        f"{times[len(times) // 2] * 1e3:.0f} ms median, peak {peak} MB"
    )


def all_in_turn():
    from turns import in_turn, ratios

    ours = os.environ.get("FULL_COST", "target/release/examples/full_cost")
    commands = {
        "ours plain": [ours, "plain", "mini", "32", "8", "128", "4"],
        "ours private": [ours, "private", "mini", "32", "8", "128", "4"],
        "PyTorch plain": [sys.executable, __file__, "mini", "plain", "3"],
        "Opacus hooks": [sys.executable, __file__, "mini", "hooks", "3"],
        "Opacus ghost": [sys.executable, __file__, "mini", "ghost", "3"],
    }
    pairs = {
        "private over plain": ("ours private", "ours plain"),
        "Opacus' hooks over ours": ("Opacus hooks", "ours private"),
        "Opacus' ghost clipping over ours": ("Opacus ghost", "ours private"),
        "PyTorch over ours": ("PyTorch plain", "ours plain"),
    }
    ratios("full, mini", pairs, *in_turn(commands, 4))


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else all_in_turn()
