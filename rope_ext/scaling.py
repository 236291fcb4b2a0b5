"""Rules that stretch the frequencies of a trained model over a longer context.

A rule is a small frozen object. Called with frequencies it returns scaled ones and the factor that
multiplies cosine and sine. A module that rotates often splits the call: :meth:`Scaling.prepare`
once, and :meth:`Scaling.at` for each length, which for most rules returns what it is given and for
:class:`DynamicNTK` and :class:`LongRoPE` chooses with tensor operations on the length's device.

Frequencies are float64 and stay so. transformers computes in float32: what the same rule gives
there is some float32 roundings away from what it gives here, rounded once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor


class Scaling(ABC):
    """What a rule does: frequencies in, scaled frequencies and a factor out.

    A rule of one's own defines :meth:`prepare`, and :meth:`at` if it depends on the length.
    Source: the rules below name theirs.

    >>> import torch
    >>> class Halved(Scaling):
    ...     def prepare(self, frequencies):
    ...         return frequencies / 2
    >>> frequencies, scale = Halved()(torch.tensor([1.0, 0.5]))
    >>> frequencies.tolist(), scale
    ([0.5, 0.25], 1.0)
    """

    depends_on_length: ClassVar[bool] = False
    """Whether :meth:`at` chooses by the length of the sequence."""

    @property
    def scale(self) -> float:
        """The attention factor: what multiplies cosine and sine, dimensionless."""
        return 1.0

    @abstractmethod
    def prepare(self, frequencies: Tensor) -> Tensor:
        """Do all that does not depend on a length.

        Args:
            frequencies: ``(P,)`` in radians per unit of position, on the CPU.

        Returns:
            What :meth:`at` chooses from: the scaled frequencies themselves for a rule that does not
            depend on the length.

        Raises:
            ValueError: frequencies that the rule is not made for.
        """

    def at(self, prepared: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Choose the frequencies for sequences of a length.

        No value of a tensor is read on the host, so that this can be captured and compiled.

        Args:
            prepared: what :meth:`prepare` returned, on any device.
            length: the tokens of a sequence, or of each of several: a tensor of any integer dtype
                and shape, on the device of ``prepared``. None: within the original context.

        Returns:
            ``length.shape + (P,)`` where the rule depends on the length, otherwise ``(P,)``; in
            radians per unit of position.
        """
        return prepared

    def __call__(
        self, frequencies: Tensor, length: int | Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Scale frequencies: :meth:`prepare`, then :meth:`at`.

        Args:
            frequencies: ``(P,)`` in radians per unit of position, on the CPU.
            length: as in :meth:`at`.

        Returns:
            The frequencies, and :attr:`scale`.

        Raises:
            ValueError: as :meth:`prepare`.
        """
        return self.at(self.prepare(frequencies), length), self.scale


@dataclass(frozen=True)
class Linear(Scaling):
    """Divide all frequencies: positions are interpolated.

    Args:
        factor: how many times longer the context becomes; positive.

    Raises:
        ValueError: ``factor`` is not positive and finite.

    Source: Position Interpolation, Chen et al. 2023, https://arxiv.org/abs/2306.15595.

    >>> Linear(4.0)(torch.tensor([1.0, 0.5]))
    (tensor([0.2500, 0.1250]), 1.0)
    """

    factor: float

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)

    def prepare(self, frequencies: Tensor) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class NTK(Scaling):
    """Divide the last frequency by a factor, the first by 1, those between by powers of it.

    Of standard frequencies this makes those of base ``base * factor ** (P / (P - 1))``.

    Args:
        factor: how many times longer the context becomes; positive.

    Raises:
        ValueError: ``factor`` is not positive and finite.

    Source: NTK-aware interpolation, YaRN, Peng et al. 2023, section 3.1,
    https://arxiv.org/abs/2309.00071.

    >>> frequencies = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    >>> NTK(4.0)(frequencies)[0].round(decimals=4).tolist()
    [1.0, 0.05, 0.0025]
    """

    factor: float

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)

    def prepare(self, frequencies: Tensor) -> Tensor:
        _check_one_axis(frequencies)
        return frequencies * self.factor ** -_fractions(frequencies)


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    """Apply :class:`NTK` by as much as the sequence is longer than the original context.

    The factor is ``factor * length / original_context_length - (factor - 1)``, at least 1. Cached
    keys keep the frequencies that they were rotated with: :class:`Pinned` keeps those of a sequence
    the same for its life. (transformers keeps the largest length that a module has met.)

    Args:
        factor: of the stretch beyond the original context; positive.
        original_context_length: tokens that the model was trained for; positive.

    Raises:
        ValueError: an argument is not positive and finite.

    Source: YaRN, Peng et al. 2023, section 3.3, https://arxiv.org/abs/2309.00071; the factor as
    transformers computes it.

    >>> rule = DynamicNTK(2.0, original_context_length=2048)
    >>> frequencies = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    >>> rule(frequencies, torch.tensor([2048, 4096]))[0].round(decimals=4).tolist()
    [[1.0, 0.1, 0.01], [1.0, 0.0577, 0.0033]]
    """

    factor: float
    original_context_length: int

    depends_on_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)
        _check_positive("original_context_length", self.original_context_length)

    def prepare(self, frequencies: Tensor) -> Tensor:
        _check_one_axis(frequencies)
        return frequencies

    def at(self, prepared: Tensor, length: int | Tensor | None = None) -> Tensor:
        if length is None:
            return prepared
        if isinstance(length, Tensor):
            length = length.to(torch.float64).unsqueeze(-1)
        factor = self.factor * length / self.original_context_length - (self.factor - 1)
        factor = factor.clamp(min=1) if isinstance(factor, Tensor) else max(factor, 1.0)
        return prepared * factor ** -_fractions(prepared)


@dataclass(frozen=True)
class YaRN(Scaling):
    """Divide slow frequencies, leave fast ones alone, and sharpen attention a little.

    Pairs up to the one that makes ``beta_fast`` turns over the original context stay, those from
    the one that makes ``beta_slow`` on are divided by ``factor``; between them, shares go linearly
    with the pair's number (in the paper with its turns; this is what the authors' code does, and
    every model since). Both ends are found as if pairs fell in equal ratios, as standard
    frequencies do.

    Args:
        factor: how many times longer the context becomes; positive.
        original_context_length: tokens that the model was trained for; positive.
        beta_fast: turns over the original context from which on a pair stays as it is.
        beta_slow: turns up to which a pair is divided by the whole factor.
        mscale: weight of ``log(factor)`` in the attention factor, if mscale_all_dim is given too.
        mscale_all_dim: the same weight in what that is divided by, as DeepSeek has it.
        truncate: round the ends outwards to whole pairs.
        attention_factor: instead of what follows from ``factor``, ``0.1 * log(factor) + 1``.

    Raises:
        ValueError: an argument is not positive and finite, beta_fast is below beta_slow, or
            frequencies do not fall.

    Source: YaRN, Peng et al. 2023, sections 3.2 and 3.4, https://arxiv.org/abs/2309.00071.

    >>> rule = YaRN(4.0, original_context_length=4096)
    >>> round(rule.scale, 4)
    1.1386
    >>> series = 10000 ** -torch.linspace(0, 1, 6, dtype=torch.float64)
    >>> (series / rule(series)[0]).round(decimals=3).tolist()
    [1.0, 1.0, 1.333, 2.0, 4.0, 4.0]
    """

    factor: float
    original_context_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "original_context_length", "beta_fast", "beta_slow"):
            _check_positive(name, getattr(self, name))
        if self.attention_factor is not None:
            _check_positive("attention_factor", self.attention_factor)
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"beta_fast must be at least beta_slow ({self.beta_slow}), got {self.beta_fast}"
            )

    @property
    def scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._sharpness(self.mscale) / self._sharpness(self.mscale_all_dim)
        return self._sharpness(1.0)

    def prepare(self, frequencies: Tensor) -> Tensor:
        _check_one_axis(frequencies)
        pairs = len(frequencies)
        first, last = frequencies[0].item(), frequencies[-1].item()
        if not first > last > 0:
            raise ValueError(f"frequencies must fall and be positive, got {first} to {last}")
        pairs_per_unit = (pairs - 1) / math.log(first / last)
        turn = 2 * math.pi / self.original_context_length
        start, end = (
            math.log(first / (turn * beta)) * pairs_per_unit
            for beta in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            start, end = math.floor(start), math.ceil(end)
        # The last element of a head, not its last pair: the authors clamp so.
        start, end = max(start, 0), min(end, 2 * pairs - 1)
        share = _ramp(
            torch.arange(pairs, dtype=torch.float64, device=frequencies.device), start, end
        )
        return frequencies * (1 - share) + frequencies / self.factor * share

    def _sharpness(self, weight: float) -> float:
        return 0.1 * weight * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class LongRoPE(Scaling):
    """Divide each frequency by a number that was searched for it: one list up to the original
    context, another beyond.

    Cached keys keep the frequencies that they were rotated with: :class:`Pinned` keeps those of a
    sequence the same for its life.

    Args:
        short_factor: P divisors for sequences within the original context.
        long_factor: P divisors for longer ones.
        original_context_length: tokens that the model was trained for; positive.
        factor: how many times longer the context became; it sets the attention factor
            ``sqrt(1 + log(factor) / log(original_context_length))`` alone, 1 up to factor 1.
        attention_factor: instead of that.

    Raises:
        ValueError: an argument is not positive and finite, or the lists are not P long.

    Source: LongRoPE, Ding et al. 2024, https://arxiv.org/abs/2402.13753, and Phi-3,
    which named the lists.

    >>> rule = LongRoPE((1.0, 1.0), (1.0, 40.0), original_context_length=4096, factor=32.0)
    >>> round(rule.scale, 4)
    1.1902
    >>> frequencies = torch.tensor([1.0, 0.1], dtype=torch.float64)
    >>> rule(frequencies, torch.tensor([4096, 4097]))[0].tolist()
    [[1.0, 0.1], [1.0, 0.0025]]
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_context_length: int
    factor: float = 1.0
    attention_factor: float | None = None

    depends_on_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("original_context_length", "factor"):
            _check_positive(name, getattr(self, name))
        if self.attention_factor is not None:
            _check_positive("attention_factor", self.attention_factor)
        for name in ("short_factor", "long_factor"):
            for divisor in getattr(self, name):
                _check_positive(name, divisor)

    @property
    def scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_context_length))

    def prepare(self, frequencies: Tensor) -> Tensor:
        """Return ``(2, P)``: the frequencies of short sequences and those of long ones."""
        _check_one_axis(frequencies)
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != len(frequencies):
                raise ValueError(
                    f"{name} must have {len(frequencies)} numbers (one a pair), "
                    f"got {len(getattr(self, name))}"
                )
        divisors = torch.tensor(
            [self.short_factor, self.long_factor], dtype=torch.float64, device=frequencies.device
        )
        return frequencies / divisors

    def at(self, prepared: Tensor, length: int | Tensor | None = None) -> Tensor:
        if isinstance(length, Tensor):
            beyond = (length > self.original_context_length).unsqueeze(-1)
            return torch.where(beyond, prepared[1], prepared[0])
        return prepared[int(length is not None and length > self.original_context_length)]


@dataclass(frozen=True)
class Llama3(Scaling):
    """Divide frequencies that turn little over the original context, leave those that turn often.

    A pair that makes fewer than ``low_freq_factor`` turns over the original context is divided by
    ``factor``, one that makes more than ``high_freq_factor`` stays; between them, shares go
    linearly with the turns.

    Args:
        factor: how many times longer the context becomes; positive.
        original_context_length: tokens that the model was trained for; positive.
        low_freq_factor: turns up to which a pair is divided by the whole factor.
        high_freq_factor: turns from which on a pair stays as it is.

    Raises:
        ValueError: an argument is not positive and finite, or low_freq_factor is above
            high_freq_factor.

    Source: Llama 3.1, Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783, and its code.

    >>> rule = Llama3(8.0, original_context_length=8192)
    >>> frequencies = 2 * math.pi / 8192 * torch.tensor([5.0, 2.5, 0.5], dtype=torch.float64)
    >>> (frequencies / rule(frequencies)[0]).round(decimals=4).tolist()
    [1.0, 1.7778, 8.0]
    """

    factor: float
    original_context_length: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        for name in ("factor", "original_context_length", "low_freq_factor", "high_freq_factor"):
            _check_positive(name, getattr(self, name))
        if self.low_freq_factor > self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor must be at most high_freq_factor ({self.high_freq_factor}), "
                f"got {self.low_freq_factor}"
            )

    def prepare(self, frequencies: Tensor) -> Tensor:
        turns = frequencies * (self.original_context_length / (2 * math.pi))
        share = _ramp(turns, self.low_freq_factor, self.high_freq_factor)
        return frequencies / self.factor * (1 - share) + frequencies * share


@dataclass(frozen=True)
class Proportional(Scaling):
    """Keep the first pairs, which turn fastest, and stop the others.

    Unlike a smaller ``rotary_dim``, this keeps the ratio between frequencies, and in half-split
    order the pairs that are far apart in a head.

    Args:
        fraction: the part of all pairs that turns, rounded down to whole pairs; from 0 to 1.
        factor: what the frequencies are divided by; positive.

    Raises:
        ValueError: ``fraction`` is not from 0 to 1, or ``factor`` not positive and finite.

    Source: p-RoPE, Barbero et al. 2024, https://arxiv.org/abs/2410.06205, as Gemma 4
    has it.

    >>> frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    >>> Proportional(0.5)(frequencies)[0].tolist()
    [1.0, 0.1, 0.0, 0.0]
    """

    fraction: float
    factor: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("factor", self.factor)
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, got {self.fraction}")

    def prepare(self, frequencies: Tensor) -> Tensor:
        _check_one_axis(frequencies)
        pairs = len(frequencies)
        numbers = torch.arange(pairs, device=frequencies.device)
        return torch.where(numbers < int(self.fraction * pairs), frequencies / self.factor, 0.0)


@dataclass(frozen=True)
class Pinned(Scaling):
    """Give a rule one length for good: that of a sequence when it will have grown.

    A rule that changes with the length makes cached keys and new queries disagree the moment that
    it changes. Pinned to the length that a sequence is going to have, it never does.

    Args:
        scaling: the rule.
        length: tokens, positive, whatever length is asked for.

    Raises:
        ValueError: ``length`` is not positive.

    Source: the remark on caches in YaRN, Peng et al. 2023, section 3.3,
    https://arxiv.org/abs/2309.00071.

    >>> rule = LongRoPE((1.0,), (40.0,), original_context_length=4096)
    >>> Pinned(rule, 10000)(torch.ones(1), length=7)[0].tolist()
    [0.025]
    """

    scaling: Scaling
    length: int

    def __post_init__(self) -> None:
        _check_positive("length", self.length)

    @property
    def scale(self) -> float:
        return self.scaling.scale

    def prepare(self, frequencies: Tensor) -> Tensor:
        return self.scaling.at(self.scaling.prepare(frequencies), self.length)


@dataclass(frozen=True)
class RotarySettings:
    """How a model rotates, as read from its configuration: see :func:`from_hf_config`.

    The frequencies are ``scaling`` of the standard ones of ``rotary_dim`` and ``base``, dealt by
    ``frequencies.sections`` where there are sections.

    Source: the names are those of this package.

    >>> RotarySettings(head_dim=64, rotary_dim=32, base=10000.0).scale
    1.0
    """

    head_dim: int
    """D, elements of a head; of multi-head latent attention, of the part that is rotated."""
    rotary_dim: int
    """Elements that are rotated, twice the number of pairs."""
    base: float
    """What ``rotary_dim`` and the standard frequencies are made with."""
    scaling: Scaling | None = None
    """The rule that changes the frequencies; None leaves them alone."""
    sections: tuple[int, ...] | None = None
    """Pairs of each axis of M-RoPE; None: positions have one axis."""
    order: Literal["chunked", "interleaved", "alternating"] = "chunked"
    """How M-RoPE deals the pairs."""

    @property
    def scale(self) -> float:
        """The attention factor: what multiplies cosine and sine, dimensionless."""
        return 1.0 if self.scaling is None else self.scaling.scale


# What a rule may be told, beside rope_type, rope_theta and partial_rotary_factor.
_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "truncate"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    ),
    "longrope": (
        *("factor", "original_max_position_embeddings", "attention_factor"),
        *("short_factor", "long_factor"),
    ),
    "llama3": (
        *("factor", "original_max_position_embeddings"),
        *("low_freq_factor", "high_freq_factor"),
    ),
    "proportional": ("factor",),
}
_OLD_KINDS = {"su": "longrope", "mrope": "default"}
_SECTION_KEYS = ("mrope_section", "mrope_interleaved", "interleaved")
# Ministral 3 multiplies queries by a function of their position, and repeats its context.
_KEYS_OF_THE_ATTENTION = ("llama_4_scaling_beta", "max_position_embeddings")


def from_hf_config(config: object, layer_type: str | None = None) -> RotarySettings:
    """Read how a transformers model rotates from its configuration.

    Understands ``rope_parameters`` of version 5, flat or nested by layer type, and ``rope_scaling``
    of version 4 with ``rope_theta`` and the like beside it. Of a composite configuration, give the
    part that rotates (``config.text_config``).

    Args:
        config: a configuration object, or the dict of a ``config.json``. transformers need not be
            installed.
        layer_type: ``"full_attention"``, ``"sliding_attention"`` or another that the configuration
            distinguishes; where all layers rotate alike, it changes nothing.

    Returns:
        The settings of that layer type.

    Raises:
        ValueError: a rope type or a key that is not known, a layer type that has no rotation, or
            something missing.

    Source: ``modeling_rope_utils`` of transformers 5.23 says what the keys mean.

    >>> from_hf_config({
    ...     "hidden_size": 4096,
    ...     "num_attention_heads": 32,
    ...     "max_position_embeddings": 131072,
    ...     "rope_theta": 10000.0,
    ...     "rope_scaling": {"type": "linear", "factor": 8.0},
    ... })
    RotarySettings(head_dim=128, rotary_dim=128, base=10000.0, scaling=Linear(factor=8.0),
                   sections=None, order='chunked')
    """
    config = _of_layer(config, layer_type)
    parameters = _parameters(config, layer_type)
    kind = str(parameters.pop("rope_type"))
    base = float(parameters.pop("rope_theta"))
    fraction = parameters.pop("partial_rotary_factor", None)
    _check_keys(kind, parameters)
    head_dim = _head_dim(config, layer_type, fraction)
    if kind == "proportional":
        turned = head_dim
    elif fraction is None:
        # Version 5 says it by the fraction alone, and ignores the number where it stands.
        old = _get(config, "rotary_dim") if _get(config, "rope_parameters") is None else None
        turned = old or head_dim
    else:
        turned = int(head_dim * fraction)
    # An odd number is rounded up to whole pairs, but exponents are still divided by the odd one.
    rotary_dim = turned + turned % 2
    sections = parameters.get("mrope_section")
    return RotarySettings(
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        base=base ** (rotary_dim / turned),
        scaling=_rule(kind, parameters, fraction, config),
        sections=None if sections is None else tuple(sections),
        order="chunked" if sections is None else _order(parameters, config),
    )


def _get(config: object, *names: str) -> Any:
    """Return the first of these that the configuration has and that is not None."""
    for name in names:
        value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if value is not None:
            return value
    return None


def _need(config: object, *names: str) -> Any:
    value = _get(config, *names)
    if value is None:
        raise ValueError(f"{names[0]} must be given, got None")
    return value


def _of_layer(config: object, layer_type: str | None) -> object:
    """Apply what a configuration overrides for layers of this type (Gemma 4)."""
    layers = _get(config, "per_layer_config")
    if layer_type is None or layers is None:
        return config
    if isinstance(config, Mapping):
        kinds = config.get("layer_types", ())
        changes = [layers[number] for number in layers if kinds[int(number)] == layer_type]
        return {**config, **changes[0]} if changes else config
    try:
        return layers[layer_type]
    except ValueError:  # not what this configuration calls a layer
        return config


def _given(config: object, layer_type: str | None) -> Mapping[str, Any]:
    """Return what the configuration says of a layer type in one place, nested or flat."""
    given: Mapping[str, Any] = _get(config, "rope_parameters", "rope_scaling") or {}
    kinds = [name for name, value in given.items() if isinstance(value, Mapping)]
    if kinds:
        beside = [name for name in given if name not in kinds and given[name] is not None]
        if beside:
            raise ValueError(f"beside the layer types {kinds} must be nothing, got {beside}")
        if layer_type not in kinds:
            raise ValueError(f"layer_type must be one that rotates {kinds}, got {layer_type!r}")
        return given[layer_type]  # type: ignore[no-any-return]
    local = _get(config, "rope_local_base_freq", "local_rope_theta")
    if local is None:
        return given
    if layer_type not in ("full_attention", "sliding_attention"):
        raise ValueError(
            f"layer_type must be 'full_attention' or 'sliding_attention', got {layer_type!r}"
        )
    return {"rope_theta": local} if layer_type == "sliding_attention" else given


def _parameters(config: object, layer_type: str | None) -> dict[str, Any]:
    """Return rope_type, rope_theta and what else is given and not None, under today's names."""
    given = _given(config, layer_type)
    parameters = {name: value for name, value in given.items() if value is not None}
    old_kind = parameters.pop("type", "default")
    kind = parameters.get("rope_type", old_kind)
    parameters["rope_type"] = _OLD_KINDS.get(kind, kind)
    if "rope_theta" not in parameters:
        parameters["rope_theta"] = _need(
            config, "rope_theta", "rotary_emb_base", "global_rope_theta"
        )
    fraction = _get(config, "partial_rotary_factor", "rotary_pct")
    if fraction is not None:
        parameters.setdefault("partial_rotary_factor", fraction)
    return parameters


def _check_keys(kind: str, parameters: dict[str, Any]) -> None:
    if kind not in _KEYS:
        raise ValueError(f"rope_type must be one of {list(_KEYS)}, got {kind!r}")
    known = {*_KEYS[kind], *_SECTION_KEYS, *_KEYS_OF_THE_ATTENTION}
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise ValueError(f"keys of rope_type {kind!r} must be among {sorted(known)}, got {unknown}")


def _head_dim(config: object, layer_type: str | None, fraction: float | None) -> int:
    if layer_type == "full_attention" and (head_dim := _get(config, "global_head_dim")):
        return int(head_dim)
    if fraction is None and (head_dim := _get(config, "qk_rope_head_dim")):
        return int(head_dim)
    head_dim = _get(config, "head_dim", "attention_head_dim", "kv_channels")
    if head_dim is None:
        head_dim = _need(config, "hidden_size") // _need(config, "num_attention_heads")
    return int(head_dim)


def _rule(
    kind: str, parameters: dict[str, Any], fraction: float | None, config: object
) -> Scaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(_need(parameters, "factor"))
    if kind == "dynamic":
        return DynamicNTK(_need(parameters, "factor"), _need(config, "max_position_embeddings"))
    if kind == "proportional":
        return Proportional(1.0 if fraction is None else fraction, parameters.get("factor", 1.0))
    original = (
        _get(config, "original_max_position_embeddings")  # Phi-3
        or _get(parameters, "original_max_position_embeddings")
        or _need(config, "max_position_embeddings")
    )
    if kind == "llama3":
        return Llama3(
            _need(parameters, "factor"),
            original,
            _need(parameters, "low_freq_factor"),
            _need(parameters, "high_freq_factor"),
        )
    factor = parameters.get("factor") or _need(config, "max_position_embeddings") / original
    if kind == "longrope":
        return LongRoPE(
            tuple(_need(parameters, "short_factor")),
            tuple(_need(parameters, "long_factor")),
            original,
            factor,
            parameters.get("attention_factor"),
        )
    names = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "attention_factor")
    given = {name: parameters[name] for name in names if name in parameters}
    return YaRN(factor, original, **given)


def _order(
    parameters: dict[str, Any], config: object
) -> Literal["chunked", "interleaved", "alternating"]:
    # Ernie's configuration does not say that it deals pairs in an order of its own.
    if str(_get(config, "model_type")).startswith("ernie4_5_vl"):
        return "alternating"
    return "interleaved" if _get(parameters, "mrope_interleaved", "interleaved") else "chunked"


def _ramp(values: Tensor, start: float, end: float) -> Tensor:
    """Rise from 0 at ``start`` to 1 at ``end``; a step behind ``start`` where they are one."""
    return torch.where(values <= start, 0.0, ((values - start) / (end - start)).clamp(0, 1))


def _fractions(frequencies: Tensor) -> Tensor:
    """How far each pair is from the first to the last: 0 to 1."""
    pairs = frequencies.shape[-1]
    numbers = torch.arange(pairs, dtype=torch.float64, device=frequencies.device)
    return numbers / max(pairs - 1, 1)


def _check_one_axis(frequencies: Tensor) -> None:
    if frequencies.dim() != 1:
        raise ValueError(f"frequencies must have 1 dimension, got {frequencies.dim()}")


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
