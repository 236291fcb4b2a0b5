"""Modules of rope_ext inside models that transformers makes, saves and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inputs import normal
from tolerance import assert_same_bits
from torch import Tensor, nn

import rope_ext
from rope_ext.scaling import YaRN

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ROTATIONS = {
    "default": lambda: rope_ext.RotaryEmbedding(16),
    "yarn": lambda: rope_ext.RotaryEmbedding(16, scaling=YaRN(4.0, 64)),
    "axes": lambda: rope_ext.MRotaryEmbedding(16, (2, 3, 3)),
}


class Config(transformers.PretrainedConfig):
    model_type = "rotating"

    def __init__(self, rotation: str = "default", **options: object) -> None:
        super().__init__(**options)
        self.rotation = rotation


class Rotating(transformers.PreTrainedModel):
    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.projection = nn.Linear(16, 16)
        self.rope = ROTATIONS[config.rotation]()
        self.post_init()

    def forward(self, x: Tensor) -> Tensor:
        return self.rope(self.projection(x).unsqueeze(-2))


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_model_rotates_the_same_after_it_was_loaded(
    rotation: str, dtype: torch.dtype, tmp_path: Path
):
    model = Rotating(Config(rotation)).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = Rotating.from_pretrained(tmp_path, dtype=dtype)
    x = normal(2, 5, 16, dtype=dtype)
    with torch.no_grad():
        assert_same_bits(loaded(x), model(x))
    for positions in (torch.arange(5), torch.rand(5)):
        query = normal(5, 2, 16)
        expected = ROTATIONS[rotation]()(query.clone(), positions=positions)
        assert_same_bits(loaded.rope(query.clone(), positions=positions), expected)
