"""`from_pretrained` and `save_pretrained`: exchange of files with transformers, heads, dtypes, GGUF."""

from __future__ import annotations

import json
import os
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from puna.config import GenerationConfig, LlamaConfig
from puna.errors import BackendError, CheckpointError, ConfigError, ModelNotFoundError, PunaError
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from tests.helpers.configurations import CONFIGURATIONS, config_of
from tests.helpers.reference_models import distance, pair

IDS = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a saved causal language model."""
    pair(config_of(num_key_value_heads=2))[0].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def are_equal(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Returns whether all tensors of two models are equal; asserts that both have the same names."""
    tensors, expected = model.state_dict(), other.state_dict()
    assert list(tensors) == list(expected)
    return all(
        tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]) for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_puna_loads_models_saved_by_transformers(name: str, tmp_path: Path) -> None:
    model, reference = pair(config_of(**CONFIGURATIONS[name]))
    reference.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert not loaded.training
    assert are_equal(loaded, model)
    assert distance(loaded(IDS).logits, reference(IDS).logits) <= 1e-5


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_transformers_loads_models_saved_by_puna(name: str, tmp_path: Path) -> None:
    model, _ = pair(config_of(**CONFIGURATIONS[name]))
    model.generation_config = GenerationConfig(max_new_tokens=7, eos_token_id=[2, 5])
    model.save_pretrained(tmp_path)
    reference, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert are_equal(model, reference)
    # transformers also keeps the key `type`.
    assert model.config.rope_parameters.items() <= reference.config.rope_parameters.items()
    assert (reference.generation_config.max_new_tokens, reference.generation_config.eos_token_id) == (7, [2, 5])
    assert distance(model(IDS).logits, reference(IDS).logits) <= 1e-5
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert are_equal(reloaded, model)
    assert reloaded.generation_config == model.generation_config


def test_files_and_tensors_have_the_same_names_as_those_of_transformers(tmp_path: Path) -> None:
    model, reference = pair(config_of(tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "puna")
    reference.save_pretrained(tmp_path / "transformers")
    names = {path.name for path in (tmp_path / "puna").iterdir()}
    assert names == {path.name for path in (tmp_path / "transformers").iterdir()}
    tensors, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("puna", "transformers"))
    assert tensors.keys() == expected.keys()
    assert "lm_head.weight" not in tensors
    config = json.loads((tmp_path / "puna" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == config["torch_dtype"] == "float32"


@torch.no_grad()
def test_shards_are_read_by_both_libraries(tmp_path: Path) -> None:
    model, reference = pair(config_of())
    model.save_pretrained(tmp_path / "puna", max_shard_size="20KB")
    reference.save_pretrained(tmp_path / "transformers", max_shard_size="20KB")
    assert len(list((tmp_path / "puna").glob("model-*-of-*.safetensors"))) > 3
    assert are_equal(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "puna"), reference)
    assert are_equal(LlamaForCausalLM.from_pretrained(tmp_path / "transformers"), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_survive_saving_and_can_be_overridden(dtype: torch.dtype, tmp_path: Path) -> None:
    model, _ = pair(config_of())
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = str(dtype).removeprefix("torch.")
    model.to(dtype).save_pretrained(tmp_path)
    assert LlamaConfig.from_pretrained(tmp_path).dtype_name == name
    for argument in ("auto", dtype, name):
        loaded = LlamaForCausalLM.from_pretrained(tmp_path, dtype=argument)
        assert loaded.dtype == dtype
        assert are_equal(loaded, model)
        assert loaded.model.rotary_emb.inv_freq.dtype == torch.float32
    assert are_equal(LlamaForCausalLM.from_pretrained(tmp_path, torch_dtype="auto"), model)
    as_float32 = LlamaForCausalLM.from_pretrained(tmp_path)
    assert as_float32.dtype == torch.float32
    assert are_equal(as_float32, model.float())
    assert not torch.equal(exact["lm_head.weight"], as_float32.lm_head.weight)
    with pytest.raises(ConfigError, match=r"int8.*auto.*bfloat16"):
        LlamaForCausalLM.from_pretrained(tmp_path, dtype="int8")


@pytest.mark.parametrize("destination", ["folder", "new"])
@pytest.mark.parametrize(
    ("change", "text"), [({"dtype": torch.float64}, "'float64'"), ({"device": "meta"}, "on the meta device")]
)
def test_a_model_that_cannot_be_saved_leaves_no_files(
    folder: Path, tmp_path: Path, destination: str, change: dict[str, Any], text: str
) -> None:
    target = folder if destination == "folder" else tmp_path / "new" / "folder"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = LlamaForCausalLM(config_of(num_key_value_heads=2, rms_norm_eps=1e-3)).to(**change)
    with pytest.raises(PunaError, match=text):
        model.save_pretrained(target)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_save_that_fails_keeps_the_earlier_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    # The shapes equal those of the earlier model, so that a mixture of both saves would load.
    model = LlamaForCausalLM(config_of(num_key_value_heads=2, rms_norm_eps=1e-3))
    model.generation_config = GenerationConfig(max_new_tokens=3)
    original = os.fsync

    def fail_for_large_files(descriptor: int) -> None:
        original(descriptor)
        if os.fstat(descriptor).st_size > 10_000:
            raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail_for_large_files)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_a_classifier_over_a_language_model_replaces_all_files(folder: Path) -> None:
    assert (folder / "generation_config.json").exists()
    LlamaForSequenceClassification(config_of()).save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_dtype_auto_reads_the_type_of_the_weights_not_the_configuration(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, dtype="bfloat16")
    model.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "torch_dtype": "float16", "dtype": "float16"}))
    loaded = LlamaForCausalLM.from_pretrained(folder, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    loaded.save_pretrained(folder)
    assert LlamaConfig.from_pretrained(folder).dtype == torch.bfloat16


def test_a_missing_head_is_initialised_with_a_warning(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"no score.weight and its lm_head.weight is not used.*random") as warning:
        model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=5, dtype="bfloat16")
    assert warning[0].filename == __file__
    assert model.score.weight.shape == (5, 48)
    assert model.score.weight.dtype == torch.bfloat16
    assert float(model.score.weight.detach().float().std()) == pytest.approx(0.2, rel=0.2)
    assert model.config.num_labels == 5
    assert torch.equal(model.model.norm.weight, LlamaModel.from_pretrained(folder, dtype="bfloat16").norm.weight)
    model.float().save_pretrained(tmp_path / "classifier")
    reloaded = LlamaForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert are_equal(reloaded, model)
    reference = transformers.LlamaForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert are_equal(reference, model)
    with pytest.warns(UserWarning, match=r"no lm_head.weight and its score.weight is not used"):
        LlamaForCausalLM.from_pretrained(tmp_path / "classifier")


def test_models_without_a_head_are_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    bare = LlamaModel.from_pretrained(folder)
    assert are_equal(bare, model.model)
    bare.save_pretrained(tmp_path / "bare")
    reference = transformers.LlamaModel.from_pretrained(tmp_path / "bare")
    assert are_equal(bare, reference)
    assert are_equal(LlamaModel.from_pretrained(tmp_path / "bare"), bare)
    with pytest.warns(UserWarning, match=r"no lm_head.weight; the head of LlamaForCausalLM"):
        causal_lm = LlamaForCausalLM.from_pretrained(tmp_path / "bare")
    assert are_equal(causal_lm.model, bare)
    reference.save_pretrained(tmp_path / "transformers")
    assert are_equal(LlamaModel.from_pretrained(tmp_path / "transformers"), bare)


def test_a_tied_head_is_not_saved_and_a_head_with_its_own_weights_is_an_error(tmp_path: Path) -> None:
    model, _ = pair(config_of(tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    with pytest.raises(PunaError, match=r"separate matrix.*tie_weights"):
        model.save_pretrained(tmp_path / "untied")


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 3}, r"num_hidden_layers is 3, but the checkpoint has only 2 layers"),
    ({"intermediate_size": 96}, r"mlp.down_proj.weight is \(48, 80\) instead of \(48, 96\)"),
    ({"attention_bias": True}, r"Missing: .*bias"),
    ({"tie_word_embeddings": True}, r"superfluous: \['lm_head.weight'\]"),
]


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_a_configuration_that_contradicts_the_tensors_is_an_error(
    folder: Path, change: dict[str, Any], text: str
) -> None:
    fields = LlamaConfig.from_pretrained(folder).to_dict()
    with pytest.raises(CheckpointError, match=text):
        LlamaForCausalLM.from_pretrained(folder, config=LlamaConfig.from_dict(fields, **change))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; .* from 0 to 65536"),
        ({"num_hidden_layers": 2**16}, "num_hidden_layers is 65536, but the checkpoint has only 2 layers"),
        ({"head_dim": 10**9}, "head_dim is 1000000000; .* from 0 to 1048576"),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776; .* from 0 to 1048576"),
        ({"num_attention_heads": 2**62}, "num_attention_heads is .* from 0 to 65536"),
        ({"vocab_size": 2**40}, "vocab_size is .* from 0 to 2147483647"),
    ],
)
def test_absurd_sizes_end_in_an_error_at_once(folder: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(PunaError, match=text):
        LlamaForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True, **change)


def test_exhausted_memory_is_an_error_of_the_backend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(loading: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("puna.model.huggingface.loading.load", fail)
    with pytest.raises(BackendError, match=r"memory is exhausted \(.* 99 bytes\); free memory"):
        LlamaForCausalLM.from_pretrained(folder)


def test_fewer_layers_than_the_checkpoint_has_are_loaded_with_a_warning(folder: Path) -> None:
    with pytest.warns(UserWarning, match="num_hidden_layers is 1; the further layers"):
        model, info = LlamaForCausalLM.from_pretrained(folder, num_hidden_layers=1, output_loading_info=True)
    assert len(model.model.layers) == 1 and not info["missing_keys"]
    assert {name.split(".")[2] for name in info["unexpected_keys"]} == {"1"}
    complete = LlamaForCausalLM.from_pretrained(folder)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, complete.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(model.lm_head.weight, complete.lm_head.weight)


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    _, reference = pair(config_of())
    for missing in ("lm_head.weight", "model.layers.0.mlp.up_proj.weight"):
        state = {name: tensor for name, tensor in reference.state_dict().items() if name != missing}
        reference.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(CheckpointError, match=missing):
            LlamaForCausalLM.from_pretrained(tmp_path)


def test_options_take_effect_and_unknown_options_are_errors(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", device="cpu")
    assert model.attn_implementation == "eager"
    model.save_pretrained(folder)
    assert LlamaForCausalLM.from_pretrained(folder).attn_implementation == "sdpa"  # the argument is not saved
    config = LlamaConfig.from_pretrained(folder, use_cache=False)
    model = LlamaForCausalLM.from_pretrained(folder, config=config)
    assert model.config == config
    assert model.config is not config
    with pytest.raises(ModelNotFoundError):
        LlamaForCausalLM.from_pretrained(folder / "nothing")
    with pytest.raises(PunaError, match=r"load_in_8bit is True.*puna convert --quantize"):
        LlamaForCausalLM.from_pretrained(folder, load_in_8bit=True)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'dtpye'; did you mean 'dtype'"):
        LlamaForCausalLM.from_pretrained(folder, dtpye="auto")


def test_a_resized_vocabulary_survives_saving(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(80)
    model.save_pretrained(folder)
    assert are_equal(LlamaForCausalLM.from_pretrained(folder), model)
    assert are_equal(transformers.LlamaForCausalLM.from_pretrained(folder), model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_needs_memory_for_the_weights_only_once(dtype: str, tmp_path: Path) -> None:
    config = config_of(hidden_size=256, intermediate_size=512, num_hidden_layers=6, vocab_size=2000)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    LlamaForCausalLM.from_pretrained(tmp_path)  # imports modules, so that their memory is not measured
    tracemalloc.start()  # measures NumPy's memory, which the parameters use if they are not copied
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert weights <= peak < weights + 1.2 * largest < 1.5 * weights


@torch.no_grad()
def test_smollm2_is_loaded_from_gguf(smollm2: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LlamaForCausalLM.from_pretrained(smollm2, dtype="bfloat16")
    assert model.num_parameters() == 134_515_008
    ids = torch.tensor([[504, 3575, 282, 4649, 314]])  # "The capital of France is"
    ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    assert ids[0, -1] == 7042  # " Paris"
