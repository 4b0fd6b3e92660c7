"""Arguments of a wrong type or an absurd size: an error of puna names the argument and its value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import puna
from puna.errors import PunaError
from tests.golden.files import LAYOUTS

IDS = torch.tensor([[1, 5, 6]])


@pytest.fixture(scope="module")
def model() -> Any:
    return puna.LlamaForCausalLM.from_pretrained(LAYOUTS["hf"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"streamer": print}, "streamer is <built-in function print>; it must have put and end"),
        ({"streamer": puna.TextStreamer}, "it must have put and end"),
        ({"logits_processor": 5}, "logits_processor is 5; it must be a list"),
        ({"logits_processor": print}, r"pass a list of them: logits_processor=\[function\]"),
        ({"stopping_criteria": ["x"]}, "stopping_criteria contains 'x'"),
        ({"prefix_allowed_tokens_fn": [1]}, r"prefix_allowed_tokens_fn is \[1\]"),
        ({"prefix_allowed_tokens_fn": lambda index, ids: None}, "prefix_allowed_tokens_fn returned None"),
        ({"assistant_model": "hf"}, "assistant_model is 'hf'; it must have forward"),
        ({"synced_gpus": "x"}, "synced_gpus is 'x'"),
        ({"generator": 5, "do_sample": True}, "generator is 5; it must be a torch.Generator"),
        ({"attention_mask": [[1, 1, 1]]}, "attention_mask is a list; it must be a tensor"),
        ({"position_ids": "x"}, "position_ids is a str"),
        ({"negative_prompt_ids": "x", "guidance_scale": 2.0}, "negative_prompt_ids is a str"),
        ({"past_key_values": 5}, "past_key_values is a int"),
        ({"past_key_values": ["x"]}, "past_key_values has a layer that is not a pair of tensors"),
        ({"stop_strings": "x", "tokenizer": 5}, "tokenizer is 5"),
        ({"num_beams": 10**6}, "num_beams is 1000000; the limit is 10000"),
        ({"do_sample": True, "num_return_sequences": 10**12}, "beams or answers for each of 1 prompts need about"),
        ({"max_time": "x"}, "max_time is 'x'"),
        ({"constraints": [], "num_beams": 2}, r"constraints is \[\]; it must be a list with at least one"),
        ({"constraints": ["x"], "num_beams": 2}, "constraints has 'x'"),
        ({"dola_layers": ["x"]}, r"dola_layers is \['x'\]"),
        ({"pad_token_id": [1, 2]}, r"pad_token_id is \[1, 2\]"),
    ],
)
def test_generate_refuses_arguments_of_a_wrong_type(model: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PunaError, match=words):
        model.generate(IDS, **{"max_new_tokens": 2, **arguments})


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("greedy_search", {"input_ids": 5}, "input_ids is a int"),
        ("sample", {"input_ids": IDS, "logits_warper": "x"}, "logits_warper is 'x'"),
        ("beam_search", {"input_ids": IDS, "beam_scorer": 5}, "beam_scorer is 5; it must have process and finalize"),
        ("contrastive_search", {"input_ids": IDS, "top_k": "x"}, "top_k is 'x'"),
        ("assisted_decoding", {"input_ids": IDS, "assistant_model": 5, "max_length": 5}, "assistant_model is 5"),
        ("compute_transition_scores", {"sequences": IDS, "scores": 5}, "scores is 5; pass the scores of generate"),
        ("compute_transition_scores", {"sequences": "x", "scores": (torch.zeros(1, 9),)}, "sequences is a str"),
        ("floating_point_ops", {"input_dict": 5}, "input_dict is 5"),
        ("get_compiled_call", {"compile_config": 5}, "compile_config is 5"),
        ("add_model_tags", {"tags": 5}, "tags is 5"),
        ("register_for_auto_class", {"auto_class": 5}, "auto_class is 5"),
        ("retrieve_modules_from_names", {"names": 5}, r"names is \[5\]"),
        ("get_parameter_or_buffer", {"target": 5}, "target is 5"),
        ("gradient_checkpointing_enable", {"gradient_checkpointing_kwargs": 5}, "gradient_checkpointing_kwargs is 5"),
        ("resize_token_embeddings", {"new_num_tokens": "x"}, "new_num_tokens is 'x'; it must be an integer"),
        ("resize_token_embeddings", {"new_num_tokens": 10**30}, "the limit is 2147483647"),
        ("save_pretrained", {"save_directory": 5}, "the path to save to is 5"),
        ("save_pretrained", {"save_directory": "x", "safe_serialisation": True}, "did you mean 'safe_serialization'"),
        ("save_pretrained", {"save_directory": "x", "state_dict": 5}, "state_dict is 5"),
        ("forward", {"input_ids": IDS, "attention_mask": 5}, "attention_mask is a int"),
        ("forward", {"input_ids": IDS, "position_ids": "x"}, "position_ids is a str"),
        ("forward", {"input_ids": IDS, "past_key_values": ["x"]}, "past_key_values has a layer"),
        ("forward", {"input_ids": IDS, "labels": 5}, "labels is a int"),
    ],
)
def test_other_methods_refuse_arguments_of_a_wrong_type(
    model: Any, method: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(PunaError, match=words):
        getattr(model, method)(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pretrained_model_name_or_path": 5}, "the path or name of the model is 5"),
        ({"config": 5}, "the path or name of the configuration is 5"),
        ({"state_dict": 5}, "state_dict is 5"),
        ({"key_mapping": "x"}, "key_mapping is 'x'"),
        ({"gguf_file": 5}, "gguf_file is 5"),
        ({"subfolder": 5}, "subfolder is 5"),
        ({"generation_config": 5}, "generation_config is 5"),
        ({"device": 10**30}, "which PyTorch cannot use here"),
    ],
)
def test_loading_refuses_arguments_of_a_wrong_type(arguments: dict[str, Any], words: str) -> None:
    arguments = {"pretrained_model_name_or_path": LAYOUTS["hf"], **arguments}
    with pytest.raises(PunaError, match=words):
        puna.LlamaForCausalLM.from_pretrained(**arguments)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: puna.LlamaConfig.from_pretrained(5), "the path or name of the configuration is 5"),
        (lambda: puna.LlamaConfig.from_dict(5), "config_dict is 5"),
        (lambda: puna.LlamaConfig.from_json_file(5), "json_file is 5"),
        (lambda: puna.LlamaConfig().update(5), "config_dict is 5"),
        (lambda: puna.LlamaConfig().update_from_string(5), "update_str is 5"),
        (lambda: puna.LlamaConfig().to_json_file(5), "json_file_path is 5"),
        (lambda: puna.GenerationConfig.from_pretrained(5), "the path or name of the model is 5"),
        (lambda: puna.GenerationConfig.from_dict(5), "config_dict is 5"),
        (lambda: puna.GenerationConfig.from_model_config(5), "model_config is 5"),
        (lambda: puna.TopPLogitsWarper("x"), "top_p is 'x'"),
        (lambda: puna.MinPLogitsWarper([0.5]), r"min_p is \[0.5\]"),
        (lambda: puna.TypicalLogitsWarper(True), "typical_p is True"),
        (lambda: puna.EosTokenCriteria(1.5), "1.5 is not a token id"),
        (lambda: puna.SuppressTokensLogitsProcessor(["x"]), "'x' is not a token id"),
        (lambda: puna.ForceTokensLogitsProcessor(5), "force_token_map is 5"),
        (lambda: puna.ConstraintListState([]), "constraints is"),
        (lambda: puna.WatermarkingConfig(greenlist_ratio="x").validate(), "greenlist_ratio is 'x'"),
        (lambda: puna.BeamSearchScorer("x", 2, "cpu"), "batch_size is 'x'"),
        (lambda: puna.MaxTimeCriteria("x"), "max_time is 'x'"),
    ],
)
def test_classes_refuse_arguments_of_a_wrong_type(build: Any, words: str) -> None:
    with pytest.raises(PunaError, match=words):
        build()


def test_end_tokens_may_be_a_tensor() -> None:
    assert puna.GenerationConfig(eos_token_id=torch.tensor([2, 3])).eos_token_ids == (2, 3)


@pytest.mark.parametrize("kind", [puna.AutoModelForSequenceClassification, puna.LlamaForSequenceClassification])
def test_the_warning_about_a_missing_head_names_the_line_of_the_caller(kind: Any) -> None:
    with pytest.warns(UserWarning, match="has no score.weight") as warnings:
        kind.from_pretrained(LAYOUTS["hf"])
    assert [warning.filename for warning in warnings] == [__file__]


FLAG = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda m: m(IDS, use_cache=FLAG), r"shape \(2, 2\) was passed for use_cache"),
        (lambda m: m(IDS, return_dict=FLAG), "each must be True, False or None"),
        (lambda m: m(IDS, output_attentions=FLAG), "each must be True, False or None"),
        (lambda m: m.generate(IDS, do_sample=FLAG), "do_sample"),
        (lambda m: m.generate(IDS, synced_gpus=FLAG), "synced_gpus"),
        (lambda m: puna.SuppressTokensLogitsProcessor([1], device="x"), "device is 'x'; pass the device of the model"),
        (lambda m: puna.MinLengthLogitsProcessor(2, 1, device=-1), "device is -1"),
        (lambda m: puna.WatermarkLogitsProcessor(67, device="x"), "device is 'x'"),
        (lambda m: puna.WatermarkLogitsProcessor("x", device="cpu"), "vocab_size is 'x'"),
        (lambda m: puna.EncoderNoRepeatNGramLogitsProcessor(2, [1]), "encoder_input_ids is a list"),
    ],
)
def test_flags_devices_and_tensors_of_a_wrong_type_are_named(model: Any, build: Any, words: str) -> None:
    with pytest.raises(PunaError, match=words):
        build(model)


def test_suppressed_tokens_may_be_a_tensor(model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    first = int(model.generate(IDS, **options)[0, 3])
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        texts = [model.generate(IDS, **options, **{name: tokens}) for tokens in ([first, 9], torch.tensor([first, 9]))]
        assert torch.equal(*texts)
        assert int(texts[0][0, 3]) != first
