"""A small SentencePiece model, the text on which it is trained, and texts that are hard to tokenize."""

from __future__ import annotations

import io
import random
from typing import Any

import sentencepiece

CORPUS = """The llama (Lama glama) is a domesticated South American camelid, widely used as a meat and pack animal.
Llamas can learn simple tasks after a few repetitions. When using a pack, they carry about 25 to 30% of their weight.
  def walk(steps):
      return [step * 2 for step in steps]   # twice
Don't stop; it's "fine", isn't it? 1234567 3.14 2024-05-17.
El altiplano es frío; la puna está a más de 3.500 metros. Über die Höhe weiß man genug.
日本語のテキストもある。 Привет, мир! שלום עולם 🦙🦙 llama 🏔""".splitlines()

SNIPPETS = [
    *"abcdefgxyz ABC 0123 \n\t.,'!?()éßñ日本語🦙א",
    "▁",
    "  ",
    "the ",
    " llama",
    "</s>",
    "<s>",
    "<unk>",
    "<0x41>",
    "👩‍👩‍👧",
]


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Returns texts that are hard to tokenize: spaces, special tokens, characters outside the vocabulary."""
    rng = random.Random(seed)
    return ["".join(rng.choice(SNIPPETS) for _ in range(rng.randint(0, 12))) for _ in range(count)]


def train_sentencepiece(**options: Any) -> bytes:
    """Trains a SentencePiece model on `CORPUS`; `options` override the settings. Returns the model file's bytes."""
    model = io.BytesIO()
    settings = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "character_coverage": 0.98,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_writer=model, **{**settings, **options}
    )
    return model.getvalue()


def answer_after(prompt: str, text: str) -> str:
    """Returns `text` without the longest prefix that it shares with `prompt`."""
    differences = (at for at, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b)
    return text[next(differences, min(len(prompt), len(text))) :]
