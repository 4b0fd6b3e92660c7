"""`from_pretrained`: every argument of transformers 4.34 and 5.x."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    ModelNotFoundError,
    RequestError,
    ShapeError,
)
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from puna.model.pretrained import LlamaPreTrainedModel
from tests.helpers.configurations import config_of

IDS = torch.randint(3, 67, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    folder: Path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(config_of(pad_token_id=0)).eval()
    model.save_pretrained(folder)
    return folder, model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(IDS)[0]
    return out


def test_the_path_has_the_name_that_it_has_in_transformers(saved: Any) -> None:
    folder, model = saved
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(pretrained_model_name_or_path=folder)), logits(model))


NO_EFFECT: dict[str, Any] = {
    "low_cpu_mem_usage": True, "_fast_init": False, "mirror": "x", "resume_download": True, "offload_state_dict": True,
    "proxies": {"http": "x"}, "from_tf": False, "from_flax": False, "load_in_8bit": False, "load_in_4bit": False,
    "quantization_config": None, "adapter_kwargs": {}, "tp_plan": None, "weights_only": True, "disable_mmap": False,
    "use_kernels": False, "trust_remote_code": False, "token": False, "revision": "main", "force_download": True,
    "local_files_only": True, "cache_dir": "nowhere", "use_safetensors": True, "max_memory": None,
    "use_flash_attention_2": False, "attn_implementation": "sdpa", "experts_implementation": None,
    "ignore_mismatched_sizes": True,
}  # fmt: skip


def test_arguments_that_change_nothing_are_accepted(saved: Any) -> None:
    folder, model = saved
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(folder, **NO_EFFECT)), logits(model))


REFUSED: list[tuple[str, Any, str]] = [
    ("load_in_8bit", True, "puna convert --quantize"),
    ("load_in_4bit", True, "keep_quantized"),
    ("quantization_config", {"load_in_8bit": True}, "puna convert --quantize"),
    ("from_tf", True, "safetensors"),
    ("from_flax", True, "safetensors"),
    ("use_flash_attention_2", True, "sdpa"),
    ("tp_plan", "auto", "fully_shard"),
    ("distributed_config", {}, "device_map"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), REFUSED)
def test_unsupported_arguments_are_refused_with_a_remedy(saved: Any, name: str, value: Any, remedy: str) -> None:
    with pytest.raises(RequestError, match=rf"{name} is .*{remedy}"):
        LlamaForCausalLM.from_pretrained(saved[0], **{name: value})


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "magic"])
def test_other_implementations_of_attention_are_refused(saved: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"attn_implementation is '{name}'; it must be 'sdpa'.*'eager'"):
        LlamaForCausalLM.from_pretrained(saved[0], attn_implementation=name)


def test_unknown_arguments_are_errors_that_suggest_a_name(saved: Any) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'torch_dtpye'; did you mean '?torch_dtype"):
        LlamaForCausalLM.from_pretrained(saved[0], torch_dtpye="auto")
    with pytest.raises(ArgumentError, match=r"'zzz', and the configuration has no such field"):
        LlamaForCausalLM.from_pretrained(saved[0], zzz=1)


def test_any_field_of_the_configuration_can_be_replaced(saved: Any) -> None:
    model = LlamaForCausalLM.from_pretrained(saved[0], rms_norm_eps=0.25, rope_theta=123.0, bos_token_id=7)
    assert (model.config.rms_norm_eps, model.config.rope_theta, model.config.bos_token_id) == (0.25, 123.0, 7)
    assert model.model.norm.eps == 0.25
    assert not torch.equal(logits(model), logits(saved[1]))


def test_the_configuration_may_be_an_object_or_a_path(saved: Any, tmp_path: Path) -> None:
    folder, _ = saved
    config = LlamaConfig.from_pretrained(folder, rms_norm_eps=0.25)
    expected = LlamaForCausalLM.from_pretrained(folder, config=config)
    config.save_pretrained(tmp_path)
    for given in (tmp_path, str(tmp_path)):
        model = LlamaForCausalLM.from_pretrained(folder, config=given)
        assert model.config.rms_norm_eps == 0.25
        assert torch.equal(logits(model), logits(expected))


def test_a_folder_without_a_configuration_is_loaded_with_a_given_one(saved: Any, tmp_path: Path) -> None:
    folder, model = saved
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, config=model.config)
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(ModelNotFoundError, match="config"):
        LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("without_path", [True, False])
def test_a_state_dict_replaces_the_tensors_of_the_files(saved: Any, without_path: bool) -> None:
    folder, model = saved
    state = {name: tensor + 0.01 for name, tensor in model.state_dict().items()}
    path, options = (None, {"config": model.config}) if without_path else (folder, {})
    loaded = LlamaForCausalLM.from_pretrained(path, state_dict=state, **options)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    loaded.lm_head.weight.data.zero_()
    assert state["lm_head.weight"].any(), "the tensors are copied"
    bare = LlamaModel.from_pretrained(path, state_dict=model.model.state_dict(), **options)
    assert torch.equal(logits(bare), model.model(IDS)[0])
    del state["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"the state dict does not match.*Missing: \['model.norm.weight'\]"):
        LlamaForCausalLM.from_pretrained(path, state_dict=state, **options)


def test_loading_needs_a_path_or_a_state_dict(saved: Any) -> None:
    with pytest.raises(RequestError, match="state_dict"):
        LlamaForCausalLM.from_pretrained(None, config=saved[1].config)
    with pytest.raises(RequestError, match="the path is None"):
        LlamaForCausalLM.from_pretrained(None)


def test_loading_information_lists_what_was_not_loaded(saved: Any) -> None:
    _, info = LlamaForCausalLM.from_pretrained(saved[0], output_loading_info=True)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    with pytest.warns(UserWarning, match=r"score\.weight"):
        model, info = LlamaForSequenceClassification.from_pretrained(saved[0], output_loading_info=True)
    assert isinstance(model, LlamaForSequenceClassification)
    assert (info["missing_keys"], info["unexpected_keys"]) == (["score.weight"], ["lm_head.weight"])


def test_mismatched_sizes_are_errors_or_initialised_at_random(saved: Any, tmp_path: Path) -> None:
    LlamaForSequenceClassification(config_of(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"score.weight is \(3, 48\).*\(5, 48\).*ignore_mismatched_sizes=True"):
        LlamaForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    with pytest.warns(UserWarning, match=r"the shapes did not match: score.weight is \(3, 48\)"):
        model, info = LlamaForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert info["mismatched_keys"] == [("score.weight", torch.Size([3, 48]), torch.Size([5, 48]))]
    assert model.score.weight.std().item() == pytest.approx(0.2, rel=0.3)
    with pytest.raises(ShapeError, match="embed_tokens"):
        LlamaModel.from_pretrained(saved[0], vocab_size=10)
    with pytest.warns(UserWarning, match="embed_tokens"):
        small = LlamaModel.from_pretrained(saved[0], vocab_size=10, ignore_mismatched_sizes=True)
    assert small(IDS % 10)[0].isfinite().all()


def test_a_subfolder_is_inside_the_folder(saved: Any, tmp_path: Path) -> None:
    _, model = saved
    other = LlamaForCausalLM(config_of())
    other.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "inner")
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path, subfolder="inner")), logits(model))
    with pytest.raises(ModelNotFoundError, match="absent"):
        LlamaForCausalLM.from_pretrained(tmp_path, subfolder="absent")


@pytest.mark.parametrize("safe", [True, False])
def test_variants_are_separate_files(saved: Any, tmp_path: Path, safe: bool) -> None:
    _, model = saved
    other = LlamaForCausalLM(config_of(pad_token_id=0))
    other.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, variant="v1", safe_serialization=safe, max_shard_size="40KB")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, variant="v1")
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path)), logits(other))
    with pytest.raises(OSError, match=r"model\.v2\.safetensors or pytorch_model\.v2\.bin; its weight files are: model"):
        LlamaForCausalLM.from_pretrained(tmp_path, variant="v2")


def test_use_safetensors_selects_the_kind_of_file(saved: Any, tmp_path: Path) -> None:
    folder, model = saved
    other = LlamaForCausalLM(config_of(pad_token_id=0))
    other.save_pretrained(tmp_path, safe_serialization=False)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    for use, expected in ((None, model), (True, model), (False, other)):
        loaded = LlamaForCausalLM.from_pretrained(tmp_path, use_safetensors=use)
        assert torch.equal(logits(loaded), logits(expected))
    with pytest.raises(OSError, match=r"pytorch_model\.bin"):
        LlamaForCausalLM.from_pretrained(folder, use_safetensors=False)


def test_key_mapping_renames_tensors(saved: Any, tmp_path: Path) -> None:
    folder, model = saved
    renamed = {name.replace("model.layers", "model.blocks"): tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=renamed)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path, key_mapping={r"^model\.blocks\.": "model.layers."})
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(CheckpointError, match="key_mapping has the pattern"):
        LlamaForCausalLM.from_pretrained(folder, key_mapping={"(": ""})
    with pytest.raises(CheckpointError, match="several tensors the name"):
        LlamaForCausalLM.from_pretrained(folder, key_mapping={".*": "x"})


def test_a_gguf_file_in_a_folder_is_named() -> None:
    folder = Path(__file__).parents[2] / "golden" / "checkpoint"
    model = LlamaForCausalLM.from_pretrained(folder, gguf_file="model.gguf")
    assert torch.equal(logits(model), logits(LlamaForCausalLM.from_pretrained(folder / "model.gguf")))
    with pytest.raises(CheckpointError, match=r"variant, use_safetensors and key_mapping apply only to"):
        LlamaForCausalLM.from_pretrained(folder, gguf_file="model.gguf", variant="fp16")


def test_use_auth_token_is_the_older_name_of_token(saved: Any) -> None:
    with pytest.warns(FutureWarning, match="its new name is token"):
        LlamaForCausalLM.from_pretrained(saved[0], use_auth_token=False)
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="are both given; keep token"):
        LlamaForCausalLM.from_pretrained(saved[0], use_auth_token="a", token="b")


def test_trust_remote_code_warns(saved: Any) -> None:
    with pytest.warns(UserWarning, match="trust_remote_code has no effect"):
        LlamaForCausalLM.from_pretrained(saved[0], trust_remote_code=True)


def test_a_generation_configuration_replaces_that_of_the_folder(saved: Any) -> None:
    settings = GenerationConfig(max_new_tokens=3)
    assert LlamaForCausalLM.from_pretrained(saved[0], generation_config=settings).generation_config is settings


@pytest.mark.parametrize("architectures", [None, ["LlamaForCausalLM"]])
def test_classes_without_a_language_model_head_load_files_without_one(
    saved: Any, tmp_path: Path, architectures: list[str] | None
) -> None:
    _, model = saved
    model.config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "architectures": architectures}))
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(LlamaModel.from_pretrained(tmp_path)), model.model(IDS)[0])
    with pytest.warns(UserWarning, match=r"no score\.weight"):
        classifier = LlamaForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(classifier.model.norm.weight, model.model.norm.weight)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        LlamaForCausalLM.from_pretrained(tmp_path)


class Tagger(LlamaPreTrainedModel):
    """A class as users write it: a decoder, and a head with a part that has its own initial values."""

    def __init__(self, config: LlamaConfig, tags: int = 3) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.tagger = nn.Linear(config.hidden_size, tags)
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.post_init()

    def get_decoder(self) -> LlamaModel:
        return self.model

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        return (self.tagger(self.model(ids)[0]) * self.scale,)


def test_classes_of_users_are_loaded_and_saved(saved: Any, tmp_path: Path) -> None:
    folder, model = saved
    with pytest.warns(UserWarning, match=r"no scale, tagger\.bias, tagger\.weight"):
        tagger = Tagger.from_pretrained(folder, 5, dtype="bfloat16")
    assert tagger.tagger.weight.shape == (5, 48)
    assert tagger.tagger.weight.std().item() == pytest.approx(0.2, rel=0.3)
    assert (tagger.tagger.bias == 0).all() and tagger.scale.item() == 2.0
    assert {parameter.dtype for parameter in tagger.parameters()} == {torch.bfloat16}
    assert torch.equal(tagger.model.norm.weight, model.model.norm.weight.bfloat16())
    tagger.save_pretrained(tmp_path)
    again = Tagger.from_pretrained(tmp_path, tags=5, dtype="auto")
    assert torch.equal(logits(again), logits(tagger))


def test_from_config_makes_a_model_of_a_type(saved: Any) -> None:
    model = LlamaForCausalLM._from_config(saved[1].config, torch_dtype=torch.bfloat16, attn_implementation="eager")
    assert (model.dtype, model.attn_implementation, model.model.attn_implementation) == (
        torch.bfloat16,
        "eager",
        "eager",
    )
    assert saved[1].attn_implementation == "sdpa"


def test_a_model_needs_a_configuration() -> None:
    for invalid in ({"vocab_size": 3}, "path", None):
        with pytest.raises(TypeError, match="must be a LlamaConfig"):
            LlamaForCausalLM(invalid)
    with pytest.raises(ValueError, match=r"LlamaModel\.from_pretrained"):
        LlamaModel({})
