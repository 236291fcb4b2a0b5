"""Positions of tokens on several axes: pictures, videos, and text between them.

Positions are ``(tokens, A)``, a row for each token: int64 where they are whole numbers, float64
where they are not. Packed sequences are rows one after the other (``torch.cat``), and a token at
position 0 on every axis, such as a class token, is not turned.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid(*axes: int | Tensor) -> Tensor:
    """Return a row of positions for each cell of a grid, the last axis fastest.

    Args:
        axes: for each axis its size, for coordinates 0, 1, 2 ..., or its coordinates ``(n,)``.

    Returns:
        ``(tokens, A)``, tokens the product of the sizes: int64, or float64 if an axis is floating;
        on the device of the coordinates.

    Raises:
        ValueError: a size below 0, or coordinates that have not exactly one dimension.

    Source: the row-major order in which vision transformers flatten patches.

    >>> grid(2, 3).tolist()
    [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]

    Pictures of different sizes, packed into one sequence behind a class token:

    >>> torch.cat([torch.zeros(1, 2), grid(2, 3), grid(4, 4)]).shape
    torch.Size([23, 2])
    """
    for axis in axes:
        if isinstance(axis, Tensor):
            if axis.dim() != 1:
                raise ValueError(f"coordinates must have 1 dimension, got {axis.dim()}")
        elif axis < 0:
            raise ValueError(f"sizes must be at least 0, got {axis}")
    device = next((axis.device for axis in axes if isinstance(axis, Tensor)), None)
    whole = not any(isinstance(axis, Tensor) and axis.is_floating_point() for axis in axes)
    coordinates = [
        (axis if isinstance(axis, Tensor) else torch.arange(axis, device=device)).to(
            torch.int64 if whole else torch.float64
        )
        for axis in axes
    ]
    return torch.stack(torch.meshgrid(*coordinates, indexing="ij"), -1).reshape(-1, len(axes))


def centred(size: int) -> Tensor:
    """Return the coordinates of the cells of an axis, 0 in its middle, one unit a cell.

    Args:
        size: cells.

    Returns:
        ``(size,)``, float64: whole numbers for an odd size, halves for an even one.

    Source: a shift of positions, which leaves all scores as they are; it matters to positions that
    are then stretched.

    >>> centred(4).tolist()
    [-1.5, -0.5, 0.5, 1.5]
    """
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


def normalised(size: int, extent: int | None = None) -> Tensor:
    """Return the centres of the cells of an axis that reaches from -1 to 1.

    Args:
        size: cells.
        extent: the cells from -1 to 1; None: ``size``, so that every axis is filled whatever its
            size. The larger or the smaller side of a picture on both axes keeps its cells square.

    Returns:
        ``(size,)``, float64.

    Source: DINOv3, Simeoni et al. 2025, https://arxiv.org/abs/2508.10104: ``normalize_coords`` of
    its code, "separate", "max" or "min".

    >>> normalised(4).tolist()
    [-0.75, -0.25, 0.25, 0.75]
    >>> normalised(2, extent=4).tolist()
    [-0.75, -0.25]
    """
    return (2 * torch.arange(size, dtype=torch.float64) + 1) / (extent or size) - 1


def fractional(size: int, reference: int) -> Tensor:
    """Return the coordinates of the cells of an axis, counted in cells of another size.

    A picture of twice the resolution then has positions 0, 1/2, 1 ...: a model that was trained at
    the reference size sees no position that it does not know.

    Args:
        size: cells.
        reference: cells of the axis that the model was trained with.

    Returns:
        ``(size,)``, float64, from 0 to below ``reference``.

    Source: EVA-02, Fang et al. 2023, https://arxiv.org/abs/2303.11331: positions divided by the
    size and multiplied by the size in pretraining; for text, Position Interpolation.

    >>> fractional(4, reference=2).tolist()
    [0.0, 0.5, 1.0, 1.5]
    """
    return torch.arange(size, dtype=torch.float64) * reference / size


def multimodal(*parts: int | Tensor) -> Tensor:
    """Lay text, pictures and videos out in one sequence: the positions of M-RoPE.

    Text advances all axes together. A picture or a video adds its own positions to where it
    begins. What follows begins behind the largest position so far, on any axis, so that the next
    token of a generation has ``positions.max() + 1`` on all axes.

    Args:
        parts: a number of tokens of text, or the positions ``(tokens, A)`` of a picture or a video
            counted from its own beginning, as :func:`grid` returns them: time, height, width.

    Returns:
        ``(tokens, A)``, A that of the pictures and videos, or 3 if there are none.

    Raises:
        ValueError: positions that are not ``(tokens, A)`` with the same A, or text below 0 tokens.

    Source: Qwen2-VL, Wang et al. 2024, section 2.1, https://arxiv.org/abs/2409.12191.

    Two tokens of text, a picture of 1 x 2 x 2 patches, a token of text:

    >>> multimodal(2, grid(1, 2, 2), 1).tolist()
    [[0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3], [4, 4, 4]]
    """
    grids = [part for part in parts if isinstance(part, Tensor)]
    axes = grids[0].shape[-1] if grids else 3
    device = grids[0].device if grids else None
    start = torch.zeros((), dtype=torch.int64, device=device)
    rows = []
    for part in parts:
        if not isinstance(part, Tensor):
            if part < 0:
                raise ValueError(f"text must be at least 0 tokens, got {part}")
            part = torch.arange(part, device=device).unsqueeze(-1).expand(-1, axes)
        if part.dim() != 2 or part.shape[-1] != axes:
            raise ValueError(f"positions must be (tokens, {axes}), got {tuple(part.shape)}")
        rows.append(start + part)
        if part.numel() > 0:
            start = torch.maximum(start, rows[-1].amax() + 1)
    return torch.cat(rows)
