"""Tokenizers in GGUF files: SentencePiece and byte-level BPE."""

from __future__ import annotations

import json
import struct
import time

import gguf
import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import PunaError, TokenizerError
from puna.formats.gguf import open_gguf
from puna.tokenizer.files.byte_level import pipeline_step, pre_tokenizer, pre_tokenizers
from puna.tokenizer.files.gguf import read_vocabulary, sentencepiece_model
from puna.tokenizer.files.recipes import byte_level_recipe
from tests.golden.files import LAYOUTS, TEXT, TOKENIZER
from tests.helpers.vocabularies import CORPUS, random_texts, train_sentencepiece

TEXTS = [*random_texts(200, seed=9), *CORPUS, "\n".join(CORPUS)]
SHORT_TEXTS = ["Once upon a time", "Zoë said: é", "\n\n x  y"]


def write(path, model, tokens, types, **fields):
    """Writes a GGUF file that contains only a tokenizer."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def metadata_of(path):
    return open_gguf(path).metadata


def pieces_of(processor):
    """Returns the texts, GGUF token types and scores of a SentencePiece model's pieces."""
    ids = range(processor.get_piece_size())
    kinds = [
        2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1
        for i in ids
    ]
    return [processor.id_to_piece(i) for i in ids], kinds, [processor.get_score(i) for i in ids]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("remove_spaces", [True, False])
def test_a_sentencepiece_model_is_rebuilt_from_a_gguf_vocabulary(tmp_path, prefix, remove_spaces):
    """The SentencePiece model built from a GGUF vocabulary gives the same ids and text as the original model."""
    model = train_sentencepiece(add_dummy_prefix=prefix, remove_extra_whitespaces=remove_spaces)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokens, kinds, scores = pieces_of(processor)
    path = write(
        tmp_path / "m.gguf", "llama", tokens, kinds, token_scores=scores, add_space_prefix=prefix,
        bos_token_id=1, eos_token_id=2, unk_token_id=0, add_bos_token=True, add_eos_token=True, chat_template="T",
    )  # fmt: skip
    metadata = dict(metadata_of(path)) | {"tokenizer.ggml.remove_extra_whitespaces": remove_spaces}
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(read_vocabulary(metadata)))
    for text in TEXTS:
        assert rebuilt.encode(text) == processor.encode(text)
        assert rebuilt.decode(processor.encode(text)) == processor.decode(processor.encode(text))
    if remove_spaces:
        return
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, LlamaTokenizer) and tokenizer.behaviour == "sp" and tokenizer.chat_template == "T"
    assert tokenizer.encode("the llama") == [1, *processor.encode("the llama"), 2]
    assert load_tokenizer(path, add_eos_token=False).encode("a") == [1, *processor.encode("a")]
    assert LlamaTokenizer.from_pretrained(path).behaviour == "hf-legacy"
    fast = LlamaTokenizerFast.from_pretrained(path)
    assert [fast.encode(t) for t in CORPUS] == [tokenizer.encode(t) for t in CORPUS]


def test_user_defined_tokens_are_found_in_text_but_control_tokens_only_on_request(tmp_path):
    model = train_sentencepiece(control_symbols=["<|sys|>"], user_defined_symbols=["<|tab|>"])
    tokens, kinds, scores = pieces_of(sentencepiece.SentencePieceProcessor(model_proto=model))
    kinds[tokens.index("<|tab|>")] = 4
    path = write(tmp_path / "m.gguf", "llama", tokens, kinds, token_scores=scores, bos_token_id=1, eos_token_id=2)
    tokenizer = load_tokenizer(path)
    system, tab = tokens.index("<|sys|>"), tokens.index("<|tab|>")
    assert tab in tokenizer.encode("a<|tab|>b") and system not in tokenizer.encode("a<|sys|>b")
    assert system in tokenizer.encode("a<|sys|>b", split_special_tokens=False)
    chat = tokenizer.apply_chat_template(
        [{"role": "u", "content": "x"}], chat_template="<|sys|>{{ messages[0].content }}"
    )
    assert chat[0] == system


def test_bos_and_eos_are_found_without_metadata_keys(tmp_path):
    tokens, kinds, scores = pieces_of(sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece()))
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", "llama", tokens, kinds, token_scores=scores))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>") and tokenizer.encode("a")[0] == 1


def test_the_stories_vocabulary_merges_like_llama2_c(shared, tmp_path):
    """llama2.c's tokenizer of 512 pieces gives the ids of llama2.c's greedy merge."""
    data = (shared / "fixtures/stories260K/tok512.bin").read_bytes()
    pieces, scores, at = [], [], 4
    while at < len(data):
        score, size = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + size].decode())
        scores.append(score)
        at += 8 + size
    assert len(pieces) == 512
    kinds = [2, 3, 3, *[6] * 256, *[1] * 253]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [piece.replace(" ", "▁") for piece in pieces[259:]]
    path = write(tmp_path / "m.gguf", "llama", tokens, kinds, token_scores=scores, bos_token_id=1, eos_token_id=2)
    tokenizer = load_tokenizer(path)
    story = (shared / "fixtures/stories260K/expected_greedy_200steps.txt").read_text()
    assert_merges_greedily(tokenizer, [story, *SHORT_TEXTS], pieces, scores)


def test_the_golden_vocabulary_merges_like_llama2_c():
    """The golden checkpoint's tokenizer of 512 pieces gives the ids of llama2.c's greedy merge."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    pieces = [processor.id_to_piece(index).replace("▁", " ") for index in range(512)]
    scores = [processor.get_score(index) for index in range(512)]
    story = TEXT.read_text().split("\n\n")[0]
    assert_merges_greedily(load_tokenizer(LAYOUTS["gguf"]), [story, *SHORT_TEXTS], pieces, scores)


def assert_merges_greedily(tokenizer, texts, pieces, scores):
    """Asserts that ids equal those of `merge_greedily`, and that decoding returns the text."""
    for text in texts:
        assert tokenizer.encode(text) == [1, *merge_greedily(" " + text, pieces, scores)]
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def merge_greedily(text, pieces, scores):
    """Returns llama2.c's ids: splits into characters or bytes, then repeatedly merges the pair with the best score."""
    ids = {piece: index for index, piece in enumerate(pieces) if index > 258}
    tokens = []
    for character in text:
        tokens += [ids[character]] if character in ids else [byte + 3 for byte in character.encode()]
    spelled = dict(enumerate(pieces))
    while True:
        best, best_merge = -1e10, None
        for at in range(len(tokens) - 1):
            index = ids.get(spelled[tokens[at]] + spelled[tokens[at + 1]]) if min(tokens[at : at + 2]) > 258 else None
            if index is not None and scores[index] > best:
                best, best_merge = scores[index], (at, index)
        if best_merge is None:
            return tokens
        tokens[best_merge[0] : best_merge[0] + 2] = [best_merge[1]]


def byte_level_fields(folder, pre="smollm", **changes):
    """Returns the metadata of a byte-level tokenizer like `byte_level_json`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [token for token, _ in vocab],
        "tokenizer.ggml.token_type": np.array([3 if 400 <= i < 405 else 4 if i == 405 else 1 for _, i in vocab]),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 400,
        "tokenizer.ggml.eos_token_id": 404,
    }
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def byte_level_tokenizer(metadata):
    """Returns the tokenizer that puna builds from GGUF metadata."""
    return LlamaTokenizerFast.from_recipe(byte_level_recipe(read_vocabulary(metadata), {}))


@pytest.mark.parametrize("pre", sorted(pre_tokenizers()))
def test_every_pre_tokenizer_keeps_the_text(byte_level_json, pre):
    tokenizer = byte_level_tokenizer(byte_level_fields(byte_level_json, pre))
    adds_bos = pre_tokenizer(pre).adds_bos
    assert tokenizer.add_bos_token is adds_bos and (tokenizer.encode("a")[:1] == [400]) is adds_bos
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


SPLITS = {
    "gpt-2": ("it's 1234 néé  x", ["it", "'s", " 1234", " néé", " ", " x"]),
    "smollm": ("a 1234  b", ["a", " ", "1", "2", "3", "4", " ", " b"]),
    "llama-bpe": ("I'M 1234567 a\n\n b", ["I", "'M", " ", "123", "456", "7", " a", "\n\n", " b"]),
    "qwen2": ("x 123", ["x", " ", "1", "2", "3"]),
    "tekken": ("HelloWorld 12", ["Hello", "World", " ", "1", "2"]),
    "deepseek-llm": ("x, 123 日本 y\n", ["x", ",", " ", "123", " ", "日本", " y", "\n"]),
    "deepseek-coder": ("f(x) 12", ["f", "(", "x", ")", " ", "1", "2"]),
    "falcon": ("a1234.b", ["a", "123", "4", ".", "b"]),
    "default": ("a1234.b", ["a", "123", "4", ".", "b"]),
}


@pytest.mark.parametrize("pre", SPLITS)
def test_texts_are_split_into_the_expected_words(pre):
    text, expected = SPLITS[pre]
    spans = [span for _, span in pipeline_step(pre_tokenizer(pre)).pre_tokenize_str(text)]
    assert [text[start:end] for start, end in spans] == expected


def smollm_pipeline(vocab, merges):
    """Returns the pipeline of SmolLM's tokenizer.json: single digits, then ByteLevel's default expression."""
    reference = Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
    steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    reference.pre_tokenizer = Sequence(steps)
    return reference


def test_smollm_splits_off_digits_and_then_splits_like_gpt_2(byte_level_json):
    fields = byte_level_fields(byte_level_json)
    vocab = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    reference = smollm_pipeline(vocab, fields["tokenizer.ggml.merges"])
    tokenizer = byte_level_tokenizer(fields)
    for text in TEXTS:
        assert tokenizer.encode(text) == reference.encode(text).ids


def test_only_special_tokens_are_skipped_or_split(byte_level_json):
    tokenizer = byte_level_tokenizer(byte_level_fields(byte_level_json))
    assert tokenizer.encode("a<|eot_id|><plain>")[-2:] == [404, 405]
    assert tokenizer.decode([404, 405], skip_special_tokens=True) == "<plain>"
    assert 404 not in tokenizer.encode("a<|eot_id|><plain>", split_special_tokens=True)
    assert 405 in tokenizer.encode("a<|eot_id|><plain>", split_special_tokens=True)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token) == (400, 404, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "my-own"}, "'my-own'"),
        ({"tokenizer.ggml.pre": None}, r"no tokenizer\.ggml\.pre"),
        ({"tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"tokenizer.ggml.model": None}, r"tokenizer\.ggml\.model"),
        ({"tokenizer.ggml.tokens": None}, r"tokenizer\.ggml\.tokens"),
        ({"tokenizer.ggml.tokens": ["a", 5]}, "contains 5"),
        ({"tokenizer.ggml.tokens": ["a"] * 406}, "406"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "one finite number per token"),
        ({"tokenizer.ggml.token_type": ["x"] * 406}, "array of numbers"),
        ({"tokenizer.ggml.token_type": [9] * 406}, "contains 9"),
        ({"tokenizer.ggml.merges": None}, r"tokenizer\.ggml\.merges"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab'"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "fit together"),
        ({"tokenizer.ggml.bos_token_id": 406}, "406"),
        ({"tokenizer.ggml.bos_token_id": "x"}, "'x'"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token"),
        ({"tokenizer.chat_template": 5}, "chat_template"),
    ],
    ids=str,
)
def test_invalid_metadata_is_refused(byte_level_json, changes, message):
    with pytest.raises(TokenizerError, match=message):
        byte_level_tokenizer(byte_level_fields(byte_level_json, **changes))


@pytest.mark.parametrize("change", [{"scores": [0.0]}, {"scores": [float("nan")] * 420}, {"tokens": [""] * 420}])
def test_invalid_sentencepiece_metadata_is_refused(change):
    tokens, kinds, scores = pieces_of(sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece()))
    fields = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores, **change}
    metadata = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    with pytest.raises(TokenizerError):
        LlamaTokenizer(model_proto=sentencepiece_model(read_vocabulary(metadata)))


def test_several_chat_templates_are_read(byte_level_json):
    changes = {
        "tokenizer.chat_template": "D",
        "tokenizer.chat_templates": ["rag"],
        "tokenizer.chat_template.rag": "R",
    }
    tokenizer = byte_level_tokenizer(byte_level_fields(byte_level_json, **changes))
    assert tokenizer.chat_template == {"default": "D", "rag": "R"}


@pytest.mark.timing
def test_loading_smollm2_is_quick(smollm2):
    costs = []
    for _ in range(3):
        start = time.process_time()
        load_tokenizer(smollm2)
        costs.append(time.process_time() - start)
    assert min(costs) < 0.5


def test_smollm2_gives_the_expected_ids(smollm2):
    tokenizer = load_tokenizer(smollm2)
    assert isinstance(tokenizer, LlamaTokenizerFast) and len(tokenizer) == 49152
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.encode("Gravity is 123") == [22007, 6463, 314, 216, 33, 34, 35]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert chat[0] == 1 and chat.count(1) == 3 and tokenizer.decode(chat[-4:]) == "<|im_start|>assistant\n"
    metadata = metadata_of(smollm2)
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    reference = smollm_pipeline(vocab, metadata["tokenizer.ggml.merges"])
    for text in TEXTS:
        assert tokenizer.encode(text, split_special_tokens=True) == reference.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_file_without_a_tokenizer_is_refused(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(PunaError, match=r"m\.gguf.*tokenizer\.ggml\.model"):
        load_tokenizer(tmp_path)
