"""Meta's layout is read and written for every model family, compared with torch.save, torch.load and safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.numpy

from puna import LlamaConfig, convert
from puna.checkpoint import open_checkpoint
from puna.checkpoint.meta_params import Params, feed_forward_width, params_from_config, release
from puna.convert.to_meta import published_shards
from puna.errors import CheckpointError
from tests.helpers.meta_models import FAMILIES, TIED, Family, hf_tensors, meta_shards, write_meta
from tests.helpers.torch_files import DTYPES, Tensors, load_torch, save_torch, to_torch

SMALL = FAMILIES[2]  # four shards, and a number of heads that is not a multiple of eight


def are_equal(one: Tensors, other: Tensors) -> bool:
    """Returns whether the names, types, shapes and bytes of all tensors are equal."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def load_hf(folder: Path) -> Tensors:
    """Returns the tensors of all safetensors files in a folder."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(file)
    return tensors


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=[pytest.mark.slow] if "405b" in f.name else []) for f in FAMILIES],
)
def test_a_model_survives_conversion_from_meta_and_back(family: Family, tmp_path: Path) -> None:
    tensors = hf_tensors(family)
    source = write_meta(tmp_path / "meta", family, tensors)
    # These releases cannot be detected, at least not from a model of this small width; the others need no version.
    version = family.version if family.name in ("llama1-65b", *TIED, "llama3.3-70b") else None
    outcome = convert(source, tmp_path / "hf", to="hf", llama_version=version, shard_size="20MB")
    expected = {name: t for name, t in tensors.items() if name != "lm_head.weight" or family.name not in TIED}
    assert are_equal(load_hf(tmp_path / "hf"), expected)
    config = LlamaConfig.from_pretrained(tmp_path / "hf")
    contexts = {"1": 2048, "2": 4096, "code": 16384, "3": 8192, "3.1": 131072, "3.2": 131072, "3.3": 131072}
    assert config.max_position_embeddings == contexts[family.version]
    assert config.dtype_name == family.dtype
    assert config.num_key_value_heads == family.kv_heads and config.intermediate_size == family.ffn
    assert config.rope_theta == family.params.get("rope_theta", 10000.0)
    factor = (config.rope_scaling or {}).get("factor")
    assert factor == {"3.1": 8.0, "3.2": 32.0, "3.3": 8.0}.get(family.version)
    assert config.tie_word_embeddings == (family.name in TIED)
    assert outcome.conversion.plan.before == outcome.conversion.plan.formats

    convert(tmp_path / "hf", tmp_path / "back", to="meta", shards=family.shards)
    files = sorted((tmp_path / "back").glob("*.pth"))
    for file, shard in zip(files, meta_shards(family, tensors), strict=True):
        assert are_equal(load_torch(file, mmap=True), shard)
    params = json.loads((tmp_path / "back" / "params.json").read_text())
    original = family.params_json(2)
    assert feed_forward_width(family.dim, params["multiple_of"], params.get("ffn_dim_multiplier")) == family.ffn
    for key in ("dim", "n_heads", "n_layers", "norm_eps", "n_kv_heads", "rope_theta", "use_scaled_rope"):
        assert params.get(key) == original.get(key), key


def test_a_meta_folder_is_loaded_by_every_backend(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig as ReferenceConfig
    from transformers import LlamaForCausalLM as Reference

    from puna import LlamaForCausalLM

    family = Family("tiny", 8, 4, 2, "2", "float32")
    tensors = hf_tensors(family)
    folder = write_meta(tmp_path / "meta", family, tensors)
    model = LlamaForCausalLM.from_pretrained(folder)
    reference = Reference(ReferenceConfig(**model.config.to_dict() | {"attn_implementation": "eager"})).eval()
    reference.load_state_dict({name: to_torch(array) for name, array in tensors.items()}, strict=True)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-4)

    from puna.backend import Chunk
    from puna.native import NativeBackend

    checkpoint = open_checkpoint(folder)
    native = NativeBackend(checkpoint.config, checkpoint.tensors)
    logits = native.forward([Chunk((0,), ids[0].numpy(), 0, 20)]).logits
    with torch.no_grad():
        expected = reference(ids[:1]).logits[0]
    assert torch.allclose(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("hidden", "ffn", "kv", "shards"),
    [(4096, 11008, 32, 1), (5120, 13824, 40, 2), (6656, 17920, 52, 4), (8192, 22016, 64, 8), (8192, 28672, 8, 8),
     (8192, 22016, 8, 4), (16384, 53248, 8, 8), (2048, 8192, 8, 1), (3200, 8640, 32, 1)],
)  # fmt: skip
def test_the_number_of_published_shards_is_inferred(hidden: int, ffn: int, kv: int, shards: int) -> None:
    heads = {4096: 32, 5120: 40, 6656: 52, 16384: 128, 2048: 32, 3200: 32}.get(hidden, 64)
    config = LlamaConfig(hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads, num_key_value_heads=kv)
    assert published_shards(config) == shards
    params = params_from_config(config)
    assert feed_forward_width(hidden, params["multiple_of"], params.get("ffn_dim_multiplier")) == ffn


def test_releases_are_detected() -> None:
    def params(dim: int, heads: int, kv: int, eps: float, theta: float = 1e4, scaled: bool = False) -> Params:
        return Params(dim, 2, heads, kv, kv != heads, 1, eps, theta, scaled, None)

    assert release(params(4096, 32, 32, 1e-6), 32000) == "1"
    assert release(params(8192, 64, 64, 1e-5), 32000) == "1"  # 65B
    assert release(params(4096, 32, 32, 1e-5), 32000) == "2"
    assert release(params(8192, 64, 8, 1e-5), 32000) == "2"
    assert release(params(4096, 32, 32, 1e-5, 1e6), 32016) == "code"
    assert release(params(4096, 32, 8, 1e-5, 5e5), 128256) == "3"
    assert release(params(4096, 32, 8, 1e-5, 5e5, True), 128256) == "3.1"
    assert release(params(2048, 32, 8, 1e-5, 5e5, True), 128256) == "3.2"
    assert release(params(3072, 24, 8, 1e-5, 5e5, True), 128256) == "3.2"


def damage_folder(folder: Path, damage: str) -> None:
    """Damages a folder in Meta's layout; a damage of the form "key=value" changes params.json."""
    shard = folder / "consolidated.02.pth"
    params = json.loads((folder / "params.json").read_text())
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1000])
    elif damage == "missing in the middle":
        shard.unlink()
    elif damage == "missing at the end":
        (folder / "consolidated.03.pth").unlink()
    elif damage == "a shard of another model":
        save_torch(meta_shards(SMALL, hf_tensors(SMALL, seed=1))[2], shard)
    elif damage == "fewer tensors":
        tensors = load_torch(shard)
        del tensors["layers.1.attention.wq.weight"]
        save_torch(tensors, shard)
    elif damage == "another type":
        save_torch({name: t.astype(DTYPES["bfloat16"]) for name, t in load_torch(shard).items()}, shard)
    elif damage == "vision":
        params["vision_chunk_size"] = 448
    elif damage == "no params":
        (folder / "params.json").unlink()
        return
    else:
        key, value = damage.split("=")
        params[key] = json.loads(value)
    (folder / "params.json").write_text(json.dumps(params))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", "truncated or damaged"),
        ("missing in the middle", "consolidated.02.pth missing"),
        ("missing at the end", "one is missing"),
        ("a shard of another model", "differs from consolidated.00.pth, but must be equal"),
        ("fewer tensors", "is missing here or in consolidated.00.pth"),
        ("another type", "differs in format from the one in consolidated.00.pth"),
        ("vision", "vision_chunk_size"),
        ("no params", "no params.json"),
        ("n_layers=3", "n_layers 3, but the shards have 2 layers"),
        ("n_layers=1", "tensors that a LLaMA model with this configuration does not have"),
        ("dim=424", "requires the shape|must be a multiple"),
        ("multiple_of=4096", "params.json requires the shape"),
        ("vocab_size=999", "has vocab_size 999"),
        ("norm_eps=-1", "norm_eps must be a positive number, got -1"),
        ("n_kv_heads=7", "num_key_value_heads"),
        ('dim="wide"', "dim must be an integer of at least 1, got 'wide'"),
        ("use_scaled_rope=1", "use_scaled_rope must be true or false, got 1"),
    ],
)
def test_damaged_folders_are_refused(damage: str, message: str, tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "meta", SMALL, hf_tensors(SMALL))
    damage_folder(folder, damage)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = write_meta(tmp_path / "meta", SMALL, hf_tensors(SMALL))
    proof = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(proof),))

    torch.save({"tok_embeddings.weight": Hostile()}, folder / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"uses the global .posix\.mkdir"):
        convert(folder, tmp_path / "hf", to="hf")
    assert not proof.exists() and not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"head_dim": 32}, "heads of width 32"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    ],
)
def test_models_that_metas_layout_cannot_express_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        params_from_config(LlamaConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96, **changes))
