"""Token classification and question answering: the same numbers, losses and files as transformers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import puna
from puna.errors import PunaError, RequestError
from puna.model import LlamaForQuestionAnswering, LlamaForTokenClassification, LlamaPreTrainedModel
from tests.helpers.configurations import config_of
from tests.helpers.reference_models import distance, pair, ragged
from tests.helpers.scripted_model import TOKENS, byte_tokenizer

CLASSES: list[type[LlamaPreTrainedModel]] = [LlamaForQuestionAnswering, LlamaForTokenClassification]
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)

CONFIG: dict[str, Any] = {"num_labels": 5, "num_key_value_heads": 2, "pad_token_id": 0}


def both(kind: type[LlamaPreTrainedModel], **fields: Any) -> tuple[Any, Any]:
    """Returns puna's model and that of transformers with the same weights."""
    return pair(config_of(**CONFIG, **fields), model_class=kind, name=kind.__name__)


def targets(kind: type[LlamaPreTrainedModel]) -> list[dict[str, Tensor]]:
    """Returns several forms of the labels for two texts of 9 tokens."""
    if kind is LlamaForTokenClassification:
        labels = torch.tensor([[0, 4, -100, 2, 1, 1, 3, -100, 0], [-100] * 6 + [2, 3, 4]])
        return [{"labels": labels}]
    positions = [([2, 5], [4, 5]), ([0, 20], [8, 21]), ([-1, 9], [3, 2]), ([[1], [2]], [[3], [4]])]
    return [{"start_positions": torch.tensor(a), "end_positions": torch.tensor(b)} for a, b in positions]


@every_class
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_outputs_equal_those_of_transformers(kind: type[LlamaPreTrainedModel], side: str) -> None:
    model, reference = both(kind)
    ids, mask, positions = ragged(model.config, (9, 5), side)
    flags = {"output_hidden_states": True, "output_attentions": True}
    for labels in targets(kind):
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **labels}
        out, expected = model(**inputs, **flags), reference(**inputs, **flags)
        assert type(out).__name__ == type(expected).__name__
        assert list(out) == list(expected)
        if kind is LlamaForTokenClassification or side == "right":  # an answer's logits include those of padding,
            # which depend on the implementation of attention where a token attends to nothing
            assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
        for name in set(out) & {"logits", "start_logits", "end_logits"}:
            assert distance(out[name], expected[name], mask.bool()) <= 1e-5
        values = model(**inputs, return_dict=False)
        assert [value.shape for value in values] == [v.shape for v in reference(**inputs, return_dict=False)]


@every_class
def test_gradients_equal_those_of_transformers(kind: type[LlamaPreTrainedModel]) -> None:
    model, reference = both(kind)
    embeds = model.get_input_embeddings()(torch.randint(3, 67, (2, 9))).detach()
    for each in (model, reference):
        each(inputs_embeds=embeds, **targets(kind)[0]).loss.backward()
    gradients = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if "embed_tokens" not in name and name != "qa_outputs.bias":  # its gradient is 0: a bias shifts all logits
            assert distance(parameter.grad, gradients[name].grad) <= 2e-5, name


@every_class
def test_files_are_read_by_both_libraries(kind: type[LlamaPreTrainedModel], tmp_path: Path) -> None:
    model, reference = both(kind)
    model.save_pretrained(tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    files = [load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "theirs")]
    assert files[0].keys() == files[1].keys()
    ids = torch.randint(3, 67, (1, 6))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = model(ids).to_tuple()
        loaded = (
            kind.from_pretrained(tmp_path / "theirs"),
            kind.from_pretrained(tmp_path / "ours"),
            getattr(transformers, kind.__name__).from_pretrained(tmp_path / "ours"),
        )
        for each in loaded:
            assert distance(each.eval()(ids).to_tuple()[0], expected[0]) <= 1e-5
    assert puna.LlamaConfig.from_pretrained(tmp_path / "ours").architectures == [kind.__name__]


@every_class
@pytest.mark.parametrize("source", ["LlamaForCausalLM", "LlamaModel", "LlamaForSequenceClassification", *CLASSES])
def test_the_decoder_of_any_checkpoint_is_loaded(kind: type[LlamaPreTrainedModel], source: Any, tmp_path: Path) -> None:
    source = getattr(puna, source) if isinstance(source, str) else source
    torch.manual_seed(0)
    saved = source(config_of(**CONFIG))
    saved.save_pretrained(tmp_path)
    if source is kind:
        model: Any = kind.from_pretrained(tmp_path)
    else:
        with pytest.warns(UserWarning, match="initialised at random and must be trained"):
            model = kind.from_pretrained(tmp_path)
    weights = saved.get_decoder().state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.get_decoder().state_dict().items())
    head = model.score if kind is LlamaForTokenClassification else model.qa_outputs
    assert (head.bias == 0).all()
    assert float(head.weight.detach().std()) == pytest.approx(0.2, rel=0.35)


@every_class
def test_conversion_keeps_the_head_and_its_names(kind: type[LlamaPreTrainedModel], tmp_path: Path) -> None:
    model = kind(config_of(**CONFIG, vocab_size=len(TOKENS)))
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save(str(tmp_path / "model" / "tokenizer.json"))
    puna.convert(tmp_path / "model", tmp_path / "copy", verify=True)
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "copy"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(PunaError, match=model.head):
        puna.convert(tmp_path / "model", tmp_path / "copy.gguf", to="gguf")


@every_class
def test_other_classes_load_the_decoder(kind: type[LlamaPreTrainedModel], tmp_path: Path) -> None:
    saved = kind(config_of(**CONFIG))
    saved.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="(score|qa_outputs).bias, (score|qa_outputs).weight is not used"):
        model = puna.LlamaForCausalLM.from_pretrained(tmp_path)
    norm = saved.get_decoder().state_dict()["norm.weight"]
    assert torch.equal(model.model.norm.weight, norm)
    assert torch.equal(puna.LlamaModel.from_pretrained(tmp_path).norm.weight, norm)


def test_dropout_of_the_token_head_has_the_configured_rate() -> None:
    for fields, rate in (({}, 0.1), ({"hidden_dropout": 0.2}, 0.2), ({"classifier_dropout": 0.0}, 0.0)):
        config = config_of(**CONFIG, **fields)
        assert LlamaForTokenClassification(config).dropout.p == rate
        theirs = transformers.LlamaForTokenClassification(transformers.LlamaConfig(**config_of(**fields).to_dict()))
        assert theirs.dropout.p == rate
    ids = torch.randint(3, 67, (1, 8))
    model = LlamaForTokenClassification(config_of(**CONFIG)).train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_the_loss_is_0_if_every_target_is_ignored() -> None:
    ids = torch.randint(3, 67, (2, 4))
    token, answers = (kind(config_of(**CONFIG)) for kind in CLASSES[::-1])
    assert token(ids, labels=torch.full_like(ids, -100, dtype=torch.int32)).loss == 0
    assert answers(ids, start_positions=torch.tensor([4, 4]), end_positions=torch.tensor([7, 9])).loss == 0


def test_invalid_targets_are_errors() -> None:
    ids = torch.randint(3, 67, (2, 4))
    token, answers = (kind(config_of(**CONFIG)) for kind in CLASSES[::-1])
    with pytest.raises(PunaError, match=r"labels"):
        token(ids, labels=torch.zeros(2, dtype=torch.long))
    with pytest.raises(PunaError, match="labels"):
        token(ids, labels=torch.full_like(ids, 5))
    with pytest.raises(RequestError, match="only one was given"):
        answers(ids, start_positions=torch.tensor([1, 1]))
    with pytest.raises(RequestError, match=r"\(3,\)"):
        answers(ids, start_positions=torch.tensor([1, 1, 1]), end_positions=torch.tensor([1, 1]))
