"""Prints the results of tokenizers of one release of transformers; runs in that release's environment.

Reads a JSON object from standard input, `jobs`: a list of {folder, cls, arguments, added, texts, pairs, max_length,
truncation, sequences, chats, save, default_template}; prints a JSON list of results.
"""

import json
import sys

import transformers


def load(job):
    """Returns the tokenizer of a job, with its added tokens."""
    tokenizer = getattr(transformers, job["cls"]).from_pretrained(job["folder"], **job.get("arguments", {}))
    for token in job.get("added", []):
        added = transformers.AddedToken(token["content"], **token["flags"]) if token.get("flags") else token["content"]
        tokenizer.add_tokens([added], special_tokens=token["special"])
    return tokenizer


def run(job):
    """Returns the ids of texts and pairs, and the decoded texts of id sequences."""
    try:
        tokenizer = load(job)
    except Exception as exc:
        return {"error": f"{type(exc).__name__}: {exc}"}
    if job.get("save"):
        tokenizer.save_pretrained(job["save"])
    if job.get("default_template"):
        return default_templates(tokenizer)
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


def default_templates(tokenizer):
    """Returns the class's default chat template, with and without the default system prompt."""
    template = tokenizer.default_chat_template
    tokenizer.use_default_system_prompt = False
    return {"template": template, "template_without_prompt": tokenizer.default_chat_template}


def attempt(call):
    """Returns the result of a call, or None if it raises."""
    try:
        return call()
    except Exception:
        return None


if __name__ == "__main__":
    json.dump([run(job) for job in json.load(sys.stdin)["jobs"]], sys.stdout)
