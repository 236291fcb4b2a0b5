"""Modules that hold frequencies and compose the operators."""

from rope_ext.modules.axial import AxialRotaryEmbedding, CoordinateAugmentation
from rope_ext.modules.mixed import MixedRotaryEmbedding
from rope_ext.modules.multimodal import MRotaryEmbedding
from rope_ext.modules.rotary import RotaryEmbedding
from rope_ext.modules.rotation import Rotation
from rope_ext.modules.xpos import XPosRotaryEmbedding

__all__ = [
    "AxialRotaryEmbedding",
    "CoordinateAugmentation",
    "MRotaryEmbedding",
    "MixedRotaryEmbedding",
    "RotaryEmbedding",
    "Rotation",
    "XPosRotaryEmbedding",
]
