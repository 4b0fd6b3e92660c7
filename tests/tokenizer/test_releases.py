"""transformers 4.34.1 gives the same results as puna; all tested releases read the files that puna saves."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.tokenizer import AddedToken
from puna.tokenizer.chat import render_chat
from puna.tokenizer.chat.templates import llama_2_template
from tests.helpers.vocabularies import SNIPPETS, random_texts

pytestmark = pytest.mark.oracle

ADDED_TOKENS = [
    {"content": "<new>", "special": False},
    {"content": "<extra>", "special": True},
    {"content": "<strip>", "special": False, "flags": {"lstrip": True, "rstrip": True}},
    {"content": "word", "special": False, "flags": {"single_word": True}},
]
TEXTS = [
    *random_texts(300, seed=1),
    "a<new>b <extra> <strip> c",
    "word words sword word<new>word",
    "  <strip><strip> x",
]


def id_sequences(size: int) -> list[list[int]]:
    """Returns random sequences of ids, in which special and added tokens are frequent."""
    rng = random.Random(2)
    pick = [lambda: rng.randrange(size), lambda: rng.randrange(3), lambda: rng.randrange(size - 4, size)]
    return [[rng.choice(pick)() for _ in range(rng.randint(1, 9))] for _ in range(600)]


def job_for(folder: Path, cls: str, arguments: dict, added: list, truncation: str) -> dict:
    """Returns a job for tests/oracles/read_tokenizer.py."""
    rng = random.Random(3)
    pairs = [["".join(rng.choice(SNIPPETS) for _ in range(rng.randint(1, 9))) for _ in "ab"] for _ in range(100)]
    return {
        "folder": str(folder),
        "cls": cls,
        "arguments": arguments,
        "added": added,
        "texts": TEXTS,
        "pairs": pairs,
        "max_length": 12,
        "truncation": truncation,
        "sequences": id_sequences(420 + len(added)),
    }


def run_job(job: dict) -> dict:
    """Returns puna's results for a job, as tests/oracles/read_tokenizer.py does for transformers."""
    cls = {"LlamaTokenizer": LlamaTokenizer, "LlamaTokenizerFast": LlamaTokenizerFast}[job["cls"]]
    tokenizer = cls.from_pretrained(job["folder"], **job["arguments"])
    for token in job["added"]:
        flags = token.get("flags")
        tokenizer.add_tokens(AddedToken(token["content"], **flags) if flags else token["content"], token["special"])

    def pair_ids(pair: list[str]) -> list[int] | None:
        try:
            return tokenizer(*pair, max_length=job["max_length"], truncation=job["truncation"])["input_ids"]
        except ValueError:
            return None

    return {
        "length": len(tokenizer),
        "special": tokenizer.special_tokens_map,
        "ids": [tokenizer(text)["input_ids"] for text in job["texts"]],
        "plain": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in job["texts"]],
        "tokens": [tokenizer.tokenize(text) for text in job["texts"]],
        "pairs": [pair_ids(pair) for pair in job["pairs"]],
        "types": tokenizer.create_token_type_ids_from_sequences([5, 6], [7]),
        "decoded": [tokenizer.decode(ids) for ids in job["sequences"]],
        "skipped": [tokenizer.decode(ids, skip_special_tokens=True) for ids in job["sequences"]],
        "chat": [],
    }


def test_the_classes_behave_as_in_4_34_1(oracle, sp_model):
    folder = sp_model.parent
    jobs = [
        job_for(folder, "LlamaTokenizer", {"legacy": True}, ADDED_TOKENS, "longest_first"),
        job_for(folder, "LlamaTokenizer", {"legacy": False, "add_eos_token": True}, ADDED_TOKENS, "longest_first"),
        job_for(folder, "LlamaTokenizerFast", {"add_eos_token": True}, ADDED_TOKENS[1:2], "longest_first"),
        job_for(folder, "LlamaTokenizerFast", {}, ADDED_TOKENS[1:2], "only_first"),
    ]
    for job, expected in zip(jobs, oracle("4.34.1", jobs), strict=True):
        result = run_job(job)
        assert result.keys() == expected.keys(), expected
        for key, values in expected.items():
            assert result[key] == values, (job["cls"], job["arguments"], key)


def rendered_or_refused(template: str, messages: list[dict]) -> str:
    """Returns the rendered text, or "refused: " and the error."""
    try:
        return render_chat(template, messages, variables={"bos_token": "<s>", "eos_token": "</s>"})
    except ValueError as exc:
        return f"refused: {exc}"


def test_the_built_in_llama_2_template_equals_that_of_4_34_1(oracle, sp_model):
    (expected,) = oracle(
        "4.34.1", [{"folder": str(sp_model.parent), "cls": "LlamaTokenizer", "default_template": True}]
    )
    rng = random.Random(4)
    contents = ["hi", " a ", "<<SYS>>x", "", "it's 'q' \\n {{x}} {% if %}\n"]
    rendered = 0
    for _ in range(300):
        roles = [("user", "assistant")[i % 2] for i in range(rng.randint(1, 5))]
        if rng.random() < 0.3:
            roles[rng.randrange(len(roles))] = rng.choice(["user", "assistant", "system"])
        if rng.random() < 0.4:
            roles.insert(0, "system")
        messages = [{"role": role, "content": rng.choice(contents)} for role in roles]
        if all(message["role"] == "system" for message in messages):
            continue  # transformers renders nothing; puna refuses
        for flag, source in ((True, expected["template"]), (False, expected["template_without_prompt"])):
            text = rendered_or_refused(source, messages)
            assert rendered_or_refused(llama_2_template(flag), messages) == text, messages
            rendered += not text.startswith("refused")
    assert rendered > 200


@pytest.fixture(scope="module")
def saved_folders(sp_model, byte_level_json, tmp_path_factory):
    """By name: a folder that puna saved, and its tokenizer."""
    tokenizers = {
        "slow": LlamaTokenizer(sp_model),
        "slow-new": LlamaTokenizer(sp_model, legacy=False, add_eos_token=True),
        "fast": LlamaTokenizerFast(sp_model, add_eos_token=True),
        "sp": load_tokenizer(sp_model),
        "byte-level": load_tokenizer(byte_level_json, add_bos_token=True),
    }
    folders = {}
    for name, tokenizer in tokenizers.items():
        tokenizer.add_tokens([AddedToken("<new>", normalized=False)])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"], "pad_token": "<pad>"})
        tokenizer.chat_template = "{{ messages[0].content }}"
        tokenizer.model_max_length = 77
        folders[name] = (tmp_path_factory.mktemp(name), tokenizer)
        tokenizer.save_pretrained(folders[name][0])
    return folders


@pytest.mark.parametrize("release", ["4.34.1", "4.57.6", "5.23.0"])
def test_other_releases_load_saved_files(oracle, saved_folders, release):
    names = ["fast", "sp", "byte-level"]
    jobs = [{"folder": str(saved_folders[name][0]), "cls": "AutoTokenizer", "texts": texts_for(name)} for name in names]
    if release == "4.34.1":  # later releases convert tokenizer.model differently
        names += ["slow", "slow-new"]
        jobs += [
            {"folder": str(saved_folders[n][0]), "cls": "LlamaTokenizer", "texts": TEXTS} for n in ("slow", "slow-new")
        ]
    for name, job, expected in zip(names, jobs, oracle(release, jobs), strict=True):
        tokenizer = saved_folders[name][1]
        assert "error" not in expected, expected
        split = False if name == "sp" else None  # by default only "sp" reads special tokens as text
        assert expected["ids"] == [tokenizer(t, split_special_tokens=split)["input_ids"] for t in job["texts"]], name
        assert expected["length"] == len(tokenizer)
        assert expected["special"]["pad_token"] == "<pad>"


def test_auto_tokenizer_of_4_34_1_loads_folders_without_tokenizer_json(oracle, sp_model, tmp_path):
    tokenizer = LlamaTokenizerFast(sp_model)
    tokenizer.save_pretrained(tmp_path, legacy_format=True)
    (expected,) = oracle("4.34.1", [{"folder": str(tmp_path), "cls": "AutoTokenizer", "texts": TEXTS}])
    assert expected["ids"] == [tokenizer(text)["input_ids"] for text in TEXTS]


def texts_for(name: str) -> list[str]:
    """Returns TEXTS, for "sp" only those without "<unk>": "sp" always reads it as text, transformers as a token."""
    return [text for text in TEXTS if name != "sp" or "<unk>" not in text]


@pytest.mark.parametrize("name", ["slow", "slow-new", "fast", "sp", "byte-level"])
def test_puna_loads_saved_files(saved_folders, name):
    folder, tokenizer = saved_folders[name]
    reloaded = load_tokenizer(folder) if name == "sp" else type(tokenizer).from_pretrained(folder)
    assert [reloaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert reloaded.special_tokens_map == tokenizer.special_tokens_map
    assert reloaded.added_tokens_decoder == tokenizer.added_tokens_decoder
    assert (reloaded.model_max_length, reloaded.chat_template) == (77, "{{ messages[0].content }}")


@pytest.mark.parametrize(("release", "cls"), [("4.34.1", LlamaTokenizer), ("4.34.1", LlamaTokenizerFast)])
def test_puna_loads_files_of_4_34_1(oracle, sp_model, tmp_path, release, cls):
    folder = tmp_path / "reference"
    shutil.copytree(sp_model.parent, tmp_path / "source")
    job = {
        "folder": str(tmp_path / "source"),
        "cls": cls.__name__,
        "arguments": {"add_eos_token": True},
        "added": ADDED_TOKENS[1:2],
        "texts": TEXTS,
        "save": str(folder),
    }
    (expected,) = oracle(release, [job])
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "LlamaTokenizer"
    tokenizer = cls.from_pretrained(folder)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == expected["ids"]
    if cls is LlamaTokenizerFast:
        assert [load_tokenizer(folder)(text)["input_ids"] for text in TEXTS] == expected["ids"]
