"""The benchmark measures what it says: providers rotate, references do what they are named."""

import json
import os
import shutil

import pytest
import torch

import rope_ext
from rope_ext import reference

pytest.importorskip("ninja", reason="the benchmark needs the extra `bench`")
pytest.importorskip("rich", reason="the benchmark needs the extra `bench`")

from benchmarks import ceiling, run
from benchmarks.cases import CASES, Case, Inputs
from benchmarks.measure import Samples, Summary, interleave
from benchmarks.providers import PROVIDERS

TINY = Case("tiny", batch=2, tokens=8, query_heads=4, key_heads=2, head_dim=16)
TINY_BHSD = Case(
    "tiny", batch=2, tokens=8, query_heads=4, key_heads=2, head_dim=16, heads_first=True
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def operators():
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("the ceiling is C++ and this machine has no compiler")
    ceiling.load()
    return torch.ops.rope_bench


@pytest.mark.parametrize("case", [TINY, TINY_BHSD], ids=lambda case: case.layout)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "provider", PROVIDERS, ids=lambda provider: f"{provider.name}-{provider.interleaved}"
)
def test_provider_agrees_with_the_reference(provider, dtype, case):
    inputs = Inputs.of(case, dtype)
    before = (inputs.query.clone(), inputs.key.clone())
    result = provider.prepare(inputs)()
    after = (inputs.query, inputs.key) if provider.in_place else result
    for original, rotated in zip(before, after, strict=True):
        expected = reference.rotate(
            original,
            inputs.cos,
            inputs.sin,
            seq_dim=inputs.seq_dim,
            interleaved=provider.interleaved,
        )
        # The eager formula rounds the table, the product and the sum, each by half an eps of the
        # pair's length at most; the fourth covers the higher orders.
        length = 2**0.5 * original.abs().max().double()
        tolerance = 4 * torch.finfo(dtype).eps / 2 * length
        assert rotated.dtype == dtype
        assert (rotated.double() - expected).abs().max() <= tolerance
    if not provider.in_place:
        assert torch.equal(inputs.query, before[0])
        assert torch.equal(inputs.key, before[1])


@pytest.mark.parametrize("capability", rope_ext._C.cpu_capabilities())
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.usefixtures("operators")
def test_ceiling_scales_every_element(dtype, capability):
    inputs = Inputs.of(CASES["small"], dtype)
    query, key = inputs.query.clone(), inputs.key.clone()
    ceiling.scale(query, key, capability, repeats=3)
    assert torch.equal(query, -inputs.query)
    assert torch.equal(key, -inputs.key)


@pytest.mark.parametrize("capability", rope_ext._C.cpu_capabilities())
def test_ceiling_rounds_to_nearest_even(operators, capability):
    for dtype in DTYPES:
        values = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
        query, key = values.clone().unbind()
        operators.scale(query, key, 1 / 3, 1, capability)
        exact = values.float() * torch.tensor(1 / 3)
        assert torch.equal(torch.stack((query, key)), exact.to(dtype))


@pytest.mark.parametrize("capability", rope_ext._C.cpu_capabilities())
@pytest.mark.usefixtures("operators")
def test_read_and_write_changes_nothing(capability):
    inputs = Inputs.of(CASES["small"], torch.bfloat16)
    query, key = inputs.query.clone(), inputs.key.clone()
    ceiling.read_write(query, key, capability, repeats=3)
    assert torch.equal(query, inputs.query)
    assert torch.equal(key, inputs.key)


@pytest.mark.usefixtures("operators")
def test_ceiling_refuses_an_unknown_instruction_set():
    inputs = Inputs.of(TINY, torch.float32)
    with pytest.raises(ValueError, match="capability must be one of this processor, got mmx"):
        ceiling.scale(inputs.query, inputs.key, "mmx", repeats=1)


@pytest.mark.parametrize("name", ["empty_bare", "empty_ordinary"])
def test_empty_operator_has_the_schema_of_apply_and_does_nothing(operators, name):
    operator = getattr(operators, name).default
    schema = str(torch.ops.rope.apply.default._schema)
    assert str(operator._schema) == schema.replace("rope::apply", f"rope_bench::{name}")
    inputs = Inputs.of(TINY, torch.float32)
    query, key = inputs.query.clone(), inputs.key.clone()
    operator(query, key, inputs.cos, inputs.sin)
    assert torch.equal(query, inputs.query)
    assert torch.equal(key, inputs.key)


def test_each_block_follows_a_block_of_the_reference(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: float(next(clock)))
    order = []
    subjects = {name: lambda calls, name=name: order.append(name) for name in ("a", "b", "c")}
    blocks = []
    samples = interleave(
        lambda calls: order.append("reference"),
        list(subjects.values()),
        rounds=4,
        advance=lambda: blocks.append(order[-4:]),
    )
    for block in blocks:
        warm_and_timed_reference, warm_and_timed_subject = block[:2], block[2:]
        assert warm_and_timed_reference == ["reference"] * 2
        assert warm_and_timed_subject == [block[-1]] * 2
    rounds = [[block[-1] for block in blocks[i : i + 3]] for i in range(0, 12, 3)]
    assert [sorted(names) for names in rounds] == [["a", "b", "c"]] * 4
    assert len(set(map(tuple, rounds))) > 1
    assert samples == [Samples(1, [1.0] * 4, [1.0] * 4)] * 3


def test_ratio_is_taken_within_a_round():
    slow_machine = Samples(1, seconds=[2.0, 20.0], reference=[1.0, 10.0])
    assert slow_machine.ratios == [0.5, 0.5]
    assert slow_machine.ratios_to(Samples(1, [4.0, 4.0], [1.0, 1.0])) == [2.0, 2.0]
    assert Summary.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Summary(median=3.0, lower=2.0, upper=4.0)


def test_help_names_every_case(capsys):
    with pytest.raises(SystemExit, match="0"):
        run.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in CASES)


@pytest.mark.parametrize("case", ["small", "decode"])
@pytest.mark.usefixtures("operators", "restored_threads")
def test_run_prints_a_table_and_writes_a_record(case, tmp_path, capsys):
    path = tmp_path / "record.json"
    run.main(["--case", case, "--dtype", "bfloat16", "--rounds", "2", "--json", str(path)])
    printed = capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["threads"] == 1
    assert record["processor"]["capability"] == rope_ext._C.cpu_capability()
    assert record["software"]["torch"] == torch.__version__
    assert len(record["results"]) == 2 + len(PROVIDERS)
    for result in record["results"]:
        assert result["provider"] in printed
        assert result["bytes"] == CASES[case].bytes(torch.bfloat16)
        assert len(result["samples"]["seconds"]) == len(result["samples"]["reference"]) == 2
        assert result["ratio"]["lower"] <= result["ratio"]["median"] <= result["ratio"]["upper"]


def test_run_refuses_a_single_round(capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(["--rounds", "1"])
    assert "must be at least 2, got 1" in capsys.readouterr().err
