"""Code Llama's tokenizers give the results of transformers 4.34.1, also for texts with a gap."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import puna.tokenizer
from puna.errors import TokenizerError
from puna.tokenizer import AutoTokenizer, CodeLlamaTokenizer, CodeLlamaTokenizerFast, LlamaTokenizer
from tests.helpers.vocabularies import random_texts
from tests.oracles import tokenizer_calls

ROOT = Path(__file__).resolve().parents[2]
CLASSES = (CodeLlamaTokenizer, CodeLlamaTokenizerFast)

GAPS = [
    "def walk(steps):<FILL_ME>    return steps",
    "<FILL_ME>",
    "a<FILL_ME>",
    "<FILL_ME>b",
    "  def f():\n    <FILL_ME>\n\n",
    "▁x <FILL_ME> ▁y",
    "</s> a<FILL_ME> b</s>",
]


def requests(vocab: Path) -> dict[str, Any]:
    file = {"vocab_file": str(vocab)}
    tokenizers = {
        "slow": ("CodeLlamaTokenizer", file, "</s>"),
        "slow-eos": ("CodeLlamaTokenizer", {**file, "add_eos_token": True, "add_bos_token": False}, "</s>"),
        "fast": ("CodeLlamaTokenizerFast", file, "</s>"),
        "fast-eos": ("CodeLlamaTokenizerFast", {**file, "add_eos_token": True}, "</s>"),
    }
    calls = []

    def add(name: str, method: str, *arguments: Any, **options: Any) -> None:
        base = {"attributes": {}, "tokenizer": name, "method": method}
        calls.append({**base, "arguments": list(arguments), "options": options})

    for name in tokenizers:
        for text in [*random_texts(60, seed=7), *GAPS]:
            for options in ({}, {"suffix_first": True}, {"add_special_tokens": False}):
                if name.startswith("fast") and options.get("suffix_first") and "<FILL_ME>" in text:
                    continue  # 4.34.1 exchanges the prefix and the suffix
                method = "encode_plus" if name.startswith("fast") else "__call__"
                add(name, method, text, **options)
        add(name, "encode", "def f(", suffix=" return")
        add(name, "encode", GAPS[0], truncation=True, max_length=12)
        if name.startswith("slow"):
            add(name, "__call__", GAPS, padding=True)
            for text in GAPS:
                add(name, "tokenize", text)
        else:
            add(name, "encode_plus", "prefix", "suffix")
        for ids in ([1, 420, 50, 421, 2], [50, 60, 423], [422, 300]):
            add(name, "decode", ids)
            add(name, "decode", ids, skip_special_tokens=True)
    return {"tokenizers": tokenizers, "calls": calls}


@pytest.mark.oracle
def test_calls_equal_those_of_4_34_1(sp_model):
    python = ROOT / ".oracles" / "4.34.1" / "bin" / "python"
    if not python.exists():
        pytest.skip("no environment for transformers 4.34.1; make test sets it up")
    request = requests(sp_model)
    script = str(ROOT / "tests" / "oracles" / "tokenizer_calls.py")
    run = subprocess.run([python, script], input=json.dumps(request), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(json.dumps(tokenizer_calls.run(puna.tokenizer, request)))
    expected = json.loads(run.stdout.splitlines()[-1])
    assert expected.count("error") < 20
    for call, result, reference in zip(request["calls"], results, expected, strict=True):
        assert result == reference, call


@pytest.mark.parametrize("cls", CLASSES)
def test_the_order_of_a_text_with_a_gap(cls, sp_model):
    tokenizer = cls(sp_model)
    prefix, middle, suffix = tokenizer.prefix_id, tokenizer.middle_id, tokenizer.suffix_id
    ids = tokenizer.encode("the <FILL_ME> llama")
    assert ids[:2] == [1, prefix] and ids[-1] == middle and suffix in ids
    first = tokenizer.encode("the <FILL_ME> llama", suffix_first=True)
    assert first[:3] == [1, prefix, suffix] and middle in first and sorted(first) == sorted(ids)
    assert cls(sp_model, suffix_first=True).encode("the <FILL_ME> llama") == first
    assert tokenizer(["the <FILL_ME> llama", "a"])["input_ids"] == [ids, tokenizer.encode("a")]
    assert tokenizer.eot_id == len(tokenizer) - 1 and tokenizer.eot_token == "▁<EOT>"


@pytest.mark.parametrize("text", [text for text in GAPS if not text.startswith("<")])
def test_both_classes_put_the_suffix_first(sp_model, text):
    slow, fast = (cls(sp_model) for cls in CLASSES)
    assert fast.encode(text, suffix_first=True) == slow.encode(text, suffix_first=True)


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_name_the_gap(cls, sp_model):
    with pytest.raises(TokenizerError, match="2 fill tokens"):
        cls(sp_model).encode("a<FILL_ME>b<FILL_ME>c")
    with pytest.raises(TokenizerError, match="lacks one"):
        cls(sp_model, middle_token=None).encode("a<FILL_ME>b")


@pytest.mark.parametrize("cls", CLASSES)
def test_saved_settings_are_read_again(cls, sp_model, tmp_path):
    tokenizer = cls(sp_model, suffix_first=True, fill_token="<GAP>")
    tokenizer.save_pretrained(tmp_path)
    for again in (
        cls.from_pretrained(tmp_path),
        copy.deepcopy(tokenizer),
        AutoTokenizer.from_pretrained(tmp_path, use_fast=tokenizer.is_fast),
    ):
        assert type(again) is cls and again.encode("the<GAP>llama") == tokenizer.encode("the<GAP>llama")
        assert again.special_tokens_map == tokenizer.special_tokens_map and again.suffix_first
    assert cls.from_pretrained(tmp_path, fill_token="<F>").fill_token == "<F>"


def test_the_pipeline_itself_can_encode_gaps(sp_model):
    tokenizer = CodeLlamaTokenizerFast(sp_model)
    before = tokenizer.encode("the llama")
    tokenizer.set_infilling_processor(False, suffix_first=True)
    ids = tokenizer.backend_tokenizer.encode(" the", "llama").ids
    tokenizer.set_infilling_processor(True)
    assert ids == tokenizer.encode("the", "llama", suffix_first=True) and tokenizer.encode("the llama") == before


@pytest.mark.parametrize("cls", CLASSES)
def test_tokens_of_infilling_given_at_loading_are_in_the_vocabulary(cls, sp_model):
    """4.34.1 returns the same ids."""
    folder, size = sp_model.parent, len(LlamaTokenizer(sp_model))
    tokenizer = cls.from_pretrained(folder, prefix_token="<P>", eot_token="<E>")
    assert tokenizer.additional_special_tokens == ["<P>", "▁<MID>", "▁<SUF>", "<E>"]
    assert (tokenizer.prefix_id, tokenizer.eot_id, len(tokenizer)) == (size, size + 3, size + 4)
    assert tokenizer.encode("a<FILL_ME>b")[:2] == [1, size]
    none = dict.fromkeys(("prefix_token", "middle_token", "suffix_token", "eot_token"))
    assert len(cls.from_pretrained(folder, **none)) == size
    loaded = AutoTokenizer.from_pretrained(folder, prefix_token="<P>")
    assert loaded.init_kwargs["prefix_token"] == "<P>"  # kept, without a meaning for this class
