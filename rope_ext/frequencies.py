"""Rotation frequencies, and the cosine and sine tables that they give.

Frequencies are ``(P,)`` for one axis of positions, ``(A, P)`` for A axes and ``(A, H, P)`` where
each head has its own. Pair i of head h turns by the sum over axes a of
``positions[a] * frequencies[a, h, i]`` radians; an axis that does not turn a pair has 0 there. All
maps from positions to pairs are such matrices: :func:`axial` is a block of pairs for each axis,
M-RoPE (:func:`sections`) a map from pair to axis, :func:`mixed` a full matrix for each head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

# The first 256 bits of 1 / (2 pi).
_TURNS_OF_RADIAN = 0x28BE60DB9391054A7F09D5F47D4D377036D8A5664F10E4107F9458EAF7AEF158


def standard(rotary_dim: int, base: float = 10000.0) -> Tensor:
    """Return the frequencies of RoFormer, ``base ** (-2 i / rotary_dim)`` for pair ``i``.

    Args:
        rotary_dim: the elements of a head that are rotated, twice the number of pairs; even and
            positive.
        base: the ratio between the first frequency and where the last one tends; positive and
            finite. Llama calls it ``rope_theta``.

    Returns:
        ``(rotary_dim / 2,)`` in radians per unit of position, float64, from 1 downwards.

    Raises:
        ValueError: ``rotary_dim`` is odd or not positive, or ``base`` is not positive and finite.

    Source: RoFormer, Su et al. 2021, section 3.2.2.

    >>> standard(4).tolist()
    [1.0, 0.01]
    """
    _check_rotary_dim(rotary_dim)
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"base must be positive and finite, got {base}")
    # On the CPU even where a module is built on the meta device.
    return torch.tensor(
        [base ** (-2 * pair / rotary_dim) for pair in range(rotary_dim // 2)],
        dtype=torch.float64,
        device="cpu",
    )


def pixel(rotary_dim: int, max_frequency: float, *, logarithmic: bool = False) -> Tensor:
    """Return frequencies for coordinates from -1 to 1, up to what pixels can tell apart.

    From -1 to 1 the first pair makes one turn and the last ``max_frequency / 2``: across that many
    pixels, half a turn from one pixel to the next.

    Args:
        rotary_dim: the elements of a head that the axis turns; even and positive.
        max_frequency: the pixels from -1 to 1; at least 2 and finite.
        logarithmic: equal ratios between the pairs, and not equal steps.

    Returns:
        ``(rotary_dim / 2,)`` in radians per unit, float64, from pi to ``pi * max_frequency / 2``.

    Raises:
        ValueError: ``rotary_dim`` is odd or not positive, or ``max_frequency`` is below 2 or not
            finite.

    Source: ``freqs_for="pixel"`` of EVA-02, Fang et al. 2023, https://arxiv.org/abs/2303.11331, and
    the pixel bands of timm.

    >>> (pixel(6, 224.0) / math.pi).tolist()
    [1.0, 56.5, 112.0]
    """
    _check_rotary_dim(rotary_dim)
    if not (math.isfinite(max_frequency) and max_frequency >= 2):
        raise ValueError(f"max_frequency must be at least 2 and finite, got {max_frequency}")
    first, last = (0.0, math.log2(max_frequency / 2)) if logarithmic else (1.0, max_frequency / 2)
    steps = torch.linspace(first, last, rotary_dim // 2, dtype=torch.float64, device="cpu")
    return (steps.exp2() if logarithmic else steps).mul(math.pi)


def blocks(*frequencies: Tensor) -> Tensor:
    """Give each axis a block of pairs of its own, one block after the other.

    Args:
        frequencies: for each axis its ``(P_a,)`` in radians per unit of position.

    Returns:
        ``(A, P_0 + P_1 + ...)`` in radians per unit of position: row a turns block a alone.

    Raises:
        ValueError: the frequencies of an axis have not exactly one dimension.

    Source: axial RoPE, Heo et al. 2024, https://arxiv.org/abs/2403.13298.

    Pixtral deals one series to its two axes by turns:

    >>> series = standard(8)
    >>> blocks(series[0::2], series[1::2]).round(decimals=3).tolist()
    [[1.0, 0.01, 0.0, 0.0], [0.0, 0.0, 0.1, 0.001]]
    """
    for block in frequencies:
        _check_one_axis(block)
    matrix: Tensor = torch.block_diag(*frequencies)
    return matrix


def axial(rotary_dims: Sequence[int], bases: float | Sequence[float] = 10000.0) -> Tensor:
    """Give each axis a block of pairs with the standard frequencies of a head of that size.

    Args:
        rotary_dims: for each axis the elements of a head that it turns; even and positive.
        bases: one base for all axes, or one for each.

    Returns:
        ``(A, P)`` in radians per unit of position, float64, P half the sum of ``rotary_dims``.

    Raises:
        ValueError: a dim or a base that :func:`standard` refuses, or not one base for each axis.

    Source: axial RoPE, Heo et al. 2024, https://arxiv.org/abs/2403.13298.

    >>> axial((4, 2)).tolist()
    [[1.0, 0.01, 0.0], [0.0, 0.0, 1.0]]
    """
    if not isinstance(bases, Sequence):
        bases = [bases] * len(rotary_dims)
    if len(bases) != len(rotary_dims):
        raise ValueError(f"bases must be 1 or {len(rotary_dims)} (one an axis), got {len(bases)}")
    return blocks(*map(standard, rotary_dims, bases))


def by_axis(frequencies: Tensor, axes: Sequence[int]) -> Tensor:
    """Give each pair to one axis.

    Args:
        frequencies: ``(P,)`` in radians per unit of position.
        axes: for each of the P pairs the axis that turns it, from 0 on.

    Returns:
        ``(A, P)`` in radians per unit of position, A the largest axis plus one: a column holds its
        pair's frequency in the row of its axis, and 0 elsewhere.

    Raises:
        ValueError: ``frequencies`` has not exactly one dimension, or ``axes`` is not one axis, at
            least 0, for each pair.

    Source: what M-RoPE does, for any map; Wang et al. 2024, https://arxiv.org/abs/2409.12191.

    Kimi K2.5 turns each frequency of a series by its second axis, then by its first:

    >>> by_axis(standard(4).repeat_interleave(2), [1, 0, 1, 0]).tolist()
    [[0.0, 1.0, 0.0, 0.01], [1.0, 0.0, 0.01, 0.0]]
    """
    _check_one_axis(frequencies)
    if len(axes) != len(frequencies):
        raise ValueError(f"axes must be {len(frequencies)} (one a pair), got {len(axes)}")
    if min(axes) < 0:
        raise ValueError(f"axes must be at least 0, got {min(axes)}")
    device = frequencies.device
    owners = torch.tensor(axes, device=device)
    rows = torch.arange(max(axes) + 1, device=device).unsqueeze(-1)
    return torch.where(owners == rows, frequencies, 0.0)


def sections(
    frequencies: Tensor,
    sizes: Sequence[int],
    order: Literal["chunked", "interleaved", "alternating"] = "chunked",
) -> Tensor:
    """Deal one series of frequencies to several axes: M-RoPE.

    - ``"chunked"`` (Qwen2-VL, GLM-4V): the first ``sizes[0]`` pairs turn by axis 0, the next
      ``sizes[1]`` by axis 1, and so on.
    - ``"interleaved"`` (Qwen3-VL): of A axes, axis a > 0 has every A-th pair from pair a on,
      ``sizes[a]`` of them or as many as there are; axis 0 has the rest.
    - ``"alternating"`` (Ernie 4.5 VL): the sizes are height, width and time. Axes 1 (height) and 2
      (width) take turns in the first pairs, axis 0 (time) has the last.

    Where all axes have the same position, as for text, every order turns as ``frequencies`` alone.

    Args:
        frequencies: ``(P,)`` in radians per unit of position, scaled already if they are to be.
        sizes: the pairs of each axis, P in all. Hugging Face calls it ``mrope_section``.
        order: how pairs are dealt.

    Returns:
        ``(A, P)`` in radians per unit of position, for positions time, height, width.

    Raises:
        ValueError: sizes that are not positive or do not add up to P, alternating sizes that are
            not three with the first two equal, or an unknown order.

    Source: Qwen2-VL, Wang et al. 2024, section 2.1, https://arxiv.org/abs/2409.12191; the other two
    orders as transformers computes them.

    >>> (sections(standard(12), (2, 2, 2)) > 0).int().tolist()
    [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    >>> (sections(standard(12), (2, 2, 2), "interleaved") > 0).int().tolist()
    [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]]
    >>> (sections(standard(12), (2, 2, 2), "alternating") > 0).int().tolist()
    [[0, 0, 0, 0, 1, 1], [1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 0, 0]]
    """
    _check_one_axis(frequencies)
    pairs, count = len(frequencies), len(sizes)
    if sum(sizes) != pairs or min(sizes) <= 0:
        raise ValueError(f"sizes must be positive and add up to {pairs} pairs, got {tuple(sizes)}")
    if order == "chunked":
        axes = [axis for axis, size in enumerate(sizes) for _ in range(size)]
    elif order == "interleaved":
        axes = [pair % count if pair // count < sizes[pair % count] else 0 for pair in range(pairs)]
    elif order == "alternating":
        if count != 3 or sizes[0] != sizes[1]:
            raise ValueError(
                f"sizes must be height, width and time, the first two equal, got {tuple(sizes)}"
            )
        axes = [1, 2] * sizes[0] + [0] * sizes[2]
    else:
        raise ValueError(f"order must be 'chunked', 'interleaved' or 'alternating', got {order!r}")
    return by_axis(frequencies, axes)


def mixed(
    rotary_dims: Sequence[int],
    heads: int,
    bases: float | Sequence[float] = 10.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return axial frequencies, turned by a random rotation of the axes for each head.

    Where an axial pair knows one axis, a mixed pair knows a direction, and heads know different
    ones. They are a start to learn from: all numbers may change freely.

    Args:
        rotary_dims: as in :func:`axial`; equal sizes and bases keep the pairs' directions at right
            angles.
        heads: H, the heads that get frequencies of their own.
        bases: as in :func:`axial`. Learned frequencies start from a small base.
        generator: of the random rotations; on the CPU.

    Returns:
        ``(A, H, P)`` in radians per unit of position, float64.

    Raises:
        ValueError: as :func:`axial`, or ``heads`` is not positive.

    Source: RoPE-Mixed, Heo et al. 2024, https://arxiv.org/abs/2403.13298, which turns
    two axes by a uniform angle.

    >>> frequencies = mixed((32, 32), heads=6)
    >>> frequencies.shape
    torch.Size([2, 6, 32])
    >>> torch.allclose(frequencies.norm(dim=0), axial((32, 32), 10.0).norm(dim=0))
    True
    """
    if heads <= 0:
        raise ValueError(f"heads must be positive, got {heads}")
    matrix = axial(rotary_dims, bases)
    axes = len(matrix)
    normal = torch.randn(heads, axes, axes, dtype=torch.float64, device="cpu", generator=generator)
    rotations, r = torch.linalg.qr(normal)
    # The signs make them uniform, and then rotations without a reflection.
    rotations *= r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    rotations[..., 0] *= rotations.det().sign().unsqueeze(-1)
    return torch.einsum("hab,bp->ahp", rotations, matrix)


def turns(frequencies: Tensor) -> Tensor:
    """Return frequencies as what one unit of an integer position turns, 2^64 being one turn.

    An integer tensor cannot be rounded by a cast of the model, and is what the operators use.

    Args:
        frequencies: any shape, in radians per unit of position, floating point and finite.

    Returns:
        The same shape, int64, on the same device: to nearest, modulo one turn.

    Raises:
        ValueError: a frequency is not finite, or as large as 2^64.

    Source: the fixed point of ``rope::apply_frequencies``.

    >>> turns(torch.tensor([math.pi / 2, -math.pi / 2], dtype=torch.float64)) / 2**62
    tensor([ 1., -1.])
    """
    numbers = frequencies.detach().to("cpu", torch.float64).flatten().tolist()
    for number in numbers:
        if not abs(number) < 2**64:
            raise ValueError(f"frequencies must be finite and below 2^64, got {number}")
    fixed = []
    for number in numbers:
        numerator, denominator = number.as_integer_ratio()
        # Half of the last place is added before it is cut off.
        whole = (2 * numerator * _TURNS_OF_RADIAN + (denominator << 192)) // (denominator << 193)
        fixed.append((whole + 2**63) % 2**64 - 2**63)
    return torch.tensor(fixed, dtype=torch.int64, device=frequencies.device).view(frequencies.shape)


def wavelengths(frequencies: Tensor) -> Tensor:
    """Return how far apart two positions are that a pair cannot tell apart: one turn.

    Args:
        frequencies: any shape, in radians per unit of position.

    Returns:
        The same shape, in units of position; infinite where a frequency is 0.

    Source: YaRN, Peng et al. 2023, https://arxiv.org/abs/2309.00071. It is its own
    inverse: DINOv3 states wavelengths (periods).

    >>> wavelengths(torch.tensor([math.pi, 0.5 * math.pi, 0.0])).tolist()
    [2.0, 4.0, inf]
    """
    return frequencies.reciprocal() * (2 * math.pi)


def base_for_context(context_length: int, rotary_dim: int) -> float:
    """Return the smallest base with which far tokens still count as far and never as opposite.

    A base trades nearness for reach. With a small one all pairs turn fast: neighbours are told
    apart well, but over a long context every pair has gone around, and a distant token can look
    like its opposite. With a large one the slow pairs never come around, so that what they carry
    reaches over the whole context, but fewer pairs are left that see the distance to a neighbour.

    Made precise: the score of two equal random vectors at distance m is, up to their length, the
    mean of ``cos(m * frequency)`` over the pairs; that of independent ones is 0. While the mean is
    not negative, a token attends at least as much to its like as to anything else. The bound is the
    smallest base for which that holds at all distances in the context, searched upwards in steps of
    half a percent from where the slowest pair makes a quarter of a turn over the context. For 128
    elements it grows about as ``0.0424 * context_length ** 1.628``. Below it, perplexity can look
    well while retrieval fails. It is a bound and no optimum: bases up to some five times larger can
    still dip below 0 at single distances. docs/frequencies.md lists what known models chose.

    Args:
        context_length: tokens that attend to each other; positive. A million takes some seconds.
        rotary_dim: the elements of a head that are rotated; even and at least 4, since a single
            pair turns to the opposite whatever the base.

    Returns:
        The base, at least 1.

    Raises:
        ValueError: ``context_length`` is not positive, or ``rotary_dim`` is odd or below 4.

    Source: Base of RoPE Bounds Context Length, Men et al. 2024, https://arxiv.org/abs/2405.14591.

    >>> f"{base_for_context(8192, 128):.1e}"
    '8.4e+04'
    """
    if context_length <= 0:
        raise ValueError(f"context_length must be positive, got {context_length}")
    if rotary_dim < 4 or rotary_dim % 2 != 0:
        raise ValueError(f"rotary_dim must be even and at least 4, got {rotary_dim}")
    quarter_turn: float = (context_length / (math.pi / 2)) ** (rotary_dim / (rotary_dim - 2))
    base = max(quarter_turn, 1.0)
    while _turns_away(standard(rotary_dim, base), context_length):
        base *= 1.005
    return base


def tables(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the cosine and the sine of every position at every frequency.

    The angles ``position * frequency`` and their cosines are computed in float64 and rounded once,
    to ``dtype``. In float32 the product alone would be wrong by 8e-3 radians at position 131072.

    Args:
        positions: any shape, integers or floating point.
        frequencies: ``(P,)`` in radians per unit of position.
        dtype: the floating-point dtype of the tables.

    Returns:
        ``(cos, sin)``, each ``positions.shape + (P,)``, dimensionless, on the positions' device.

    Raises:
        ValueError: ``frequencies`` has not exactly one dimension.
        TypeError: ``dtype`` is not a floating-point dtype.

    Source: RoFormer, Su et al. 2021, section 3.2.2.

    >>> cos, sin = tables(torch.arange(8), standard(4))
    >>> cos.shape, cos.dtype
    (torch.Size([8, 2]), torch.float32)
    >>> cos[0].tolist(), sin[0].tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    _check_one_axis(frequencies)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be floating point, got {dtype}")
    angles = positions.to(torch.float64).unsqueeze(-1) * frequencies.to(
        device=positions.device, dtype=torch.float64
    )
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _turns_away(frequencies: Tensor, context_length: int) -> bool:
    """Say whether the mean cosine is negative at a distance within the context."""
    # From far to near: a base that is too small fails far away, so most of them cost one block.
    every = torch.arange(context_length, dtype=torch.float64, device="cpu")
    for distances in reversed(every.split(1024)):
        if bool((distances.unsqueeze(-1) * frequencies).cos().mean(-1).amin() < 0):
            return True
    return False


def _check_rotary_dim(rotary_dim: int) -> None:
    if rotary_dim <= 0 or rotary_dim % 2 != 0:
        raise ValueError(f"rotary_dim must be even and positive, got {rotary_dim}")


def _check_one_axis(frequencies: Tensor) -> None:
    if frequencies.dim() != 1:
        raise ValueError(f"frequencies must have 1 dimension, got {frequencies.dim()}")
