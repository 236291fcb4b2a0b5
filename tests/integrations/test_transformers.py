"""Models of transformers that rotate through rope_ext, small and random."""

from __future__ import annotations

import copy
import gc
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from unittest import mock

import pytest
import torch
from inputs import DTYPES, name
from tolerance import assert_rotated
from torch import Tensor, nn

from rope_ext.integrations.transformers import apply_rotary_pos_emb, patch, unpatch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.models.llama import modeling_llama  # noqa: E402

LAYERS = 2
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    # Scores that differ, so that attention depends on the angles.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))


def qwen2() -> nn.Module:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, num_key_value_heads=2))


def gemma3() -> nn.Module:
    """Norms between projection and rotation, and another base in each of the two layers."""
    config = transformers.Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


def gpt_neox() -> nn.Module:
    """Partial rotary: 4 of the 16 elements of a head."""
    config = transformers.GPTNeoXConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
    )
    return transformers.GPTNeoXForCausalLM(config)


@pytest.fixture(params=[llama, qwen2, gemma3, gpt_neox])
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    model = request.param().eval()
    yield model
    unpatch(model)


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(2, 96, (2, 24), generator=torch.Generator().manual_seed(1))


def modeling_module(model: nn.Module) -> ModuleType:
    return importlib.import_module(type(model).__module__)


def assert_within_noise(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """Two runs that each err by no more than the noise differ by no more than twice the noise."""
    noise = (theirs - exact).abs().max()
    assert (ours - theirs).abs().max() <= 2 * noise


@torch.no_grad()
def test_every_rotation_in_a_model_is_right_to_one_rounding(model: nn.Module, token_ids: Tensor):
    calls = []

    def recorded(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        inputs = q.clone(), k.clone()
        rotated = apply_rotary_pos_emb(q, k, cos, sin)
        calls.append((inputs, rotated, cos, sin))
        return rotated

    patch(model)
    with mock.patch.object(modeling_module(model), "apply_rotary_pos_emb", recorded):
        model(token_ids)
    assert len(calls) == LAYERS
    for inputs, rotated, cos, sin in calls:
        half = cos.shape[-1] // 2
        for x, y in zip(inputs, rotated, strict=True):
            assert_rotated(y.clone(), x, cos[..., :half], sin[..., :half], seq_dim=-2)


@torch.no_grad()
def test_logits_differ_by_float_noise_alone(model: nn.Module, token_ids: Tensor):
    theirs = model(token_ids).logits.double()
    exact = copy.deepcopy(model).double()(token_ids).logits
    with mock.patch.object(
        modeling_module(model), "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k)
    ):
        unrotated = model(token_ids).logits.double()
    patch(model)
    ours = model(token_ids).logits.double()
    assert_within_noise(ours, theirs, exact)
    with pytest.raises(AssertionError):
        assert_within_noise(unrotated, theirs, exact)
    unpatch(model)
    assert torch.equal(model(token_ids).logits.double(), theirs)


def test_greedy_tokens_are_the_same(model: nn.Module, token_ids: Tensor):
    def generate() -> Tensor:
        mask = torch.ones_like(token_ids)
        return model.generate(token_ids, attention_mask=mask, max_new_tokens=12, do_sample=False)

    theirs = generate()
    patch(model)
    assert torch.equal(generate(), theirs)


def test_gradients_differ_by_float_noise_alone(model: nn.Module, token_ids: Tensor):
    def gradient(model: nn.Module) -> Tensor:
        model.zero_grad()
        model(token_ids, labels=token_ids).loss.backward()
        return torch.cat([x.grad.flatten().double() for x in model.parameters()])

    theirs = gradient(model)
    exact = gradient(copy.deepcopy(model).double())
    patch(model)
    assert_within_noise(gradient(model), theirs, exact)


def heads(dtype: torch.dtype, unsqueeze_dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, cos and sin as an attention layer has them: views of projections, full tables."""
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, 5, 3 * 8, generator=generator).to(dtype).unflatten(-1, (3, 8))
    key = torch.randn(2, 5, 8, generator=generator).to(dtype).unflatten(-1, (1, 8))
    angles = torch.rand(1, 5, 4, generator=generator).repeat(1, 1, 2) * 6
    if unsqueeze_dim == 1:
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    return query, key, angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize(("unsqueeze_dim", "seq_dim"), [(1, -2), (2, -3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_inference_rotates_in_place(dtype: torch.dtype, unsqueeze_dim: int, seq_dim: int):
    query, key, cos, sin = heads(dtype, unsqueeze_dim)
    before = query.clone(), key.clone()
    rotated = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=unsqueeze_dim)
    assert rotated[0] is query
    assert rotated[1] is key
    for x, y in zip(before, rotated, strict=True):
        assert_rotated(y, x, cos[..., :4], sin[..., :4], seq_dim=seq_dim)


@pytest.mark.parametrize("trained", ["query", "key"])
def test_training_leaves_its_inputs_alone(trained: str):
    query, key, cos, sin = heads(torch.float32, 1)
    (query if trained == "query" else key).requires_grad_()
    before = query.clone(), key.clone()
    rotated = apply_rotary_pos_emb(query, key, cos, sin)
    for x, unchanged, y in zip((query, key), before, rotated, strict=True):
        assert torch.equal(x, unchanged)
        assert_rotated(y.detach(), x.detach(), cos[..., :4], sin[..., :4], seq_dim=-2)


def test_tables_without_a_batch_serve_every_sequence():
    query, key, cos, sin = heads(torch.float32, 2)
    expected = apply_rotary_pos_emb(query.clone(), key.clone(), cos, sin, unsqueeze_dim=2)
    rotated = apply_rotary_pos_emb(query, key, cos[0], sin[0], unsqueeze_dim=1)
    assert torch.equal(rotated[0], expected[0])
    assert torch.equal(rotated[1], expected[1])


@pytest.mark.parametrize("unsqueeze_dim", [0, 3])
def test_tables_without_a_place_for_heads_are_refused(unsqueeze_dim: int):
    query, key, cos, sin = heads(torch.float32, 1)
    with pytest.raises(ValueError, match=f"unsqueeze_dim must be 1 or 2 .* got {unsqueeze_dim}"):
        apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=unsqueeze_dim)


def test_patch_says_what_it_replaces(model: nn.Module):
    expected = (f"{type(model).__module__}.apply_rotary_pos_emb",)
    assert patch(model) == expected
    assert patch(model) == expected
    assert modeling_module(model).apply_rotary_pos_emb is apply_rotary_pos_emb


def test_unpatch_restores_the_original_object(model: nn.Module):
    module = modeling_module(model)
    original = module.apply_rotary_pos_emb
    patch(model)
    patch(model)
    unpatch(model)
    assert module.apply_rotary_pos_emb is original
    unpatch(model)
    assert module.apply_rotary_pos_emb is original


def test_the_last_patched_model_of_a_modeling_module_restores_it():
    original = modeling_llama.apply_rotary_pos_emb
    first, second, bystander = llama(), llama(), llama()
    patch(first)
    patch(second)
    unpatch(first)
    unpatch(bystander)
    assert modeling_llama.apply_rotary_pos_emb is apply_rotary_pos_emb
    unpatch(second)
    assert modeling_llama.apply_rotary_pos_emb is original


def test_a_model_that_is_gone_does_not_count():
    original = modeling_llama.apply_rotary_pos_emb
    gone, present = llama(), llama()
    patch(gone)
    patch(present)
    del gone
    gc.collect()
    unpatch(present)
    assert modeling_llama.apply_rotary_pos_emb is original


def test_what_others_put_in_its_place_stays():
    original, model = modeling_llama.apply_rotary_pos_emb, llama()
    patch(model)
    with mock.patch.object(modeling_llama, "apply_rotary_pos_emb") as others:
        unpatch(model)
        assert modeling_llama.apply_rotary_pos_emb is others
    unpatch(model)
    assert modeling_llama.apply_rotary_pos_emb is original


def test_a_part_of_a_model_can_be_patched():
    attention = llama().model.layers[0].self_attn
    assert patch(attention) == ("transformers.models.llama.modeling_llama.apply_rotary_pos_emb",)
    unpatch(attention)


def gpt2() -> nn.Module:
    """Has no rotation."""
    return transformers.GPT2Model(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1))


def cohere() -> nn.Module:
    """Rotates neighbours."""
    return transformers.CohereModel(transformers.CohereConfig(**SIZES))


def gptj() -> nn.Module:
    """Takes other arguments."""
    return transformers.GPTJModel(transformers.GPTJConfig(n_embd=8, n_layer=1, n_head=1))


def gpt_oss() -> nn.Module:
    """Takes tables of half the width."""
    return transformers.GptOssModel(transformers.GptOssConfig(**SIZES))


def deepseek() -> nn.Module:
    """Chooses between two rotations while it runs."""
    return transformers.DeepseekV3Model(transformers.DeepseekV3Config(**SIZES))


@pytest.mark.parametrize("build", [gpt2, cohere, gptj, gpt_oss, deepseek])
def test_a_model_that_would_not_change_is_refused(build: Callable[[], nn.Module]):
    with torch.device("meta"):
        model = build()
    module = modeling_module(model)
    original = getattr(module, "apply_rotary_pos_emb", None)
    with pytest.raises(ValueError, match=module.__name__):
        patch(model)
    assert getattr(module, "apply_rotary_pos_emb", None) is original


def test_a_rotation_that_differs_on_partial_heads_alone_is_refused():
    def trailing(q, k, cos, sin, unsqueeze_dim=1):
        width = cos.shape[-1]
        return tuple(
            torch.cat((x[..., :-width], turned), dim=-1)
            for x, turned in zip(
                (q, k),
                original(q[..., -width:], k[..., -width:], cos, sin, unsqueeze_dim),
                strict=True,
            )
        )

    original = modeling_llama.apply_rotary_pos_emb
    with (
        mock.patch.object(modeling_llama, "apply_rotary_pos_emb", trailing),
        pytest.raises(ValueError, match="modeling_llama"),
    ):
        patch(llama())
