"""Tokenizer methods of transformers that duplicate other methods, or do one step of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna import LlamaTokenizer, LlamaTokenizerFast

CHECKPOINT = Path(__file__).resolve().parents[1] / "golden" / "checkpoint" / "hf"
TURNS = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
TEMPLATE = "{% for message in messages %}{{ message['role'] + ':' + message['content'] + ' ' }}{% endfor %}"


@pytest.fixture(params=[LlamaTokenizer, LlamaTokenizerFast])
def tokenizer(request):
    return request.param.from_pretrained(CHECKPOINT, pad_token="</s>")


def test_batches_and_single_texts_have_separate_methods(tokenizer):
    texts = ["one day", "a"]
    batch = tokenizer.batch_encode_plus(batch_text_or_text_pairs=texts, padding=True)
    assert dict(batch) == dict(tokenizer(texts, padding=True))
    assert dict(tokenizer.encode_plus(texts[0])) == dict(tokenizer(texts[0]))


def test_sequences_are_truncated_by_a_number_of_tokens(tokenizer):
    assert tokenizer.truncate_sequences([1, 2, 3], num_tokens_to_remove=0)[0] == [1, 2, 3]
    kept, pair, removed = tokenizer.truncate_sequences(
        [1, 2, 3], pair_ids=[4], num_tokens_to_remove=2, truncation_strategy="only_first", stride=1
    )
    assert (kept, pair, removed) == ([1], [4], [1, 2, 3])


def test_the_chat_template_is_returned(tokenizer):
    assert tokenizer.get_chat_template(chat_template=TEMPLATE) == TEMPLATE
    tokenizer.chat_template = "other"
    assert tokenizer.get_chat_template() == "other"


def test_a_message_is_encoded_as_the_continuation_of_a_conversation(tokenizer):
    whole = tokenizer.apply_chat_template(TURNS, chat_template=TEMPLATE)
    alone = tokenizer.encode_message_with_chat_template(message=TURNS[0], chat_template=TEMPLATE)
    added = tokenizer.encode_message_with_chat_template(
        message=TURNS[1], conversation_history=TURNS[:1], chat_template=TEMPLATE
    )
    assert alone == tokenizer.apply_chat_template(TURNS[:1], chat_template=TEMPLATE)
    assert 0 < len(added) < len(whole) and whole[-len(added) :] == added


def test_the_sentencepiece_processor_can_be_built_again():
    slow = LlamaTokenizer.from_pretrained(CHECKPOINT)
    processor = slow.get_spm_processor(from_slow=True)
    assert processor.get_piece_size() == slow.vocab_size
