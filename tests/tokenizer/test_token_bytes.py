"""The bytes of tokens, joined, are the text that a stream decodes."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from puna.errors import TokenizerError
from puna.grammars.token_bytes import token_bytes
from puna.tokenizer import LlamaTokenizerFast, StreamDecoder


def test_the_bytes_of_tokens_are_the_text_after_a_prompt(tokenizer):
    spellings = token_bytes(tokenizer)
    usable = [index for index, spelling in enumerate(spellings) if spelling]
    assert not set(usable) & {*tokenizer.skipped_tokens(), *tokenizer.all_special_ids}
    prompt = tokenizer.encode("a b", add_special_tokens=False)
    rng = random.Random(3)
    compared = 0
    for _ in range(500):
        ids = rng.choices(usable, k=rng.randint(1, 6))
        data = b"".join(spellings[index] or b"" for index in ids)
        try:
            expected = data.decode()
        except UnicodeDecodeError:
            continue
        decoder = StreamDecoder(tokenizer, True, prompt)
        assert "".join(map(decoder.push, ids)) + decoder.finish() == expected
        compared += 1
    assert compared > 50


def test_all_text_can_be_spelled(tokenizer):
    spellings = token_bytes(tokenizer)
    for text in ("the llama", '{"a":[1.5,null]}', "é日本\n\t"):
        ids = tokenizer.encode("a" + text, add_special_tokens=False)
        joined = b"".join(spellings[index] or b"" for index in ids)
        assert joined.lstrip(b" ") == b"a" + text.encode() or tokenizer.unk_token_id in ids


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.BPEDecoder(), decoders.CTC()])
def test_decoders_whose_text_depends_on_other_tokens_are_refused(decoder):
    pipeline = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    if decoder is not None:
        pipeline.decoder = decoder
    with pytest.raises(TokenizerError, match="grammars are not supported with this tokenizer"):
        token_bytes(LlamaTokenizerFast(tokenizer_object=pipeline))
