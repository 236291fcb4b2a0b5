"""Gradients of tables, frequencies and floating positions, alone and with those of what is rotated.

Against differences (gradcheck), and against autograd through the float64 reference. Of tables that
comparison is exact: data are small integers, and cosines and sines are 1 or -1, so that in place
the input is found again by a division by 2.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from angles import (
    FREQUENCY_FORMS_BY_LAYOUT,
    Form,
    floating_positions,
    integer_positions,
    positions_of,
    some_frequencies,
    tables_of,
)
from inputs import (
    FORMS,
    ROWS,
    Angles,
    Layout,
    angle_tables,
    integers,
    name,
    normal,
    token_positions,
)
from recorder import Recorder
from tolerance import COMPUTE
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import rope_ext
from rope_ext import reference

DOUBLE = torch.float64
SCALE = 1.25


class Source:
    """Where the angles of a call come from, and the two spellings of a rotation by them.

    ``angles`` are what may require grad: cos and sin, or positions and frequencies.
    """

    def __init__(self, *angles: Tensor | None, positions: Tensor | None = None, scale: float = 1.0):
        self.angles, self.positions, self.scale = angles, positions, scale


class Tables(Source):
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, **options: object) -> Tensor:
        return rope_ext.rotate(x, cos, sin, self.positions, **options)

    def apply(self, query: Tensor, key: Tensor | None, cos: Tensor, sin: Tensor, **options):
        return rope_ext.apply_(query, key, cos, sin, self.positions, **options)


class Frequencies(Source):
    def rotate(self, x: Tensor, positions: Tensor | None, frequencies: Tensor, **options) -> Tensor:
        return rope_ext.rotate_frequencies(x, positions, frequencies, self.scale, **options)

    def apply(self, query: Tensor, key: Tensor | None, positions, frequencies: Tensor, **options):
        return rope_ext.apply_frequencies_(
            query, key, positions, frequencies, self.scale, **options
        )


# How a rotation of x may be written. Each returns what it made of x.


def functional(source: Source, x: Tensor, *angles: Tensor, **options: object) -> Tensor:
    return source.rotate(x, *angles, **options)


def in_place(source: Source, x: Tensor, *angles: Tensor, **options: object) -> Tensor:
    return source.apply(x.clone(), None, *angles, **options)


def in_place_through_a_view(source: Source, x: Tensor, *angles: Tensor, **options) -> Tensor:
    y = x.clone()
    source.apply(y.view(y.shape), None, *angles, **options)
    return y


def in_place_as_a_slice(source: Source, x: Tensor, *angles: Tensor, **options) -> Tensor:
    packed = torch.cat((x, 2 * x), dim=0)
    source.apply(packed[len(x) :], None, *angles, **options)
    return packed


def together(source: Source, x: Tensor, *angles: Tensor, **options: object) -> tuple:
    return source.apply(x.clone(), 2 * x, *angles, **options)


def together_as_views(source: Source, x: Tensor, *angles: Tensor, **options: object) -> Tensor:
    packed = torch.cat((x, 2 * x), dim=-1)
    width = x.shape[-1]
    source.apply(packed[..., :width], packed[..., width:], *angles, **options)
    return packed


def beside_a_query_without_gradient(source: Source, x: Tensor, *angles: Tensor, **options) -> tuple:
    return source.apply(torch.ones_like(x), x.clone(), *angles, **options)


SPELLINGS = [
    functional,
    in_place,
    in_place_through_a_view,
    in_place_as_a_slice,
    together,
    together_as_views,
    beside_a_query_without_gradient,
]


def table_source(*shape: int, positions: Tensor | None = None) -> Tables:
    return Tables(*angle_tables(*shape, dtype=DOUBLE), positions=positions)


def frequency_source(positions: Tensor | None, *shape: int) -> Frequencies:
    return Frequencies(positions, some_frequencies(*shape), scale=SCALE)


def places(*shape: int) -> Tensor:
    """Floating positions of a size at which differences are accurate."""
    return floating_positions(*shape) / 500


def indices(*shape: int) -> Tensor:
    return integer_positions(*shape) % 5


ODD = {"interleaved": True, "inverse": True, "start": 1}

CASES = {
    "rows": ((2, 3, 2, 4), table_source(3, 2), {}),
    "more rows than tokens": ((2, 3, 2, 5), table_source(5, 2), ODD),
    "positions": (
        (2, 3, 2, 4),
        table_source(ROWS, 2, positions=token_positions(2, 3, dtype=torch.int32) % 3),
        {},
    ),
    "tables per batch": ((2, 3, 2, 4), table_source(2, 3, 2), {}),
    "tables per head": ((2, 3, 2, 5), table_source(1, 3, 2, 2), ODD),
    "tables per head, heads first": ((2, 2, 3, 4), table_source(2, 2, 3, 2), {"seq_dim": -2}),
    "flat": ((2, 3, 8), table_source(3, 2), {"head_dim": 4}),
    "one axis": ((2, 3, 2, 4), frequency_source(None, 2), {}),
    "floating positions": ((2, 3, 2, 5), frequency_source(places(3), 2), ODD),
    "integer positions on two axes": ((2, 3, 2, 4), frequency_source(indices(2, 3, 2), 2, 2), {}),
    "floating positions on two axes": ((2, 3, 2, 4), frequency_source(places(1, 3, 2), 2, 2), {}),
    "one head for all": ((2, 3, 2, 4), frequency_source(places(3, 2), 2, 1, 2), {"inverse": True}),
    "per head": ((2, 3, 2, 5), frequency_source(places(2, 3, 2), 2, 2, 2), ODD),
    "per head, heads first": (
        (2, 2, 3, 4),
        frequency_source(places(3, 2), 2, 2, 2),
        {"seq_dim": -2},
    ),
    "flat per head": ((2, 3, 8), frequency_source(indices(3, 2), 2, 2, 2), {"head_dim": 4}),
}


def assert_derivatives_agree(function: Callable, *inputs: Tensor) -> None:
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def leaves(*tensors: Tensor | None) -> list[Tensor | None]:
    """Copies that require grad where they may."""
    return [
        t if t is None or not t.is_floating_point() else t.detach().clone().requires_grad_()
        for t in tensors
    ]


@pytest.mark.parametrize("turned", SPELLINGS, ids=name)
@pytest.mark.parametrize("case", ["more rows than tokens", "per head"])
def test_every_spelling_agrees_with_differences(turned: Callable, case: str):
    shape, source, options = CASES[case]
    x, *angles = leaves(integers(*shape) / 4, *source.angles)
    assert_derivatives_agree(lambda x, *angles: turned(source, x, *angles, **options), x, *angles)


@pytest.mark.parametrize("turned", [functional, together], ids=name)
@pytest.mark.parametrize("case", CASES)
def test_every_form_agrees_with_differences(turned: Callable, case: str):
    shape, source, options = CASES[case]
    x, *angles = leaves(integers(*shape) / 4, *source.angles)
    wanted = [i for i, angle in enumerate(angles) if angle is not None and angle.requires_grad]

    def function(x: Tensor, *some: Tensor) -> object:
        given = list(angles)
        for i, angle in zip(wanted, some, strict=True):
            given[i] = angle
        return turned(source, x, *given, **options)

    assert_derivatives_agree(function, x, *(angles[i] for i in wanted))


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize(
    "source",
    [table_source(3, 2), frequency_source(places(3, 2), 2, 1, 2)],
    ids=["tables", "frequencies"],
)
def test_some_heads_of_the_query_agree_with_differences(source: Source, num_heads: int):
    query, key, *angles = leaves(
        integers(1, 3, 3, 4) / 4, integers(1, 3, 2, 4, seed=1) / 4, *source.angles
    )
    assert_derivatives_agree(
        lambda q, k, *angles: source.apply(q.clone(), k.clone(), *angles, num_heads=num_heads),
        query,
        key,
        *angles,
    )


@pytest.mark.parametrize("shape", [(2,), (2, 2), (2, 1, 2), (2, 3, 2)], ids=str)
def test_tables_of_cos_sin_agree_with_differences(shape: tuple[int, ...]):
    positions, frequencies = leaves(
        places(2, 3, 2)[..., 0] if len(shape) == 1 else places(2, 3, 2), some_frequencies(*shape)
    )
    assert_derivatives_agree(
        lambda p, f: rope_ext.cos_sin(p, f, SCALE, DOUBLE), positions, frequencies
    )


# Every form, against autograd through the reference


def both_signs(*shape: int, seed: int) -> Tensor:
    return (integers(*shape, seed=seed) % 2) * 2 - 1


def gradients(turned: Callable, source: Source, tensors: list[Tensor], **options) -> list[Tensor]:
    """Of x and the angles, for an incoming gradient of small integers."""
    x, *angles = leaves(*tensors)
    result = turned(source, x, *angles, **options)
    wanted = [t for t in (x, *angles) if t is not None and t.requires_grad]
    return list(grad(result, wanted, integers(*result.shape, seed=9)))


@pytest.mark.parametrize(("layout", "angles"), FORMS)
def test_gradients_of_tables_are_those_of_the_reference(layout: Layout, angles: Angles):
    tokens, heads, head_dim = 5, 3, 16
    cos, _, positions = angles(layout, tokens, heads, 6, DOUBLE)
    tensors = [
        integers(*layout.shape(tokens, heads, head_dim)),
        both_signs(*cos.shape, seed=5),
        both_signs(*cos.shape, seed=6),
    ]
    source = Tables(positions=positions)
    for flags in ({}, ODD, {"num_heads": 1 if cos.dim() < len(layout.leading) + 3 else 3}):
        options = {**layout.options(head_dim), **flags}

        def by_reference(source: Source, x: Tensor, cos: Tensor, sin: Tensor, options=options):
            return reference.rotate(x, cos, sin, positions, **options)

        expected = gradients(by_reference, source, tensors)
        for turned in (functional, in_place):
            actual = gradients(turned, source, tensors, **options)
            for ours, theirs in zip(actual, expected, strict=True):
                assert torch.equal(ours, theirs)


def angles_of(positions: Tensor, frequencies: Tensor) -> Tensor:
    """The sum over axes, in torch's operators: of the shape that ``rope_ext.cos_sin`` gives."""
    if frequencies.dim() == 1:
        return positions.double()[..., None] * frequencies.double()
    return torch.tensordot(positions.double(), frequencies.double(), dims=1)


def differentiable_tables(
    layout: Layout, positions: Tensor, frequencies: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Exact tables with the derivatives of cosine and sine.

    The sum over axes alone would be wrong by 1e-7 where positions are as large as 2^31.
    """
    cos, sin = tables_of(layout, positions.detach(), frequencies.detach(), scale, DOUBLE)
    angles = angles_of(positions, frequencies)
    if frequencies.dim() == 3 and layout.seq_dim == -2:
        angles = angles.transpose(-3, -2)
    step = (angles - angles.detach()).reshape(cos.shape)
    return cos - sin * step, sin + cos * step


@pytest.mark.parametrize(("layout", "form"), FREQUENCY_FORMS_BY_LAYOUT)
def test_gradients_of_frequencies_are_those_of_the_reference(layout: Layout, form: Form):
    tokens, heads, head_dim = 5, 3, 16
    positions, frequencies = form(layout, tokens, heads, 6)
    if frequencies.dtype == torch.int64:
        frequencies = frequencies / 2.0**64 * 2 * math.pi
    frequencies = frequencies.double()
    source = Frequencies(scale=SCALE)
    tensors = [integers(*layout.shape(tokens, heads, head_dim)), positions, frequencies]
    of_tokens = positions_of(tokens, frequencies, positions)
    for flags in ({}, ODD, {"num_heads": 1 if frequencies.dim() < 3 else 3}):
        options = {**layout.options(head_dim), **flags}
        if frequencies.dim() == 3 and frequencies.shape[1] == 1:
            options.pop("num_heads", None)

        def by_reference(source: Source, x: Tensor, positions, frequencies, options=options):
            given = of_tokens if positions is None else positions
            tables = differentiable_tables(layout, given, frequencies, SCALE)
            return reference.rotate(x, *tables, **options)

        expected = gradients(by_reference, source, tensors)
        # Data and gradients are at most 4. A gradient of x is one rotation. An angle's is at most
        # 2 * 4 * 4 * SCALE, times a frequency below 1 or a position; so many of them are summed.
        turn = 2 * 4 * SCALE
        angle = 4 * turn * tensors[0].numel() / 2
        sizes = [turn, angle * max(1, float(of_tokens.abs().max()))]
        if of_tokens.is_floating_point():
            sizes.insert(1, angle)
        for turned in (functional, in_place):
            actual = gradients(turned, source, tensors, **options)
            for ours, theirs, size in zip(actual, expected, sizes, strict=True):
                assert ours.dtype == theirs.dtype
                error = 4 * torch.finfo(ours.dtype).eps * size
                torch.testing.assert_close(ours, theirs, rtol=0, atol=error)


# Accuracy of other dtypes


def pair_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """|x a| + |y b| and |x b| + |y a| of half-split pairs (x, y) and (a, b): what is summed up."""
    (x, y), (a, b) = x.double().abs().chunk(2, -1), y.double().abs().chunk(2, -1)
    return x * a + y * b, x * b + y * a


@pytest.mark.parametrize("turned", [functional, in_place], ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=name)
def test_gradients_of_other_dtypes_are_near_those_of_float64(turned: Callable, dtype: torch.dtype):
    x, incoming = normal(2, 50, 8, 32, dtype=dtype), normal(2, 50, 8, 32, dtype=dtype, seed=9)
    tables = angle_tables(50, 16)
    positions, frequencies = floating_positions(50, 2), some_frequencies(2, 16)

    def of_angles(dtype: torch.dtype) -> list[Tensor]:
        found = []
        for source in (Tables(*tables), Frequencies(positions, frequencies)):
            turned_x, *angles = leaves(x.to(dtype), *(a.to(COMPUTE[dtype]) for a in source.angles))
            result = turned(source, turned_x, *angles)
            found += grad(result, angles, incoming.to(dtype))
        return found

    # Products and their sum over batch and heads are float32, as are cosines and sines. The result
    # of a rotation, where that is kept, is rounded to the dtype before: each coordinate by half an
    # eps of a length, which is at most the sum of both, and turning back may double that.
    single = (2 * 8 + 8) * torch.finfo(torch.float32).eps
    kept = single + 2 * torch.finfo(dtype).eps
    of_tables = single if turned is functional else kept
    straight, crossed = pair_products(x, incoming)
    whole = (straight + crossed).sum((0, 2))
    bounds = [
        of_tables * whole,
        of_tables * whole,
        kept * whole @ frequencies.abs().t(),
        kept * positions.abs().t() @ whole,
    ]
    for actual, expected, bound in zip(of_angles(dtype), of_angles(DOUBLE), bounds, strict=True):
        assert actual.dtype == torch.float32
        assert ((actual.double() - expected).abs() <= bound).all()


def test_far_positions_do_not_cost_accuracy():
    """The gradient of a frequency is a sum over positions, here up to 2^31, of either sign."""
    x = integers(1000, 1, 4, dtype=torch.float32)
    incoming = integers(1000, 1, 4, dtype=torch.float32, seed=1)
    positions = integer_positions(1000)
    turns_of_nothing = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    result = rope_ext.rotate_frequencies(x, positions, turns_of_nothing)
    (actual,) = grad(result, turns_of_nothing, incoming)
    x, y = x.double().squeeze(1).chunk(2, -1)
    gx, gy = incoming.double().squeeze(1).chunk(2, -1)
    # Products of positions and small integers are exact, and so is their sum: below 2^53.
    assert torch.equal(actual, ((gy * x - gx * y) * positions[:, None]).sum(0))


# What is asked for, kept and computed

either = pytest.mark.parametrize(
    "source",
    [table_source(3, 2), frequency_source(places(3, 2), 2, 1, 2)],
    ids=["tables", "frequencies"],
)


@either
@pytest.mark.parametrize("views", [False, True], ids=["tensors", "views"])
@pytest.mark.parametrize("used", ["query", "key", "both"])
def test_an_unused_result_adds_nothing(used: str, views: bool, source: Source):
    data = {"query": integers(2, 3, 2, 4), "key": integers(2, 3, 1, 4, seed=1)}

    def of_angles(turn: Callable[[dict, list], None]) -> tuple[Tensor, ...]:
        angles = leaves(*source.angles)
        turned = {role: x.clone() for role, x in data.items()}
        turn(turned, angles)
        chosen = [x for role, x in turned.items() if used in (role, "both")]
        return grad(chosen, angles, [integers(*x.shape, seed=2) for x in chosen])

    def at_once(turned: dict, angles: list) -> None:
        query, key = turned.values()
        if views:
            query, key = query.view(query.shape), key.view(key.shape)
        source.apply(query, key, *angles)

    def one_by_one(turned: dict, angles: list) -> None:
        for role, x in turned.items():
            turned[role] = source.rotate(x, *angles)

    for actual, expected in zip(of_angles(at_once), of_angles(one_by_one), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


@either
def test_a_query_that_needs_no_gradient_gets_a_history_from_its_angles(source: Source):
    query, key = integers(2, 3, 2, 4), integers(2, 3, 1, 4, seed=1)
    angles = leaves(*source.angles)
    source.apply(query, key, *angles)
    assert query.grad_fn is not None
    assert key.grad_fn is not None
    assert all(found is not None for found in grad(query.sum() + key.sum(), angles))


@either
@pytest.mark.parametrize("key_first", [False, True], ids=["query first", "key first"])
def test_slices_of_a_tensor_without_gradient_get_a_history_from_their_angles(
    key_first: bool, source: Source
):
    whole, weight = integers(2, 3, 3, 4) / 4, integers(2, 3, 3, 4, seed=3)

    def turned(*angles: Tensor) -> Tensor:
        packed = whole.clone()
        query, key = packed[:, :, :2], packed[:, :, 2:]
        source.apply(*((key, query) if key_first else (query, key)), *angles)
        return packed

    angles, copies = leaves(*source.angles), leaves(*source.angles)
    expected = source.rotate(whole, *copies)
    for actual, same in zip(
        grad((turned(*angles) * weight).sum(), angles),
        grad((expected * weight).sum(), copies),
        strict=True,
    ):
        torch.testing.assert_close(actual, same, rtol=1e-13, atol=1e-13)
    assert_derivatives_agree(turned, *angles)


@either
@pytest.mark.parametrize("turned", [functional, in_place], ids=name)
def test_angles_that_require_grad_do_not_without_grad_mode(turned: Callable, source: Source):
    x, *angles = leaves(integers(2, 3, 2, 4), *source.angles)
    with torch.no_grad():
        assert not turned(source, x, *angles).requires_grad


def kept_by(call: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shape of every tensor that a call keeps for its backward pass."""
    shapes = []

    def pack(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sorted(shapes)


@either
@pytest.mark.parametrize("angle_grad", [False, True], ids=["angles given", "angles learned"])
def test_query_and_key_are_kept_for_the_gradients_of_angles_alone(angle_grad: bool, source: Source):
    leaf = integers(2, 3, 2, 4).requires_grad_()
    query, key, view = leaf * 1, leaf * 2, (leaf * 3).view(leaf.shape)
    angles = leaves(*source.angles) if angle_grad else source.angles
    of_angles = sorted(tuple(angle.shape) for angle in angles)
    shape = tuple(leaf.shape)
    for call, tensors in (
        (lambda: source.rotate(leaf, *angles), 1),
        (lambda: source.apply(query, None, *angles), 1),
        (lambda: source.apply(query, key, *angles), 2),
    ):
        kept = [shape] * tensors if angle_grad else []
        assert kept_by(call) == sorted(of_angles + kept)
    # A view has a node of its own, and with it angles of its own.
    kept = [shape, shape] if angle_grad else []
    assert kept_by(lambda: source.apply(view, key, *angles)) == sorted(2 * of_angles + kept)


def executed(call: Callable[[], object]) -> set[str]:
    with Recorder() as recorder:
        call()
    return {operator.split(".")[1] for operator in recorder.names}


ROTATIONS = {"apply", "rotate", "apply_frequencies", "rotate_frequencies"}
SUMS = {"mm", "sum", "index_put", "mul"}


@either
def test_a_gradient_that_nobody_asks_for_is_not_computed(source: Source):
    x, *angles = leaves(integers(2, 3, 2, 4), *source.angles)
    incoming = integers(2, 3, 2, 4, seed=2)
    result = source.rotate(x, *angles)
    of_angles = executed(lambda: grad(result, angles, incoming, retain_graph=True))
    of_x = executed(lambda: grad(result, x, incoming, retain_graph=True))
    assert not of_angles & ROTATIONS
    assert of_angles & SUMS
    assert of_x & ROTATIONS
    assert not of_x & SUMS


@pytest.mark.parametrize(("wanted", "products"), [((0,), 1), ((1,), 1), ((0, 1), 2)], ids=str)
def test_positions_and_frequencies_are_summed_for_one_by_one(wanted: tuple, products: int):
    angles = leaves(places(3, 2), some_frequencies(2, 2))
    result = rope_ext.rotate_frequencies(integers(2, 3, 2, 4), *angles)
    with Recorder() as recorder:
        grad(result, [angles[i] for i in wanted], integers(2, 3, 2, 4, seed=2))
    assert sum("aten.mm" in operator for operator in recorder.names) == products


# What was kept may not change


@pytest.mark.parametrize("role", ["query", "key"])
@either
def test_a_result_that_is_changed_raises_instead_of_giving_a_wrong_gradient(
    source: Source, role: str
):
    query, key = integers(2, 3, 2, 4), integers(2, 3, 2, 4, seed=1)
    angles = leaves(*source.angles)
    source.apply(query, key, *angles)
    total = query.sum() + key.sum()
    {"query": query, "key": key}[role].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(total, angles)


def test_what_the_functional_twins_keep_may_not_change():
    """Of tables the input, which serves pairs of any length; of frequencies the result."""
    for source, kept in ((table_source(3, 2), "x"), (frequency_source(None, 2), "result")):
        for changed in ("x", "result"):
            x, angles = integers(2, 3, 2, 4), leaves(*source.angles)
            result = source.rotate(x, *angles)
            total, wanted = result.sum(), [angle for angle in angles if angle is not None]
            {"x": x, "result": result}[changed].mul_(2)
            if changed == kept:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    grad(total, wanted)
            else:
                assert all(map(Tensor.isfinite, grad(total.clone(), wanted)[0].flatten()))


@either
def test_two_rotations_of_one_tensor_in_place_raise_instead_of_giving_a_wrong_gradient(
    source: Source,
):
    x, angles = integers(2, 3, 2, 4), leaves(*source.angles)
    source.apply(x, None, *angles)
    source.apply(x, None, *angles)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(x.sum(), angles)


@either
def test_slices_of_one_tensor_rotate_in_one_call_or_raise(source: Source):
    """The second of two calls changes the version of what the first has kept."""
    packed, angles = integers(2, 3, 4, 4), leaves(*source.angles)
    source.apply(packed[:, :, :2], None, *angles)
    source.apply(packed[:, :, 2:], None, *angles)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(packed.sum(), angles)


@pytest.mark.parametrize("changed", [0, 1])
@either
def test_angles_that_are_changed_raise_instead_of_giving_a_wrong_gradient(
    source: Source, changed: int
):
    angles = leaves(*source.angles)
    result = source.rotate(integers(2, 3, 2, 4), *angles)
    with torch.no_grad():
        angles[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(result.sum(), angles)


@either
def test_a_graph_that_was_freed_raises_on_a_second_backward_pass(source: Source):
    angles = leaves(*source.angles)
    total = source.rotate(integers(2, 3, 2, 4), *angles).sum()
    grad(total, angles)
    with pytest.raises(RuntimeError, match="second time"):
        grad(total, angles)


@pytest.mark.parametrize("turned", SPELLINGS, ids=name)
@either
def test_a_graph_that_is_dropped_is_freed(source: Source, turned: Callable):
    """A result that its own history keeps would hold itself for ever."""
    x, *angles = leaves(integers(2, 3, 2, 4), *source.angles)
    alive = weakref.ref(x)
    result = turned(source, x, *angles)
    del x
    assert alive() is not None
    del result
    assert alive() is None


# With the rest of PyTorch


@either
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_angles_are_learned_through_checkpoints(use_reentrant: bool, source: Source):
    def step(x: Tensor, *angles: Tensor) -> Tensor:
        return in_place(source, x * 1, *angles).square() + functional(source, x, *angles)

    found = []
    for run in (step, lambda *inputs: checkpoint(step, *inputs, use_reentrant=use_reentrant)):
        inputs = leaves(integers(2, 3, 2, 4), *source.angles)
        run(*inputs).sum().backward()
        found.append([leaf.grad for leaf in inputs])
    for actual, expected in zip(*found, strict=True):
        assert torch.equal(actual, expected)


@either
@pytest.mark.parametrize("turned", [functional, in_place], ids=name)
def test_functional_transforms_take_angles(turned: Callable, source: Source):
    x, cotangent = integers(2, 3, 2, 4), integers(2, 3, 2, 4, seed=2)
    angles = leaves(*source.angles)
    expected = grad(turned(source, x, *angles), angles, cotangent)
    given = [angle.detach() for angle in angles]
    _, pull = torch.func.vjp(lambda *angles: turned(source, x, *angles), *given)
    of_sum = torch.func.grad(
        lambda *angles: (turned(source, x, *angles) * cotangent).sum(), argnums=(0, 1)
    )(*given)
    for found in (pull(cotangent), of_sum):
        for actual, same in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, same, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("turned", [functional, in_place], ids=name)
@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4)], ids=str)
def test_angles_of_empty_tensors_have_gradients_of_zero(shape: tuple[int, ...], turned: Callable):
    tokens = shape[1]
    for source in (
        table_source(tokens, 2),
        table_source(tokens + 2, 2),
        table_source(ROWS, 2, positions=token_positions(tokens)),
        frequency_source(places(tokens), 2),
        frequency_source(places(tokens, 2), 2, 1, 2),
    ):
        angles = leaves(*source.angles)
        result = turned(source, torch.empty(shape, dtype=DOUBLE), *angles)
        for found, angle in zip(grad(result.sum(), angles), angles, strict=True):
            assert torch.equal(found, torch.zeros_like(angle))


@pytest.mark.parametrize("turned", [functional, in_place], ids=name)
def test_angles_of_no_pair_have_gradients_without_elements(turned: Callable):
    for source in (table_source(3, 0), frequency_source(places(3, 2), 2, 0)):
        x, *angles = leaves(integers(2, 3, 2, 4), *source.angles)
        x_gradient, *found = grad(turned(source, x, *angles).sum(), [x, *angles])
        assert torch.equal(x_gradient, torch.ones_like(x))
        for gradient, angle in zip(found, angles, strict=True):
            assert torch.equal(gradient, torch.zeros_like(angle))
