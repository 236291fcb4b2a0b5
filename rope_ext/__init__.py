"""Rotary position embeddings for PyTorch: in place, exact, at memory speed.

``torch.ops.rope.apply`` rotates query and key in place, ``torch.ops.rope.rotate`` returns a rotated
tensor; :func:`apply_`, :func:`rotate` and :class:`RotaryEmbedding` are their comfortable forms.
:func:`apply_frequencies_` and :func:`rotate_frequencies` need no table.
"""

from importlib.metadata import version

from rope_ext import frequencies, positions, reference, scaling
from rope_ext.functional import (
    apply_,
    apply_frequencies_,
    cos_sin,
    rotate,
    rotate_frequencies,
)
from rope_ext.modules import (
    AxialRotaryEmbedding,
    CoordinateAugmentation,
    MixedRotaryEmbedding,
    MRotaryEmbedding,
    RotaryEmbedding,
    XPosRotaryEmbedding,
)

__version__ = version("rope_ext")
__all__ = [
    "AxialRotaryEmbedding",
    "CoordinateAugmentation",
    "MRotaryEmbedding",
    "MixedRotaryEmbedding",
    "RotaryEmbedding",
    "XPosRotaryEmbedding",
    "apply_",
    "apply_frequencies_",
    "cos_sin",
    "frequencies",
    "positions",
    "reference",
    "rotate",
    "rotate_frequencies",
    "scaling",
]
