"""`LlamaTokenizer` on a small trained model: SentencePiece's own ids and text, and the methods of transformers."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from puna import LlamaTokenizer
from puna.errors import ModelNotFoundError, TokenizerError
from puna.tokenizer import AddedToken, load_tokenizer
from tests.helpers.properties import settings
from tests.helpers.vocabularies import SNIPPETS, random_texts, train_sentencepiece

TEXT = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(st.characters(exclude_categories=["Cs"])))).map("".join)


@pytest.fixture(scope="module")
def sp(sp_model):
    """The tokenizer that `load_tokenizer` returns for `sp_model`."""
    return load_tokenizer(sp_model)


@settings(max_examples=150)
@given(TEXT)
def test_ids_equal_those_of_sentencepiece(sp, processor, text):
    assert sp.encode(text, add_special_tokens=False) == processor.encode(text)
    assert sp.encode(text) == [1, *processor.encode(text)]
    assert sp.tokenize(text) == processor.id_to_piece(processor.encode(text))


@settings(max_examples=200)
@given(st.lists(st.integers(0, 419), max_size=12))
def test_text_equals_that_of_sentencepiece(sp, processor, ids):
    assert sp.decode(ids, skip_special_tokens=True) == processor.decode(ids)


@pytest.mark.parametrize(
    "options",
    [
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": True},
        {"model_type": "unigram"},
        {"byte_fallback": False},
        {"unk_surface": " <?> "},
    ],
    ids=str,
)
def test_models_with_settings_unlike_llama_s_match_sentencepiece(options, tmp_path):
    path = tmp_path / "m.model"
    path.write_bytes(train_sentencepiece(**{"vocab_size": 380, "hard_vocab_limit": False, **options}))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    sp = load_tokenizer(path)
    for text in random_texts(200):
        ids = processor.encode(text)
        assert sp.encode(text, add_special_tokens=False) == ids
        assert sp.decode(ids, skip_special_tokens=True) == processor.decode(ids)
        assert sp.decode(ids[::-1], skip_special_tokens=True) == processor.decode(ids[::-1])


def test_special_tokens_are_shown_unless_skipped(sp):
    assert sp.decode(sp.encode("the llama")) == "<s> the llama"
    assert sp.decode(sp.encode("the llama"), skip_special_tokens=True) == "the llama"
    assert sp.decode([1, 2]) == "<s></s>"


def test_special_tokens_in_a_text_are_tokens_on_request(sp, processor):
    the = processor.encode("the")
    assert sp.encode("<s>the</s>the", add_special_tokens=False, split_special_tokens=False) == [1, *the, 2, *the]
    assert 2 not in sp.encode("the</s>", add_special_tokens=False)


def test_text_after_an_added_token_is_encoded_separately(sp_model, processor):
    sp = load_tokenizer(sp_model)
    assert sp.add_tokens(["<new>", "the"]) == 2
    assert sp.add_tokens("<new>") == 0
    assert len(sp) == 422 and sp.vocab_size == 420
    a, b = processor.encode("a"), processor.encode(" b")
    assert sp.encode("a<new> b", add_special_tokens=False) == [*a, 420, *b]
    assert sp.decode([*a, 420, *b]) == "a<new> b"
    assert sp.get_vocab()["<new>"] == 420 and sp.get_added_vocab()["the"] == 421
    assert sp.convert_ids_to_tokens([420, 421]) == ["<new>", "the"]


def test_added_tokens_strip_whitespace(sp_model, processor):
    tokenizer = LlamaTokenizer(sp_model)
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)])
    a = processor.encode("a")
    assert tokenizer.encode("a  <left>a", add_special_tokens=False) == [*a, 420, *a]
    assert tokenizer.encode("a<right>  a", add_special_tokens=False) == [*a, 421, *a]


def test_a_single_word_token_inside_a_word_is_text(sp_model):
    tokenizer = LlamaTokenizer(sp_model)
    tokenizer.add_tokens(AddedToken("lam", single_word=True))
    assert len(tokenizer) - 1 not in tokenizer.encode("llama lamx")
    assert len(tokenizer) - 1 in tokenizer.encode("a lam b")


def test_a_single_word_token_that_strips_all_of_its_neighbour_is_a_token(sp_model):
    """4.34.1 and 5.23 return these ids; the token must not become text while its white space is lost."""
    tokenizer = LlamaTokenizer(sp_model)
    tokenizer.add_tokens([AddedToken("lam", lstrip=True, single_word=True), AddedToken("<b>")])
    tokenizer.add_tokens([AddedToken("end", rstrip=True, single_word=True)])
    assert tokenizer.encode("<b>\nlam", add_special_tokens=False) == [421, 420]
    assert tokenizer.encode("end\n", add_special_tokens=False) == [422]


@pytest.mark.parametrize("legacy", [True, False])
def test_methods_equal_those_of_the_transformers_class(sp_model, legacy):
    tokenizer = LlamaTokenizer(sp_model, legacy=legacy, add_eos_token=True)
    assert tokenizer.build_inputs_with_special_tokens([5], [6, 7]) == [1, 5, 2, 1, 6, 7, 2]
    assert tokenizer.get_special_tokens_mask([5], [6, 7]) == [1, 0, 1, 1, 0, 0, 1]
    assert tokenizer.get_special_tokens_mask([1, 5, 2], already_has_special_tokens=True) == [1, 0, 1]
    assert tokenizer.create_token_type_ids_from_sequences([5], [6, 7]) == [0, 0, 0, 1, 1, 1, 1]
    assert tokenizer.num_special_tokens_to_add() == 2 and tokenizer.num_special_tokens_to_add(pair=True) == 4
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token is None and tokenizer.pad_token_id is None
    assert tokenizer.convert_tokens_to_ids(["<s>", "no such token"]) == [1, 0]
    assert not tokenizer.is_fast
    assert tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"][-1] == 1
    tokenizer.add_eos_token = False
    assert tokenizer.build_inputs_with_special_tokens([5]) == [1, 5]


def test_save_vocabulary_works_after_the_model_file_was_deleted(sp_model, tmp_path):
    model_copy = tmp_path / "m.model"
    model_copy.write_bytes(sp_model.read_bytes())
    tokenizer = LlamaTokenizer(model_copy, legacy=False)
    model_copy.unlink()
    (path,) = tokenizer.save_vocabulary(tmp_path, "pre")
    assert path == str(tmp_path / "pre-tokenizer.model")
    assert (tmp_path / "pre-tokenizer.model").read_bytes() == sp_model.read_bytes()
    with pytest.raises(TokenizerError, match="no such folder"):
        tokenizer.save_vocabulary(tmp_path / "nowhere")


def test_pickled_and_copied_tokenizers_give_the_same_ids(tokenizer):
    for duplicate in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        for text in random_texts(30):
            assert duplicate.encode(text) == tokenizer.encode(text)
        assert duplicate.special_tokens_map == tokenizer.special_tokens_map


def test_sampling_arguments_reach_sentencepiece(sp_model):
    arguments = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    tokenizer = LlamaTokenizer(sp_model, sp_model_kwargs=arguments)
    assert len({tuple(tokenizer.encode("the llama carries a pack")) for _ in range(20)}) > 1
    with pytest.raises(TokenizerError, match="no_such"):
        LlamaTokenizer(sp_model, sp_model_kwargs={"no_such": 1})


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_file": "/etc/passwd"},
        {"model_file": "/dev/zero"},
        {"model_proto": "x"},
        {"out_type": "str"},
        {"num_threads": 10**6},
        {"emit_unk_piece": True},
        {"nbest_size": True},
        {"nbest_size": 2**40},
        {"nbest_size": 513},
        {"nbest_size": -2},
        {"alpha": -0.1},
        {"alpha": "0.1"},
        {"alpha": 1e400},
        {"alpha": float("nan")},
        {"reverse": 1},
        {"add_bos": None},
    ],
)
def test_unknown_and_invalid_sp_model_kwargs_are_refused(sp_model, tmp_path, arguments):
    (name,) = arguments
    (tmp_path / "tokenizer.model").write_bytes(sp_model.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"sp_model_kwargs": arguments}))
    with pytest.raises(TokenizerError, match=f"sp_model_kwargs: '?{name}"):
        load_tokenizer(tmp_path)


def test_a_behaviour_is_chosen_by_name_or_by_legacy(sp_model):
    assert LlamaTokenizer(sp_model).behaviour == "hf-legacy"
    assert LlamaTokenizer(sp_model, legacy=False).behaviour == "hf"
    assert LlamaTokenizer(sp_model, behaviour="sp").behaviour == load_tokenizer(sp_model).behaviour == "sp"
    assert load_tokenizer(sp_model, legacy=True).behaviour == "hf-legacy"
    with pytest.raises(TokenizerError, match="contradict"):
        LlamaTokenizer(sp_model, behaviour="hf", legacy=True)
    with pytest.raises(TokenizerError, match="choose 'sp'"):
        LlamaTokenizer(sp_model, behaviour="best")


def test_the_error_names_a_missing_file(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"absent\.model"):
        LlamaTokenizer(tmp_path / "absent.model")
    with pytest.raises(TokenizerError, match="vocab_file"):
        LlamaTokenizer()


def test_a_model_whose_unknown_piece_has_no_id_is_refused(monkeypatch, sp_model):
    monkeypatch.setattr("sentencepiece.SentencePieceProcessor.unk_id", lambda processor: -1)
    with pytest.raises(TokenizerError, match="SentencePiece cannot load the file"):
        load_tokenizer(sp_model)


def test_sampling_with_a_model_that_cannot_sample_is_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the llama lives high"] * 50), model_writer=file, model_type="char", vocab_size=14,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    assert LlamaTokenizer(path).encode("the")
    with pytest.raises(TokenizerError, match="SentencePiece cannot encode with"):
        LlamaTokenizer(path, sp_model_kwargs={"enable_sampling": True, "nbest_size": -1, "alpha": 0.1})


def test_lone_surrogates_are_not_tokens(sp_model):
    tokenizer = load_tokenizer(sp_model)
    assert tokenizer.convert_tokens_to_ids(["\ud800"]) == [tokenizer.unk_token_id]
    with pytest.raises(TokenizerError):
        tokenizer.encode("a\ud800")
