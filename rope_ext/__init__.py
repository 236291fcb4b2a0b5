"""Rotary position embeddings for PyTorch: in place, exact, at memory speed.

``torch.ops.rope.apply`` rotates query and key in place, ``torch.ops.rope.rotate`` returns a rotated
tensor; :func:`apply_`, :func:`rotate` and :class:`RotaryEmbedding` are their comfortable forms.
"""

from importlib.metadata import version

from rope_ext import frequencies, positions, reference, scaling
from rope_ext.functional import apply_, rotate
from rope_ext.modules import RotaryEmbedding

__version__ = version("rope_ext")
__all__ = [
    "RotaryEmbedding",
    "apply_",
    "frequencies",
    "positions",
    "reference",
    "rotate",
    "scaling",
]
