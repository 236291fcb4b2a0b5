"""The ways to rotate query and key that a user can choose from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import rope_ext
from benchmarks.cases import Inputs

Call = Callable[[], object]


@dataclass(frozen=True)
class Provider:
    """One way to rotate.

    `prepare` does what a model does once, and returns the call that it makes in every layer. The
    call changes query and key if `in_place`, and otherwise returns the rotated ones.
    """

    name: str
    interleaved: bool
    in_place: bool
    prepare: Callable[[Inputs], Call]


def _keywords(interleaved: bool, inputs: Inputs) -> dict[str, Any]:
    """Only what differs from the defaults, as a user writes it: a keyword has its price."""
    keywords: dict[str, Any] = {}
    if inputs.seq_dim != -3:
        keywords["seq_dim"] = inputs.seq_dim
    if interleaved:
        keywords["interleaved"] = True
    return keywords


def _apply(interleaved: bool, inputs: Inputs) -> Call:
    tensors = (inputs.query, inputs.key, inputs.cos, inputs.sin)
    return partial(rope_ext.apply_, *tensors, **_keywords(interleaved, inputs))


def _apply_operator(interleaved: bool, inputs: Inputs) -> Call:
    tensors = (inputs.query, inputs.key, inputs.cos, inputs.sin)
    operator = torch.ops.rope.apply.default
    if not _keywords(interleaved, inputs):
        return partial(operator, *tensors)
    return partial(operator, *tensors, None, inputs.seq_dim, None, None, 0, interleaved)


def _rotate(interleaved: bool, inputs: Inputs) -> Call:
    keywords = _keywords(interleaved, inputs)

    def rotate(x: Tensor) -> Tensor:
        return rope_ext.rotate(x, inputs.cos, inputs.sin, **keywords)

    return lambda: (rotate(inputs.query), rotate(inputs.key))


def _beside_heads(table: Tensor, seq_dim: int) -> Tensor:
    return table.unsqueeze(1) if seq_dim == -3 else table


def _eager_half_split(inputs: Inputs) -> Call:
    """As in transformers: tables of the full head dimension in the query's dtype."""
    cos, sin = (
        _beside_heads(torch.cat((table, table), dim=-1).to(inputs.query.dtype), inputs.seq_dim)
        for table in (inputs.cos, inputs.sin)
    )

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    return lambda: (rotate(inputs.query), rotate(inputs.key))


def _eager_complex(inputs: Inputs) -> Call:
    """As in Meta's llama: pairs are complex numbers, a turn is a product with a unit number."""
    turns = _beside_heads(torch.complex(inputs.cos, inputs.sin), inputs.seq_dim)

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)

    return lambda: (rotate(inputs.query), rotate(inputs.key))


def _both_pairings(
    name: str, in_place: bool, prepare: Callable[[bool, Inputs], Call]
) -> tuple[Provider, Provider]:
    half_split, interleaved = (
        Provider(name, interleaved, in_place, partial(prepare, interleaved))
        for interleaved in (False, True)
    )
    return half_split, interleaved


PROVIDERS = (
    *_both_pairings("rope.apply.default", True, _apply_operator),
    *_both_pairings("rope_ext.apply_", True, _apply),
    *_both_pairings("rope_ext.rotate", False, _rotate),
    Provider("eager, transformers", False, False, _eager_half_split),
    Provider("eager, Meta", True, False, _eager_complex),
)
