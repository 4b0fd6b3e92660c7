"""Folders of PEFT are read completely; the error names what is missing, foreign or unsupported."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from puna.adapters import open_adapter
from puna.checkpoint.names import EMBEDDING, HEAD
from puna.errors import CheckpointError, ModelNotFoundError
from tests.adapters.cases import CASES, base_config, base_tensors, recorded, weights, write_adapter, write_case
from tests.helpers.torch_files import save_torch

Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))


def read(folder, case, **changes):
    return open_adapter(write_case(folder, case, **changes), base_config(CASES[case][0]))


@pytest.mark.parametrize("case", CASES)
def test_every_recorded_adapter_is_read(tmp_path, case):
    adapter = read(tmp_path, case)
    record = recorded()[case]
    assert adapter.base == "example/base"
    assert adapter.head == ("classification" if case.endswith("classes") else "lm")
    values = weights(case, record["shapes"], base_tensors(CASES[case][0]))
    stored = sum(array.size for array in values.values())
    changes = [adapter.prompt, adapter.prefix]
    changes += [array for item in adapter.low_rank.values() for array in (item.a, item.b, item.magnitude, item.bias)]
    changes += [item.factors for item in adapter.scalings.values()]
    changes += [item.values for item in adapter.token_rows.values()]
    read_values = sum(array.size for array in changes if array is not None)
    read_values += sum(math.prod(tensor.shape) for tensor in adapter.replaced.values())
    shared = case in ("embedding_tied", "tokens_tied")  # the head uses the embedding's tensor too
    assert read_values > stored if shared else read_values == stored


@pytest.mark.parametrize("case", CASES)
def test_every_missing_tensor_is_reported(tmp_path, case):
    record, (base, _, _) = recorded()[case], CASES[case]
    values = weights(case, record["shapes"], base_tensors(base))
    for number, missing in enumerate(values):
        if ".base_layer.weight" in missing or (case == "only_tokens_tied" and "lm_head" in missing):
            continue  # copies of the base model's matrix
        fewer = {name: array for name, array in values.items() if name != missing}
        folder = write_adapter(tmp_path / str(number), record["config"], fewer or {"other": np.zeros(1, np.float32)})
        with pytest.raises(CheckpointError, match=missing.split(".")[-1]):
            open_adapter(folder, base_config(base))


def test_the_factors_and_scales_are_those_of_peft(tmp_path):
    adapter = read(tmp_path, "patterns")
    assert adapter.low_rank[Q0].a.shape == (2, 32) and adapter.low_rank[Q0].scale == 8 / 2
    assert adapter.low_rank[Q1].scale == 1 / 2
    assert adapter.low_rank["model.layers.0.mlp.up_proj.weight"].b.shape == (40, 6)
    assert adapter.low_rank["model.layers.1.mlp.up_proj.weight"].scale == 8 / 4
    assert not any("o_proj" in name or "v_proj" in name for name in adapter.low_rank)
    assert read(tmp_path, "rslora").low_rank[Q0].scale == 2 / math.sqrt(4)


def test_layers_and_exclusions_select_modules(tmp_path):
    assert all(".layers.1." in name for name in read(tmp_path, "layers").low_rank)
    names = read(tmp_path, "excluded").low_rank
    assert sorted(name for name in names if "gate" in name) == ["model.layers.1.mlp.gate_proj.weight"]


def test_the_embedding_is_read_as_a_change_of_the_stored_matrix(tmp_path):
    adapter = read(tmp_path, "embeddings")
    assert adapter.low_rank[EMBEDDING].b.shape == (48, 8) and adapter.low_rank[EMBEDDING].a.shape == (8, 32)
    assert adapter.low_rank[HEAD].b.shape == (48, 8)


def test_a_prefix_is_split_into_keys_and_values(tmp_path):
    prefix = read(tmp_path, "prefix").prefix
    stored = weights("prefix", recorded()["prefix"]["shapes"], {})["prompt_embeddings"]
    assert prefix.shape == (2, 2, 2, 3, 8)  # layers, keys and values, kv heads, virtual tokens, head width
    assert np.array_equal(prefix[1, 0, 1, 2], stored[2].reshape(4, 2, 8)[2, 1])


def test_a_torch_file_is_read(tmp_path):
    expected = read(tmp_path / "safetensors", "lora")
    folder = write_case(tmp_path / "bin", "lora")
    (folder / "adapter_model.safetensors").unlink()
    save_torch(weights("lora", recorded()["lora"]["shapes"], {}), folder / "adapter_model.bin")
    adapter = open_adapter(folder, base_config("plain"))
    assert np.array_equal(adapter.low_rank[Q0].b, expected.low_rank[Q0].b)


def test_a_bare_model_and_old_names_are_read(tmp_path):
    record = recorded()["dora"]
    config = record["config"] | {"target_modules": ["q_proj"]}
    shapes = {name: shape for name, shape in record["shapes"].items() if "q_proj" in name}
    values = {
        name.replace("model.model.", "model.").replace("magnitude_vector", "magnitude_vector.weight"): array
        for name, array in weights("dora", shapes, {}).items()
    }
    adapter = open_adapter(write_adapter(tmp_path, config, values), base_config("plain"))
    assert list(adapter.low_rank) == [Q0, Q1] and adapter.low_rank[Q1].magnitude.shape == (32,)


@pytest.mark.parametrize("tied", [False, True])
def test_a_resized_vocabulary_is_read(tmp_path, tied):
    record = recorded()["lora"]
    rows = np.ones((50, 32), np.float32)
    values = weights("lora", record["shapes"], {}) | {
        "base_model.model.model.embed_tokens.weight": rows, "base_model.model.lm_head.weight": rows
    }  # fmt: skip
    config = base_config("tied" if tied else "plain")
    adapter = open_adapter(write_adapter(tmp_path, record["config"], values), config)
    assert adapter.config.vocab_size == 50 and set(adapter.replaced) == {EMBEDDING, HEAD}
    del values["base_model.model.model.embed_tokens.weight"]
    with pytest.raises(CheckpointError, match=r"resized from 48 to 50.*embed_tokens"):
        open_adapter(write_adapter(tmp_path, record["config"], values), config)
    values["base_model.model.model.embed_tokens.weight"] = rows[:40]
    values["base_model.model.lm_head.weight"] = rows[:40]
    with pytest.raises(CheckpointError, match=r"shape \(40, 32\).*\(48, 32\)"):
        open_adapter(write_adapter(tmp_path, record["config"], values), config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"peft_type": ["LORA"]}, "peft_type is"),
        ({"alora_invocation_tokens": [3]}, r"alora_invocation_tokens is \[3\]"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora is True"),
        ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"added_in_a_later_release": 0.5}, "added_in_a_later_release is 0.5"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*path_initial_model_for_weight_conversion"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_dora": True, "lora_bias": True}, "use_dora and lora_bias"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"r": 0}, "r is 0"),
        ({"r": 5}, r"shape \(4, 32\).*\(5, 32\)"),
        ({"target_modules": 7}, "target_modules is 7"),
        ({"target_modules": ["Wqkv"]}, "select no module"),
        ({"target_modules": "(a+)+b"}, "repeats a group"),
        ({"target_modules": ".*.*.*.*.*.*.*.*.*x"}, "more than 8 repetitions"),
        ({"target_modules": "([a-z]*"}, r"/adapter_config.json: target_modules has .* not a valid regular expression"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [99]}, r"config.json: layers_to_\w+ is \[99\].* 2"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 1e300}, "it must be a number below 1e30"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"trainable_token_indices": [48]}, "token 48.*48 tokens"),
        ({"trainable_token_indices": {"wte": [4]}}, "'wte'"),
        ({"modules_to_save": ["norm"]}, "input_layernorm"),
    ],
)  # fmt: skip
def test_settings_that_change_the_result_are_refused(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, "lora", **changes)


def test_empty_settings_of_later_releases_are_noted(tmp_path):
    assert "later_setting" in read(tmp_path, "lora", later_setting=[]).notes[0]
    assert read(tmp_path, "lora").notes == ()


def test_the_patterns_that_unsloth_writes_are_accepted(tmp_path):
    pattern = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|k_proj|v_proj|o_proj).*?)|"
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|mlp)\.(?:(?:q_proj|k_proj|up_proj)))"
    )
    settings = {"rank_pattern": recorded()["patterns"]["config"]["rank_pattern"], "target_modules": pattern}
    assert read(tmp_path, "patterns", **settings).low_rank.keys() == read(tmp_path, "patterns").low_rank.keys()


def test_matching_a_hostile_pattern_ends(tmp_path):
    start = time.perf_counter()
    with pytest.raises(CheckpointError):
        read(tmp_path, "lora", target_modules=".*.*.*.*.*x")
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("q_proj.lora_A.weight", np.zeros((4, 33), np.float32), r"\(4, 33\).*\(4, 32\)"),
        ("q_proj.lora_A.weight", np.zeros(128, np.float32), "gather the parameters"),
        ("q_proj.lora_A.weight", np.full((4, 32), np.nan, np.float32), "not finite"),
        ("q_proj.lora_A.weight", np.zeros((4, 32), np.int32), "i32"),
        ("q_proj.lora_C.weight", np.zeros((4, 32), np.float32), "lora_C"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path, name, array, message):
    record = recorded()["lora"]
    values = weights("lora", record["shapes"], {}) | {f"base_model.model.model.layers.0.self_attn.{name}": array}
    with pytest.raises(CheckpointError, match=message):
        open_adapter(write_adapter(tmp_path, record["config"], values), base_config("plain"))


def test_a_larger_model_needs_more_tensors(tmp_path):
    config = base_config("plain").from_dict(base_config("plain").to_dict(), num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"layers\.2"):
        open_adapter(write_case(tmp_path, "lora", target_modules=["q_proj", "up_proj"]), config)


def test_wrong_shapes_are_reported_before_missing_tensors(tmp_path):
    config = base_config("plain").from_dict(base_config("plain").to_dict(), num_hidden_layers=3, hidden_size=64)
    with pytest.raises(CheckpointError, match=r"has the shape .* Use the adapter's base model"):
        open_adapter(write_case(tmp_path, "lora"), config)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_damaged_file_is_named_once(tmp_path, name):
    folder = write_case(tmp_path, "lora")
    (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(b"PK\3\4" + bytes(96) if name.endswith(".bin") else b"\xd0\x3c" + bytes(98))
    with pytest.raises(CheckpointError) as caught:
        open_adapter(folder, base_config("plain"))
    assert str(caught.value).count(str(folder / name)) == 1


def test_paths_without_an_adapter_are_refused(tmp_path):
    config = base_config("plain")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        open_adapter(tmp_path / "absent", config)
    with pytest.raises(ModelNotFoundError, match="the path of an adapter is empty"):
        open_adapter("", config)
    with pytest.raises(ModelNotFoundError, match=r"neither adapter_config.json nor"):
        open_adapter(tmp_path, config)
    folder = write_case(tmp_path / "lora", "lora")
    with pytest.raises(CheckpointError, match="lacks the adapter's settings"):
        open_adapter(folder / "adapter_model.safetensors", config)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="contains neither"):
        open_adapter(folder, config)
