"""Creates the missing models of the selected comparisons. Each step runs in the environment that has its tools."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from peers.comparisons import Comparison


class ModelBuilder:
    """Creates model files under `models`.

    Args:
        models: folder with one folder for each model shape ("smollm2", "1.1b", ...).
        peers: folder of the virtual environments that `make peers` installed.
        root: folder that contains this package, for PYTHONPATH.
        original: GGUF file of SmolLM2 (Q4_1).
    """

    def __init__(self, models: Path, peers: Path, root: Path, original: Path) -> None:
        self._models, self._peers, self._root, self._original = models, peers, root, original

    def prepare(self, comparisons: Iterable[Comparison]) -> None:
        """Creates the models that the engines of these comparisons load, if they are missing."""
        for comparison in comparisons:
            for runner in comparison.runners:
                if comparison.shape and not (self._models / comparison.shape / runner.file).exists():
                    print(f"creating {comparison.shape}/{runner.file}", flush=True)
                    self._create(comparison.shape, runner.file)

    def _create(self, shape: str, file: str) -> None:
        folder = self._models / shape
        folder.mkdir(parents=True, exist_ok=True)
        if (shape, file) == ("smollm2", "q4_1.gguf"):
            (folder / file).symlink_to(self._original)
            return
        if not (folder / "hf").exists() and shape != "7b":
            self._create_base(shape)
        if file == "hf":
            return
        if file.endswith(".gguf"):
            self._create_gguf(shape, file)
        else:
            self._export(shape, file)

    def _create_base(self, shape: str) -> None:
        source = ["--from", str(self._original)] if shape == "smollm2" else []
        self._run("openvino", "peers.make_models", shape, str(self._models / shape), *source)

    def _create_gguf(self, shape: str, file: str) -> None:
        folder = self._models / shape
        if shape == "7b":
            self._create_base(shape)
            return
        if not (folder / "f32.gguf").exists():
            self._create_base(shape)
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
            raise SystemExit(f"{python} is missing; `make peers` installs it")
        log = self._models / "prepare.log"
        with log.open("ab") as output:
            process = subprocess.run(
                [python, "-m", module, *arguments], env={**os.environ, "PYTHONPATH": str(self._root)},
                stdout=output, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if process.returncode:
            raise SystemExit(f"{module} {' '.join(arguments)} failed; see {log}")
