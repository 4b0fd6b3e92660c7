"""Special and added tokens in every file and notation are kept, with the ids of transformers 5.23."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import TokenizerError
from puna.tokenizer import AddedToken as PunaToken
from puna.tokenizer.streams import clean_up
from tests.helpers.scripted_model import SPECIAL, TOKENS, byte_tokenizer

NAMES = [*SPECIAL, "<a>", "<b>", "<image>"]
SIZE = len(TOKENS)


def typed(text: str, **fields) -> dict:
    """Returns an added token in the notation of transformers, with the key `__type`."""
    return {"__type": "AddedToken", "content": text, "special": True, "normalized": False, **fields}


def write(path, value):
    path.write_text(json.dumps(value))


def folder_of(path, settings=None, tokens_map=None, edit=None):
    """Writes a folder with a byte-level tokenizer and returns its path; `edit` changes the JSON of tokenizer.json."""
    path.mkdir(exist_ok=True)
    content = json.loads(byte_tokenizer().to_str())
    if edit is not None:
        edit(content)
    write(path / "tokenizer.json", content)
    defaults = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    write(path / "tokenizer_config.json", defaults | (settings or {}))
    if tokens_map is not None:
        write(path / "special_tokens_map.json", tokens_map)
    return path


ADDITIONAL = {
    "none": {},
    "null": {"additional_special_tokens": None},
    "empty": {"additional_special_tokens": []},
    "list": {"additional_special_tokens": ["<|turn|>", "<b>"]},
    "typed": {"additional_special_tokens": [typed("<|turn|>"), typed("<b>")]},
    "objects": {"additional_special_tokens": [{"content": "<|turn|>"}, {"content": "<b>"}]},
}
EXTRA = {
    "none": {},
    "null": {"extra_special_tokens": None},
    "empty": {"extra_special_tokens": []},
    "no names": {"extra_special_tokens": {}},
    "list": {"extra_special_tokens": ["<|tool|>", "<a>"]},
    "typed": {"extra_special_tokens": [typed("<|tool|>"), typed("<a>")]},
    "objects": {"extra_special_tokens": [{"content": "<|tool|>"}, {"content": "<a>"}]},
    "named": {"extra_special_tokens": {"image_token": "<image>", "tool_token": "<|tool|>"}},
    "named typed": {"extra_special_tokens": {"image_token": typed("<image>"), "tool_token": typed("<|tool|>")}},
    "own key": {"image_token": "<image>", "tool_token": "<|tool|>"},
    "own typed key": {"image_token": typed("<image>"), "tool_token": typed("<|tool|>")},
    "both": {"image_token": "<image>", "extra_special_tokens": ["<|tool|>", "<a>"]},
}
COMBINATIONS = list(itertools.product(ADDITIONAL, EXTRA))
DECODER = {str(index): {"content": text, "special": True, "normalized": False} for index, text in enumerate(SPECIAL)}


def new_tokens(additional: str, extra: str) -> list[str]:
    """Returns the tokens that get new ids, in the order of these ids: named, extra, additional."""
    tokens = ["<image>"] if extra.startswith(("named", "own", "both")) else []
    tokens += ["<a>"] if extra in ("list", "typed", "objects", "both") else []
    return tokens + (["<b>"] if additional in ("list", "typed", "objects") else [])


@pytest.mark.parametrize(
    "location", ["config", "config with added tokens", "map", "extra in config", "additional in config"]
)
def test_additional_and_extra_special_tokens_are_all_special(tmp_path, location):
    for number, (additional, extra) in enumerate(COMBINATIONS):
        check_special_tokens(tmp_path / str(number), additional, extra, location)


def check_special_tokens(path, additional: str, extra: str, location: str):
    """Compares the special tokens of a folder whose lists have the notations `additional` and `extra`."""
    first, second = ADDITIONAL[additional], EXTRA[extra]
    config, tokens_map = {
        "config": (first | second, None),
        "config with added tokens": (first | second | {"added_tokens_decoder": DECODER}, None),
        "map": ({}, first | second),
        "extra in config": (second, first),
        "additional in config": (first, second),
    }[location]
    tokenizer = load_tokenizer(folder_of(path, config, tokens_map))
    new = new_tokens(additional, extra)
    if location == "additional in config" and {"<a>", "<b>"} <= set(new):
        new = [token for token in new if token not in ("<a>", "<b>")] + ["<b>", "<a>"]  # transformers' order
    assert [tokenizer.convert_ids_to_tokens(SIZE + number) for number in range(len(new))] == new
    assert len(tokenizer) == SIZE + len(new)
    existing = {*(["<|turn|>"] if "<b>" in new else []), *(["<|tool|>"] if set(new) - {"<b>"} else [])}
    assert set(tokenizer.additional_special_tokens) == existing | set(new)
    text = "x" + "x".join(NAMES)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids.count(TOKENS.index("x")) == len(NAMES)
    assert tokenizer.decode(ids) == text
    visible = [token for token in ("<a>", "<b>", "<image>") if token not in new]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace("x", "") == "".join(visible)
    tokenizer.save_pretrained(path / "saved")
    reloaded = load_tokenizer(path / "saved")
    assert reloaded.encode(text) == tokenizer.encode(text)
    assert set(reloaded.all_special_tokens) == set(tokenizer.all_special_tokens)


@pytest.mark.parametrize("name", ["additional_special_tokens", "extra_special_tokens"])
@pytest.mark.parametrize("value", [7, "text", True, [7], [{"text": "<a>"}], {"a_token": 7}])
def test_special_tokens_of_a_wrong_type_are_refused(tmp_path, name, value):
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(folder_of(tmp_path, {name: value}))


def test_the_fill_token_of_codellama_is_not_a_token(tmp_path):
    settings = {"fill_token": "<FILL_ME>", "middle_token": "<|turn|>"}
    tokenizer = load_tokenizer(folder_of(tmp_path, settings))
    assert (tokenizer.additional_special_tokens, len(tokenizer)) == (["<|turn|>"], SIZE)


def rename(*pairs: tuple[int, str], vocab: bool = False):
    """Returns an edit of tokenizer.json that renames added tokens, also in the vocabulary if `vocab`."""

    def edit(content):
        for index, text in pairs:
            if vocab:
                content["model"]["vocab"][text] = content["model"]["vocab"].pop(
                    content["added_tokens"][index]["content"]
                )
            content["added_tokens"][index]["content"] = text

    return edit


def add(*pairs: tuple[int, str]):
    """Returns an edit of tokenizer.json that appends added tokens, given as pairs of id and text."""

    def edit(content):
        template = content["added_tokens"][0]
        content["added_tokens"] += [template | {"id": index, "content": text} for index, text in pairs]

    return edit


def added(*pairs: tuple[int, str], **fields) -> dict:
    """Returns settings of tokenizer_config.json with the added tokens `SPECIAL` and `pairs` of id and text."""
    decoder = DECODER | {str(index): DECODER["0"] | {"content": text} | fields for index, text in pairs}
    return {"added_tokens_decoder": decoder}


NUMBERED = {
    "renamed in the configuration": (added((2, "<a>"), (3, "<b>")), None, ["<a>", "<b>"], "'<a>' 260 instead of 2"),
    "renamed in tokenizer.json": (added(), rename((2, "<a>"), vocab=True), ["<|turn|>"], "'<|turn|>' 260 instead of 2"),
    "renamed in one part of tokenizer.json": ({}, rename((2, "<a>")), ["<a>"], "'<a>' 260 instead of 2"),
    "renamed in both": (added((2, "<a>")), rename((2, "<a>"), vocab=True), [], ""),
    "gap in the configuration": (added((260, "<a>"), (300, "<b>")), None, ["<a>", "<b>"], "'<b>' 261 instead of 300"),
    "gap in tokenizer.json": ({}, add((260, "<a>"), (300, "<b>")), ["<a>", "<b>"], "'<b>' 261 instead of 300"),
    "gap at the start": ({}, add((300, "<a>"), (301, "<b>")), ["<a>", "<b>"], "'<a>' 260 instead of 300"),
    "a token of the vocabulary": (added((300, "x")), None, [], f"'x' {TOKENS.index('x')} instead of 300"),
    "twice": (added((260, "<a>"), (261, "<a>")), None, ["<a>"], "'<a>' 260 instead of 261"),
    "many": (added(*((n, f"<{n}>") for n in range(300, 310))), None, [f"<{n}>" for n in range(300, 310)], "and 7 more"),
}
"""By name: the settings, the edit of tokenizer.json, the tokens with new ids, and a part of the note."""


@pytest.mark.parametrize("case", NUMBERED)
def test_added_tokens_with_impossible_ids_are_numbered_as_in_transformers(tmp_path, case):
    settings, edit, new, note = NUMBERED[case]
    tokenizer = load_tokenizer(folder_of(tmp_path, settings, edit=edit))
    assert tokenizer.convert_ids_to_tokens(list(range(SIZE, len(tokenizer)))) == new
    assert tokenizer.encode("".join(new), add_special_tokens=False) == list(range(SIZE, SIZE + len(new)))
    assert bool(tokenizer.notes) == bool(note) and note in "".join(tokenizer.notes)
    if note:
        assert "as in transformers" in tokenizer.notes[0]


@pytest.mark.oracle
def test_transformers_gives_the_same_ids_and_text(tmp_path, oracle):
    """Only files that transformers 5.23 loads without ignoring a key are compared."""
    readable = [
        pair
        for pair in COMBINATIONS
        if "objects" not in pair and (pair[0] == "none" or pair[1] not in ("list", "typed", "both"))
    ]
    cases = [(ADDITIONAL[a] | EXTRA[e], None) for a, e in readable] + [case[:2] for case in NUMBERED.values()]
    cases += [(added((2, "<|turn|>"), special=flag), mark_special(not flag)) for flag in (True, False)]
    cases += [
        ({"pad_token": "<|turn|>"}, mark_special(False)),
        ({"extra_special_tokens": ["<|turn|>"]}, mark_special(False)),
    ]
    cases += [({"clean_up_tokenization_spaces": True, FORCED: forced}, None) for forced in (True, False)]
    folders = [folder_of(tmp_path / str(number), *case[:1], edit=case[1]) for number, case in enumerate(cases)]
    texts = ["".join(NAMES), *NAMES, "a <a>b", "x != y ; n't ' a ' ."]
    ids = [*range(12), *range(SIZE - 3, SIZE)]
    sequences = [ids, [TOKENS.index(byte) for byte in "aĠ.Ġ'Ġsn't"], [2, 3, 40, 2]]
    jobs = [{"folder": str(f), "cls": "AutoTokenizer", "texts": texts, "sequences": sequences} for f in folders]
    for folder, expected in zip(folders, oracle("5.23.0", jobs), strict=True):
        tokenizer = load_tokenizer(folder)
        assert len(tokenizer) == expected["length"]
        assert [tokenizer.encode(text, add_special_tokens=False) for text in texts] == expected["plain"]
        assert [tokenizer.decode(ids) for ids in sequences] == expected["decoded"]
        assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in sequences] == expected["skipped"]


FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


def mark_special(special: bool):
    """Returns an edit of tokenizer.json that sets whether the added token 2 is special."""

    def edit(content):
        content["added_tokens"][2]["special"] = special

    return edit


def test_the_configuration_changes_the_settings_of_an_added_token(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, added((2, "<|turn|>"), lstrip=True), edit=mark_special(False)))
    token = PunaToken("<|turn|>", lstrip=True, normalized=False, special=True)
    assert tokenizer.added_tokens_decoder[2] == token and not tokenizer.notes
    assert tokenizer.encode("x <|turn|>", add_special_tokens=False) == [TOKENS.index("x"), 2]


def test_tokens_named_in_the_configuration_are_special_even_if_tokenizer_json_differs(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path, {"pad_token": "<|turn|>"}, edit=mark_special(False)))
    assert tokenizer.decode([2, TOKENS.index("x")], skip_special_tokens=True) == "x"


@pytest.mark.parametrize("kind", ["added_tokens.json", "tokenizer_config.json"])
def test_gaps_in_the_ids_added_to_a_sentencepiece_model_are_noted(tmp_path, sp_model, kind):
    shutil.copy(sp_model, tmp_path / "tokenizer.model")
    if kind == "added_tokens.json":
        write(tmp_path / kind, {"<a>": 420, "<b>": 999})
    else:
        write(tmp_path / kind, {"added_tokens_decoder": {"420": {"content": "<a>"}, "999": {"content": "<b>"}}})
    for tokenizer in (load_tokenizer(tmp_path), LlamaTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.convert_tokens_to_ids(["<a>", "<b>"]) == [420, 999]
        assert "578 ids between the added tokens, such as 421, have no token" in tokenizer.notes[0]
        assert tokenizer.decode([999]) == "<b>"
        with pytest.raises(TokenizerError, match="token id 421"):
            tokenizer.decode([421])
    with pytest.raises(TokenizerError, match="'<b>' must have id 999, but gets id 421"):
        load_tokenizer(tmp_path).save_pretrained(tmp_path / "saved")
    fast = LlamaTokenizerFast.from_pretrained(tmp_path)
    assert fast.convert_tokens_to_ids(["<a>", "<b>"]) == [420, 421]
    assert "'<b>' 421 instead of 999" in fast.notes[0]
    with pytest.raises(TokenizerError, match="id 999"):
        LlamaTokenizerFast(tmp_path / "tokenizer.model", added_tokens_decoder={999: PunaToken("<x>")})


TEXT = "x != y ; don 't , a ' b ' ."


@pytest.mark.parametrize("flag", [True, False, None])
def test_clean_up_of_a_bpe_tokenizer_depends_on_the_argument_alone(tmp_path, sp_model, flag):
    settings = {} if flag is None else {"clean_up_tokenization_spaces": flag}
    shutil.copy(sp_model, tmp_path / "tokenizer.model")
    write(tmp_path / "tokenizer_config.json", settings)
    tokenizers = [load_tokenizer(folder_of(tmp_path / "json", settings))]
    tokenizers += [cls.from_pretrained(tmp_path) for cls in (LlamaTokenizer, LlamaTokenizerFast)]
    for tokenizer in [*tokenizers, load_tokenizer(tmp_path)]:
        ids = tokenizer.encode(TEXT, add_special_tokens=False)
        assert tokenizer.clean_up_tokenization_spaces is bool(flag)
        assert any("clean_up_tokenization_spaces has no effect" in note for note in tokenizer.notes) is bool(flag)
        assert tokenizer.decode(ids) == tokenizer.batch_decode([ids])[0] == TEXT
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == TEXT
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == clean_up(TEXT) != TEXT
        tokenizer.save_pretrained(tmp_path / "saved")
        saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
        assert saved["clean_up_tokenization_spaces"] is bool(flag)


@pytest.mark.parametrize("flag", [True, False])
def test_clean_up_of_a_word_level_vocabulary_follows_the_setting(flag):
    pipeline = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate([*TEXT.split(), "?"])}, unk_token="?")
    )
    pipeline.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pipeline.add_special_tokens([AddedToken("<s>")])
    tokenizer = LlamaTokenizerFast(
        tokenizer_object=pipeline, literal=True, unk_token=None, bos_token="<s>", eos_token=None,
        clean_up_tokenization_spaces=flag,
    )  # fmt: skip
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.decode(ids) == (clean_up(TEXT) if flag else TEXT)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=not flag) == (TEXT if flag else clean_up(TEXT))


def save_with_added_tokens(model, folder) -> list[str]:
    """Saves a SentencePiece tokenizer with added tokens that are not special; returns texts that contain them."""
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<new>", "llama", PunaToken("<strip>", lstrip=True)])
    tokenizer.save_pretrained(folder)
    texts = ["a<new>b", " <new> a", "the llama llama", "x  <strip> y", "<new><new>"]
    reloaded = load_tokenizer(folder)
    assert [reloaded.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    return texts


def test_saved_files_agree_on_the_settings_of_added_tokens(tmp_path, sp_model):
    save_with_added_tokens(sp_model, tmp_path)
    pipeline = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {int(index): fields for index, fields in decoder.items()} == {
        token.pop("id"): token for token in pipeline if str(token["id"]) in decoder
    }
    assert {"420", "421", "422"} <= decoder.keys()


@pytest.mark.oracle
@pytest.mark.parametrize("release", ["4.57.6", "5.23.0"])
def test_transformers_finds_added_tokens_in_saved_files(tmp_path, sp_model, oracle, release):
    texts = save_with_added_tokens(sp_model, tmp_path)
    (result,) = oracle(release, [{"folder": str(tmp_path), "cls": "AutoTokenizer", "texts": texts}])
    assert result["ids"] == [load_tokenizer(tmp_path).encode(text) for text in texts]


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_a_special_token_with_flags_is_special_once_added(sp_model, cls):
    tokenizer = cls(sp_model, pad_token=PunaToken("[PAD]", lstrip=True))
    pad = tokenizer.added_tokens_decoder[tokenizer.pad_token_id]
    assert (pad.special, pad.lstrip, pad.normalized) == (True, True, not tokenizer.is_fast)
    assert tokenizer.decode([tokenizer.pad_token_id, 60], skip_special_tokens=True).strip() == tokenizer.decode([60])


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_removed_ends_stay_removed_in_saved_files(tmp_path, sp_model, cls):
    tokenizer = cls(sp_model, add_bos_token=False)
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token) == (None, None, "<unk>")
    assert cls.from_pretrained(tmp_path, eos_token="<unk>").eos_token == "<unk>"


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_an_end_that_is_added_to_texts_cannot_be_removed_by_a_file(tmp_path, sp_model, cls):
    cls(sp_model).save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token": None, "eos_token": None}))
    loaded = cls.from_pretrained(tmp_path)
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", None)
    assert loaded.encode("a")[0] == loaded.bos_token_id


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
@pytest.mark.parametrize("index", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_an_index_error_too(sp_model, cls, index):
    with pytest.raises(IndexError, match=str(index)) as error:
        cls(sp_model).convert_ids_to_tokens(index)
    assert isinstance(error.value, TokenizerError)


def test_special_tokens_that_match_normalised_text_keep_their_text(tmp_path, sp_model):
    pipeline = json.loads(LlamaTokenizerFast(sp_model).backend_tokenizer.to_str())
    for token in pipeline["added_tokens"]:
        token["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline))
    tokenizer = LlamaTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json")
    ids = [1, *tokenizer.encode("the llama", add_special_tokens=False), 2]
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<unk>", "<s>", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the llama"
    assert tokenizer.decode(ids) == "<s> the llama</s>"
    stream = tokenizer.text_stream(skip_special_tokens=True)
    assert "".join(map(stream.push, ids)) + stream.rest() == "the llama"
    tokenizer.add_tokens(["[new]"])
    assert tokenizer.decode([len(tokenizer) - 1, 2], skip_special_tokens=True) == "[new]"
