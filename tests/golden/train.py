"""Trains the golden checkpoint on text.txt and writes it as Hugging Face, Meta and GGUF files.

Usage: python -m tests.golden.train [FOLDER]   (default: checkpoint/ next to this file, which must not exist)

Takes about 40 seconds on one core. The seed is fixed, but another processor or another release of PyTorch rounds
differently and yields other weights, so expect.py must be run after each training. The reference
implementation of each format writes the files: model.safetensors and config.json are written by transformers,
tokenizer.model by sentencepiece, the other tokenizer files by transformers 4.34.1, Meta's weights by torch.save, and
the GGUF file by the package gguf.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from torch.nn.functional import cross_entropy

from puna import LlamaConfig
from tests.conftest import ROOT
from tests.golden.files import LAYOUTS, TEXT
from tests.helpers.meta_models import Family, write_meta
from tests.helpers.tiny_checkpoints import write_gguf
from tests.helpers.torch_files import from_torch

STEPS, BATCH, CONTEXT, PEAK_RATE = 450, 8, 256, 5e-3

SIZES = Family("golden", heads=8, kv=4, shards=1, version="2", dtype="float32", vocab=512, width=8, multiple_of=4)


def train_tokenizer(path: Path) -> None:
    """Trains SentencePiece BPE with the settings of Llama 2's model."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(TEXT),
        model_prefix=str(path.with_suffix("")),
        vocab_size=SIZES.vocab,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    path.with_suffix(".vocab").unlink()


def read_stories(tokenizer: Path) -> list[list[int]]:
    """Returns the ids of each story, with BOS and EOS. Empty lines separate the stories of text.txt."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    stories = TEXT.read_text().strip().split("\n\n")
    return [processor.encode(story, add_bos=True, add_eos=True) for story in stories]


def train(stories: list[list[int]]) -> transformers.LlamaForCausalLM:
    """Trains until the model has memorised most stories, so that the two largest logits are rarely close."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(model_config())
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    stream = torch.tensor([token for story in stories for token in story] + stories[0] * 2)
    starts = [position for position in range(len(stream) - CONTEXT) if stream[position] == 1]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        # Half of the windows start where a story starts, as prompts do. The others start at any token of the texts.
        positions = torch.randint(len(stream) - CONTEXT, (BATCH,))
        positions[::2] = torch.tensor(starts)[torch.randint(len(starts), (BATCH // 2,))]
        windows = torch.stack([stream[position : position + CONTEXT + 1] for position in positions])
        logits = model(windows[:, :-1]).logits
        loss = cross_entropy(logits.reshape(-1, SIZES.vocab), windows[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model


def model_config() -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=SIZES.vocab,
        hidden_size=SIZES.dim,
        intermediate_size=SIZES.ffn,
        num_hidden_layers=2,
        num_attention_heads=SIZES.heads,
        num_key_value_heads=SIZES.kv_heads,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )


def write_tokenizer_files(tokenizer: Path, folder: Path) -> None:
    """Writes tokenizer.json and the other files of LlamaTokenizerFast with transformers 4.34.1."""
    job = {"folder": str(tokenizer.parent), "cls": "LlamaTokenizerFast", "save": str(folder)}
    python = ROOT / ".oracles/4.34.1/bin/python"
    script = ROOT / "tests/oracles/read_tokenizer.py"
    subprocess.run(
        [python, script], input=json.dumps({"jobs": [job]}), text=True, check=True, stdout=subprocess.DEVNULL
    )


def gguf_vocabulary(tokenizer: Path) -> dict[str, Any]:
    """Returns the tokenizer's GGUF metadata, as llama.cpp's converter writes it."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    ids = range(processor.get_piece_size())
    kinds = {0: 2, 1: 3, 2: 3}  # token types: 1 normal, 2 unknown, 3 control, 6 byte
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kinds.get(i, 6 if processor.is_byte(i) else 1) for i in ids],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    hf, gguf, meta = (folder / path.name for path in LAYOUTS.values())
    hf.mkdir()
    train_tokenizer(hf / "tokenizer.model")
    write_tokenizer_files(hf / "tokenizer.model", hf)
    model = train(read_stories(hf / "tokenizer.model"))
    model.save_pretrained(hf)
    tensors = {name: from_torch(tensor).copy() for name, tensor in model.state_dict().items()}
    write_meta(meta, SIZES, tensors)
    shutil.copy(hf / "tokenizer.model", meta / "tokenizer.model")
    write_gguf(gguf, LlamaConfig.from_pretrained(hf), tensors, keys=gguf_vocabulary(hf / "tokenizer.model"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else LAYOUTS["hf"].parent)
