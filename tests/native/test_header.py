"""The structs and numbers of csrc/include/puna.h, compared with their counterparts in Python."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from puna.backend import PAGE
from puna.native import library, sampling, tensors, training

HEADER = Path(__file__).parents[2] / "csrc/include/puna.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
NUMBERS = {
    name: int(value) for name, value in re.findall(r"(?:#define |^ *|\{ *|, *)(PUNA_\w+)(?: = | )(\d+)\b", TEXT, re.M)
}
STRUCTS = {
    "puna_shape": library.Shape,
    "puna_tensor": library.NativeTensor,
    "puna_chunk": library.NativeChunk,
    "puna_low_rank": library.NativeLowRank,
    "puna_machine": library.NativeMachine,
    "puna_attention": training.NativeAttention,
    "puna_sampling": sampling.NativeSampling,
    "puna_sample_row": sampling.NativeRow,
}
TYPES = {"double": ctypes.c_double, "float": ctypes.c_float, "int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32}


def test_all_structs_of_the_header_are_compared():
    assert set(re.findall(r"typedef struct (\w+) \{", TEXT)) == set(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_structs_have_the_fields_of_the_header(name):
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", TEXT, re.DOTALL)[1]
    fields = re.findall(r"^ *(?:const )?(\w+)(\*?) (\w+);", body, re.MULTILINE)
    assert body.count(";") == len(fields) == len(STRUCTS[name]._fields_)
    for (kind, star, field), (name_in_python, type_in_python) in zip(fields, STRUCTS[name]._fields_, strict=True):
        assert name_in_python == field
        assert type_in_python in ((ctypes.c_void_p, ctypes.c_char_p) if star else (TYPES[kind],)), field


def test_structs_have_the_sizes_that_the_compiler_gives_them(tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    prints = "".join(f'printf("{name} %zu\\n", sizeof({name}));' for name in STRUCTS)
    (tmp_path / "sizes.c").write_text(f'#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{ {prints} }}\n')
    subprocess.run([compiler, "sizes.c", "-o", "sizes"], cwd=tmp_path, check=True)
    lines = subprocess.run([tmp_path / "sizes"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert dict(line.split() for line in lines) == {name: str(ctypes.sizeof(kind)) for name, kind in STRUCTS.items()}


def test_numbers_are_those_of_the_header():
    assert NUMBERS["PUNA_ABI_VERSION"] == library.ABI_VERSION == library.load_library().puna_abi_version()
    assert NUMBERS["PUNA_MAX_THREADS"] == library.MAX_THREADS
    assert NUMBERS["PUNA_PAGE"] == PAGE
    assert [NUMBERS[f"PUNA_{name}"] for name in ("OK", "FAILED", "STOPPED")] == [
        library.OK, library.FAILED, library.STOPPED
    ]  # fmt: skip
    assert {f"PUNA_OUTPUT_{name.upper()}": number for name, number in library.OUTPUTS.items()} == {
        name: number for name, number in NUMBERS.items() if name.startswith("PUNA_OUTPUT_")
    }
    phases = {name: number for name, number in NUMBERS.items() if name.startswith("PUNA_PHASE_")}
    assert phases == {f"PUNA_PHASE_{name.upper()}": number for number, name in enumerate(library.PHASES)}
    assert NUMBERS["PUNA_PHASES"] == len(library.PHASES)


def test_kinds_of_tensors_are_those_of_the_header():
    names = {
        "embed_tokens": "EMBEDDING", "model.norm": "NORM", "lm_head": "HEAD", "input_layernorm": "ATTENTION_NORM",
        "post_attention_layernorm": "MLP_NORM",
    }  # fmt: skip
    for name in ("q", "k", "v", "o", "gate", "up", "down"):
        names |= {f"{name}_proj.weight": name.upper(), f"{name}_proj.bias": f"{name.upper()}_BIAS"}
    kinds = tensors.IN_LAYER | tensors.OUTSIDE_LAYERS
    assert len(kinds) == len(names) == 19
    for tensor, number in kinds.items():
        (kind,) = [kind for part, kind in names.items() if part in tensor]
        assert NUMBERS[f"PUNA_{kind}"] == number
