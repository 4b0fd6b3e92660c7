"""`puna bench` and `puna profile`: the structure and plausibility of results, and limits computed by hand."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from puna import benchmark
from puna.cli.measure import disturbance as disturbance_module
from puna.cli.measure.disturbance import OtherPrograms, disturbance
from puna.config import LlamaConfig
from puna.native.measure import MachineSpeed, measure_machine
from tests.cli.test_cli import as_json, run


@cache
def measured_machine(threads: int | None) -> MachineSpeed:
    """Measures the machine once for all tests."""
    return measure_machine(threads)


@pytest.fixture(autouse=True)
def one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.native.measure.measure_machine", measured_machine)


@pytest.mark.slow
def test_bench_reports_all_fields(tiny_model):
    sizes = ["--prefill", "5,9,5", "--context", "4", "--decode", "3", "--batch", "1,2", "--repeat", "2"]
    out = as_json("bench", "-m", str(tiny_model), *sizes)
    assert set(out) == {
        "model",
        "machine",
        "other_cpu_cores",
        "results",
        "load_seconds",
        "first_token_seconds",
        "peak_memory_bytes",
    }
    assert set(out["machine"]) == {"dram_gb_s", "int8_gops", "bf16_gflops", "cores_ok"}
    assert [(result["phase"], result["tokens"], result["context"], result["batch"]) for result in out["results"]] == [
        ("prefill", 5, 0, 1),
        ("prefill", 9, 0, 1),
        ("decode", 3, 4, 1),
        ("decode", 3, 4, 2),
    ]
    for result in out["results"]:
        assert len(result["samples"]) == 2
        assert min(result["samples"]) <= result["tokens_per_second"] <= max(result["samples"])
        if result["phase"] == "prefill":
            assert 0 < result["limit_fraction"] < 1
        else:
            assert result["limit_fraction"] is None  # a model this small stays in the processor's cache
    assert 0 < out["load_seconds"] < out["first_token_seconds"]
    assert out["peak_memory_bytes"] > 1e7


@pytest.mark.slow
def test_work_that_exceeds_the_context_is_skipped_with_a_message(tiny_model):
    sizes = ["--prefill", "5,99999", "--context", "4", "--decode", "2", "--batch", "1", "--repeat", "1"]
    result = run("bench", "-m", str(tiny_model), *sizes)
    assert result.exit_code == 0
    assert "skipped: prefill 99999 exceeds the model's context" in result.stderr
    assert "tokens/s" in result.stdout and "99999" not in result.stdout


def test_work_that_exceeds_the_memory_is_skipped_with_a_reason():
    """Each sequence occupies complete pages of 64 tokens."""
    config = LlamaConfig(max_position_embeddings=1000)
    measurements, skipped = benchmark.plan(config, 4, [256, 257, 1001], 2, [62, 63], [1, 2, 4])
    assert [(work.tokens, work.context, work.batch) for work in measurements] == [
        (256, 0, 1), (2, 62, 1), (2, 62, 2), (2, 62, 4), (2, 63, 1), (2, 63, 2),
    ]  # fmt: skip
    reasons = {(work.tokens, work.context, work.batch): reason for work, reason in skipped.items()}
    assert reasons == {
        (257, 0, 1): "needs a cache of 320 tokens, but memory is enough for 256",
        (1001, 0, 1): "exceeds the model's context of 1000 tokens",
        (2, 63, 4): "needs a cache of 512 tokens, but memory is enough for 256",
    }


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (["--prefill", "1,x"], 2, "must be a list of integers"),
        (["--context", "0"], 2, "must be a list of integers"),
        (["--backend", "torch"], 2, "leave out --backend, --device and --dtype"),
        (["--backend", "tensorflow"], 2, "'tensorflow' is not one of"),
        (["--prefill", "99999", "--context", "99999"], 1, "nothing is left to measure"),
        (["--quantize", "int3"], 2, "'int3' is not one of"),
    ],
)
def test_bench_refuses_invalid_arguments(tiny_model, options, status, text):
    result = run("bench", "-m", str(tiny_model), *options)
    assert result.exit_code == status
    assert text in " ".join(result.stderr.split())


@pytest.mark.timing
def test_the_parts_of_a_profile_add_up_to_the_total_time(tiny_model):
    sizes = ["--context", "4", "--tokens", "3", "--prefill", "9", "--repeat", "2"]
    out = as_json("profile", "-m", str(tiny_model), *sizes)
    assert set(out) == {"machine", "other_cpu_cores", "prefill", "decode"} and len(out["machine"]) == 4
    for name in ("prefill", "decode"):
        kinds = out[name]
        assert {"qkv", "attention", "gate_up", "down", "head", "outside", "total"} <= set(kinds)
        times = {kind: measurement["microseconds_per_token"] for kind, measurement in kinds.items()}
        assert all(time >= 0 for time in times.values()) and times["qkv"] > 0
        parts = sum(time for kind, time in times.items() if kind not in ("matrices", "total"))
        assert parts == pytest.approx(times["total"], rel=0.2)  # the median of two repeats is their mean
    matrices = {kind for kind, measurement in out["prefill"].items() if measurement["limit_fraction"] is not None}
    assert matrices == {"qkv", "o", "gate_up", "down", "matrices", "total"}
    assert all(
        measurement["limit_fraction"] is None for measurement in out["decode"].values()
    )  # a model this small stays in the processor's cache
    table = run("profile", "-m", str(tiny_model), *sizes).stdout
    assert "gate and up" in table and "total" in table
    assert "exceed the model's context" in run("profile", "-m", str(tiny_model), "--prefill", "99999").stderr


@pytest.mark.slow
def test_bench_explains_its_rows(tiny_model):
    sizes = ["--prefill", "5", "--context", "4", "--decode", "3", "--batch", "1", "--repeat", "1"]
    result = run("bench", "-m", str(tiny_model), *sizes)
    assert "Measuring 2 workloads 1 times." in result.stderr
    assert "prefill N        reading a prompt of N tokens" in result.stderr
    assert run("bench", "-m", str(tiny_model), *sizes, "-q").stderr == ""


def test_the_cores_of_other_programs_are_their_time_divided_by_the_wall_time(monkeypatch):
    moments = iter([(100.0, 50.0, 20.0), (110.0, 75.0, 30.0)])  # wall, busy, own: other programs used 15 s in 10 s
    monkeypatch.setattr(disturbance_module, "_busy_and_own", lambda: next(moments))
    assert OtherPrograms().cores() == pytest.approx(1.5)
    moments = iter([(100.0, 50.0, 20.0), (110.0, 59.9, 30.0)])  # clock ticks are coarse: never negative
    assert OtherPrograms().cores() == 0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux reports the time of all processors")
def test_the_times_of_the_system_and_of_this_process_advance():
    before = disturbance_module._busy_and_own()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after = disturbance_module._busy_and_own()
    assert before is not None and after is not None
    wall, busy, own = (late - early for early, late in zip(before, after, strict=True))
    assert own == pytest.approx(0.2, abs=0.1)
    assert busy > 0.1 and wall > 0.15


@pytest.mark.parametrize(
    ("cores", "cores_ok", "words"),
    [
        (0.05, True, None),
        (None, True, None),
        (1.25, True, "Other programs used 1.2 CPU cores on average during the measurement"),
        (0.0, False, "The threads slowed each other down"),
        (None, False, "The threads slowed each other down"),
    ],
)
def test_a_sentence_warns_of_a_disturbed_measurement(cores, cores_ok, words):
    sentence = disturbance(cores, cores_ok)
    assert sentence is None if words is None else words in sentence


def test_the_measured_speed_of_the_machine_is_plausible():
    speed = measure_machine(1)
    assert 0.5 < speed.dram_gb_s < 2000
    assert speed.int8_gops > speed.bf16_gflops / 4 > 0.1
    assert isinstance(speed.cores_ok, bool)


def test_limits_equal_those_computed_by_hand():
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    # Weights: q and o 8 x 8, k and v 8 x 4, three matrices of 8 x 16. Attention: token t multiplies t keys and t values
    # in both heads. The output matrix is multiplied once.
    assert benchmark.products(config, 3) == 2 * (3 * (128 + 64 + 384) + 2 * 8 * (1 + 2 + 3)) + 800
    backend = SimpleNamespace(config=config, weight_bytes=10**8, cache_bytes_per_token=10, integer_weights=True)
    machine = MachineSpeed(dram_gb_s=1e-6, int8_gops=2e-9, bf16_gflops=1.0, cores_ok=True)
    decode = benchmark.Work("decode", 4, 18, 2)
    assert benchmark.limit(backend, machine, decode) == pytest.approx(2 * 1000 / (10**8 + 2 * 200))
    # A decoded token attends to 18 + 4 / 2 tokens. With 10**6 sequences, arithmetic is the limit.
    operations = 2 * (2 * (128 + 64 + 384 + 2 * 8 * 20) + 800)
    many = benchmark.Work("decode", 4, 18, 10**6)
    assert benchmark.limit(backend, machine, many) == pytest.approx(2 / operations)
    assert benchmark.demand(backend, decode) == benchmark.Demand(10**8 / 2 + 200, operations)
    backend.weight_bytes = 10**6
    assert benchmark.limit(backend, machine, decode) is None
    prefill = benchmark.Work("prefill", 3, 0, 1)
    assert benchmark.limit(backend, machine, prefill) == pytest.approx(3 * 2 / (2 * benchmark.products(config, 3)))


def test_limits_of_kernels_equal_those_computed_by_hand():
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    backend = SimpleNamespace(
        config=config,
        weight_bytes=10**8,
        phase_bytes={"qkv": 4 * 10**7, "down": 6 * 10**7, "sampling": 0},
        cache_bytes_per_token=10,
        integer_weights=False,
    )
    machine = MachineSpeed(dram_gb_s=1e-6, int8_gops=1.0, bf16_gflops=2e-9, cores_ok=True)
    decode = benchmark.Work("decode", 4, 18, 2)
    limits = benchmark.phase_limits(backend, machine, decode)
    assert limits == pytest.approx({"qkv": 4 * 4e4, "down": 4 * 6e4, "attention": 4 * 0.4})
    assert sum(limits.values()) == pytest.approx(2 * 4 / benchmark.limit(backend, machine, decode))
    prefill = benchmark.Work("prefill", 3, 0, 1)
    assert benchmark.phase_limits(backend, machine, prefill) == pytest.approx(
        {"qkv": 6 * 128, "o": 6 * 64, "gate_up": 6 * 256, "down": 6 * 128}
    )
    backend.weight_bytes = 10**6
    assert benchmark.phase_limits(backend, machine, decode) == {}
