"""The PyTorch model with an adapter computes PEFT's logits, recorded or (marker `oracle`) computed by PEFT now."""

from __future__ import annotations

import numpy as np
import pytest

from puna.adapters import open_adapter
from puna.errors import CheckpointError, RequestError
from tests.adapters.cases import CASES, IDS, LOGITS, base_config, write_base, write_case

torch = pytest.importorskip("torch")

from puna.adapters.torch_apply import apply_adapter  # noqa: E402
from puna.model import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel  # noqa: E402


def load(folder, base):
    config = base_config(base)
    name = LlamaForSequenceClassification if base == "classes" else LlamaForCausalLM
    return name.from_pretrained(write_base(folder / "base", base)).eval(), config


def run(model, **kwargs):
    with torch.no_grad():
        return model(torch.tensor(IDS), **kwargs)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_peft(tmp_path, case):
    model, config = load(tmp_path, CASES[case][0])
    adapter = open_adapter(write_case(tmp_path / "adapter", case), config)
    expected = np.load(LOGITS)[case]
    before = run(model).logits[0]
    keys = list(model.state_dict())
    with apply_adapter(model, adapter):
        assert list(model.state_dict()) == keys
        result = run(model).logits[0].numpy()
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()
    rows = before.numpy()[-len(result) :]
    assert np.abs(rows - expected[-len(rows) :]).max() > 1e-2, "the adapter changes nothing"
    assert torch.equal(run(model).logits[0], before)


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_that_peft_computes(tmp_path, case):
    pytest.importorskip("peft")
    from tests.adapters.record import logits

    model, config = load(tmp_path, CASES[case][0])
    folder = write_case(tmp_path / "adapter", case)
    expected = logits(tmp_path / "base", folder)
    with apply_adapter(model, open_adapter(folder, config)):
        result = run(model).logits[0].numpy()
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", ["prompt", "prefix"])
def test_masks_positions_labels_and_the_cache_count_virtual_tokens(tmp_path, case):
    model, config = load(tmp_path, "plain")
    adapter = open_adapter(write_case(tmp_path / "adapter", case), config)
    ids = torch.tensor(IDS)
    with apply_adapter(model, adapter), torch.no_grad():
        whole = model(ids, use_cache=True, labels=ids)
        shown = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(ids.shape[1])[None]}
        assert torch.allclose(model(ids, **shown).logits, whole.logits, atol=1e-6)
        start = model(ids[:, :4], use_cache=True)
        rest = model(ids[:, 4:], past_key_values=start.past_key_values)
        embedded = model(inputs_embeds=model.model.embed_tokens(ids))
    assert whole.past_key_values.length == ids.shape[1] + 3
    assert torch.allclose(rest.logits, whole.logits[:, -2:], atol=1e-5)
    assert torch.allclose(embedded.logits, whole.logits, atol=1e-6)
    text = whole.logits[:, -ids.shape[1] :]
    first = whole.logits[:, -ids.shape[1] - 1 : -1] if case == "prompt" else text[:, :-1]
    targets = ids if case == "prompt" else ids[:, 1:]
    expected = torch.nn.functional.cross_entropy(first.flatten(0, 1), targets.flatten())
    assert torch.allclose(whole.loss, expected, atol=1e-5)


def test_padding_on_the_left_does_not_change_the_text(tmp_path):
    model, config = load(tmp_path, "plain")
    ids = torch.tensor([[0, 0, *IDS[0]]])
    mask = (torch.arange(8) >= 2).long()[None]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for case in ("prompt", "prefix"):
        with apply_adapter(model, open_adapter(write_case(tmp_path / case, case), config)), torch.no_grad():
            padded = model(ids, attention_mask=mask, position_ids=positions).logits[:, -6:]
            assert torch.allclose(padded, run(model).logits[:, -6:], atol=1e-5)


def test_a_bfloat16_model_keeps_its_type(tmp_path):
    model, config = load(tmp_path, "plain")
    model = model.to(torch.bfloat16)
    for case in ("lora", "dora", "ia3", "prompt", "prefix", "tokens"):
        with apply_adapter(model, open_adapter(write_case(tmp_path / case, case), config)):
            result = run(model).logits[0]
        assert result.dtype == torch.bfloat16
        expected = torch.from_numpy(np.load(LOGITS)[case])
        assert (result.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_bare_model_is_adapted(tmp_path):
    model, config = load(tmp_path, "plain")
    bare = LlamaModel.from_pretrained(tmp_path / "base").eval()
    adapter = open_adapter(write_case(tmp_path / "adapter", "rslora"), config)
    with apply_adapter(bare, adapter), apply_adapter(model, adapter):
        assert torch.allclose(model.lm_head(run(bare).last_hidden_state), run(model).logits, atol=1e-6)


def test_models_that_do_not_fit_are_refused_and_unchanged(tmp_path):
    model, config = load(tmp_path, "plain")
    before = run(model).logits
    classes = open_adapter(write_case(tmp_path / "classes", "classes"), base_config("classes"))
    with pytest.raises(CheckpointError, match=r"'score\.weight'.*LlamaForCausalLM"):
        apply_adapter(model, classes)
    other, _ = load(tmp_path, "classes")
    other.score = torch.nn.Linear(32, 2, bias=False)
    with pytest.raises(CheckpointError, match=r"\(3, 32\).*\(2, 32\).*num_labels"):
        apply_adapter(other, classes)
    assert torch.equal(run(model).logits, before)
    model.config.rope_scaling = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(RequestError, match="'dynamic'"):
        apply_adapter(model, open_adapter(write_case(tmp_path / "prefix", "prefix"), config))
