"""Adapters made by this project, read by Python PEFT, and the other way.

Run on demand, not by the test suite:

    python3 -m venv /tmp/peft && /tmp/peft/bin/pip install torch transformers peft safetensors
    cargo run --release -p rldp-models --example adapter_logits -- MODEL ADAPTER OUT
    /tmp/peft/bin/python crates/lora/tests/python/peft_round_trip.py MODEL OUT

`MODEL` is a Hugging Face folder. The example loads the model with the PEFT adapter in `ADAPTER` (or
makes a random one if the folder is not there), saves the adapter to `OUT/adapter`, and writes the logits
of a fixed input to `OUT/logits.json`. This script loads `OUT/adapter` with PEFT on top of the same model
and compares.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

TOLERANCE = 5e-5


def main(model_folder: str, out: str) -> None:
    with open(f"{out}/logits.json", encoding="utf-8") as file:
        reference = json.load(file)
    base = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation="eager"
    )
    model = PeftModel.from_pretrained(base, f"{out}/adapter").eval()
    with torch.no_grad():
        logits = model(torch.tensor([reference["input_ids"]])).logits[0]
        with model.disable_adapter():
            bare = model(torch.tensor([reference["input_ids"]])).logits[0]
    ours = torch.tensor(reference["logits"])
    difference = (logits - ours).abs().max().item()
    effect = (logits - bare).abs().max().item()
    print(f"largest difference {difference:.2e}; the adapter changes logits by up to {effect:.2e}")
    if effect < 1e-3:
        sys.exit("the adapter has no effect: the comparison would prove nothing")
    if difference > TOLERANCE:
        sys.exit(f"above {TOLERANCE}")


if __name__ == "__main__":
    main(*sys.argv[1:])
