"""`puna.merge`: the merged model computes the logits of PEFT, and the errors of quantised matrices are measured."""

from __future__ import annotations

import json
import shutil
from importlib import resources

import numpy as np
import pytest

from puna import LLM, LlamaConfig, convert, load_tokenizer, merge
from puna.adapters import open_adapter
from puna.checkpoint import open_checkpoint
from puna.checkpoint.names import EMBEDDING, HEAD, expected_tensors
from puna.convert.calibration import WINDOW
from puna.convert.lazy_rows import PIECE
from puna.errors import CheckpointError, ModelNotFoundError, RequestError, StorageError
from tests.adapters.cases import (
    CASES,
    IDS,
    LOGITS,
    base_config,
    base_tensors,
    recorded,
    weights,
    write_adapter,
    write_base,
    write_case,
)  # fmt: skip
from tests.golden.files import LAYOUTS
from tests.helpers.torch_files import needs_torch

GOLDEN = LAYOUTS["hf"]
VIRTUAL = {"prompt", "prompt_classes", "p_tuning", "prefix", "prefix_projected"}
MERGED = [case for case in CASES if case not in VIRTUAL]
Q0 = "model.layers.0.self_attn.q_proj.weight"


def golden_adapter(folder, seed=0, size=0.05, model=GOLDEN):
    """Writes a LoRA of every matrix in the layers of a model, by default of the golden model."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (outputs, inputs) in (
        (name, shape)
        for name, shape in expected_tensors(LlamaConfig.from_pretrained(model), "lm")
        if name.endswith("_proj.weight")
    ):
        key = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{key}.lora_A.weight"] = random.normal(0, size, (4, inputs)).astype(np.float32)
        tensors[f"{key}.lora_B.weight"] = random.normal(0, size, (outputs, 4)).astype(np.float32)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    return write_adapter(folder, config, tensors)


@needs_torch
@pytest.mark.parametrize("case", MERGED)
def test_a_merged_folder_computes_the_logits_of_peft(tmp_path, case):
    import torch

    from puna.model import LlamaForCausalLM, LlamaForSequenceClassification

    base = write_base(tmp_path / "base", CASES[case][0])
    adapter = write_case(tmp_path / "adapter", case)
    result = merge(base, adapter, tmp_path / "merged", verify=False)
    assert result.tensors or case == "biases", "no change was measured"
    assert all(errors["error"] < 1e-7 for errors in result.tensors.values())
    model_class = LlamaForSequenceClassification if case == "classes" else LlamaForCausalLM
    model = model_class.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        logits = model(torch.tensor(IDS)).logits[0].numpy()
    expected = np.load(LOGITS)[case]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    tied = {"embeddings_kept_tied", "tokens_tied", "only_tokens_tied"}
    assert model.config.tie_word_embeddings == (case in tied)


@needs_torch
def test_transformers_loads_a_merged_folder(tmp_path):
    import torch
    import transformers

    base = write_base(tmp_path / "base", "plain")
    merge(base, write_case(tmp_path / "adapter", "lora_bias"), tmp_path / "merged", verify=False)
    model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        logits = model.eval()(torch.tensor(IDS)).logits[0].numpy()
    expected = np.load(LOGITS)["lora_bias"]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_lora_of_a_causal_model_with_a_new_head_becomes_a_classifier(tmp_path):
    base = write_base(tmp_path / "base", "plain")
    merge(base, write_case(tmp_path / "adapter", "classes"), tmp_path / "merged", verify=False)
    merged = open_checkpoint(tmp_path / "merged")
    assert merged.head == "classification" and merged.config.num_labels == 3
    assert merged.tensors["score.weight"].shape == (3, 32)


def test_a_resized_vocabulary_is_merged(tmp_path):
    base = write_base(tmp_path / "base", "plain")
    rows = np.random.default_rng(0).standard_normal((50, 32), np.float32)
    tensors = weights("lora", recorded()["lora"]["shapes"], {}) | {
        "base_model.model.model.embed_tokens.weight": rows, "base_model.model.lm_head.weight": rows * 2
    }  # fmt: skip
    adapter = write_adapter(tmp_path / "adapter", recorded()["lora"]["config"], tensors)
    merge(base, adapter, tmp_path / "merged", verify=False)
    merged = open_checkpoint(tmp_path / "merged")
    assert merged.config.vocab_size == 50
    assert np.array_equal(merged.tensors[EMBEDDING].to_float32(), rows)
    assert np.array_equal(merged.tensors[HEAD].to_float32(), rows * 2)


def test_a_bfloat16_model_is_rounded_once(tmp_path):
    convert(write_base(tmp_path / "float", "plain"), tmp_path / "base", dtype="bfloat16")
    adapter = write_case(tmp_path / "adapter", "lora")
    merge(tmp_path / "base", adapter, tmp_path / "merged", verify=False)
    merge(tmp_path / "base", adapter, tmp_path / "wide", dtype="float32", verify=False)
    merged, wide = (open_checkpoint(tmp_path / name).tensors[Q0] for name in ("merged", "wide"))
    change = open_adapter(adapter, base_config("plain")).low_rank[Q0]
    start = open_checkpoint(tmp_path / "base").tensors[Q0].to_float32().astype(np.float64)
    exact = start + change.scale * (change.b.astype(np.float64) @ change.a.astype(np.float64))
    assert (merged.format.name, wide.format.name) == ("bf16", "f32")
    assert np.abs(wide.to_float32() - exact).max() < 1e-6
    assert np.abs(merged.to_float32() - exact).max() <= 2**-8 * np.abs(exact).max()
    assert np.array_equal(merged.format.pack(wide.to_float32()).reshape(-1), np.asarray(merged.data))


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantised") / "golden.gguf"
    convert(GOLDEN, path, quantize="q8_0")
    return path


def test_quantised_matrices_keep_their_formats_and_the_error_is_measured(tmp_path, quantised):
    adapter = golden_adapter(tmp_path / "adapter")
    result = merge(quantised, adapter, tmp_path / "merged.gguf")
    before, after = open_checkpoint(quantised), open_checkpoint(tmp_path / "merged.gguf")
    low_rank = open_adapter(adapter, before.config).low_rank
    assert result.tensors.keys() == low_rank.keys() and len(low_rank) == 14
    for name, weight in after.tensors.items():
        assert weight.format == before.tensors[name].format
        start = before.tensors[name].to_float32()
        if name not in low_rank:
            assert np.array_equal(weight.to_float32(), start)
            continue
        exact = start + low_rank[name].scale * (low_rank[name].b @ low_rank[name].a)
        error = np.linalg.norm(weight.to_float32() - exact) / np.linalg.norm(exact)
        change = np.linalg.norm(exact - start) / np.linalg.norm(exact)
        assert 1e-5 < error < 0.01
        measured = result.tensors[name]
        assert measured["error"] == pytest.approx(error, rel=0.3)
        assert measured["change"] == pytest.approx(change, rel=0.3)
    nll = result.converted.nll
    assert nll["before"] == pytest.approx(mean_nll(quantised), abs=1e-6)
    assert nll["after"] == pytest.approx(mean_nll(tmp_path / "merged.gguf"), abs=1e-6)
    assert nll["after"] != nll["before"]
    assert "largest rounding error" in str(result)


def mean_nll(path, text=None):
    """Returns the mean NLL of a text, by default of the first window of the text of the package."""
    text = text or resources.files("puna").joinpath("sample.txt").read_text("utf-8")
    with LLM(path) as llm:
        return float(np.mean(llm.nll(llm.tokenizer.encode(text)[: min(WINDOW, llm.config.context_length)])))


def test_another_text_is_measured(tmp_path, quantised):
    sample = tmp_path / "sample.txt"
    sample.write_text("Once upon a time there was a llama.")
    result = merge(quantised, golden_adapter(tmp_path / "adapter"), tmp_path / "merged.gguf", sample=sample)
    assert result.converted.nll["tokens"] == len(load_tokenizer(quantised).encode(sample.read_text())) - 1
    assert result.converted.nll["before"] == pytest.approx(mean_nll(quantised, sample.read_text()), abs=1e-6)


def test_a_change_that_is_lost_in_rounding_is_noted(tmp_path, quantised):
    small, large = (golden_adapter(tmp_path / str(size), size=size) for size in (0.002, 0.05))
    lost = merge(quantised, small, tmp_path / "small.gguf", verify=False)
    # The two down_proj are f16, since their rows of 172 values have no blocks.
    assert any("in 12 of 14 changed matrices, the power of the rounding error" in note for note in lost.converted.notes)
    kept = merge(quantised, large, tmp_path / "large.gguf", verify=False)
    assert not any("rounding error" in note for note in kept.converted.notes)


def test_a_quantised_model_becomes_float32_in_a_folder(tmp_path, quantised):
    adapter = golden_adapter(tmp_path / "adapter")
    merge(quantised, adapter, tmp_path / "merged", verify=False)
    name = "model.layers.1.mlp.up_proj.weight"
    start, merged = (open_checkpoint(path).tensors[name] for path in (quantised, tmp_path / "merged"))
    change = open_adapter(adapter, LlamaConfig.from_pretrained(GOLDEN)).low_rank[name]
    exact = start.to_float32() + change.scale * (change.b @ change.a)
    assert merged.format.name == "f32"
    assert np.allclose(merged.to_float32(), exact, atol=1e-6)


def test_merging_and_quantising_at_once_rounds_once(tmp_path):
    adapter = golden_adapter(tmp_path / "adapter")
    merge(GOLDEN, adapter, tmp_path / "direct.gguf", quantize="q4_0", verify=False)
    merge(GOLDEN, adapter, tmp_path / "merged", verify=False)
    convert(tmp_path / "merged", tmp_path / "later.gguf", quantize="q4_0")
    direct, later = (open_checkpoint(tmp_path / f"{name}.gguf").tensors for name in ("direct", "later"))
    assert all(np.array_equal(weight.data, later[name].data) for name, weight in direct.items())


def test_formats_that_are_not_written_need_another_format(tmp_path, quantised, monkeypatch):
    adapter = golden_adapter(tmp_path / "adapter")
    from puna.convert.merging import checkpoint as module

    monkeypatch.setattr(module, "MIXES", {name: mix for name, mix in module.MIXES.items() if name != "q8_0"})
    with pytest.raises(CheckpointError, match=r"q8_0, which puna reads but does not write.*q4_0.*dtype"):
        merge(quantised, adapter, tmp_path / "merged.gguf")
    assert not (tmp_path / "merged.gguf").exists()


@pytest.mark.parametrize("case", ["prompt", "prefix"])
def test_virtual_tokens_cannot_be_merged(tmp_path, case):
    base = write_base(tmp_path / "base", "plain")
    with pytest.raises(CheckpointError, match=f"is a {case}, which precedes every text"):
        merge(base, write_case(tmp_path / "adapter", case), tmp_path / "merged")


def test_what_a_llama_cannot_hold_is_refused(tmp_path):
    base = write_base(tmp_path / "base", "plain")
    record = recorded()["dora"]
    shapes = {name: shape for name, shape in record["shapes"].items() if "magnitude" not in name}
    shapes |= {
        name.replace("lora_B.weight", "lora_B.bias"): shape[:1] for name, shape in shapes.items() if "lora_B" in name
    }
    settings = record["config"] | {"use_dora": False, "lora_bias": True}
    adapter = write_adapter(tmp_path / "adapter", settings, weights("dora", shapes, base_tensors("plain")))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' a bias"):
        merge(base, adapter, tmp_path / "merged")
    classes = write_base(tmp_path / "classes", "classes")
    with pytest.raises(CheckpointError, match=r"head 'lm'.*has the head 'classification'"):
        merge(classes, write_case(tmp_path / "embeddings", "embeddings"), tmp_path / "merged")


def test_paths_and_options_are_checked(tmp_path):
    base = write_base(tmp_path / "base", "plain")
    adapter = write_case(tmp_path / "adapter", "lora")
    with pytest.raises(ModelNotFoundError, match="no such file"):
        merge(base, adapter, tmp_path / "merged", sample=tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(RequestError, match="not UTF-8"):
        merge(base, adapter, tmp_path / "merged", sample=tmp_path / "latin.txt")
    with pytest.raises(RequestError, match="verify is false"):
        merge(base, adapter, tmp_path / "merged", sample=adapter / "adapter_config.json", verify=False)
    with pytest.raises(RequestError, match="to is 'meta'"):
        merge(base, adapter, tmp_path / "merged", to="meta")
    with pytest.raises(StorageError, match="contains, the model"):
        merge(base, adapter, adapter, overwrite=True)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "file").write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        merge(base, adapter, tmp_path / "merged")
    merge(base, adapter, tmp_path / "merged", overwrite=True, verify=False)
    assert open_checkpoint(tmp_path / "merged").config.hidden_size == 32


def test_an_interrupted_merge_is_resumed_only_with_the_same_adapter(tmp_path, quantised):
    adapter = golden_adapter(tmp_path / "adapter")
    folder, target = tmp_path / "target", tmp_path / "target" / "merged"
    folder.mkdir()

    def interrupt(step):
        if step == "Reading back":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(GOLDEN, adapter, target, on_step=interrupt)
    plans = []
    with pytest.raises(KeyboardInterrupt):
        merge(GOLDEN, adapter, target, on_step=interrupt, on_plan=plans.append)
    assert plans[-1].finished == plans[-1].bytes
    shutil.rmtree(adapter)
    golden_adapter(adapter, seed=1)
    merge(GOLDEN, adapter, target, on_plan=plans.append, verify=False)
    assert plans[-1].finished == 0
    assert [path.name for path in folder.iterdir()] == ["merged"]


def test_rows_are_computed_in_pieces(tmp_path):
    """The memory of a piece is bounded, also for DoRA of the embedding, which needs the norms of all rows."""
    from puna.convert.lazy_rows import rows_per_piece
    from puna.convert.merging.checkpoint import MergedRows, merge_checkpoint

    base = write_base(tmp_path / "base", "plain")
    checkpoint = open_checkpoint(base)
    adapter = open_adapter(write_case(tmp_path / "adapter", "dora_embedding"), checkpoint.config)
    source = merge_checkpoint(checkpoint, adapter, "nothing").tensors[EMBEDDING].parts[0]
    assert isinstance(source, MergedRows)
    assert rows_per_piece(source) == PIECE // (32 * 4 + 32 * 32)
    whole = source.take(np.arange(48))
    assert np.array_equal(source.take(np.arange(7, 20)), whole[7:20])


def test_the_tokenizer_of_the_adapter_is_noted_if_it_is_not_used(tmp_path):
    base = shutil.copytree(GOLDEN, tmp_path / "base")
    adapter = golden_adapter(tmp_path / "adapter")
    (adapter / "tokenizer.json").write_text(json.dumps(json.loads((base / "tokenizer.json").read_text())))
    result = merge(base, adapter, tmp_path / "merged", verify=False)
    assert any("is not used, since the vocabulary" in note for note in result.converted.notes)
