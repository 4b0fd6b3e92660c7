"""The comparisons: models, engines, workloads, and target ratios of puna's speed to that of other engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """A workload whose speed is measured.

    Attributes:
        do: "prefill" reads a prompt of `tokens` tokens; "decode" generates `tokens` tokens in each sequence.
        tokens: number of tokens per sequence.
        context: tokens in the cache before decoding.
        sequences: number of sequences decoded at once.
    """

    do: str
    tokens: int
    context: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        """Short name, also used as a key in the results."""
        if self.do == "prefill":
            return f"prefill {self.tokens}"
        return f"decode @{self.context}" + (f" x {self.sequences}" if self.sequences > 1 else "")


PREFILL_512 = Work("prefill", 512)
DECODE_AT_512 = Work("decode", 64, 512)
DECODE_AT_16 = Work("decode", 64, 16)
DECODE_4_SEQUENCES = Work("decode", 32, 16, 4)
DECODE_16_SEQUENCES = Work("decode", 32, 16, 16)
DECODE_64_SEQUENCES = Work("decode", 8, 16, 64)


@dataclass(frozen=True)
class Runner:
    """An engine with its settings.

    Attributes:
        name: shown in tables.
        environment: folder of the engine's virtual environment.
        worker: module of the package `peers` that runs the engine.
        file: file or folder that the engine loads, relative to the folder of the model.
        options: settings passed to the worker.
    """

    name: str
    environment: str
    worker: str
    file: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Engines that take turns on one model.

    Attributes:
        shape: the dimensions of the model, a key of `SHAPES`; "" for a file of the user.
    """

    name: str
    shape: str
    runners: tuple[Runner, ...]
    works: tuple[Work, ...]


def _puna_runner(file: str) -> Runner:
    return Runner("puna", "puna", "run_puna", file)


def _llama_runners(file: str) -> tuple[Runner, ...]:
    return tuple(
        Runner(f"llama.cpp{', flash' if flash else ''}", "llama", "run_llama", file, (("flash", flash),))
        for flash in (False, True)
    )


def _openvino_runner(kind: str) -> Runner:
    return Runner(f"openvino {kind}", "openvino", "run_openvino", f"openvino-{kind}")


def _onnxruntime_runner(kind: str) -> Runner:
    return Runner(f"onnxruntime-genai {kind}", "onnxruntime", "run_onnxruntime", f"onnxruntime-{kind}")


def _transformers_runner(dtype: str) -> Runner:
    return Runner(f"transformers {dtype}", "onnxruntime", "run_transformers", "hf", (("dtype", dtype),))


def _gguf_comparison(shape: str, file: str, works: tuple[Work, ...], *peers: Runner) -> Comparison:
    return Comparison(
        f"{shape}-{file}", shape, (_puna_runner(f"{file}.gguf"), *_llama_runners(f"{file}.gguf"), *peers), works
    )


_ONE_SEQUENCE = (PREFILL_512, DECODE_AT_512, DECODE_AT_16)
_INT4 = (_onnxruntime_runner("int4"), _openvino_runner("int4"))
_INT8 = (_onnxruntime_runner("int8"), _openvino_runner("int8"))
_FLOAT = (_openvino_runner("float"), _transformers_runner("bfloat16"), _transformers_runner("float32"))
COMPARISONS = (
    _gguf_comparison("smollm2", "q4_1", _ONE_SEQUENCE),
    _gguf_comparison("smollm2", "q4_0", _ONE_SEQUENCE, *_INT4),
    _gguf_comparison("smollm2", "q8_0", _ONE_SEQUENCE, *_INT8),
    _gguf_comparison("smollm2", "bf16", _ONE_SEQUENCE, *_FLOAT),
    _gguf_comparison("1.1b", "q4_0", (*_ONE_SEQUENCE, DECODE_16_SEQUENCES), *_INT4),
    _gguf_comparison("1.1b", "q4_k_m", _ONE_SEQUENCE, *_INT4),
    _gguf_comparison("1.1b", "q8_0", _ONE_SEQUENCE, *_INT8),
    _gguf_comparison("1.1b", "bf16", _ONE_SEQUENCE, *_FLOAT),
    _gguf_comparison("7b", "q4_0", _ONE_SEQUENCE),
    _gguf_comparison("15m", "q4_0", _ONE_SEQUENCE, *_INT4),
    _gguf_comparison("15m", "q8_0", _ONE_SEQUENCE, _INT4[0], *_INT8),
)

# Compared with the machine's limits, and with the engines that are the fastest with 16 sequences: `--limits`.
LIMITS = (
    Comparison("smollm2-q4_1-limits", "smollm2", (_puna_runner("q4_1.gguf"),), (PREFILL_512, DECODE_AT_512)),
    Comparison("smollm2-q4_0-limits", "smollm2", (_puna_runner("q4_0.gguf"),), (PREFILL_512, DECODE_AT_512)),
    Comparison(
        "1.1b-q4_0-limits", "1.1b", (_puna_runner("q4_0.gguf"),),
        (PREFILL_512, DECODE_4_SEQUENCES, DECODE_16_SEQUENCES, DECODE_64_SEQUENCES),
    ),
    _gguf_comparison("1.1b", "q4_0", (DECODE_16_SEQUENCES,), _openvino_runner("int4")),
)  # fmt: skip


def comparison_of_file(path: Path) -> Comparison:
    """Returns the comparison of puna with llama.cpp on the user's GGUF file."""
    return Comparison(path.name, "", (_puna_runner(str(path)), *_llama_runners(str(path))), _ONE_SEQUENCE)


@dataclass(frozen=True)
class Target:
    """The minimum ratio of puna's speed to that of the fastest engine whose name starts with one of `against`."""

    comparison: str
    work: Work
    against: tuple[str, ...]
    target: float


_ALL = ("llama.cpp", "onnxruntime-genai", "openvino", "transformers")
_LLAMA_AND_ONNXRUNTIME = ("llama.cpp", "onnxruntime-genai")
_OPENVINO = ("openvino",)
TARGETS = (
    Target("smollm2-q4_1", DECODE_AT_16, ("llama.cpp",), 2.0),
    Target("smollm2-q4_1", DECODE_AT_512, ("llama.cpp",), 2.2),
    Target("smollm2-q4_1", PREFILL_512, ("llama.cpp",), 5.0),
    Target("smollm2-q4_0", DECODE_AT_16, _LLAMA_AND_ONNXRUNTIME, 1.4),
    Target("smollm2-q4_0", DECODE_AT_512, _LLAMA_AND_ONNXRUNTIME, 1.5),
    *(
        Target(f"{shape}-{file}", PREFILL_512, _OPENVINO, 1.25)
        for shape in ("smollm2", "1.1b")
        for file in ("q4_0", "q8_0")
    ),
    *(Target(f"1.1b-{file}", DECODE_AT_16, _LLAMA_AND_ONNXRUNTIME, 1.2) for file in ("q4_0", "q4_k_m")),
    *(Target(f"1.1b-{file}", DECODE_AT_512, _LLAMA_AND_ONNXRUNTIME, 1.3) for file in ("q4_0", "q4_k_m")),
    *(Target(f"1.1b-{file}", work, _ALL, 1.1) for file in ("q8_0", "bf16") for work in (DECODE_AT_16, DECODE_AT_512)),
    Target("1.1b-bf16", PREFILL_512, _OPENVINO, 1.15),
    Target("7b-q4_0", DECODE_AT_512, ("llama.cpp",), 1.3),
    Target("7b-q4_0", PREFILL_512, ("llama.cpp",), 2.2),
    *(
        Target(f"15m-{file}", work, ("onnxruntime-genai int4",), 1.2)
        for file in ("q4_0", "q8_0")
        for work in (DECODE_AT_16, DECODE_AT_512)
    ),
    Target("1.1b-q4_0", DECODE_16_SEQUENCES, ("llama.cpp",), 2.7),
    Target("1.1b-q4_0", DECODE_16_SEQUENCES, _OPENVINO, 1.7),
)
