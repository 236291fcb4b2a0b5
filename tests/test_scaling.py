"""Scaling rules against recorded and installed transformers, and against their definitions."""

import dataclasses
import json
import math
import pickle
import re
from pathlib import Path

import mpmath
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    DeepseekV4Config,
    Ernie4_5_VLMoeTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    JetMoeConfig,
    LlamaConfig,
    MiniMaxM2Config,
    MiniMaxM3VLTextConfig,
    ModernBertConfig,
    Phi3Config,
    Qwen2VLTextConfig,
    Qwen3VLTextConfig,
    Zamba2Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_ext.frequencies import standard, wavelengths
from rope_ext.scaling import (
    NTK,
    DynamicNTK,
    Linear,
    Llama3,
    LongRoPE,
    Pinned,
    Proportional,
    RotarySettings,
    Scaling,
    YaRN,
    from_hf_config,
)

EPS = torch.finfo(torch.float64).eps
HALF_ULP32 = torch.finfo(torch.float32).eps / 2
GOLDEN = Path(__file__).parent / "golden" / "frequencies.json"
RECORDED = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}
SHORT = tuple(1 + i / 64 for i in range(32))
LONG = tuple(1 + i for i in range(32))


def frequencies_of(
    settings: RotarySettings, length: int | Tensor | None = None
) -> tuple[Tensor, float]:
    series = standard(settings.rotary_dim, settings.base)
    return (series, 1.0) if settings.scaling is None else settings.scaling(series, length)


def float32_error(settings: RotarySettings, scaled: Tensor) -> Tensor:
    """How far the float32 frequencies of transformers may be from the exact ones.

    It raises the base to an exponent that is rounded by half an ulp, which moves the power by that
    share of ln(power); the power is right to an ulp; its reciprocal, a base that is a float32
    number, a divisor, a list's number and our own rounding for the comparison take half an ulp
    each. Rules that blend round the shares: those of Llama 3 come from the turns of a pair, with
    all of the error so far and three roundings, over the distance of the two factors; those of YaRN
    from two ends of at most P pairs and their difference, and are subtracted from 1 twice.
    """
    series = standard(settings.rotary_dim, settings.base)
    share = series.log().abs() + 2 + 1 + 1 + 1 + 1 + 1
    error = share * scaled
    rule = settings.scaling
    if isinstance(rule, Llama3) and rule.low_freq_factor < rule.high_freq_factor:
        turns = rule.original_context_length / wavelengths(series)
        blends = (turns > rule.low_freq_factor) & (turns < rule.high_freq_factor)
        moved = turns * (share + 3) / (rule.high_freq_factor - rule.low_freq_factor)
        error += blends * moved * (series - series / rule.factor)
    if isinstance(rule, YaRN):
        blends = (scaled != series) & (scaled != series / rule.factor)
        error += blends * (2 + 1 + 2) * (series - series / rule.factor)
    return error * HALF_ULP32


def settings_of(recorded: dict) -> RotarySettings:
    keys = ("head_dim", "max_position_embeddings", "rope_parameters")
    return from_hf_config({key: recorded[key] for key in keys})


@pytest.mark.parametrize("case", RECORDED)
def test_a_recorded_rule_is_reproduced(case: str):
    recorded = RECORDED[case]
    settings = settings_of(recorded)
    scaled, scale = frequencies_of(settings, recorded["seq_len"])
    expected = torch.tensor([float(number) for number in recorded["inv_freq"]]).double()
    assert settings.rotary_dim == recorded["rotary_dim"]
    assert scale == settings.scale == float(recorded["attention_factor"])
    assert scaled.dtype == torch.float64
    assert ((scaled.float() - expected).abs() <= float32_error(settings, scaled)).all()


def test_most_recorded_frequencies_are_equal_to_the_last_bit_of_float32():
    """The rest is what transformers' float32 loses, at most six units in the last place."""
    apart = []
    for recorded in RECORDED.values():
        scaled, _ = frequencies_of(settings_of(recorded), recorded["seq_len"])
        expected = torch.tensor([float(number) for number in recorded["inv_freq"]])
        apart.append((scaled.float().view(torch.int32) - expected.view(torch.int32)).abs())
    units = torch.cat(apart)
    assert units.max() <= 6
    assert (units == 0).double().mean() > 0.65
    assert (units <= 1).double().mean() > 0.95


KINDS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 4096},
    "longrope": {
        "short_factor": list(SHORT),
        "long_factor": list(LONG),
        "original_max_position_embeddings": 4096,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "proportional": {"partial_rotary_factor": 0.25},
}


def test_every_rule_of_transformers_is_known():
    assert set(KINDS) == set(ROPE_INIT_FUNCTIONS)


def check_installed(rope_parameters: dict, length: int | None = None) -> None:
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=8,
        max_position_embeddings=16384,
        rope_parameters=rope_parameters,
    )
    rule = ROPE_INIT_FUNCTIONS[rope_parameters["rope_type"]]
    expected, attention_factor = rule(config, "cpu", seq_len=length)
    settings = from_hf_config(config)
    scaled, scale = frequencies_of(settings, length)
    assert scale == attention_factor
    assert ((scaled.float() - expected.double()).abs() <= float32_error(settings, scaled)).all()


@pytest.mark.parametrize("length", [None, 1000, 4096, 4097, 20000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_is_that_of_the_installed_transformers(kind: str, length: int | None):
    check_installed({"rope_type": kind, "rope_theta": 1e5, **KINDS[kind]}, length)


@pytest.mark.parametrize(
    "ends",
    [
        {"rope_theta": 1e2, "original_max_position_embeddings": 131072, "beta_fast": 2000.0},
        {"rope_theta": 1e4, "original_max_position_embeddings": 100},
        {"rope_theta": 1e4, "original_max_position_embeddings": 4},
    ],
    ids=["behind the last pair", "before the first", "both before the first"],
)
@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_between_ends_outside_of_the_pairs_is_that_of_transformers(ends: dict, truncate: bool):
    check_installed({"rope_type": "yarn", "factor": 4.0, "truncate": truncate, **ends})


CONFIGURATIONS = [
    (LlamaConfig(), None, RotarySettings(128, 128, 10000.0)),
    (GPTNeoXConfig(rotary_pct=0.25), None, RotarySettings(96, 24, 10000.0)),
    (MiniMaxM2Config(rotary_dim=64), None, RotarySettings(128, 64, 5e6)),
    (MiniMaxM3VLTextConfig(), None, RotarySettings(128, 128, 5e6)),
    (JetMoeConfig(), None, RotarySettings(128, 128, 10000.0)),
    (Zamba2Config(), None, RotarySettings(160, 160, 10000.0)),
    (DeepseekV3Config(), None, RotarySettings(64, 64, 10000.0)),
    (DeepseekV4Config(), "main", RotarySettings(512, 64, 10000.0)),
    (DeepseekV4Config(), "compress", RotarySettings(512, 64, 160000.0)),
    (Gemma3TextConfig(), "sliding_attention", RotarySettings(256, 256, 10000.0)),
    (Gemma3TextConfig(), "full_attention", RotarySettings(256, 256, 1e6)),
    (ModernBertConfig(), "sliding_attention", RotarySettings(64, 64, 10000.0)),
    (ModernBertConfig(), "full_attention", RotarySettings(64, 64, 160000.0)),
    (Gemma4TextConfig(), "sliding_attention", RotarySettings(256, 256, 10000.0)),
    (Gemma4TextConfig(), "full_attention", RotarySettings(512, 512, 1e6, Proportional(0.25))),
    (
        Phi3Config(
            original_max_position_embeddings=2048,
            max_position_embeddings=4096,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 48,
                "long_factor": [2.0] * 48,
            },
        ),
        None,
        RotarySettings(96, 96, 10000.0, LongRoPE((1.0,) * 48, (2.0,) * 48, 2048, 2.0)),
    ),
    (
        Qwen2VLTextConfig(rope_parameters={"rope_theta": 1e6, "mrope_section": [16, 24, 24]}),
        None,
        RotarySettings(128, 128, 1e6, None, (16, 24, 24)),
    ),
    (
        Qwen3VLTextConfig(
            rope_parameters={
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            }
        ),
        None,
        RotarySettings(128, 128, 5e6, None, (24, 20, 20), "interleaved"),
    ),
    (
        Ernie4_5_VLMoeTextConfig(
            rope_parameters={"rope_theta": 5e5, "mrope_section": [22, 22, 20]}
        ),
        None,
        RotarySettings(128, 128, 5e5, None, (22, 22, 20), "alternating"),
    ),
]


@pytest.mark.parametrize(
    ("config", "layer_type", "settings"),
    CONFIGURATIONS,
    ids=[f"{type(config).__name__}-{layer}" for config, layer, _ in CONFIGURATIONS],
)
def test_a_configuration_object_and_its_dict_say_the_same(
    config, layer_type: str | None, settings: RotarySettings
):
    assert from_hf_config(config, layer_type) == settings
    assert from_hf_config(config.to_dict(), layer_type) == settings
    assert from_hf_config(json.loads(json.dumps(config.to_dict())), layer_type) == settings


# Excerpts of config.json files written by version 4, or before.
VERSION_4 = {
    "Llama 3.1": (
        "llama",
        {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
    ),
    "SmolLM2": (
        "llama",
        {
            "hidden_size": 576,
            "num_attention_heads": 9,
            "rope_theta": 100000.0,
            "rope_scaling": None,
        },
    ),
    "Pythia": (
        "gpt_neox",
        {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "max_position_embeddings": 2048,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
        },
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        {
            "hidden_size": 7168,
            "num_attention_heads": 128,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "max_position_embeddings": 163840,
            "rope_theta": 10000,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
        },
    ),
    "Phi-3-mini-128k": (
        "phi3",
        {
            "hidden_size": 3072,
            "num_attention_heads": 32,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "long_factor": [2.0] * 48,
                "short_factor": [1.0] * 48,
                "type": "longrope",
            },
        },
    ),
    "Phi-2": (
        "phi",
        {
            "hidden_size": 2560,
            "num_attention_heads": 32,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.4,
        },
    ),
    "MiniMax-M2": (
        "minimax_m2",
        {
            "hidden_size": 3072,
            "num_attention_heads": 48,
            "head_dim": 128,
            "rotary_dim": 64,
            "rope_theta": 5000000,
        },
    ),
}


@pytest.mark.parametrize("model", VERSION_4)
def test_a_file_of_version_4_is_read_as_transformers_reads_it(model: str):
    family, excerpt = VERSION_4[model]
    settings = from_hf_config(excerpt)
    assert settings == from_hf_config(AutoConfig.for_model(family, **excerpt))
    assert settings.rotary_dim < 4096


@pytest.mark.parametrize("layer_type", ["sliding_attention", "full_attention"])
def test_a_local_base_of_version_4_belongs_to_the_sliding_layers(layer_type: str):
    gemma = {
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    assert from_hf_config(gemma, layer_type) == from_hf_config(
        Gemma3TextConfig(**gemma), layer_type
    )
    bert = {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    }
    assert from_hf_config(bert, layer_type) == from_hf_config(ModernBertConfig(**bert), layer_type)


def test_old_names_of_rope_types_are_read():
    beside = {"head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 10000.0}
    lists = {"short_factor": list(SHORT), "long_factor": list(LONG)}
    su, longrope = (
        from_hf_config({**beside, "rope_scaling": {"type": kind, **lists}})
        for kind in ("su", "longrope")
    )
    assert su == longrope
    assert isinstance(su.scaling, LongRoPE)
    mrope = {**beside, "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}}
    assert from_hf_config(mrope) == RotarySettings(64, 64, 10000.0, None, (8, 12, 12))
    omni = {**beside, "rope_scaling": {"mrope_section": [12, 10, 10], "interleaved": True}}
    assert from_hf_config(omni).order == "interleaved"


def test_the_head_of_full_attention_may_have_a_size_of_its_own():
    config = {"head_dim": 256, "global_head_dim": 512, "rope_theta": 10000.0}
    assert from_hf_config(config, "full_attention").head_dim == 512
    assert from_hf_config(config, "sliding_attention").head_dim == 256


def test_truncate_of_a_nested_rule_is_read():
    """Transformers 5.23 looks for it beside the layer types, where it never is."""
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "truncate": False}
    config = {
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "rope_parameters": {"full_attention": yarn, "linear_attention": None},
    }
    assert from_hf_config(config, "full_attention").scaling == YaRN(4.0, 4096, truncate=False)


BESIDE = {"head_dim": 64, "rope_theta": 10000.0, "max_position_embeddings": 4096}
NESTED = {"full_attention": {"rope_type": "default"}, "linear_attention": None}


@pytest.mark.parametrize(
    ("config", "layer_type", "message"),
    [
        (
            {**BESIDE, "rope_parameters": {"rope_type": "axial"}},
            None,
            r"rope_type must be one of \['default', .*\], got 'axial'",
        ),
        (
            {**BESIDE, "rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}},
            None,
            r"keys of rope_type 'dynamic' must be among .*'factor'.*, got \['alpha'\]",
        ),
        (
            {**BESIDE, "rope_parameters": {"rope_type": "longrope", "short_mscale": 1.2}},
            None,
            r"keys of rope_type 'longrope' must be among .*, got \['short_mscale'\]",
        ),
        (
            {**BESIDE, "rope_parameters": {"rope_type": "linear"}},
            None,
            r"factor must be given, got None",
        ),
        (
            {**BESIDE, "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 32}},
            None,
            r"long_factor must be given, got None",
        ),
        (
            {"head_dim": 64, "rope_theta": 10000.0, "rope_parameters": {"rope_type": "yarn"}},
            None,
            r"max_position_embeddings must be given, got None",
        ),
        ({"head_dim": 64}, None, r"rope_theta must be given, got None"),
        ({"rope_theta": 10000.0}, None, r"hidden_size must be given, got None"),
        (
            {**BESIDE, "rope_parameters": NESTED},
            None,
            r"layer_type must be one that rotates \['full_attention'\], got None",
        ),
        (
            {**BESIDE, "rope_parameters": NESTED},
            "linear_attention",
            r"layer_type must be one that rotates \['full_attention'\], got 'linear_attention'",
        ),
        (
            {**BESIDE, "rope_parameters": {**NESTED, "factor": 2.0}},
            "full_attention",
            r"beside the layer types \['full_attention'\] must be nothing, got \['factor'\]",
        ),
        (
            {**BESIDE, "rope_local_base_freq": 10000.0},
            None,
            r"layer_type must be 'full_attention' or 'sliding_attention', got None",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: dict, layer_type: str | None, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        from_hf_config(config, layer_type)


@pytest.mark.parametrize("factor", [0.5, 4.0])
@pytest.mark.parametrize("rotary_dim", [2, 4, 64, 128])
def test_ntk_is_a_larger_base(rotary_dim: int, factor: float):
    scaled, scale = NTK(factor)(standard(rotary_dim, 10000.0))
    pairs = rotary_dim // 2
    base = 10000.0 if pairs == 1 else 10000.0 * factor ** (pairs / (pairs - 1))
    # Two exponents and a power more, each rounded: an error of at most eps * |log(result)| each.
    error = 4 * EPS * (1 + scaled.log().abs())
    assert ((scaled / standard(rotary_dim, base) - 1).abs() <= error).all()
    assert scale == 1


def test_linear_divides_all_frequencies():
    scaled, scale = Linear(4.0)(standard(64))
    assert torch.equal(scaled, standard(64) / 4)
    assert scale == 1


def test_llama3_leaves_fast_pairs_divides_slow_ones_and_is_monotone_between():
    series = standard(128, 500000.0)
    rule = Llama3(8.0, original_context_length=8192, low_freq_factor=1.0, high_freq_factor=4.0)
    scaled, scale = rule(series)
    turns = 8192 / wavelengths(series)
    assert torch.equal(scaled[turns >= 4], series[turns >= 4])
    assert torch.equal(scaled[turns <= 1], series[turns <= 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.sum() > 2
    divisors = (series / scaled)[between]
    assert (divisors.diff() > 0).all()
    assert ((divisors > 1) & (divisors < 8)).all()
    assert scale == 1


def test_a_pair_exactly_where_llama3_steps_is_left_or_divided():
    frequency = torch.tensor([math.pi], dtype=torch.float64)
    assert wavelengths(frequency) == 2
    scaled, _ = Llama3(8.0, 1, low_freq_factor=0.5, high_freq_factor=0.5)(frequency)
    assert scaled in (frequency, frequency / 8)


def test_yarn_leaves_fast_pairs_divides_slow_ones_and_blends_linearly_in_the_pair():
    series = standard(128)
    rule = YaRN(8.0, original_context_length=4096, truncate=False)
    scaled, _ = rule(series)
    turns = 4096 / wavelengths(series)
    assert torch.equal(scaled[turns >= 32], series[turns >= 32])
    assert torch.equal(scaled[turns <= 1], series[turns <= 1] / 8)
    share = ((1 - scaled / series) / (1 - 1 / 8))[(turns > 1) & (turns < 32)]
    assert len(share) > 10
    with mpmath.workdps(30):
        slope = float(mpmath.log(10000) / (64 * mpmath.log(32)))
    assert torch.allclose(share.diff(), torch.full_like(share[1:], slope), rtol=1e-12)


@pytest.mark.parametrize(
    ("rule", "scale"),
    [
        (YaRN(1.0, 4096), 1.0),
        (YaRN(0.5, 4096), 1.0),
        (YaRN(math.e**10, 4096), 2.0),
        (YaRN(math.e**10, 4096, mscale=0.5), 2.0),
        (YaRN(math.e**10, 4096, mscale=1.0, mscale_all_dim=0.5), 2.0 / 1.5),
        (YaRN(4.0, 4096, attention_factor=1.25), 1.25),
        (LongRoPE(SHORT, LONG, 4096, factor=4096.0), math.sqrt(2)),
        (LongRoPE(SHORT, LONG, 4096, factor=0.5), 1.0),
        (LongRoPE(SHORT, LONG, 4096, factor=32.0, attention_factor=1.25), 1.25),
    ],
)
def test_attention_factors_are_those_of_the_papers(rule: Scaling, scale: float):
    assert rule.scale == pytest.approx(scale, rel=4 * EPS)
    assert rule(standard(64))[1] == rule.scale


def test_proportional_stops_the_slow_pairs():
    scaled, scale = Proportional(0.3, factor=2.0)(standard(64))
    assert torch.equal(scaled[:9], standard(64)[:9] / 2)
    assert torch.equal(scaled[9:], torch.zeros(23, dtype=torch.float64))
    assert scale == 1


CHANGING = [
    DynamicNTK(2.0, original_context_length=4096),
    LongRoPE(SHORT, LONG, original_context_length=4096, factor=4.0),
]
STATIC = [
    Linear(4.0),
    NTK(4.0),
    YaRN(4.0, 4096),
    Llama3(8.0, 4096),
    Proportional(0.5),
    *(Pinned(rule, 9000) for rule in CHANGING),
]


def named(rule: Scaling) -> str:
    return type(rule).__name__


@pytest.mark.parametrize("rule", CHANGING, ids=named)
def test_sequences_of_a_batch_change_by_their_own_lengths(rule: Scaling):
    lengths = torch.tensor([[1, 4096], [4097, 20000]])
    scaled, _ = rule(standard(64), lengths)
    assert rule.depends_on_length
    assert scaled.shape == (2, 2, 32)
    for row, length in zip(scaled.flatten(0, 1), lengths.flatten(), strict=True):
        assert torch.equal(row, rule(standard(64), length)[0])
        # A Python power and a tensor's may differ by an ulp.
        assert torch.allclose(row, rule(standard(64), int(length))[0], rtol=4 * EPS, atol=0)
    assert torch.equal(scaled[0, 0], scaled[0, 1])
    assert torch.equal(scaled[0, 0], rule(standard(64))[0])
    assert (scaled[1, 0] < scaled[0, 0])[1:].all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_dynamic_ntk_is_ntk_by_what_is_too_long(dtype: torch.dtype):
    scaled, _ = DynamicNTK(2.0, 2048)(standard(64), torch.tensor(2**24 + 2049, dtype=dtype))
    factor = 2.0 * (2**24 + 2049) / 2048 - 1
    assert torch.allclose(scaled, NTK(factor)(standard(64))[0], rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("rule", CHANGING, ids=named)
def test_no_value_of_a_length_is_read(rule: Scaling):
    """A tensor on the meta device has none."""
    prepared = rule.prepare(standard(64)).to("meta")
    for shape in ((), (3,)):
        length = torch.empty(shape, dtype=torch.int64, device="meta")
        assert rule.at(prepared, length).shape == (*shape, 32)


@pytest.mark.parametrize("rule", CHANGING, ids=named)
def test_a_change_of_length_is_compiled_once(rule: Scaling):
    prepared = rule.prepare(standard(64))
    compiled = torch.compile(rule.at, backend="eager", fullgraph=True)
    with torch.compiler.set_stance("default"):
        assert torch.equal(compiled(prepared, torch.tensor(100)), prepared.view(-1, 32)[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        length = torch.tensor(10000)
        assert torch.equal(compiled(prepared, length), rule.at(prepared, length))


@pytest.mark.parametrize("rule", CHANGING, ids=named)
def test_a_pinned_rule_never_changes(rule: Scaling):
    pinned = Pinned(rule, 9000)
    expected, scale = rule(standard(64), 9000)
    for length in (None, 5, 9000, torch.tensor([1, 100000])):
        scaled, actual = pinned(standard(64), length)
        assert torch.equal(scaled, expected)
        assert actual == scale


@pytest.mark.parametrize("rule", STATIC, ids=named)
def test_a_static_rule_does_not_look_at_the_length(rule: Scaling):
    assert not rule.depends_on_length
    scaled, _ = rule(standard(64))
    assert scaled.dtype == torch.float64
    assert torch.equal(scaled, rule(standard(64), torch.tensor([3, 30000]))[0])


@pytest.mark.parametrize("rule", STATIC + CHANGING, ids=named)
def test_a_rule_is_a_value(rule: Scaling):
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(dataclasses.replace(rule)) == hash(rule)
    series = standard(64)
    rule(series, 10000)
    assert torch.equal(series, standard(64))


@pytest.mark.parametrize(
    "rule",
    [NTK(2.0), DynamicNTK(2.0, 4096), YaRN(2.0, 4096), CHANGING[1], Proportional(0.5)],
    ids=named,
)
def test_rules_of_a_series_refuse_a_matrix(rule: Scaling):
    with pytest.raises(ValueError, match=r"^frequencies must have 1 dimension, got 2"):
        rule(torch.ones(2, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0.0), "factor must be positive and finite, got 0.0"),
        (lambda: NTK(math.inf), "factor must be positive and finite, got inf"),
        (lambda: DynamicNTK(2.0, 0), "original_context_length must be positive and finite, got 0"),
        (lambda: YaRN(math.nan, 4096), "factor must be positive and finite, got nan"),
        (lambda: YaRN(2.0, 4096, beta_slow=0.0), "beta_slow must be positive and finite, got 0.0"),
        (
            lambda: YaRN(2.0, 4096, beta_fast=1.0, beta_slow=2.0),
            "beta_fast must be at least beta_slow (2.0), got 1.0",
        ),
        (
            lambda: YaRN(2.0, 4096, attention_factor=-1.0),
            "attention_factor must be positive and finite, got -1.0",
        ),
        (
            lambda: YaRN(2.0, 4096)(torch.ones(4)),
            "frequencies must fall and be positive, got 1.0 to 1.0",
        ),
        (
            lambda: LongRoPE((1.0, 0.0), (1.0, 1.0), 4096),
            "short_factor must be positive and finite, got 0.0",
        ),
        (
            lambda: LongRoPE((1.0,), (1.0,), 4096, attention_factor=0.0),
            "attention_factor must be positive and finite, got 0.0",
        ),
        (
            lambda: LongRoPE((1.0,), (1.0, 1.0), 4096)(torch.ones(1)),
            "long_factor must have 1 numbers (one a pair), got 2",
        ),
        (
            lambda: Llama3(2.0, 4096, low_freq_factor=5.0),
            "low_freq_factor must be at most high_freq_factor (4.0), got 5.0",
        ),
        (lambda: Proportional(1.5), "fraction must be from 0 to 1, got 1.5"),
        (lambda: Pinned(CHANGING[0], -1), "length must be positive and finite, got -1"),
    ],
)
def test_what_is_no_rule_is_refused(make, message: str):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
