"""`save_pretrained` and `push_to_hub`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from torch import Tensor

from puna.errors import ArgumentError, CheckpointError, RequestError, StorageError
from puna.model import LlamaForCausalLM, LlamaModel
from tests.helpers.configurations import config_of

IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))


def new_model(**fields: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config_of(**fields)).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(IDS)[0]
    return out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_pytorch_files_are_read_by_transformers(tied: bool, size: str, variant: str | None, tmp_path: Path) -> None:
    model = new_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size=size, variant=variant)
    names = {path.name for path in tmp_path.iterdir()} - {"config.json", "generation_config.json"}
    infix = "" if variant is None else f".{variant}"
    if size == "5GB":
        assert names == {f"pytorch_model{infix}.bin"}
    else:
        assert f"pytorch_model.bin.index{infix}.json" in names
        assert all(name.startswith("pytorch_model") for name in names) and len(names) > 3
    reference = transformers.LlamaForCausalLM.from_pretrained(tmp_path, variant=variant)
    assert torch.allclose(logits(reference), logits(model), atol=1e-5)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path, variant=variant)), logits(model))


def test_pytorch_files_replace_safetensors_files_of_an_earlier_save(tmp_path: Path) -> None:
    new_model(rms_norm_eps=1e-3).save_pretrained(tmp_path, max_shard_size="20KB")
    model = new_model()
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors*"))
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_the_folder_has_the_name_that_it_has_in_transformers(tmp_path: Path) -> None:
    new_model().save_pretrained(save_directory=str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b" / "model.safetensors").exists()


def test_arguments_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    model = new_model()
    model.save_pretrained(
        tmp_path, is_main_process=True, state_dict=model.state_dict(), save_function=torch.save, push_to_hub=False,
        variant=None, token=None, save_peft_format=True, save_original_format=True, distributed_checkpoint=False,
    )  # fmt: skip
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path)), logits(model))
    with pytest.raises(ArgumentError, match="there is no argument max_shard"):
        model.save_pretrained(tmp_path, max_shard="1GB")
    with pytest.raises(RequestError, match=r"distributed_checkpoint is True.*torch.distributed.checkpoint"):
        model.save_pretrained(tmp_path, distributed_checkpoint=True)
    with pytest.raises(CheckpointError, match="variant is 'a/b'"):
        model.save_pretrained(tmp_path, variant="a/b")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="must be a folder"):
        model.save_pretrained(tmp_path / "file")


def test_a_state_dict_is_saved_in_place_of_the_weights(tmp_path: Path) -> None:
    model = new_model()
    state = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("is_main", [False, True])
def test_only_the_main_process_writes_files(safe: bool, is_main: bool, tmp_path: Path) -> None:
    calls = []

    def save(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(tensors)
        torch.save(tensors, path)

    folder = tmp_path / "model"
    new_model().save_pretrained(folder, is_main, save_function=save, safe_serialization=safe)
    assert folder.exists() == is_main
    assert [len(tensors) for tensors in calls] == ([] if safe else [21])


def test_the_configuration_of_the_model_names_its_class_and_type(tmp_path: Path) -> None:
    model = new_model().bfloat16()
    model.save_pretrained(tmp_path)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert "bfloat16" in str(model.config.dtype)


class Hub:
    """A stand-in for `HfApi` that records calls."""

    calls: list[tuple[str, Any]]
    error: Exception | None = None

    def __init__(self, token: Any = None) -> None:
        Hub.calls.append(("token", token))

    def create_repo(self, repo_id: str, private: Any, exist_ok: bool) -> Any:
        Hub.calls.append(("repo", (repo_id, private, exist_ok)))
        return type("Repo", (), {"repo_id": f"me/{repo_id}"})

    def create_branch(self, repo_id: str, branch: str, exist_ok: bool) -> None:
        Hub.calls.append(("branch", (repo_id, branch, exist_ok)))

    def create_commit(self, repo_id: str, files: Any, **options: Any) -> str:
        if Hub.error is not None:
            raise Hub.error
        names = sorted(item.path_in_repo for item in files)
        Hub.calls.append(("commit", (repo_id, names, options)))
        cards = [item.path_or_fileobj for item in files if item.path_in_repo == "README.md"]
        Hub.calls.append(("card", cards[0].decode() if cards else None))
        return "commit info"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.calls, Hub.error = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)

    def no_card(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub.ModelCard, "load", no_card)
    return Hub


FILES = ["config.json", "generation_config.json", "model.safetensors"]


def test_push_to_hub_uploads_one_commit(hub: type[Hub]) -> None:
    model = new_model()
    model.add_model_tags(["tiny", "llama"])
    model.add_model_tags("tiny")
    assert (
        model.push_to_hub("tiny", private=True, token="t", revision="dev", create_pr=True, tags=["new"])
        == "commit info"
    )
    calls = dict(hub.calls)
    assert (calls["token"], calls["repo"]) == ("t", ("tiny", True, True))
    assert calls["branch"] == ("me/tiny", "dev", True)
    repository, names, options = calls["commit"]
    assert (repository, names) == ("me/tiny", ["README.md", *FILES])
    assert options == {
        "commit_message": "Upload model", "commit_description": None, "revision": "dev", "create_pr": True,
    }  # fmt: skip
    assert "- tiny\n- llama\n- new\n---" in calls["card"]


def test_saving_can_also_push(hub: type[Hub], tmp_path: Path) -> None:
    LlamaModel(config_of()).save_pretrained(tmp_path / "tiny", push_to_hub=True, commit_message="Hello", token="t")
    calls = dict(hub.calls)
    assert calls["repo"] == ("tiny", None, True)
    assert calls["commit"][1] == ["config.json", "model.safetensors"]
    assert calls["commit"][2]["commit_message"] == "Hello"
    assert calls["card"] is None


def test_the_files_that_are_pushed_have_the_requested_format_and_size(hub: type[Hub]) -> None:
    new_model().push_to_hub("tiny", max_shard_size="20KB", safe_serialization=False, commit_description="more")
    _, names, options = dict(hub.calls)["commit"]
    assert "pytorch_model.bin.index.json" in names and options["commit_description"] == "more"
    assert sum(name.startswith("pytorch_model-") for name in names) > 1


def test_errors_of_the_hub_have_a_remedy(hub: type[Hub]) -> None:
    hub.error = OSError("no route")
    with pytest.raises(StorageError, match=r"uploading to 'tiny' failed.*no route"):
        new_model().push_to_hub("tiny")
    hub.error = huggingface_hub.errors.HFValidationError("bad name")
    with pytest.raises(RequestError, match=r"refused to upload to 'tiny': bad name.*HF_TOKEN"):
        new_model().push_to_hub("tiny")
    with pytest.raises(RequestError, match="pass repo_id"):
        new_model().push_to_hub("tiny", repo_url="https://example.com")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without space")
def test_a_full_disk_is_a_storage_error_for_pytorch_files_too(tmp_path: Path) -> None:
    def save(tensors: dict[str, Tensor], path: Path) -> None:
        path.symlink_to("/dev/full")
        torch.save(tensors, path)

    with pytest.raises(StorageError, match=r"pytorch_model.bin cannot be written.*Free space"):
        new_model().save_pretrained(tmp_path / "model", safe_serialization=False, save_function=save)
    assert not (tmp_path / "model").exists()
