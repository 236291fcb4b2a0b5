"""Derivatives of query, key and x, and whose gradient may be overwritten.

Comparisons with the reference use small integers for data and tables. Sums and products are then
exact, in float64 and whatever their order, and results must be equal.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from inputs import ROWS, angle_tables, integers, name, token_positions
from recorder import allocations
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import rope_ext
from rope_ext import reference

# Forward mode loads torch's decompositions, which torch still compiles with torch.jit.script.
pytestmark = [
    pytest.mark.usefixtures("device"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning"),
]

DOUBLE = torch.float64


def integer_tables(*shape: int) -> tuple[Tensor, Tensor]:
    return integers(*shape, seed=5), integers(*shape, seed=6)


def turned_in_place(x: Tensor, *tables: Tensor, **options: object) -> Tensor:
    """Rotate a clone in place."""
    return rope_ext.apply_(x.clone(), None, *tables, **options)


def turned_in_place_through_a_view(x: Tensor, *tables: Tensor, **options: object) -> Tensor:
    """Rotate a full view of a clone in place, and return the clone."""
    y = x.clone()
    rope_ext.apply_(y.view(y.shape), None, *tables, **options)
    return y


def turned_in_place_as_a_slice(x: Tensor, *tables: Tensor, **options: object) -> Tensor:
    """Rotate a slice of a larger tensor in place, and return the slice."""
    packed = torch.cat((x, x), dim=0)
    y = packed[: len(x)]
    rope_ext.apply_(y, None, *tables, **options)
    return y


def turned_as_a_key(x: Tensor, *tables: Tensor, **options: object) -> Tensor:
    """Rotate a clone in place beside a query that needs no gradient."""
    query, key = torch.ones_like(x), x.clone()
    rope_ext.apply_(query, key, *tables, **options)
    return key


SPELLINGS = [
    rope_ext.rotate,
    turned_in_place,
    turned_in_place_through_a_view,
    turned_in_place_as_a_slice,
    turned_as_a_key,
]

spellings = pytest.mark.parametrize("turned", SPELLINGS, ids=name)


CASES = {
    "whole": ((2, 3, 2, 4), (3, 2), {}),
    "interleaved": ((2, 3, 2, 4), (3, 2), {"interleaved": True}),
    "inverse": ((2, 3, 2, 4), (3, 2), {"inverse": True}),
    "partial": ((2, 3, 2, 6), (3, 1), {"start": 2}),
    "heads before tokens": ((2, 2, 3, 4), (3, 2), {"seq_dim": -2}),
    "no batch": ((3, 2, 4), (3, 2), {}),
    "two leading dimensions": ((2, 1, 3, 2, 4), (3, 2), {}),
    "flat": ((2, 3, 8), (3, 2), {"head_dim": 4}),
    "tables per batch": ((2, 3, 2, 4), (2, 3, 2), {}),
    "tables per head": ((2, 3, 2, 4), (1, 3, 2, 2), {}),
    "positions": ((2, 3, 2, 4), (ROWS, 2), {"positions": token_positions(2, 3)}),
}

cases = pytest.mark.parametrize(
    ("shape", "table", "options"), CASES.values(), ids=CASES, indirect=["options"]
)


@pytest.fixture
def options(request: pytest.FixtureRequest, device: torch.device) -> dict[str, object]:
    """The options of a case, on the device of the test."""
    return {
        option: value.to(device) if isinstance(value, Tensor) else value
        for option, value in request.param.items()
    }


@spellings
@cases
def test_first_and_second_derivatives_agree_with_differences(turned, shape, table, options):
    x = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    cos, sin = angle_tables(*table, dtype=DOUBLE)
    assert gradcheck(lambda x: turned(x, cos, sin, **options), x, check_forward_ad=True)
    assert gradgradcheck(
        lambda x: turned(x, cos, sin, **options),
        x,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
    )


@pytest.mark.parametrize("views", [False, True], ids=["tensors", "views"])
@pytest.mark.parametrize(
    ("shape", "table", "options"),
    [*CASES.values(), ((2, 3, 3, 4), (3, 2), {"num_heads": 1})],
    ids=[*CASES, "some heads of the query"],
    indirect=["options"],
)
def test_derivatives_of_query_and_key_together(views: bool, shape, table, options):
    query = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    key = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    cos, sin = angle_tables(*table, dtype=DOUBLE)

    def turned(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        query, key = query.clone(), key.clone()
        if views:
            rope_ext.apply_(query.view(shape), key.view(shape), cos, sin, **options)
        else:
            rope_ext.apply_(query, key, cos, sin, **options)
        return query, key

    assert gradcheck(turned, (query, key), check_forward_ad=True)
    assert gradgradcheck(turned, (query, key), check_fwd_over_rev=True)


@pytest.mark.parametrize("heads", [3, 5], ids=["queries", "queries and keys"])
def test_derivatives_of_slices_of_packed_qkv(heads: int):
    packed = torch.randn(2, 3, 6 * 4, dtype=DOUBLE, requires_grad=True)
    cos, sin = angle_tables(3, 2, dtype=DOUBLE)

    def turned(packed: Tensor) -> Tensor:
        packed = packed.clone()
        if heads == 5:
            return rope_ext.apply_(packed, None, cos, sin, head_dim=4, num_heads=5)
        query, key = packed[..., : 3 * 4], packed[..., 3 * 4 : 5 * 4]
        rope_ext.apply_(query, key, cos, sin, head_dim=4)
        return packed

    assert gradcheck(turned, packed, check_forward_ad=True)
    assert gradgradcheck(turned, packed, check_fwd_over_rev=True)


@spellings
def test_gradient_is_the_inverse_rotation_of_the_incoming_one(turned):
    x, incoming = integers(2, 3, 2, 8).requires_grad_(), integers(2, 3, 2, 8, seed=1)
    cos, sin = integer_tables(3, 4)
    turned(x, cos, sin).backward(incoming)
    assert torch.equal(x.grad, reference.rotate(incoming, cos, sin, inverse=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=name)
@spellings
def test_gradient_has_the_dtype_of_x(turned, dtype: torch.dtype):
    x = integers(2, 3, 2, 8, dtype=dtype).requires_grad_()
    incoming = integers(2, 3, 2, 8, dtype=dtype, seed=1)
    cos, sin = (table.float() for table in integer_tables(3, 4))
    turned(x, cos, sin).backward(incoming)
    assert x.grad.dtype == dtype
    # Integers below 2 * 4 * 4 are exact in every dtype.
    assert torch.equal(x.grad.double(), reference.rotate(incoming, cos, sin, inverse=True))


def test_key_may_require_grad_beside_a_query_that_does_not():
    leaf = integers(2, 3, 1, 4).requires_grad_()
    query, key = integers(2, 3, 2, 4, seed=1), leaf * 1
    cos, sin = integer_tables(3, 2)
    rope_ext.apply_(query, key, cos, sin)
    assert not query.requires_grad
    incoming = integers(2, 3, 1, 4, seed=2)
    key.backward(incoming)
    assert torch.equal(leaf.grad, reference.rotate(incoming, cos, sin, inverse=True))


def test_query_may_require_grad_beside_a_key_that_does_not():
    leaf = integers(2, 3, 2, 4).requires_grad_()
    query, key = leaf * 1, integers(2, 3, 1, 4, seed=1)
    cos, sin = integer_tables(3, 2)
    rope_ext.apply_(query, key, cos, sin)
    assert not key.requires_grad
    incoming = integers(2, 3, 2, 4, seed=2)
    query.backward(incoming)
    assert torch.equal(leaf.grad, reference.rotate(incoming, cos, sin, inverse=True))


@pytest.mark.parametrize("views", [False, True], ids=["tensors", "views"])
@pytest.mark.parametrize("wanted", ["query", "key"])
def test_one_of_two_gradients_may_be_asked_for(wanted: str, views: bool):
    leaves = {"query": integers(2, 3, 2, 4), "key": integers(2, 3, 1, 4, seed=1)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    query, key = leaves["query"] * 1, leaves["key"] * 1
    cos, sin = integer_tables(3, 2)
    if views:
        rope_ext.apply_(query.view(query.shape), key.view(key.shape), cos, sin)
    else:
        rope_ext.apply_(query, key, cos, sin)
    turned = {"query": query, "key": key}
    weights = {name: integers(*leaf.shape, seed=2) for name, leaf in leaves.items()}
    total = sum((turned[name] * weights[name]).sum() for name in turned)
    (gradient,) = torch.autograd.grad(total, leaves[wanted])
    assert torch.equal(gradient, reference.rotate(weights[wanted], cos, sin, inverse=True))


@pytest.mark.parametrize("used", ["query", "key"])
def test_one_of_two_results_may_go_unused(used: str):
    leaves = {"query": integers(2, 3, 2, 4), "key": integers(2, 3, 1, 4, seed=1)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    query, key = leaves["query"] * 1, leaves["key"] * 1
    cos, sin = integer_tables(3, 2)
    rope_ext.apply_(query, key, cos, sin)
    incoming = integers(*leaves[used].shape, seed=2)
    {"query": query, "key": key}[used].backward(incoming)
    assert torch.equal(leaves[used].grad, reference.rotate(incoming, cos, sin, inverse=True))
    unused = leaves["key" if used == "query" else "query"]
    assert unused.grad is None or not unused.grad.any()


def test_rotation_has_a_node_named_after_it():
    cos, sin = integer_tables(3, 2)
    x = integers(3, 2, 4).requires_grad_()
    for y in (rope_ext.rotate(x, cos, sin), turned_in_place(x, cos, sin)):
        assert "rotat" in y.grad_fn.name().lower() or "rope" in y.grad_fn.name().lower()


def test_nothing_is_recorded_without_grad_mode():
    x = integers(3, 2, 4).requires_grad_()
    cos, sin = integer_tables(3, 2)
    with torch.no_grad():
        assert not rope_ext.rotate(x, cos, sin).requires_grad
        assert not turned_in_place(x, cos, sin).requires_grad


def test_nothing_is_saved_of_x():
    leaf = integers(2, 3, 2, 4).requires_grad_()
    x = leaf * 1
    y = rope_ext.rotate(x, *integer_tables(3, 2))
    released = weakref.ref(x)
    del x
    assert released() is None
    y.sum().backward()


def test_nothing_is_saved_of_query_and_key():
    leaf = integers(2, 3, 2, 4).requires_grad_()
    query, key = leaf * 1, leaf * 2
    rope_ext.apply_(query, key, *integer_tables(3, 2))
    total = query.sum() + key.sum()
    released = weakref.ref(query), weakref.ref(key)
    del query, key
    assert [reference() for reference in released] == [None, None]
    total.backward()


def test_a_rotated_tensor_may_be_changed_before_the_backward_pass():
    leaf = integers(2, 3, 2, 4).requires_grad_()
    cos, sin = integer_tables(3, 2)
    y = turned_in_place(leaf, cos, sin)
    y.mul_(3)
    y.sum().backward()
    incoming = torch.full_like(leaf, 3)
    assert torch.equal(leaf.grad, reference.rotate(incoming, cos, sin, inverse=True))


def test_two_rotations_in_a_row_differentiate():
    leaf = integers(2, 3, 2, 4).requires_grad_()
    cos, sin = integer_tables(3, 2)
    y = leaf.clone()
    rope_ext.apply_(y, None, cos, sin)
    rope_ext.apply_(y, None, cos, sin, interleaved=True)
    incoming = integers(2, 3, 2, 4, seed=2)
    y.backward(incoming)
    back = reference.rotate(incoming, cos, sin, interleaved=True, inverse=True)
    assert torch.equal(leaf.grad, reference.rotate(back, cos, sin, inverse=True))


@pytest.mark.parametrize("role", ["query", "key"])
def test_a_tensor_that_another_operation_saved_raises_instead_of_giving_a_wrong_gradient(role: str):
    leaf = integers(2, 3, 2, 4).requires_grad_()
    x = leaf * 1
    square = x * x
    cos, sin = integer_tables(3, 2)
    other = integers(2, 3, 2, 4, seed=1)
    query, key = (x, other) if role == "query" else (other, x)
    rope_ext.apply_(query, key, cos, sin)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_a_tensor_saved_and_rotated_without_grad_mode_raises_too():
    leaf = integers(2, 3, 2, 4).requires_grad_()
    x = leaf * 1
    square = x * x
    with torch.no_grad():
        rope_ext.apply_(x, None, *integer_tables(3, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()


def test_tables_changed_before_the_backward_pass_raise_instead_of_giving_a_wrong_gradient():
    x = integers(2, 3, 2, 4).requires_grad_()
    cos, sin = integer_tables(3, 2)
    y = rope_ext.rotate(x, cos, sin)
    cos.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_positions_changed_before_the_backward_pass_raise_instead_of_giving_a_wrong_gradient():
    x = integers(2, 3, 2, 4).requires_grad_()
    positions = torch.arange(3)
    y = rope_ext.rotate(x, *integer_tables(3, 2), positions)
    positions.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_that_was_freed_raises_on_a_second_backward_pass():
    x = integers(2, 3, 2, 4).requires_grad_()
    y = rope_ext.rotate(x, *integer_tables(3, 2)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@spellings
def test_tensors_without_elements_keep_their_graph(turned):
    leaf = torch.empty(2, 0, 2, 4, dtype=DOUBLE, requires_grad=True)
    y = turned(leaf, *integer_tables(0, 2))
    assert y.requires_grad
    y.sum().backward()
    assert leaf.grad.shape == leaf.shape


# The incoming gradient. Each situation takes a rotation and a leaf, and returns all that one could
# see of the gradients afterwards. It runs with our rotation and with the reference.

Turn = Callable[[Tensor], Tensor]


def added_to_its_input(turn: Turn, leaf: Tensor) -> list[Tensor]:
    x = leaf * 1
    (turn(x) + x).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad]


def added_before_and_after(turn: Turn, leaf: Tensor) -> list[Tensor]:
    x = leaf * 1
    branch = x * 2
    (turn(x) + branch + turn(branch)).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad]


def gradient_retained(turn: Turn, leaf: Tensor) -> list[Tensor]:
    y = turn(leaf * 1)
    y.retain_grad()
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, y.grad]


def gradient_kept_by_a_hook(turn: Turn, leaf: Tensor) -> list[Tensor]:
    kept = []
    y = turn(leaf * 1)
    y.register_hook(kept.append)
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, *kept]


def view_of_the_gradient_kept_by_a_hook(turn: Turn, leaf: Tensor) -> list[Tensor]:
    kept = []
    y = turn(leaf * 1)
    y.register_hook(lambda grad: kept.append(grad[..., 1:]))
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, *kept]


def detached_gradient_kept_by_a_hook(turn: Turn, leaf: Tensor) -> list[Tensor]:
    kept = []
    y = turn(leaf * 1)
    y.register_hook(lambda grad: kept.append(grad.detach()))
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, *kept]


def array_of_the_gradient_kept_by_a_hook(turn: Turn, leaf: Tensor) -> list[Tensor]:
    kept = []
    y = turn(leaf * 1)
    y.register_hook(lambda grad: kept.append(grad.numpy()))
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, *map(torch.from_numpy, kept)]


def capsule_of_the_gradient_kept_by_a_hook(turn: Turn, leaf: Tensor) -> list[Tensor]:
    kept = []
    y = turn(leaf * 1)
    y.register_hook(lambda grad: kept.append(torch.utils.dlpack.to_dlpack(grad)))
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, *map(torch.utils.dlpack.from_dlpack, kept)]


def gradient_kept_by_a_hook_before_the_node(turn: Turn, leaf: Tensor) -> list[Tensor]:
    kept = []
    y = turn(leaf * 1)
    y.grad_fn.register_prehook(lambda grads: kept.extend(grads))
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, *kept]


def gradients_kept_by_a_hook_after_the_node(turn: Turn, leaf: Tensor) -> list[Tensor]:
    kept = []
    y = turn(leaf * 1) * 1
    y.grad_fn.register_hook(lambda inputs, outputs: kept.extend([*inputs, *outputs]))
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, *(grad for grad in kept if grad is not None)]


def gradient_replaced_by_a_hook(turn: Turn, leaf: Tensor) -> list[Tensor]:
    replacement = integers(*leaf.shape, seed=8)
    y = turn(leaf * 1)
    y.register_hook(lambda grad: replacement)
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, replacement]


def gradient_made_of_an_array_by_a_hook(turn: Turn, leaf: Tensor) -> list[Tensor]:
    array = integers(*leaf.shape, seed=8).numpy()
    y = turn(leaf * 1)
    y.register_hook(lambda grad: torch.from_numpy(array))
    (y * 3).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad, torch.from_numpy(array)]


def gradient_expanded_from_a_sum(turn: Turn, leaf: Tensor) -> list[Tensor]:
    (turn(leaf * 1).sum() * 3).backward()
    return [leaf.grad]


def gradient_given_by_the_user(turn: Turn, leaf: Tensor) -> list[Tensor]:
    given = integers(*leaf.shape, seed=7)
    turn(leaf * 1).backward(given)
    return [leaf.grad, given]


def gradient_given_by_the_user_and_let_go(turn: Turn, leaf: Tensor) -> list[Tensor]:
    turn(leaf * 1).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad]


def gradient_given_as_a_slice(turn: Turn, leaf: Tensor) -> list[Tensor]:
    given = integers(*leaf.shape, 2, seed=7)
    turn(leaf * 1).backward(given[..., 0])
    return [leaf.grad, given]


def graph_retained(turn: Turn, leaf: Tensor) -> list[Tensor]:
    y = (turn(leaf * 1) * 3).square().sum()
    y.backward(retain_graph=True)
    first = leaf.grad.clone()
    y.backward()
    return [first, leaf.grad]


def concatenated(turn: Turn, leaf: Tensor) -> list[Tensor]:
    x = leaf * 1
    y = torch.cat((turn(x), x, turn(x * 2)), dim=0)
    y.backward(integers(*y.shape, seed=7))
    return [leaf.grad]


def stacked(turn: Turn, leaf: Tensor) -> list[Tensor]:
    x = leaf * 1
    y = torch.stack((turn(x), x, turn(x * 2)))
    y.backward(integers(*y.shape, seed=7))
    return [leaf.grad]


def reshaped(turn: Turn, leaf: Tensor) -> list[Tensor]:
    given = integers(leaf.numel(), seed=7)
    turn(leaf * 1).reshape(-1).backward(given)
    return [leaf.grad, given]


def transposed(turn: Turn, leaf: Tensor) -> list[Tensor]:
    y = turn(leaf * 1).transpose(-1, -2)
    (y * integers(*y.shape, seed=7)).sum().backward()
    return [leaf.grad]


def checkpointed(turn: Turn, leaf: Tensor) -> list[Tensor]:
    y = checkpoint(lambda x: turn(x * 1).square(), leaf * 1, use_reentrant=False)
    y.backward(integers(*leaf.shape, seed=7))
    return [leaf.grad]


def checkpointed_reentrantly(turn: Turn, leaf: Tensor) -> list[Tensor]:
    y = checkpoint(lambda x: turn(x * 1).square(), leaf * 1, use_reentrant=True)
    y.backward(integers(*leaf.shape, seed=7))
    return [leaf.grad]


def differentiated_twice(turn: Turn, leaf: Tensor) -> list[Tensor]:
    y = turn(leaf * 1).pow(3)
    given = integers(*leaf.shape, seed=7)
    (first,) = torch.autograd.grad(y, leaf, given, create_graph=True)
    kept = first.detach().clone()
    first.square().sum().backward()
    return [kept, leaf.grad, given]


def two_rotations_of_one_tensor(turn: Turn, leaf: Tensor) -> list[Tensor]:
    x = leaf * 1
    (turn(x) + turn(x)).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad]


def one_gradient_for_query_and_key(turn: Turn, leaf: Tensor) -> list[Tensor]:
    query, key = leaf * 1, leaf * 2
    (turn(query) + turn(key)).backward(integers(*leaf.shape, seed=7))
    return [leaf.grad]


def accumulated(turn: Turn, leaf: Tensor) -> list[Tensor]:
    seen = []
    for seed in (7, 8):
        turn(leaf).mul(2).backward(integers(*leaf.shape, seed=seed))
        seen.append(leaf.grad.clone())
    return seen


SITUATIONS = [
    added_to_its_input,
    added_before_and_after,
    gradient_retained,
    gradient_kept_by_a_hook,
    view_of_the_gradient_kept_by_a_hook,
    detached_gradient_kept_by_a_hook,
    array_of_the_gradient_kept_by_a_hook,
    capsule_of_the_gradient_kept_by_a_hook,
    gradient_kept_by_a_hook_before_the_node,
    gradients_kept_by_a_hook_after_the_node,
    gradient_replaced_by_a_hook,
    gradient_made_of_an_array_by_a_hook,
    gradient_expanded_from_a_sum,
    gradient_given_by_the_user,
    gradient_given_by_the_user_and_let_go,
    gradient_given_as_a_slice,
    graph_retained,
    concatenated,
    stacked,
    reshaped,
    transposed,
    checkpointed,
    checkpointed_reentrantly,
    differentiated_twice,
    two_rotations_of_one_tensor,
    one_gradient_for_query_and_key,
    accumulated,
]

NEEDS_NUMPY = [array_of_the_gradient_kept_by_a_hook, gradient_made_of_an_array_by_a_hook]


@spellings
@pytest.mark.parametrize("situation", SITUATIONS, ids=name)
def test_incoming_gradients_are_never_overwritten_while_others_see_them(
    situation, turned, device: torch.device
):
    if situation in NEEDS_NUMPY and device.type == "cuda":
        pytest.skip("numpy has no arrays on a GPU")
    cos, sin = integer_tables(3, 4)

    def seen(rotate: Callable[..., Tensor]) -> list[Tensor]:
        leaf = integers(2, 3, 2, 8).requires_grad_()
        return situation(lambda x: rotate(x, cos, sin), leaf)

    for actual, expected in zip(seen(turned), seen(reference.rotate), strict=True):
        assert torch.equal(actual, expected)


def test_query_and_key_of_one_call_may_share_their_gradient():
    leaf = integers(2, 3, 2, 8).requires_grad_()
    cos, sin = integer_tables(3, 4)
    query, key = leaf * 1, leaf * 2
    rope_ext.apply_(query, key, cos, sin)
    given = integers(2, 3, 2, 8, seed=7)
    (query + key).backward(given)
    assert torch.equal(leaf.grad, 3 * reference.rotate(given, cos, sin, inverse=True))


class Probe(torch.autograd.Function):
    """The identity; its backward pass notes where the gradient lies."""

    @staticmethod
    def forward(ctx, x: Tensor, addresses: list[int]) -> Tensor:
        ctx.addresses = addresses
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        ctx.addresses.append(grad.data_ptr())
        return grad, None


MANY = (2, 64, 4, 64)


@pytest.mark.own_kernels
@pytest.mark.parametrize("turned", [rope_ext.rotate, turned_in_place], ids=name)
def test_a_gradient_that_nobody_else_owns_is_rotated_in_place(turned):
    leaf = integers(*MANY).requires_grad_()
    cos, sin = integer_tables(64, 32)
    size = leaf.numel() * leaf.element_size()
    weights, given = integers(*MANY, seed=1).cpu(), integers(*MANY, seed=2).cpu()

    # The product with the weights, or its copy on a GPU, is the only new gradient there; the leaf
    # then takes it as its own.
    y = turned(leaf, cos, sin).cpu() * weights
    assert [n for n in allocations(lambda: y.backward(given)) if n >= size // 2] == [size]
    expected = reference.rotate(given * weights, cos.cpu(), sin.cpu(), inverse=True)
    assert torch.equal(leaf.grad.cpu(), expected)


@pytest.mark.own_kernels
@pytest.mark.parametrize("num_heads", [None, 3])
def test_gradients_of_query_and_key_that_nobody_else_owns_are_rotated_in_place(
    num_heads: int | None,
):
    leaf, key_leaf = integers(*MANY).requires_grad_(), integers(*MANY, seed=3).requires_grad_()
    cos, sin = integer_tables(64, 32)
    size = leaf.numel() * leaf.element_size()
    given = integers(*MANY, seed=2).cpu()
    query, key = leaf.clone(), key_leaf.clone()
    rope_ext.apply_(query, key, cos, sin, num_heads=num_heads)
    to_query, to_key = given * key.detach().cpu(), given * query.detach().cpu()
    product = query.cpu() * key.cpu()
    # Two products, one for each factor, and nothing for the rotation.
    sizes = allocations(lambda: product.backward(given))
    assert [n for n in sizes if n >= size // 2] == [size, size]
    tables = cos.cpu(), sin.cpu()
    options = {"inverse": True, "num_heads": num_heads}
    assert torch.equal(leaf.grad.cpu(), reference.rotate(to_query, *tables, **options))
    assert torch.equal(key_leaf.grad.cpu(), reference.rotate(to_key, *tables, inverse=True))


@pytest.mark.own_kernels
def test_a_gradient_that_the_user_holds_is_rotated_into_a_new_tensor():
    leaf = integers(*MANY).requires_grad_()
    cos, sin = integer_tables(64, 32)
    given = integers(*MANY, seed=2)
    kept = given.clone()
    addresses: list[int] = []
    rope_ext.rotate(Probe.apply(leaf, addresses), cos, sin).backward(given)
    assert len(addresses) == 1
    assert addresses != [given.data_ptr()]
    assert torch.equal(given.cpu(), kept.cpu())


# Forward mode


@spellings
@cases
def test_a_tangent_rotates_as_its_tensor_does(turned, shape, table, options):
    x, tangent = integers(*shape), integers(*shape, seed=1)
    cos, sin = integer_tables(*table)
    with forward_ad.dual_level():
        y = turned(forward_ad.make_dual(x, tangent), cos, sin, **options)
        primal, turned_tangent = forward_ad.unpack_dual(y)
    assert torch.equal(primal, reference.rotate(x, cos, sin, **options))
    assert torch.equal(turned_tangent, reference.rotate(tangent, cos, sin, **options))


@pytest.mark.parametrize("num_heads", [None, 1])
@pytest.mark.parametrize("with_tangent", ["query", "key", "both"])
def test_tangents_of_query_and_key_rotate_in_place(with_tangent: str, num_heads: int | None):
    query, key = integers(2, 3, 2, 4), integers(2, 3, 2, 4, seed=1)
    tangents = integers(2, 3, 2, 4, seed=2), integers(2, 3, 2, 4, seed=3)
    cos, sin = integer_tables(3, 2)
    with forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(tensor.clone(), tangent.clone())
            if with_tangent in (role, "both")
            else tensor.clone()
            for role, tensor, tangent in zip(("query", "key"), (query, key), tangents, strict=True)
        ]
        rope_ext.apply_(*duals, cos, sin, num_heads=num_heads)
        for role, dual, tensor, tangent in zip(
            ("query", "key"), duals, (query, key), tangents, strict=True
        ):
            primal, new_tangent = forward_ad.unpack_dual(dual)
            options = {"num_heads": num_heads} if role == "query" else {}
            assert torch.equal(primal, reference.rotate(tensor, cos, sin, **options))
            if with_tangent in (role, "both"):
                assert torch.equal(new_tangent, reference.rotate(tangent, cos, sin, **options))
            else:
                assert new_tangent is None


def test_a_view_of_a_dual_tensor_rotates_the_tangent_of_its_base():
    x, tangent = integers(2, 3, 4, 4), integers(2, 3, 4, 4, seed=1)
    cos, sin = integer_tables(3, 2)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone(), tangent.clone())
        rope_ext.apply_(dual[:, :, :2], None, cos, sin)
        primal, turned_tangent = forward_ad.unpack_dual(dual)
    assert torch.equal(primal, reference.rotate(x, cos, sin, num_heads=2))
    assert torch.equal(turned_tangent, reference.rotate(tangent, cos, sin, num_heads=2))


zero_tangents = pytest.mark.real_cuda("torch's zero tangents have no memory to compute with")


@zero_tangents
def test_forward_over_backward_gives_the_second_derivative():
    x, direction = integers(3, 2, 4), integers(3, 2, 4, seed=1)
    cos, sin = integer_tables(3, 2)

    def gradient(rotate: Callable[..., Tensor], x: Tensor) -> Tensor:
        return torch.autograd.grad(rotate(x, cos, sin).pow(3).sum(), x, create_graph=True)[0]

    def derivative(rotate: Callable[..., Tensor]) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.clone().requires_grad_(), direction)
            return forward_ad.unpack_dual(gradient(rotate, dual)).tangent.detach()

    for rotate in SPELLINGS:
        assert torch.equal(derivative(rotate), derivative(reference.rotate))


@spellings
@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(
            lambda turn, x, v: torch.func.grad(lambda x: turn(x).pow(3).sum())(x), id="grad"
        ),
        pytest.param(lambda turn, x, v: torch.func.vjp(turn, x)[1](v)[0], id="vjp"),
        pytest.param(
            lambda turn, x, v: torch.func.jvp(turn, (x,), (v,))[1], id="jvp", marks=zero_tangents
        ),
        pytest.param(
            lambda turn, x, v: torch.func.jvp(
                torch.func.grad(lambda x: turn(x).pow(3).sum()), (x,), (v,)
            )[1],
            id="jvp of grad",
            marks=zero_tangents,
        ),
    ],
)
def test_functional_transforms_agree_with_the_reference(transform, turned):
    x, v = integers(2, 3, 2, 4), integers(2, 3, 2, 4, seed=1)
    cos, sin = integer_tables(3, 2)
    actual = transform(lambda x: turned(x, cos, sin), x, v)
    expected = transform(lambda x: reference.rotate(x, cos, sin), x, v)
    assert torch.equal(actual, expected)


# Sums of two products of at most 4, three roundings each, ours and the reference's; two rotations.
ROUNDED = 2 * 2 * 3 * 8 * 2**-53


@pytest.mark.parametrize("view_is", ["query", "key"])
def test_a_tensor_and_its_own_view_rotate_together(view_is: str):
    """Partial rotary of a base, and of heads that lie across the parts of it that stay."""
    tokens, heads, head_dim, pairs = 3, 4, 8, 2
    tables = angle_tables(tokens, pairs, dtype=torch.float64)
    leaf = integers(tokens, heads, head_dim).requires_grad_()
    weight = integers(tokens, heads, head_dim, seed=1)

    def across(base: Tensor) -> Tensor:
        return base.flatten(1)[:, 4:-4].unflatten(1, (heads - 1, head_dim))

    def turned(base: Tensor) -> Tensor:
        base = base * 1
        pair = (across(base), base) if view_is == "query" else (base, across(base))
        rope_ext.apply_(*pair, *tables)
        return base

    (gradient,) = torch.autograd.grad((turned(leaf) * weight).sum(), leaf)
    # Both rotations are disjoint, so the transpose rotates the weight back in the same way.
    expected = weight.clone()
    rope_ext.apply_(expected, across(expected), *tables, inverse=True)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=ROUNDED)


def test_a_gradient_with_more_dimensions_apart_than_a_call_takes_is_rotated():
    tables = angle_tables(3, 2, dtype=torch.float64)
    x = integers(*[2] * 7, 3, 1, 4).requires_grad_()
    backwards = (6, 5, 4, 3, 2, 1, 0, 7, 8, 9)
    weight = integers(*[2] * 7, 3, 1, 4, seed=1)
    (rope_ext.rotate(x, *tables).permute(backwards).contiguous() * weight).sum().backward()
    expected = reference.rotate(weight.permute(backwards), *tables, inverse=True)
    torch.testing.assert_close(x.grad, expected, rtol=0, atol=ROUNDED)


# torch loops over the batch and says so.
@pytest.mark.real_cuda("under a dispatch mode the backward pass rotates in place, without a batch")
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_batches_of_gradients_are_rotated():
    tables = angle_tables(3, 2, dtype=torch.float64)
    x = integers(3, 1, 4)
    identity = torch.eye(x.numel(), dtype=torch.float64).reshape(*x.shape, *x.shape)
    expected = reference.rotate(identity.flatten(0, 2), *tables, inverse=True).reshape_as(identity)
    jacobian = torch.func.jacrev(lambda t: rope_ext.rotate(t, *tables))(x)
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=ROUNDED)
