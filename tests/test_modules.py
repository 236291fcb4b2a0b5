"""What all modules share, and RotaryEmbedding: its rotation, what it may overwrite, its state."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch
from inputs import DTYPES, name, normal
from tolerance import assert_same_bits
from torch import Tensor, nn
from turned import assert_turned, rotated

import rope_ext
from rope_ext import RotaryEmbedding, frequencies, scaling
from rope_ext.modules import Rotation

pytestmark = pytest.mark.usefixtures("device")

TOKENS, HEAD_DIM = 5, 16
STANDARD = frequencies.standard(HEAD_DIM)

MODULES = {
    "RotaryEmbedding": lambda: RotaryEmbedding(HEAD_DIM, base=500.0),
    "YaRN": lambda: RotaryEmbedding(HEAD_DIM, scaling=scaling.YaRN(4.0, 64)),
    "DynamicNTK": lambda: RotaryEmbedding(HEAD_DIM, scaling=scaling.DynamicNTK(2.0, 4)),
    "LongRoPE": lambda: RotaryEmbedding(
        HEAD_DIM, scaling=scaling.LongRoPE((1.0,) * 8, (3.0,) * 8, 4, factor=8.0)
    ),
    "AxialRotaryEmbedding": lambda: rope_ext.AxialRotaryEmbedding(HEAD_DIM),
    "MRotaryEmbedding": lambda: rope_ext.MRotaryEmbedding(HEAD_DIM, (2, 3, 3)),
    "MixedRotaryEmbedding": lambda: rope_ext.MixedRotaryEmbedding(
        HEAD_DIM, 2, generator=torch.Generator().manual_seed(0), learnable=False
    ),
    "XPosRotaryEmbedding": lambda: rope_ext.XPosRotaryEmbedding(HEAD_DIM, centre=3.0),
}
every_module = pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)


def axes_of(module: Rotation) -> int | None:
    return getattr(module, "axes", None)


def positions_for(module: Rotation, *shape: int, seed: int = 3, most: int = 4000) -> Tensor:
    """Whole positions of either sign, with an axis of axes for a module that has several."""
    axes = axes_of(module)
    shape = shape if axes is None else (*shape, axes)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most, shape, generator=generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("interleaved", [False, True], ids=["half-split", "interleaved"])
@pytest.mark.parametrize("seq_dim", [-3, -2], ids=["tokens first", "heads first"])
@pytest.mark.parametrize(("rotary_dim", "start"), [(None, 0), (8, 0), (8, 8), (6, 3)])
def test_query_and_key_rotate_as_the_reference_says(
    rotary_dim: int | None,
    start: int,
    seq_dim: int,
    interleaved: bool,
    inplace: bool,
    dtype: torch.dtype,
):
    rotary = RotaryEmbedding(
        HEAD_DIM,
        base=500.0,
        rotary_dim=rotary_dim,
        start=start,
        interleaved=interleaved,
        seq_dim=seq_dim,
        inplace=inplace,
    )
    shapes = [(2, TOKENS, 4, HEAD_DIM), (2, TOKENS, 2, HEAD_DIM)]
    query, key = (normal(*shape, dtype=dtype, seed=len(shape)) for shape in shapes)
    if seq_dim == -2:
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    radians = frequencies.standard(rotary_dim or HEAD_DIM, 500.0)
    options = {"start": start, "seq_dim": seq_dim, "interleaved": interleaved}
    new_query, new_key = rotary(query.clone(), key.clone())
    assert_turned(new_query, query, None, radians, **options)
    assert_turned(new_key, key, None, radians, **options)


def test_the_default_base_is_that_of_the_paper():
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_turned(RotaryEmbedding(HEAD_DIM)(x.clone()), x, None, frequencies.standard(16, 10000.0))


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.float32, torch.float64], ids=name
)
@pytest.mark.parametrize("shape", [(TOKENS,), (1, TOKENS), (2, TOKENS)])
def test_positions_may_be_given(shape: tuple[int, ...], dtype: torch.dtype):
    x = normal(2, TOKENS, 3, HEAD_DIM)
    positions = torch.randint(-4000, 4000, shape).to(dtype)
    if dtype.is_floating_point:
        positions += torch.rand(shape, dtype=dtype)
    new_x = RotaryEmbedding(HEAD_DIM)(x.clone(), positions=positions)
    assert_turned(new_x, x, positions, STANDARD)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_no_position_is_too_large(dtype: torch.dtype):
    rotary = RotaryEmbedding(HEAD_DIM)
    x = normal(4, 3, HEAD_DIM, dtype=dtype)
    for far in (100, 131072, 2**31, -(2**31), 2**50):
        positions = torch.tensor([far, far - 1, -far, 0])
        assert_turned(rotary(x.clone(), positions=positions), x, positions, STANDARD)


def test_float64_queries_turn_by_the_same_turns():
    rotary = RotaryEmbedding(HEAD_DIM)
    x = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64)
    positions = torch.tensor([2**31, -1, 7, 2**31 + 1, 0])
    expected = rope_ext.rotate_frequencies(x, positions, frequencies.turns(STANDARD).to(x.device))
    assert_same_bits(rotary(x.clone(), positions=positions), expected)


def test_frequencies_may_be_given():
    x = normal(TOKENS, 3, HEAD_DIM)
    radians = torch.rand(8, dtype=torch.float64)
    assert_turned(RotaryEmbedding(HEAD_DIM, frequencies=radians)(x.clone()), x, None, radians)
    per_head = torch.rand(2, 3, 5, dtype=torch.float64)
    rotary = RotaryEmbedding(HEAD_DIM, frequencies=per_head)
    positions = torch.randint(-9, 9, (TOKENS, 2))
    assert_turned(rotary(x.clone(), positions=positions), x, positions, per_head)


def test_frequencies_that_do_not_fit_rotary_dim_are_refused():
    with pytest.raises(ValueError, match=r"^rotary_dim must be twice the 3 pairs .* got 8"):
        RotaryEmbedding(HEAD_DIM, rotary_dim=8, frequencies=torch.rand(3))


def test_query_alone_is_returned_alone():
    x = normal(TOKENS, 2, HEAD_DIM)
    assert isinstance(RotaryEmbedding(HEAD_DIM)(x.clone()), Tensor)
    query, key = RotaryEmbedding(HEAD_DIM)(x.clone(), x.clone())
    assert_same_bits(query, key)


# xPos does not reach as far: test_xpos.py.
@pytest.mark.parametrize("build", list(MODULES.values())[:-1], ids=list(MODULES)[:-1])
def test_scores_depend_on_differences_of_positions_alone(build):
    """To 1e-11 in float64, at offsets up to 2^30."""
    module = build()
    query, key = (normal(1, 2, HEAD_DIM, dtype=torch.float64, seed=seed) for seed in (0, 1))
    length = {"length": 7} if isinstance(module, RotaryEmbedding) else {}
    for distance in (0, 1, 1000):
        scores = []
        for offset in (0, 1, -12345, 2**20, 2**30):
            of_key = torch.full((1,) if axes_of(module) is None else (1, module.axes), offset)
            new_query = module(query.clone(), positions=of_key + distance, **length)
            _, new_key = module(query.clone(), key.clone(), of_key, **length)
            scores.append((new_query * new_key).sum(-1))
        for score in scores[1:]:
            assert (score - scores[0]).abs().max() <= 1e-11


@every_module
def test_a_batch_equals_its_rows(build):
    module = build()
    query, key = normal(3, TOKENS, 2, HEAD_DIM), normal(3, TOKENS, 2, HEAD_DIM, seed=1)
    positions = positions_for(module, 3, TOKENS)
    length = {"length": 7} if isinstance(module, RotaryEmbedding) else {}
    batch = module(query.clone(), key.clone(), positions, **length)
    for row in range(3):
        alone = module(query[row].clone(), key[row].clone(), positions[row], **length)
        assert_same_bits(alone[0], batch[0][row])
        assert_same_bits(alone[1], batch[1][row])


@every_module
def test_ragged_sequences_packed_into_one_equal_padded_ones(build):
    module = build()
    lengths = (5, 1, 3)
    padded = normal(3, 5, 2, HEAD_DIM)
    positions = positions_for(module, 3, 5)
    length = {"length": 7} if isinstance(module, RotaryEmbedding) else {}
    packed = torch.cat([row[:count] for row, count in zip(padded, lengths, strict=True)])
    packed_positions = torch.cat(
        [row[:count] for row, count in zip(positions, lengths, strict=True)]
    )
    expected = module(padded.clone(), positions=positions, **length)
    actual = module(packed, positions=packed_positions, **length)
    for row, part in zip(expected, actual.split(lengths), strict=True):
        assert_same_bits(part, row[: len(part)])


@every_module
@pytest.mark.parametrize("grad", [False, True])
def test_a_packed_projection_rotates_as_its_parts_do(build, grad: bool):
    module = build()
    packed = normal(3, TOKENS, 6 * HEAD_DIM).requires_grad_(grad)
    positions = positions_for(module, 3, TOKENS)
    query, key, value = packed.unflatten(-1, (6, HEAD_DIM)).chunk(3, dim=-2)
    query, key = module(query.clone(), key.clone(), positions)
    expected = torch.cat((query, key, value), dim=-2).flatten(-2)
    given = packed * 1
    actual = module.forward_packed(given, 2, 2, positions)
    assert actual is given
    assert_same_bits(actual.detach(), expected.detach())
    if grad:
        incoming = normal(*packed.shape, seed=1)
        torch.testing.assert_close(
            *(torch.autograd.grad(result, packed, incoming)[0] for result in (actual, expected)),
            rtol=0,
            atol=2**-20,
        )


def test_a_packed_projection_of_grouped_queries_and_heads_first_rotates():
    """A projection has its tokens first, wherever the heads of the module are."""
    packed = normal(2, TOKENS, (4 + 2 + 2) * HEAD_DIM)
    rotary = RotaryEmbedding(HEAD_DIM, seq_dim=-2, inplace=False)
    actual = rotary.forward_packed(packed, 4, 2)
    assert_turned(actual, packed, None, STANDARD, head_dim=HEAD_DIM, num_heads=6)
    with pytest.raises(ValueError, match=r"^num_heads must"):
        rotary.forward_packed(packed, 8, 2)


@every_module
def test_in_place_returns_the_tensors_that_it_was_given(build):
    module = build()
    query, key = normal(TOKENS, 2, HEAD_DIM), normal(TOKENS, 2, HEAD_DIM, seed=1)
    positions = positions_for(module, TOKENS)
    new_query, new_key = module(query, key, positions)
    assert new_query is query
    assert new_key is key
    view = query.transpose(0, 1).transpose(0, 1)
    assert module(view, positions=positions) is view


@every_module
def test_not_in_place_leaves_its_inputs_alone(build):
    module = build()
    query, key = normal(TOKENS, 2, HEAD_DIM), normal(TOKENS, 2, HEAD_DIM, seed=1)
    kept = query.clone(), key.clone()
    positions = positions_for(module, TOKENS)
    expected = module(query.clone(), key.clone(), positions)
    module.inplace = False
    actual = module(query, key, positions)
    for new, old, x, same in zip(actual, kept, (query, key), expected, strict=True):
        assert_same_bits(new, same)
        assert_same_bits(x, old)
        assert x._version == 0


def test_a_tensor_under_grad_that_is_no_view_is_rotated_in_place():
    leaf = normal(TOKENS, 2, HEAD_DIM).requires_grad_()
    query, key = leaf * 1, leaf * 2
    new_query, new_key = RotaryEmbedding(HEAD_DIM)(query, key)
    assert new_query is query
    assert new_key is key


IN_NEED_OF_A_COPY = {
    "leaf": lambda leaf: leaf,
    "view of a leaf": lambda leaf: leaf.view(leaf.shape),
    "view": lambda leaf: (leaf * 1).view(leaf.shape),
    "slice": lambda leaf: torch.cat((leaf, leaf), dim=-2)[:, :2],
    "chunk": lambda leaf: torch.cat((leaf, leaf), dim=-2).chunk(2, dim=-2)[0],
}


@pytest.mark.parametrize("role", ["query", "key", "both"])
@pytest.mark.parametrize("given", IN_NEED_OF_A_COPY.values(), ids=IN_NEED_OF_A_COPY)
def test_leaves_and_views_under_grad_are_rotated_functionally(given, role: str):
    leaf = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64).requires_grad_()
    plain = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64, seed=1)
    query = given(leaf) if role in ("query", "both") else plain.clone()
    key = given(leaf) if role in ("key", "both") else plain.clone()
    old_query, old_key = query.detach().clone(), key.detach().clone()

    new_query, new_key = RotaryEmbedding(HEAD_DIM)(query, key)
    assert_turned(new_query.detach(), old_query, None, STANDARD)
    assert_turned(new_key.detach(), old_key, None, STANDARD)
    for old, tensor in ((old_query, query), (old_key, key)):
        if tensor.requires_grad:
            assert_same_bits(tensor.detach(), old)

    incoming = normal(TOKENS, 2, HEAD_DIM, dtype=torch.float64, seed=2)
    torch.autograd.backward(
        [tensor for tensor in (new_query, new_key) if tensor.requires_grad],
        [incoming] * (2 if role == "both" else 1),
    )
    share = rotated(incoming, None, STANDARD, inverse=True) * (2 if role == "both" else 1)
    # Cosine and sine to 1e-14 times two elements below 4, twice.
    torch.testing.assert_close(leaf.grad, share, rtol=0, atol=2e-13)


@pytest.mark.parametrize("given", ["query", "positions"])
def test_views_are_rotated_functionally_where_only_angles_need_a_gradient(given: str):
    base = normal(TOKENS, 4, HEAD_DIM)
    kept = base.clone()
    rotary = RotaryEmbedding(HEAD_DIM, learnable=given == "query")
    positions = torch.arange(float(TOKENS), requires_grad=given == "positions")
    new_query, new_key = rotary(base[:, :2], base[:, 2:], positions)
    assert_same_bits(base, kept)
    assert new_query.requires_grad
    assert new_key.requires_grad


def test_a_leaf_without_grad_mode_is_rotated_in_place():
    leaf = normal(TOKENS, 2, HEAD_DIM).requires_grad_()
    with torch.no_grad():
        assert RotaryEmbedding(HEAD_DIM)(leaf) is leaf


@pytest.mark.parametrize("head_dim", [-2, 0, 15])
def test_odd_or_non_positive_head_dim_is_refused(head_dim: int):
    with pytest.raises(ValueError, match=f"{head_dim}"):
        RotaryEmbedding(head_dim)


@pytest.mark.parametrize("rotary_dim", [-2, 0, 3, 15, 18])
def test_odd_non_positive_or_too_wide_rotary_dim_is_refused(rotary_dim: int):
    with pytest.raises(ValueError, match=f"^rotary_dim .*{rotary_dim}"):
        RotaryEmbedding(HEAD_DIM, rotary_dim=rotary_dim)


def test_an_odd_head_dim_is_accepted_with_an_even_rotary_dim():
    x = normal(TOKENS, 2, 15)
    new_x = RotaryEmbedding(15, rotary_dim=8)(x.clone())
    assert_turned(new_x, x, None, frequencies.standard(8))


@pytest.mark.parametrize("start", [-1, 9])
def test_a_span_outside_of_the_head_is_refused(start: int):
    with pytest.raises(ValueError, match=rf"^rotary_dim must fit .*\bstart={start}$"):
        RotaryEmbedding(HEAD_DIM, rotary_dim=8, start=start)


def test_all_from_start_on_is_rotated_unless_told():
    x = normal(TOKENS, 2, HEAD_DIM)
    new_x = RotaryEmbedding(HEAD_DIM, start=4)(x.clone())
    assert_turned(new_x, x, None, frequencies.standard(12), start=4)


@pytest.mark.parametrize("base", [0.0, -1.0, math.inf, math.nan])
def test_base_that_is_not_positive_and_finite_is_refused(base: float):
    with pytest.raises(ValueError, match=f"^base must be positive and finite, got {base}"):
        RotaryEmbedding(HEAD_DIM, base=base)


@pytest.mark.parametrize("seq_dim", [-4, -1, 1])
def test_another_seq_dim_is_refused(seq_dim: int):
    with pytest.raises(ValueError, match=f"^seq_dim .*{seq_dim}"):
        RotaryEmbedding(HEAD_DIM, seq_dim=seq_dim)


@every_module
@pytest.mark.parametrize("shape", [(), (HEAD_DIM,), (TOKENS, HEAD_DIM), (TOKENS, 2, 32)])
def test_a_tensor_without_heads_of_its_head_dim_is_refused(build, shape: tuple[int, ...]):
    module = build()
    with pytest.raises(ValueError, match=r"^query must have .* head_dim 16, got shape"):
        module(normal(*shape), positions=positions_for(module, TOKENS))


WRONG_POSITIONS = {
    "too few": (torch.arange(4), ValueError),
    "too many": (torch.arange(7), ValueError),
    "one for all": (torch.arange(1), ValueError),
    "without dimensions": (torch.tensor(0), ValueError),
    "for another batch": (torch.zeros(3, TOKENS, dtype=torch.int64), ValueError),
    "per head": (torch.zeros(2, TOKENS, 4, dtype=torch.int64), ValueError),
    "boolean": (torch.ones(TOKENS, dtype=torch.bool), TypeError),
    "half": (torch.zeros(TOKENS, dtype=torch.float16), TypeError),
}


@pytest.mark.parametrize(("positions", "error"), WRONG_POSITIONS.values(), ids=WRONG_POSITIONS)
def test_wrong_positions_are_refused(positions: Tensor, error: type[Exception]):
    x = normal(2, TOKENS, 4, HEAD_DIM)
    kept = x.clone()
    with pytest.raises(error, match=r"^positions must"):
        RotaryEmbedding(HEAD_DIM)(x, positions=positions)
    assert_same_bits(x, kept)


def test_options_take_keywords_only():
    with pytest.raises(TypeError):
        RotaryEmbedding(HEAD_DIM, 10000.0)


@every_module
def test_nothing_is_stored_in_the_state_dict(build):
    module = build()
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    module.load_state_dict({})


def saved_and_loaded(module: Rotation) -> Rotation:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def made_in_half_precision_on_meta(module: Rotation) -> Rotation:
    return module.to("meta").bfloat16().to_empty(device=torch.get_default_device())


CHANGES = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to(float16)": lambda module: module.to(torch.float16),
    "to(device)": lambda module: module.to(torch.get_default_device()),
    "float": lambda module: module.half().float(),
    "double": lambda module: module.double(),
    "inside another module": lambda module: nn.Sequential(module).half()[0],
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
    "meta and to_empty": lambda module: module.to("meta").to_empty(
        device=torch.get_default_device()
    ),
    "to_empty": lambda module: module.to_empty(device=torch.get_default_device()),
    "meta, half and to_empty": made_in_half_precision_on_meta,
    "inside another module, to_empty": lambda module: nn.Sequential(module).to_empty(
        device=torch.get_default_device()
    )[0],
    "eval": lambda module: module.eval(),
}


@every_module
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_rotation_survives(change, build):
    module = build()
    query, key = normal(TOKENS, 2, HEAD_DIM), normal(TOKENS, 2, HEAD_DIM, seed=1)
    whole = positions_for(module, TOKENS)
    for positions in (whole, whole + 0.25):
        expected = module(query.clone(), key.clone(), positions)
        changed = change(build())
        actual = changed(query.clone(), key.clone(), positions)
        for old, new in zip(expected, actual, strict=True):
            assert_same_bits(new, old)


@every_module
def test_autocast_changes_nothing(build):
    module = build()
    query, positions = normal(TOKENS, 2, HEAD_DIM), positions_for(module, TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = module(query.clone(), positions=positions)
    assert_same_bits(actual, module(query.clone(), positions=positions))


@every_module
def test_a_module_made_on_the_meta_device_rotates_after_to_empty(build):
    with torch.device("meta"):
        module = build()
    assert all(buffer.device.type == "meta" for buffer in module.buffers())
    module.to_empty(device=torch.get_default_device())
    query, positions = normal(TOKENS, 2, HEAD_DIM), positions_for(module, TOKENS)
    expected = build()(query.clone(), positions=positions)
    assert_same_bits(module(query, positions=positions), expected)


@every_module
def test_a_module_rotates_on_the_meta_device(build):
    module = build().to("meta")
    query = torch.empty(2, TOKENS, 4, HEAD_DIM, device="meta")
    if isinstance(module, rope_ext.MixedRotaryEmbedding):
        query = query[:, :, :2]
    positions = positions_for(module, TOKENS).to("meta")
    assert module(query, positions=positions).shape == query.shape


def test_reset_parameters_restores_the_state():
    rotary = RotaryEmbedding(HEAD_DIM)
    rotary.turns.zero_()
    rotary.reset_parameters()
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_turned(rotary(x.clone()), x, None, STANDARD)


def test_a_move_leaves_shared_memory_shared():
    rotary = RotaryEmbedding(HEAD_DIM).share_memory()
    assert rotary.turns.is_shared()


def test_one_module_serves_all_dtypes_in_turn():
    rotary = RotaryEmbedding(HEAD_DIM)
    for dtype in (*DTYPES, *reversed(DTYPES)):
        x = normal(TOKENS, 2, HEAD_DIM, dtype=dtype)
        assert_turned(rotary(x.clone()), x, None, STANDARD)


def test_a_module_used_in_inference_mode_first_can_be_trained_later():
    rotary = RotaryEmbedding(HEAD_DIM)
    with torch.inference_mode():
        rotary(normal(TOKENS, 2, HEAD_DIM))
    leaf = normal(TOKENS, 2, HEAD_DIM).requires_grad_()
    rotary(leaf * 1).sum().backward()
    assert_turned(leaf.grad, torch.ones_like(leaf), None, STANDARD, inverse=True)


def test_the_names_of_hugging_face_can_be_read():
    rotary = RotaryEmbedding(HEAD_DIM, scaling=scaling.YaRN(4.0, 64)).half()
    radians, factor = scaling.YaRN(4.0, 64)(STANDARD)
    assert_same_bits(rotary.inv_freq, radians.float())
    assert_same_bits(rotary.original_inv_freq, radians.float())
    assert rotary.attention_scaling == factor
    assert rotary.rope_type == "yarn"


RULES = {
    "default": None,
    "linear": scaling.Linear(2.0),
    "NTK": scaling.NTK(2.0),
    "dynamic": scaling.DynamicNTK(2.0, 64),
    "longrope": scaling.LongRoPE((1.0,) * 8, (2.0,) * 8, 64, 4.0),
    "llama3": scaling.Llama3(4.0, 64),
    "proportional": scaling.Proportional(0.5),
}


@pytest.mark.parametrize(("kind", "rule"), RULES.items(), ids=RULES)
def test_every_rule_turns_as_it_says(kind: str, rule: scaling.Scaling | None):
    rotary = RotaryEmbedding(HEAD_DIM, scaling=rule)
    assert rotary.rope_type == kind
    radians, factor = (STANDARD, 1.0) if rule is None else rule(STANDARD, TOKENS)
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_turned(rotary(x.clone()), x, None, radians, factor)
    assert_same_bits(rotary.inv_freq, radians.float())


CONFIG = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 4}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
        {
            **{"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0},
            "original_max_position_embeddings": 64,
        },
    ],
    ids=["default", "partial", "dynamic", "yarn"],
)
def test_a_configuration_of_transformers_gives_its_rotation(parameters: dict[str, object]):
    config = {**CONFIG, "rope_parameters": parameters}
    settings = scaling.from_hf_config(config)
    rotary = RotaryEmbedding.from_hf_config(config, interleaved=True)
    radians = frequencies.standard(settings.rotary_dim, 500.0)
    factor = 1.0
    if settings.scaling is not None:
        radians, factor = settings.scaling(radians, TOKENS)
    x = normal(TOKENS, 2, HEAD_DIM)
    assert_turned(rotary(x.clone()), x, None, radians, factor, interleaved=True)
    assert rotary.rope_type == parameters["rope_type"]


def test_a_configuration_with_sections_is_refused():
    parameters = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [2, 3, 3]}
    with pytest.raises(ValueError, match=r"^config must have one axis .* \[2, 3, 3\]"):
        RotaryEmbedding.from_hf_config({**CONFIG, "rope_parameters": parameters})


def test_the_options_show_in_its_text():
    rotary = RotaryEmbedding(
        HEAD_DIM, rotary_dim=8, start=3, interleaved=True, scaling=scaling.Linear(2.0)
    )
    assert str(rotary) == (
        "RotaryEmbedding(16, rotary_dim=8, start=3, interleaved=True, seq_dim=-3, inplace=True, "
        "learnable=False, scaling=Linear(factor=2.0))"
    )
