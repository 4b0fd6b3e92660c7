"""Writes the valid files that the fuzzer mutates.

    python -m tests.fuzz.seeds FOLDER

Runs in its own process: importing torch takes address space, which the fuzzer limits.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from puna.config import LlamaConfig
from tests.checkpoint.test_fuzz import write_seeds as write_tensor_files
from tests.checkpoint.test_packed import PACKINGS, write_packed
from tests.checkpoint.test_quantised_folders import CASES, write_quantised
from tests.checkpoint.test_split_gguf import split
from tests.fuzz.adapters import write_adapter_seeds
from tests.golden.files import LAYOUTS
from tests.helpers.tiny_checkpoints import tiny_config, tiny_tensors, write_folder
from tests.helpers.vocabularies import train_sentencepiece


def write_seeds(folder: Path) -> None:
    (folder / "tensors").mkdir(parents=True)
    write_tensor_files(folder / "tensors")
    (folder / "quantised").mkdir()
    config = small_config()
    write_folder(folder / "sharded", config, tiny_tensors(config), shards=2)
    write_folder(folder / "model", config, tiny_tensors(config))
    for name in ("hf", "meta"):
        shutil.copytree(LAYOUTS[name], folder / name)
    shutil.copy(LAYOUTS["gguf"], folder / "golden.gguf")
    write_byte_level(folder / "bytes")
    tokens = [*(bytes((byte,)) for byte in range(256)), b"th", b"the", b" l", b" ll", b"ama"]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / "ranks.model").write_bytes(b"".join(lines))
    for name in CASES:
        write_quantised(folder / "quantised" / name, name)
    for number, (settings, _) in enumerate(PACKINGS):
        write_packed(folder / "quantised" / f"packed-{number}", settings)
    split(folder / "split", split_max_tensors=8)
    (folder / "adapters").mkdir()
    write_adapter_seeds(folder / "adapters")
    for name, options in SENTENCEPIECE.items():
        (folder / f"{name}.model").write_bytes(train_sentencepiece(**options))


SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "bpe": {"vocab_size": 420},
    "unigram": {"vocab_size": 340, "model_type": "unigram"},
    "nmt": {"vocab_size": 420, "normalization_rule_name": "nmt_nfkc_cf", "remove_extra_whitespaces": True},
    "user": {"vocab_size": 420, "user_defined_symbols": ["<a>", "▁▁", "x y"], "control_symbols": ["<c>"]},
    "word": {"vocab_size": 60, "model_type": "word", "byte_fallback": False, "hard_vocab_limit": False},
    "char": {"vocab_size": 150, "model_type": "char", "byte_fallback": False, "hard_vocab_limit": False},
}


def small_config() -> LlamaConfig:
    return tiny_config(hidden_size=32, intermediate_size=32, head_dim=8, vocab_size=40, num_hidden_layers=1)


def write_byte_level(folder: Path) -> None:
    """Writes a byte-level tokenizer with all its configuration files."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the llama lives in the high grassland"] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<s>", "</s>", "<|eot|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot|>{% endfor %}"
    ids = {text: tokenizer.token_to_id(text) for text in ("<s>", "</s>", "<|eot|>")}
    fields = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    config |= {"added_tokens_decoder": {str(index): {"content": text} | fields for text, index in ids.items()}}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1000, "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special: dict[str, Any] = {"bos_token": {"content": "<s>"} | fields, "eos_token": "</s>"}
    special |= {"additional_special_tokens": ["<|eot|>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "added_tokens.json").write_text(json.dumps(ids))


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
