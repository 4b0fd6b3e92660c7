"""What is compared: which engines run which model, what they do, and the ratios that issue and README promise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """`do` "prefill": reading `tokens` tokens; "decode": one more for each of `sequences`, `tokens` times over."""

    do: str
    tokens: int
    context: int = 0
    sequences: int = 1

    @property
    def name(self) -> str:
        """Short, and a key of results."""
        if self.do == "prefill":
            return f"prefill {self.tokens}"
        return f"decode @{self.context}" + (f" x {self.sequences}" if self.sequences > 1 else "")


READ = Work("prefill", 512)
LATE = Work("decode", 64, 512)
EARLY = Work("decode", 64, 16)
MANY = Work("decode", 32, 16, 16)


@dataclass(frozen=True)
class Runner:
    """An engine with its settings: which environment, which worker, which file of the model's folder."""

    name: str
    environment: str
    worker: str
    file: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Block:
    """Engines that take turns on one model."""

    name: str
    shape: str
    runners: tuple[Runner, ...]
    works: tuple[Work, ...]


def _puna(file: str) -> Runner:
    return Runner("puna", "puna", "run_puna", file)


def _llama(file: str) -> tuple[Runner, ...]:
    return tuple(
        Runner(f"llama.cpp{', flash' if flash else ''}", "llama", "run_llama", file, (("flash", flash),))
        for flash in (False, True)
    )


def _openvino(kind: str) -> Runner:
    return Runner(f"openvino {kind}", "openvino", "run_openvino", f"openvino-{kind}")


def _onnxruntime(kind: str) -> Runner:
    return Runner(f"onnxruntime-genai {kind}", "onnxruntime", "run_onnxruntime", f"onnxruntime-{kind}")


def _transformers(dtype: str) -> Runner:
    return Runner(f"transformers {dtype}", "onnxruntime", "run_transformers", "hf", (("dtype", dtype),))


def _block(shape: str, file: str, works: tuple[Work, ...], *peers: Runner) -> Block:
    return Block(f"{shape}-{file}", shape, (_puna(f"{file}.gguf"), *_llama(f"{file}.gguf"), *peers), works)


_ONE = (READ, LATE, EARLY)
_INT4 = (_onnxruntime("int4"), _openvino("int4"))
_INT8 = (_onnxruntime("int8"), _openvino("int8"))
_FLOAT = (_openvino("float"), _transformers("bfloat16"), _transformers("float32"))
BLOCKS = (
    _block("smollm2", "q4_1", _ONE),
    _block("smollm2", "q4_0", _ONE, *_INT4),
    _block("smollm2", "q8_0", _ONE, *_INT8),
    _block("smollm2", "bf16", _ONE, *_FLOAT),
    _block("1.1b", "q4_0", (*_ONE, MANY), *_INT4),
    _block("1.1b", "q4_k_m", _ONE, *_INT4),
    _block("1.1b", "q8_0", _ONE, *_INT8),
    _block("1.1b", "bf16", _ONE, *_FLOAT),
    _block("7b", "q4_0", _ONE),
    _block("15m", "q4_0", _ONE, *_INT4),
    _block("15m", "q8_0", _ONE, _INT4[0], *_INT8),
)


def block_of_file(path: Path) -> Block:
    """A GGUF file of the user's, in puna and llama.cpp."""
    return Block(path.name, "", (_puna(str(path)), *_llama(str(path))), _ONE)


@dataclass(frozen=True)
class Row:
    """A ratio that puna is to reach: against the best of the engines whose names start so."""

    block: str
    work: Work
    against: tuple[str, ...]
    at_least: float


_ALL = ("llama.cpp", "onnxruntime-genai", "openvino", "transformers")
_TWO = ("llama.cpp", "onnxruntime-genai")
_OV = ("openvino",)
_ORT_INT4 = ("onnxruntime-genai int4",)
ROWS = (
    Row("smollm2-q4_1", EARLY, ("llama.cpp",), 2.0),
    Row("smollm2-q4_1", LATE, ("llama.cpp",), 2.2),
    Row("smollm2-q4_1", READ, ("llama.cpp",), 5.0),
    Row("smollm2-q4_0", EARLY, _TWO, 1.4),
    Row("smollm2-q4_0", LATE, _TWO, 1.5),
    *(Row(f"{shape}-{file}", READ, _OV, 1.25) for shape in ("smollm2", "1.1b") for file in ("q4_0", "q8_0")),
    *(Row(f"1.1b-{file}", EARLY, _TWO, 1.2) for file in ("q4_0", "q4_k_m")),
    *(Row(f"1.1b-{file}", LATE, _TWO, 1.3) for file in ("q4_0", "q4_k_m")),
    *(Row(f"1.1b-{file}", work, _ALL, 1.1) for file in ("q8_0", "bf16") for work in (EARLY, LATE)),
    Row("1.1b-bf16", READ, _OV, 1.15),
    Row("7b-q4_0", LATE, ("llama.cpp",), 1.3),
    Row("7b-q4_0", READ, ("llama.cpp",), 2.2),
    *(
        Row(f"15m-{file}", work, ("onnxruntime-genai int4",), 1.2)
        for file in ("q4_0", "q8_0")
        for work in (EARLY, LATE)
    ),
    Row("1.1b-q4_0", MANY, ("llama.cpp",), 2.0),
    Row("1.1b-q4_0", MANY, _OV, 1.3),
)
