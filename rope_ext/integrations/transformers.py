"""Hugging Face transformers: replace the rotation that a model's attention calls.

Attention classes look up ``apply_rotary_pos_emb`` as a global of their modeling module at each
call, so that replacing the global is enough. All models of a modeling module share it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from rope_ext.functional import apply_, rotate

_NAME = "apply_rotary_pos_emb"


@dataclass
class _Replacement:
    original: Callable[..., Any]
    models: WeakSet[nn.Module] = field(default_factory=WeakSet)


_replacements: dict[str, _Replacement] = {}


def patch(model: nn.Module) -> tuple[str, ...]:
    """Make the attention of a transformers model rotate through rope_ext.

    A modeling module's ``apply_rotary_pos_emb`` is replaced if a class of the model calls it, if it
    takes ``(q, k, cos, sin, unsqueeze_dim=1)``, and if it turns a small input as the half-split
    rotation does. From then on queries and keys are overwritten where no gradient is recorded:
    what a forward hook keeps of a projection's output is then rotated too. Other models of the
    same modeling module rotate through rope_ext as well. Patching again changes nothing.

    Args:
        model: any module that contains transformers attention layers.

    Returns:
        The qualified names of what is replaced.

    Raises:
        ValueError: nothing in the model can be replaced.

    >>> from transformers import LlamaConfig, LlamaModel
    >>> model = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=64, num_hidden_layers=1))
    >>> patch(model)
    ('transformers.models.llama.modeling_llama.apply_rotary_pos_emb',)
    >>> unpatch(model)
    """
    found = _namespaces(model)
    accepted = {name: globals_ for name, globals_ in found.items() if _accepts(globals_[_NAME])}
    if not accepted:
        raise ValueError(
            f"{type(model).__name__} must rotate the two halves of a head, always by "
            f"{_NAME}(q, k, cos, sin, unsqueeze_dim=1), got what "
            f"{', '.join(found) or type(model).__module__} does"
        )
    for name, globals_ in accepted.items():
        if globals_[_NAME] is not apply_rotary_pos_emb:
            _replacements[name] = _Replacement(globals_[_NAME])
            globals_[_NAME] = apply_rotary_pos_emb
        _replacements[name].models.add(model)
    return tuple(f"{name}.{_NAME}" for name in accepted)


def unpatch(model: nn.Module) -> None:
    """Undo :func:`patch`: the last patched model of a modeling module restores the original.

    Args:
        model: a model given to :func:`patch`; one that is not patched is left as it is.

    >>> from transformers import LlamaConfig, LlamaModel
    >>> from transformers.models.llama import modeling_llama
    >>> original = modeling_llama.apply_rotary_pos_emb
    >>> model = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=64, num_hidden_layers=1))
    >>> _ = patch(model)
    >>> unpatch(model)
    >>> modeling_llama.apply_rotary_pos_emb is original
    True
    """
    for name, globals_ in _namespaces(model).items():
        if globals_[_NAME] is not apply_rotary_pos_emb:
            continue
        _replacements[name].models.discard(model)
        if not _replacements[name].models:
            globals_[_NAME] = _replacements.pop(name).original


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotate a query and a key as the function of this name in transformers does.

    Args:
        q: ``L + (H, S, D)``, or ``L + (S, H, D)``; overwritten where no gradient is recorded.
        k: like ``q``, with heads of its own number.
        cos: ``L + (S, 2P)``, two equal halves, dimensionless.
        sin: like ``cos``.
        unsqueeze_dim: where ``cos`` lacks the head axis; 1 or 2 for tables of rank 3.

    Returns:
        The rotated ``(q, k)``.

    Raises:
        ValueError: ``unsqueeze_dim`` is neither of the two places.

    >>> query, key = torch.ones(1, 2, 3, 4), torch.ones(1, 1, 3, 4)
    >>> angles = torch.tensor([[0.0, 0.0], [torch.pi / 2, 0.0], [torch.pi, 0.0]]).repeat(1, 2)
    >>> query, key = apply_rotary_pos_emb(query, key, angles.cos()[None], angles.sin()[None])
    >>> key[0, 0, 1].round().tolist()
    [-1.0, 1.0, 1.0, 1.0]
    """
    head_axis = unsqueeze_dim - (cos.dim() + 1)
    seq_dim = -2 if head_axis == -3 else -3
    if head_axis not in (-3, -2):
        raise ValueError(
            f"unsqueeze_dim must be {cos.dim() - 2} or {cos.dim() - 1} (cos has rank {cos.dim()}), "
            f"got {unsqueeze_dim}"
        )
    pairs = cos.shape[-1] // 2
    cos, sin = cos[..., :pairs], sin[..., :pairs]
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        # Query and key are views of projections: in place, autograd would copy their whole base.
        return rotate(q, cos, sin, seq_dim=seq_dim), rotate(k, cos, sin, seq_dim=seq_dim)
    return apply_(q, k, cos, sin, seq_dim=seq_dim)


def _namespaces(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Find the globals, by module name, where classes of the model look up this rotation alone."""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    members = (inspect.unwrap(member) for base in classes for member in vars(base).values())
    return {
        function.__globals__["__name__"]: function.__globals__
        for function in members
        if isinstance(function, FunctionType) and _rotations(function) == {_NAME}
    }


def _rotations(function: FunctionType) -> set[str]:
    """Name the rotations that a function looks up; DeepSeek's chooses among two at run time."""
    names = function.__code__.co_names
    return {name for name in names if name.startswith(_NAME) and name in function.__globals__}


def _accepts(function: Callable[..., Any]) -> bool:
    return function is apply_rotary_pos_emb or (
        list(inspect.signature(function).parameters) == ["q", "k", "cos", "sin", "unsqueeze_dim"]
        and _rotates_halves(function)
    )


def _rotates_halves(function: Callable[..., Any]) -> bool:
    """Compare a rotation with ours on tokens and heads in both orders, whole and partial heads."""
    query = torch.linspace(-1, 1, 48, device="cpu").reshape(1, 2, 3, 8)
    for pairs in (4, 2):
        angles = torch.linspace(0, 3, 3 * pairs, device="cpu").reshape(1, 3, pairs)
        cos, sin = angles.cos().repeat(1, 1, 2), angles.sin().repeat(1, 1, 2)
        for unsqueeze_dim, x in ((1, query), (2, query.transpose(1, 2))):
            ours = apply_rotary_pos_emb(x.clone(), x.flip(-1), cos, sin, unsqueeze_dim)
            try:
                theirs = function(x.clone(), x.flip(-1), cos, sin, unsqueeze_dim)
            except RuntimeError:
                if pairs == 4:
                    return False
                continue  # most families rotate partial heads by slicing before the call
            # Inputs up to 1: each side rounds two products and a sum, at most 2**-23 in all.
            if any((a - b).abs().max() > 2**-22 for a, b in zip(ours, theirs, strict=True)):
                return False
    return True
