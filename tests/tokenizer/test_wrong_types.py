"""Arguments of tokenizers of a wrong type: an error names the argument and its value."""

from __future__ import annotations

from typing import Any

import pytest

from puna import AutoTokenizer, LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import PunaError
from tests.golden.files import LAYOUTS, TOKENIZER

MESSAGES = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "slow"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return AutoTokenizer.from_pretrained(LAYOUTS["hf"], use_fast=request.param, legacy=True, pad_token="</s>")


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("__call__", {"text": "a", "max_length": "x"}, "max_length is 'x'; it must be an integer"),
        ("__call__", {"text": "a", "max_length": 1.5, "truncation": True}, "max_length is 1.5"),
        ("__call__", {"text": "a", "stride": "x", "max_length": 4, "truncation": True}, "stride is 'x'"),
        ("__call__", {"text": "a", "padding": True, "pad_to_multiple_of": 1.5}, "pad_to_multiple_of is 1.5"),
        ("pad", {"encoded_inputs": 5}, "encoded_inputs is 5"),
        ("apply_chat_template", {"conversation": MESSAGES, "tools": 5}, "tools is 5; it must be a list"),
        ("apply_chat_template", {"conversation": MESSAGES, "documents": "x"}, "documents is 'x'"),
        ("apply_chat_template", {"conversation": MESSAGES, "tokenizer_kwargs": 5}, "tokenizer_kwargs is 5"),
        ("batch_decode", {"sequences": 5}, "sequences is 5; it must be a list of lists"),
        ("convert_tokens_to_ids", {"tokens": 5}, "tokens is 5"),
        ("build_inputs_with_special_tokens", {"token_ids_0": 5}, "token_ids_0 is 5; it must be a list"),
        ("get_special_tokens_mask", {"token_ids_0": [1], "token_ids_1": "x"}, "token_ids_1 is 'x'"),
        ("create_token_type_ids_from_sequences", {"token_ids_0": 5}, "token_ids_0 is 5"),
        ("prepare_for_model", {"ids": 5}, "is 5; it must be a list of token ids"),
        ("truncate_sequences", {"ids": 5, "num_tokens_to_remove": 1}, "is 5; it must be a list of token ids"),
        ("truncate_sequences", {"ids": [1], "num_tokens_to_remove": "x"}, "num_tokens_to_remove is 'x'"),
        ("tokenize", {"text": 5}, "5"),
        ("add_tokens", {"new_tokens": [{"a": 1}]}, "is not a token"),
        ("add_special_tokens", {"special_tokens_dict": 5}, "special_tokens_dict is 5"),
        ("save_vocabulary", {"save_directory": 5}, "the path to save to is 5"),
        ("save_pretrained", {"save_directory": 5}, "the path to save to is 5"),
    ],
)
def test_methods_refuse_arguments_of_a_wrong_type(
    tokenizer: Any, method: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(PunaError, match=words):
        getattr(tokenizer, method)(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text_iterator": 5, "vocab_size": 9}, "text_iterator is 5"),
        ({"text_iterator": ["a"], "vocab_size": "x"}, "vocab_size is 'x'"),
        ({"text_iterator": ["a"], "vocab_size": 9, "length": -1}, "length is -1"),
        ({"text_iterator": ["a"], "vocab_size": 9, "new_special_tokens": 5}, "new_special_tokens is 5"),
        ({"text_iterator": ["a"], "vocab_size": 9, "special_tokens_map": 5}, "special_tokens_map is 5"),
    ],
)
def test_training_refuses_arguments_of_a_wrong_type(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PunaError, match=words):
        LlamaTokenizerFast.from_pretrained(LAYOUTS["hf"]).train_new_from_iterator(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model_max_length": "x"}, "model_max_length is 'x'"),
        ({"additional_special_tokens": 5}, "additional_special_tokens is 5"),
        ({"model_input_names": 5}, "model_input_names is 5"),
        ({"chat_template": ["x"]}, "'x' is not a template"),
        ({"added_tokens_decoder": {"a": 1}}, "added_tokens_decoder is|the tokens cannot be added"),
        ({"padding_side": "top"}, "padding_side"),
    ],
)
@pytest.mark.parametrize("kind", [LlamaTokenizer, LlamaTokenizerFast])
def test_constructors_refuse_arguments_of_a_wrong_type(kind: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PunaError, match=words):
        kind.from_pretrained(LAYOUTS["hf"], **arguments)


def test_paths_and_vocabularies_of_a_wrong_type_are_errors() -> None:
    for build, words in (
        (lambda: LlamaTokenizer(5), "vocab_file is 5"),
        (lambda: LlamaTokenizer(model_proto=5), "model_proto is 5"),
        (lambda: LlamaTokenizer(TOKENIZER, sp_model_kwargs=5), "sp_model_kwargs is 5"),
        (lambda: LlamaTokenizerFast(tokenizer_file=5), "tokenizer_file is 5"),
        (lambda: LlamaTokenizerFast(tokenizer_object=5), "tokenizer_object is 5"),
        (lambda: AutoTokenizer.from_pretrained(5), "the path or name of the model is 5"),
        (lambda: load_tokenizer(5), "the path or name of the model is 5"),
    ):
        with pytest.raises(PunaError, match=words):
            build()


@pytest.mark.parametrize("load", [AutoTokenizer.from_pretrained, LlamaTokenizerFast.from_pretrained, load_tokenizer])
def test_an_empty_tokenizer_json_is_named(tmp_path: Any, load: Any) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"")
    with pytest.raises(PunaError, match=r"tokenizer\.json is empty, so it is neither"):
        load(tmp_path)
