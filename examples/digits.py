"""Read handwritten digits by attention: without positions, by axial RoPE, by learned mixed RoPE.

A picture of 8 x 8 pixels is a set of 16 patches. Without positions a model knows which strokes
there are, and not where. Axial RoPE turns half the pairs by the row and half by the column; mixed
RoPE (Heo et al. 2024, https://arxiv.org/abs/2403.13298) gives each pair of each head a direction of
its own and learns it. All begin with the same weights and see the same batches.

    python examples/digits.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from rope_ext import AxialRotaryEmbedding, MixedRotaryEmbedding

GRID = 4, 4
WIDTH, HEADS, LAYERS, BATCH = 32, 4, 2, 64

Accuracies = dict[str, list[float]]


class Pictures(NamedTuple):
    """Patches ``(pictures, 16, 4)`` from 0 to 1, and which digit each picture shows."""

    patches: Tensor
    digits: Tensor


ROTARIES: dict[str, Callable[[torch.Generator], nn.Module | None]] = {
    "no position": lambda generator: None,
    "axial": lambda generator: AxialRotaryEmbedding(WIDTH // HEADS, bases=10.0),
    "mixed, learned": lambda generator: MixedRotaryEmbedding(
        WIDTH // HEADS, HEADS, generator=generator
    ),
}


class Attention(nn.Module):
    def __init__(self, rotary: nn.Module | None) -> None:
        super().__init__()
        self.projection = nn.Linear(WIDTH, 3 * WIDTH)
        self.rotary = rotary
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.projection(x).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        query, key, value = heads.unbind(-3)
        if self.rotary is not None:
            query, key = self.rotary(query, key, GRID)
        query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
        heads = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.output(heads.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, rotary: nn.Module | None) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(WIDTH), Attention(rotary))
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class Reader(nn.Module):
    """Says which digit a set of patches shows."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)  # so that weights are drawn as without it
        self.patch = nn.Linear(4, WIDTH)
        self.blocks = nn.Sequential(*(Block(ROTARIES[name](generator)) for _ in range(LAYERS)))
        self.digit = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

    def forward(self, patches: Tensor) -> Tensor:
        return self.digit(self.blocks(self.patch(patches)).mean(1))


def load() -> tuple[Pictures, Pictures]:
    """Return seven of ten pictures to learn from, and the rest to be tested with."""
    pixels, digits = load_digits(return_X_y=True)
    blocks = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 4, 2, 4, 2)
    patches = blocks.transpose(2, 3).reshape(-1, 16, 4)
    split = train_test_split(
        patches, torch.tensor(digits), test_size=0.3, random_state=0, stratify=digits
    )
    return Pictures(*split[0::2]), Pictures(*split[1::2])


def train(model: nn.Module, pictures: Pictures, seed: int, epochs: int) -> None:
    """Learn, with a rate that rises and falls, so that where training stops matters little."""
    shuffle = torch.Generator().manual_seed(seed)
    batches = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(pictures.digits), generator=shuffle).split(BATCH)
    ]
    optimizer = torch.optim.AdamW(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=len(batches))
    for batch in batches:
        logits = model(pictures.patches[batch])
        loss = nn.functional.cross_entropy(logits, pictures.digits[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()


@torch.no_grad()
def accuracy(model: nn.Module, pictures: Pictures) -> float:
    return (model(pictures.patches).argmax(-1) == pictures.digits).float().mean().item()


def accuracy_table(accuracies: Accuracies) -> Table:
    seeds = len(next(iter(accuracies.values())))
    table = Table("", *(f"seed {seed}" for seed in range(seeds)), "mean", title="Test accuracy")
    for name, values in accuracies.items():
        table.add_row(name, *(f"{value:.1%}" for value in (*values, statistics.mean(values))))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="of each run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model (%(default)s)")
    options = parser.parse_args()
    for name, value in vars(options).items():
        if value < 1:
            parser.error(f"--{name} must be positive, got {value}")
    torch.set_num_threads(1)  # tensors this small lose more to waiting than they gain

    console = Console(highlight=False)
    learned, tested = load()
    accuracies: Accuracies = {name: [] for name in ROTARIES}
    for name in ROTARIES:
        for seed in track(range(options.seeds), description=name, console=console):
            model = Reader(name, seed)
            train(model, learned, seed, options.epochs)
            accuracies[name].append(accuracy(model, tested))

    console.print(accuracy_table(accuracies))
    better = sum(accuracies["mixed, learned"]) > sum(accuracies["no position"])
    console.print(f"Learned mixed RoPE reads {'more' if better else 'NOT more'} than no position.")
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
