"""Runs inside another release's environment: what that release makes of tokenizer folders.

Reads a JSON object from standard input, `jobs`: a list of {folder, cls, arguments, added, texts, pairs, max_length,
truncation, sequences, chats}; writes a JSON list of answers.
"""

import json
import sys

import transformers


def load(job):
    """The tokenizer of a job, with its added tokens."""
    tokenizer = getattr(transformers, job["cls"]).from_pretrained(job["folder"], **job.get("arguments", {}))
    for token in job.get("added", []):
        tokenizer.add_tokens([token["content"]], special_tokens=token["special"])
    return tokenizer


def answer(job):
    """Ids of texts and pairs, decodes of id sequences."""
    try:
        tokenizer = load(job)
    except Exception as exc:
        return {"error": f"{type(exc).__name__}: {exc}"}
    truncate = {"max_length": job.get("max_length"), "truncation": job.get("truncation")}
    return {
        "length": len(tokenizer),
        "special": tokenizer.special_tokens_map,
        "ids": [tokenizer(text)["input_ids"] for text in job.get("texts", [])],
        "plain": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in job.get("texts", [])],
        "tokens": [tokenizer.tokenize(text) for text in job.get("texts", [])],
        "pairs": [attempt(lambda p=pair: tokenizer(*p, **truncate)["input_ids"]) for pair in job.get("pairs", [])],
        "types": attempt(lambda: tokenizer.create_token_type_ids_from_sequences([5, 6], [7])),
        "decoded": [tokenizer.decode(ids) for ids in job.get("sequences", [])],
        "skipped": [tokenizer.decode(ids, skip_special_tokens=True) for ids in job.get("sequences", [])],
        "chat": [attempt(lambda c=c: tokenizer.apply_chat_template(c, tokenize=False)) for c in job.get("chats", [])],
    }


def attempt(call):
    """What a call returns, or None if it raises."""
    try:
        return call()
    except Exception:
        return None


if __name__ == "__main__":
    json.dump([answer(job) for job in json.load(sys.stdin)["jobs"]], sys.stdout)
