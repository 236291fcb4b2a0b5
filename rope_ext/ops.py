"""The operators: the only file that names them. Importing it registers them with torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

try:
    import rope_ext._C  # noqa: F401
except ImportError as error:
    if error.name != "rope_ext._C":
        raise
    raise ImportError(
        "rope_ext is not built for this Python: `pip install --no-build-isolation .` builds it "
        "against the torch that is installed"
    ) from error

__all__ = ["apply", "rotate"]

# Overloads and not packets: a packet looks the overload up at every call (0.3 us).
apply: Callable[..., None] = torch.ops.rope.apply.default
rotate: Callable[..., Tensor] = torch.ops.rope.rotate.default
