"""Prints results of a release's tokenizer classes for the golden vocabulary; runs in that release's environment.

Usage: PYTHON tests/oracles/record_tokenizer.py FOLDER ; tests/golden/expect.py runs it. FOLDER has tokenizer.model and
tokenizer.json.

puna's classes follow the three tokenizers of release 4: LlamaTokenizer, with and without `legacy`, and
LlamaTokenizerFast. Release 5 has two: the pipeline of tokenizer.json (`file`), and the pipeline that its class
LlamaTokenizer builds from the vocabulary of that file (`class`).
"""

import json
import sys
import tempfile
from pathlib import Path

import transformers

TEXTS = [
    "The llama hums",
    "Grassland",
    " Grassland",
    "   three lead",
    "two trail  ",
    "one\ntwo",
    "\n",
    " ",
    "",
    "</s>LLAMA",
    "hum</s>LLAMA",
    "<s>[INST] why? [/INST]",
    "one </s> two",
    "Good<unk>day",
    "<s> day",
    "day<s>",
    "<s></s><unk>",
    "🦙 llama",
    "高い草原",
    "El Niño trajo más nieve; 3.500 m.",
    "▁over",
    "a▁b",
    "one     two",
    "can't , won't .",
    "isn 't it ?",
    "90210 2.718",
    "\tdef hum(llama):\n\t\treturn None",
    "A llama is called a cria.\n\nIt hums.",
]
CHAT = [{"role": "user", "content": "Why do llamas hum?"}]


def tokenizers(folder):
    """Returns the tokenizers to record, by name."""
    if transformers.__version__ < "5":
        model = str(folder / "tokenizer.model")
        return {
            "slow_legacy": transformers.LlamaTokenizer(model, legacy=True),
            "slow_new": transformers.LlamaTokenizer(model, legacy=False),
            "fast": transformers.LlamaTokenizerFast(model),
        }
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    file = str(folder / "tokenizer.json")
    return {
        "class": transformers.AutoTokenizer.from_pretrained(folder),
        "file": transformers.PreTrainedTokenizerFast(tokenizer_file=file, **special),
    }


def record(tokenizer):
    """Returns ids, decoded texts, a chat and the names of saved files."""
    texts = {}
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        texts[text] = {
            "ids": ids,
            "nospecial": tokenizer(text, add_special_tokens=False)["input_ids"],
            "dec": tokenizer.decode(ids),
            "dec_skip": tokenizer.decode(ids, skip_special_tokens=True),
        }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path.name for path in Path(folder).iterdir())
    result = {"padding_side": tokenizer.padding_side, "keys": list(tokenizer("hi")), "files": files}
    if transformers.__version__ < "5":  # later releases have no default template
        result["chat"] = tokenizer.apply_chat_template(CHAT, tokenize=False)
    return {**result, "r": texts}


if __name__ == "__main__":
    records = {name: record(tokenizer) for name, tokenizer in tokenizers(Path(sys.argv[1])).items()}
    print(json.dumps(records))
