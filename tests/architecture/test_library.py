"""The native library loads from an editable install or a wheel, and reports the features of the machine."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from puna.errors import BackendError
from puna.native import library, load_library, machine

ROOT = Path(__file__).resolve().parents[2]


def test_the_library_loads_and_describes_the_machine():
    assert load_library().puna_abi_version() == library.ABI_VERSION
    here = machine()
    assert 1 <= here.physical_cores <= here.logical_cores


def test_features_agree_with_those_that_linux_reports():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("no x86 flags in /proc/cpuinfo")
    flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    names = {"avx2", "fma", "f16c", "avx_vnni", "avx512_vnni", "avx512_bf16"}
    assert names & set(machine().features) == names & set(flags)
    assert ("avx512" in machine().features) == ({"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags))


def test_the_affinity_mask_limits_the_threads():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from puna.native import machine; print(machine().physical_cores, machine().logical_cores)"
    if sys.platform != "linux":
        pytest.skip("only Linux has affinity masks")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["1", "1"]


def test_a_library_with_another_abi_is_refused(monkeypatch):
    abi_version = library.ABI_VERSION
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    load_library.cache_clear()
    with pytest.raises(BackendError, match=f"ABI version {abi_version}; this puna needs 99"):
        load_library()
    load_library.cache_clear()


def test_a_missing_library_is_an_error(monkeypatch):
    def fail(path: str) -> None:
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    load_library.cache_clear()
    with pytest.raises(BackendError, match="reinstall puna"):
        load_library()
    load_library.cache_clear()


@pytest.mark.slow
def test_the_library_loads_from_a_wheel_for_every_python(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)  # pip builds in build/native, so that up-to-date objects are not compiled again
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(("tests", "csrc"))]
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    code += "import puna.native as n; n.machine(); print(n.load_library()._name)"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert run.stdout.strip().startswith(str(tmp_path / "site" / "puna" / "native")), run.stderr
