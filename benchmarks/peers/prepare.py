"""Makes the models that the chosen blocks need, once; each step runs in the environment that has its tools."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from peers.blocks import Block


class Kitchen:
    """Makes files under `models`.

    Args:
        models: folder with one folder for each shape.
        peers: folder of the environments that `make peers` made.
        root: folder of this package, for the interpreter's path.
        original: SmolLM2's own GGUF file.
    """

    def __init__(self, models: Path, peers: Path, root: Path, original: Path) -> None:
        self._models, self._peers, self._root, self._original = models, peers, root, original

    def prepare(self, blocks: Iterable[Block]) -> None:
        """Makes whatever the blocks' runners need and is missing."""
        for block in blocks:
            for runner in block.runners:
                if block.shape and not (self._models / block.shape / runner.file).exists():
                    print(f"making {block.shape}/{runner.file}", flush=True)
                    self._make(block.shape, runner.file)

    def _make(self, shape: str, file: str) -> None:
        folder = self._models / shape
        folder.mkdir(parents=True, exist_ok=True)
        if (shape, file) == ("smollm2", "q4_1.gguf"):
            (folder / file).symlink_to(self._original)
            return
        if not (folder / "hf").exists() and shape != "7b":
            self._base(shape)
        if file == "hf":
            return
        if file.endswith(".gguf"):
            self._gguf(shape, file)
        else:
            self._export(shape, file)

    def _base(self, shape: str) -> None:
        source = ["--from", str(self._original)] if shape == "smollm2" else []
        self._run("openvino", "peers.make_models", shape, str(self._models / shape), *source)

    def _gguf(self, shape: str, file: str) -> None:
        folder = self._models / shape
        if shape == "7b":
            self._base(shape)
            return
        if not (folder / "f32.gguf").exists():
            self._base(shape)
        self._run("llama", "peers.quantize", str(folder / "f32.gguf"), str(folder / file), file.removesuffix(".gguf"))

    def _export(self, shape: str, file: str) -> None:
        source, target = self._models / shape / "hf", self._models / shape / file
        engine, kind = file.split("-")
        if engine == "openvino":
            self._run("openvino", "peers.export_openvino", shape, str(source), str(target), kind)
            return
        unfinished = target.with_name(f"{target.name}.part")
        with tempfile.TemporaryDirectory() as cache:
            self._run(
                "onnxruntime", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(unfinished),
                "-p", kind, "-e", "cpu", "-c", cache, "--extra_options", "prune_lm_head=true",
            )  # fmt: skip
        unfinished.rename(target)

    def _run(self, environment: str, module: str, *arguments: str) -> None:
        python = self._peers / environment / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"{python} is missing; make peers installs it")
        log = self._models / "prepare.log"
        with log.open("ab") as output:
            done = subprocess.run(
                [python, "-m", module, *arguments], env={**os.environ, "PYTHONPATH": str(self._root)},
                stdout=output, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{module} {' '.join(arguments)} failed; {log} tells why")
