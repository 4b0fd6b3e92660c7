"""Vocabularies trained on text files, compared with sentencepiece, tokenizers, transformers and the text itself."""

from __future__ import annotations

import random

import pytest
import sentencepiece
import tokenizers

from puna.errors import ModelNotFoundError, TokenizerError
from puna.tokenizer import load_tokenizer
from puna.training.tokenizer.train import train_tokenizer

WORDS = [
    "llama",
    "grassland",
    "wind",
    "condor",
    "the",
    "a",
    "of",
    "river",
    "1987",
    "don't",
    "Zoë",
    "über",
    "sees",
    "green",
]


def write_text(path, lines=400, seed=0):
    """Writes a text of random words in lines and paragraphs; returns its path."""
    choose = random.Random(seed)
    text = "\n".join(" ".join(choose.choices(WORDS, k=choose.randrange(9))).capitalize() for _ in range(lines))
    path.write_text(text + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory):
    """A trained tokenizer of each kind: kind to folder."""
    base = tmp_path_factory.mktemp("tokenizers")
    sizes = {"llama2": 360, "llama3": 330, "char": None}
    for kind, size in sizes.items():
        train_tokenizer([text], base / kind, kind, size)
    return {kind: base / kind for kind in sizes}


SAMPLES = ["The llama hears the wind.", "  two  spaces\n\n\nand\tlines 12345\n", "Zoë sees São Paulo, 日本語 🦙", ""]


@pytest.mark.parametrize("kind", ["llama2", "llama3", "char"])
def test_transformers_gives_the_same_ids_and_texts(folders, kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(folders[kind])
    peer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    assert len(tokenizer) == len(peer)
    for sample in SAMPLES:
        ids = tokenizer(sample)["input_ids"]
        assert ids == peer(sample)["input_ids"]
        assert (ids[:1] == [tokenizer.bos_token_id]) == (kind != "char")
    assert tokenizer.bos_token_id == peer.bos_token_id
    assert (tokenizer.eos_token, tokenizer.unk_token) == (peer.eos_token, peer.unk_token)


@pytest.mark.parametrize("kind", ["llama2", "llama3"])
def test_every_text_is_restored_because_all_bytes_have_tokens(folders, kind):
    tokenizer = load_tokenizer(folders[kind])
    for sample in SAMPLES:
        assert tokenizer.decode(tokenizer(sample)["input_ids"], skip_special_tokens=True) == sample


def test_characters_are_the_tokens_of_a_text(folders, text):
    tokenizer = load_tokenizer(folders["char"])
    characters = sorted(set(text.read_text()))
    assert len(tokenizer) == 3 + len(characters)
    ids = tokenizer.encode(text.read_text(), add_special_tokens=False)
    assert tokenizer.decode(ids) == text.read_text() and len(ids) == len(text.read_text())
    assert tokenizer.encode("日", add_special_tokens=False) == [tokenizer.unk_token_id]


def test_characters_with_bytes_restore_every_text(text, tmp_path):
    tokenizer = train_tokenizer([text], tmp_path, "char", byte_fallback=True)
    ids = load_tokenizer(tmp_path).encode("日 a", add_special_tokens=False)
    assert tokenizer.decode(ids) == "日 a" and len(ids) == 5


def test_the_most_frequent_characters_are_kept(tmp_path):
    (tmp_path / "text.txt").write_text("aaaa bbb cc d")
    tokenizer = train_tokenizer([tmp_path / "text.txt"], None, "char", 3 + 3)
    assert set(tokenizer.get_vocab()) == {"<unk>", "<s>", "</s>", "a", "b", "▁"}


def test_llama2_has_the_vocabulary_that_sentencepiece_trains(folders, text, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "peer"), vocab_size=360, model_type="bpe", byte_fallback=True,
        character_coverage=0.99995, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "peer.model"))
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folders["llama2"] / "tokenizer.model"))
    ids = range(360)
    assert [ours.id_to_piece(i) for i in ids] == [peer.id_to_piece(i) for i in ids]
    assert [ours.is_byte(i) for i in ids] == [peer.is_byte(i) for i in ids] == [3 <= i < 259 for i in ids]
    assert [ours.unk_id(), ours.bos_id(), ours.eos_id(), ours.pad_id()] == [0, 1, 2, -1]


def test_llama3_has_its_special_tokens_and_its_splits(folders):
    tokenizer = load_tokenizer(folders["llama3"])
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [319 + index for index in (0, 1, 4, 9)]
    peer = tokenizers.Tokenizer.from_file(str(folders["llama3"] / "tokenizer.json"))
    numbers = [token for token, _ in peer.pre_tokenizer.pre_tokenize_str("1234567 x")]
    assert numbers == ["123", "456", "7", "Ġx"]
    assert len(tokenizer) == 330


def test_llama3_with_all_special_tokens_has_metas_layout(text, tmp_path):
    tokenizer = train_tokenizer([text], tmp_path, "llama3", 256 + 30 + 256, special_tokens=256)
    assert tokenizer.convert_tokens_to_ids("<|reserved_special_token_247|>") == len(tokenizer) - 1


@pytest.mark.parametrize("kind", ["llama2", "llama3", "char"])
def test_training_twice_gives_the_same_files(folders, text, tmp_path, kind):
    sizes = {"llama2": 360, "llama3": 330, "char": None}
    train_tokenizer([text], tmp_path, kind, sizes[kind])
    for path in folders[kind].iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_long_lines_are_not_ignored(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text(" ".join(["llama", "condor"] * 20_000))  # SentencePiece ignores longer lines
    tokenizer = train_tokenizer([path], None, "llama2", 259 + 9 + 11)
    assert {"▁llama", "▁condor"} <= set(tokenizer.get_vocab())


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("llama2", 100_000, r"vocab_size is 100000, but this text has material for (\d+) tokens only; use at most"),
        ("llama3", 100_000, r"vocab_size is 100000, but this text has material for (\d+) tokens only; use at most"),
        ("char", 1000, r"vocab_size is 1000, but this text has material for (\d+) tokens only; use at most"),
        ("llama2", 262, r"vocab_size is 262, but the characters .* use at least (\d+)"),
        ("llama3", 200, r"vocab_size is 200; 256 bytes and 11 special tokens need at least (\d+)"),
    ],
)
def test_the_limit_in_an_error_works(text, kind, size, message):
    with pytest.raises(TokenizerError, match=message) as caught:
        train_tokenizer([text], None, kind, size)
    limit = int(str(caught.value).split("use at most ")[-1].split("least ")[-1].split(",")[0])
    assert len(train_tokenizer([text], None, kind, limit)) == limit


@pytest.mark.parametrize("kind", ["llama2", "llama3", "char"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text"),
        (b" \n\t\n", "no text"),
        (b"text\0text", "byte 4 is 0, so the file is binary"),
        ("text".encode("utf-16"), "is UTF-16"),
        (b"a line\nna\xefve", r"byte 9 \(b'\\xef'\) is not UTF-8"),
        (b"cut \xe6\x97", r"byte 4 \(b'\\xe6'\) is not UTF-8"),
    ],
)
def test_files_without_text_are_errors(tmp_path, kind, content, message):
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer([path], tmp_path / "out", kind, 300)
    assert not (tmp_path / "out").exists()


def test_paths_without_texts_are_errors(tmp_path):
    with pytest.raises(ModelNotFoundError, match="no such file"):
        train_tokenizer([tmp_path / "missing.txt"])
    with pytest.raises(TokenizerError, match=r"no \.txt or \.md file"):
        train_tokenizer([tmp_path])
    with pytest.raises(TokenizerError, match="kind is 'bpe'; it must be one of llama2, llama3, char"):
        train_tokenizer([tmp_path], kind="bpe")


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name, content in (("b.txt", "bb"), ("a.txt", "a"), ("c.bin", "\0")):
        (tmp_path / name).write_text(content)
    assert set(train_tokenizer([tmp_path], None, "char").get_vocab()) == {"<unk>", "<s>", "</s>", "a", "b"}
