"""The operators: the only file that names them. Importing it registers them with torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

try:
    from rope_ext import _built_for
except ImportError as error:
    raise ImportError(
        "rope_ext is not built for this Python: `pip install --no-build-isolation .` builds it "
        "against the torch that is installed"
    ) from error


def _refuse_another_torch() -> None:
    """Name both versions where loading the extension would fail on a missing symbol, or worse."""
    torch_minor, built_minor = (
        version.split(".")[:2] for version in (torch.__version__, _built_for.TORCH)
    )
    if torch_minor != built_minor:
        raise ImportError(
            f"rope_ext must run with the minor version of torch that it was built for "
            f"({_built_for.TORCH}), got torch {torch.__version__}: rebuild it with "
            "`pip install --no-build-isolation --force-reinstall --no-deps`"
        )
    if _built_for.CUDA is not None and torch.version.cuda is None:
        raise ImportError(
            f"rope_ext was built with CUDA {_built_for.CUDA} and must run with a CUDA build of "
            f"torch, got torch {torch.__version__}: rebuild it, or install that torch"
        )


_refuse_another_torch()
import rope_ext._C  # noqa: E402, F401

__all__ = ["apply", "apply_frequencies", "cos_sin", "rotate", "rotate_frequencies"]

# Overloads and not packets: a packet looks the overload up at every call (0.3 us).
apply: Callable[..., None] = torch.ops.rope.apply.default
apply_frequencies: Callable[..., None] = torch.ops.rope.apply_frequencies.default
rotate: Callable[..., Tensor] = torch.ops.rope.rotate.default
rotate_frequencies: Callable[..., Tensor] = torch.ops.rope.rotate_frequencies.default
cos_sin: Callable[..., tuple[Tensor, Tensor]] = torch.ops.rope.cos_sin.default
