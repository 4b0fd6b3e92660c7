"""Classes of puna are subclasses of those of transformers once both are imported, and keep their own attributes."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import puna
from puna.compat.transformers_bases import inherit_when_imported
from puna.model import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from puna.tokenizer.base import TokenizerBase
from tests.helpers.configurations import config_of

FOREIGN = """
class Base:
    color = "red"
    def __setattr__(self, name, value): raise RuntimeError(name)
    def __getattr__(self, name): return "computed " + name
    def __repr__(self): return "foreign"
    def shared(self): return "foreign"
    def new(self): return "new " + self.shared()
"""


class Root:
    """A base class, because Python cannot change the bases of a class that has only `object`."""

    def shared(self) -> str:
        return "own"


def test_models_and_tokenizers_are_instances_of_transformers_classes() -> None:
    model = LlamaForCausalLM(config_of())
    assert isinstance(model, transformers.PreTrainedModel)
    assert isinstance(model.model, transformers.PreTrainedModel)
    assert issubclass(puna.LlamaForSequenceClassification, transformers.PreTrainedModel)
    assert isinstance(model(torch.tensor([[3]])), transformers.utils.ModelOutput)
    for tokenizer in (puna.LlamaTokenizer, puna.LlamaTokenizerFast):
        assert issubclass(tokenizer, transformers.PreTrainedTokenizerBase)
    assert issubclass(puna.LlamaTokenizerFast, transformers.PreTrainedTokenizerFast)
    assert issubclass(puna.LlamaTokenizer, transformers.PreTrainedTokenizer)
    assert type(model) is LlamaForCausalLM is model.__class__
    assert pickle.loads(pickle.dumps(model)).state_dict().keys() == model.state_dict().keys()


def test_modules_behave_as_before() -> None:
    """Methods that transformers overrides, such as `to`, are still those of `nn.Module`."""
    for name, value in vars(nn.Module).items():
        if inspect.isfunction(value) and value.__module__.startswith("torch."):  # transformers adds smart_apply
            assert not inspect.getattr_static(LlamaModel, name).__module__.startswith("transformers"), name
    assert LlamaPreTrainedModel.to is nn.Module.to is not transformers.PreTrainedModel.to
    assert TokenizerBase.__setattr__ is object.__setattr__


def foreign_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """Writes a package whose module `bases` has a class `Base`; returns the name of the module."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("")
    (folder / name / "bases.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(folder)
    return f"{name}.bases"


@pytest.mark.parametrize("imported_first", [True, False])
def test_every_attribute_of_the_class_keeps_its_value(
    imported_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Root):
        color = "green"

    class Derived(Own):
        pass

    module = foreign_module(tmp_path, monkeypatch, f"foreign_{imported_first}")
    if imported_first:
        __import__(module)
    inherit_when_imported(Own, module, "Base")
    inherit_when_imported(Own, module, "NoSuchClass")
    if not imported_first:
        assert Own.__bases__ == (Root,)
        __import__(module)
    base: Any = sys.modules[module].Base
    out: Any = Derived()
    assert issubclass(Own, base)
    assert isinstance(out, base)
    out.attribute = 3
    assert (out.color, out.shared(), out.new(), out.attribute) == ("green", "own", "new own", 3)
    assert "foreign" not in repr(out)
    assert not hasattr(out, "missing")


def test_import_errors_of_the_module_are_those_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Root):
        pass

    module = foreign_module(tmp_path, monkeypatch, "foreign_broken")
    inherit_when_imported(Own, "foreign_broken.missing", "Base")
    with pytest.raises(ModuleNotFoundError, match=r"foreign_broken\.missing"):
        __import__("foreign_broken.missing")
    (tmp_path / "foreign_broken" / "bases.py").write_text("1 / 0")
    inherit_when_imported(Own, module, "Base")
    with pytest.raises(ZeroDivisionError):
        __import__(module)
    (tmp_path / "foreign_broken" / "bases.py").write_text(FOREIGN)
    __import__(module)
    assert issubclass(Own, sys.modules[module].Base)


@pytest.mark.slow
def test_the_order_of_imports_does_not_matter() -> None:
    """A model that exists before transformers is imported, as in a script that imports it in a function."""
    code = (
        "import sys\n"
        "from puna import LlamaConfig, LlamaModel\n"
        "model = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))\n"
        "assert 'transformers' not in sys.modules\n"
        "import transformers\n"
        "assert isinstance(model, transformers.PreTrainedModel)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_subclasses_of_users_can_be_defined_afterwards() -> None:
    class Mine(LlamaForCausalLM):
        def extra(self) -> int:
            return 3

    model = Mine(config_of())
    assert model.extra() == 3
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 67)
