"""Loads mutated checkpoints under a memory limit; test_fuzz.py runs this script in a separate process.

    python fuzz_worker.py FOLDER KIND COUNT

FOLDER holds the seeds (FOLDER/KIND-*, and config.json). Prints a JSON summary. Each mutated file must either load
completely or raise PunaError; anything else (MemoryError, RecursionError, a hang, a crash) is a failure. Mutation n of
a kind is the same on every machine.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from puna.checkpoint import open_checkpoint
from puna.checkpoint.inspect import inspect_checkpoint
from puna.errors import PunaError
from puna.formats.gguf import open_gguf

MEMORY = 2**30
SECONDS = 10
"""Limit of the processor time of one file. A file that waits for ever exceeds the time limit of the test instead."""
NAMES = {"gguf": "model.gguf", "safetensors": "model.safetensors", "bin": "pytorch_model.bin"}

EXTREMES = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
]
EXTREMES += [2**64 - 1, 2**64 - 8, 2**64 - 32]

Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


def random_position(rng: random.Random, raw: bytes) -> int:
    """Returns a position, usually in a header: near the start, or (zip directories) near the end."""
    near = min(len(raw), 4096)
    start = rng.choice([0, 0, 0, len(raw) - near, None])
    return rng.randrange(len(raw)) if start is None else start + int(near * rng.random() ** 2)


def keep(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    return raw


def flip(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    new = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 8])):
        new[min(random_position(rng, raw), len(raw) - 1)] ^= 1 << rng.randrange(8)
    return bytes(new)


def truncate(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    return raw[: random_position(rng, raw)]


def splice(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Inserts part of a random seed, or overwrites bytes with it."""
    source = rng.choice(seeds)
    start, size, at = random_position(rng, source), rng.choice([1, 4, 8, 24, 100, 2000]), random_position(rng, raw)
    return raw[:at] + source[start : start + size] + raw[at + rng.choice([0, size]) :]


def number(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Replaces some bytes with an extreme integer."""
    width = rng.choice([1, 2, 4, 8])
    value = rng.choice([*EXTREMES, len(raw), len(raw) - 1, len(raw) + 1, -len(raw)]) % 256**width
    at = random_position(rng, raw)
    return raw[:at] + value.to_bytes(width, "little") + raw[at + width :]


def blank(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Overwrites consecutive bytes with one value."""
    at, size = random_position(rng, raw), rng.choice([1, 8, 64, 1000])
    return raw[:at] + rng.choice([b"\0", b"\xff", b"A"]) * len(raw[at : at + size]) + raw[at + size :]


def delete(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    at = random_position(rng, raw)
    return raw[:at] + raw[at + rng.choice([1, 2, 4, 8, 32, 500]) :]


BYTE_MUTATIONS: list[Mutation] = [keep, flip, flip, truncate, splice, number, number, blank, delete]


def gguf_key(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Changes the type, the value or the name of a metadata key; the new name has the same length."""
    keys = [b"llama.block_count", b"llama.attention.head_count", b"llama.embedding_length", b"general.alignment"]
    keys += [b"llama.rope.freq_base", b"llama.attention.layer_norm_rms_epsilon", b"llama.rope.dimension_count"]
    keys += [b"llama.context_length", b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.tokens", b"general.architecture"]
    key = rng.choice(keys)
    at = raw.find(key)
    if at < 0:
        return number(rng, raw, seeds)
    value = at + len(key) + 4
    return rng.choice(
        [
            raw[: value - 4] + struct.pack("<I", rng.randrange(14)) + raw[value:],
            raw[:value] + struct.pack("<I", rng.choice(EXTREMES) % 2**32) + raw[value + 4 :],
            raw[:value]
            + struct.pack("<f", rng.choice([0.0, -1.0, 1e38, float("nan"), float("inf")]))
            + raw[value + 4 :],
            raw[:at] + rng.choice(keys).ljust(len(key), b"x")[: len(key)] + raw[at + len(key) :],
        ]
    )


def gguf_tensor(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Changes the header's entry of a tensor: its dimensions, type, offset or name."""
    names = [b"token_embd.weight", b"blk.0.attn_q.weight", b"output_norm.weight", b"blk.0.attn_k.weight"]
    name = rng.choice(names)
    at = raw.find(name)
    if at < 0:
        return number(rng, raw, seeds)
    if rng.random() < 0.2:
        return raw[:at] + rng.choice(names).ljust(len(name), b"t")[: len(name)] + raw[at + len(name) :]
    field = at + len(name) + rng.choice([0, 4, 12, 20, 24, 28, 32])
    width = rng.choice([4, 8])
    value = rng.choice([*EXTREMES, rng.randrange(45), 64, 96, len(raw)]) % 256**width
    return raw[:field] + value.to_bytes(width, "little") + raw[field + width :]


def json_header(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Changes the JSON header of a safetensors file: an entry is changed, copied, nested or removed."""
    size = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry, other_entry = header[name], header[rng.choice(list(header))]
    invalid: list[Any] = [None, -1, 2**63, 2**64, 10**30, 1.5, True, "8", [], {}, [[]], float("nan"), 0, 1, [2**40] * 4]
    action = rng.randrange(8)
    if action == 0:
        entry["data_offsets"] = rng.choice(
            [
                other_entry.get("data_offsets", 0),
                rng.choice(invalid),
                [rng.choice(invalid), 8],
                [0, rng.choice(invalid)],
            ]
        )
    elif action == 1:
        entry["shape"] = rng.choice(
            [rng.choice(invalid), [rng.choice(invalid)], entry["shape"][::-1], [*entry["shape"], rng.choice(invalid)]]
        )
    elif action == 2:
        entry["dtype"] = rng.choice(["F64", "I8", "BF16", "F16", "f32", "", "Q4_0", rng.choice(invalid)])
    elif action == 3:
        del header[name]
    elif action == 4:
        header[rng.choice(["__metadata__", name + "x", "lm_head.weight", "\udce4", "", "rope.freqs"])] = rng.choice(
            [entry, *invalid]
        )
    elif action == 5:
        header[name] = rng.choice(invalid)
    text = json.dumps(header).encode()
    if action == 6:
        text = text[:-1] + b"," + text[1:]  # each name appears twice
    elif action == 7:
        deep = rng.choice([10, 1000, 100_000])
        text = text[:-1] + b',"deep":' + rng.choice([b"[", b'{"a":']) * deep + b"}"
    size_field = rng.choice([len(text)] * 6 + [len(text) + 1, rng.choice(EXTREMES) % 2**64])
    return size_field.to_bytes(8, "little") + text + raw[8 + size :]


def zip_entry(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Damages the pickle or another entry of a torch file whose zip stays valid."""
    with zipfile.ZipFile(BytesIO(raw)) as source:
        entries = {item.filename: source.read(item) for item in source.infolist()}
    name = rng.choice([key for key in entries if key.endswith("data.pkl")] * 6 + list(entries))
    action = rng.randrange(5)
    if action == 0:
        del entries[name]
    elif action == 1:
        entries[rng.choice([name + "x", name.replace("/", "/../"), "x/" + name])] = entries[name]
    else:
        entries[name] = rng.choice([flip, splice, number, blank, delete])(
            rng, entries[name] or b"\0", [entries[name] or b"\0"]
        )
    out = BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as target:
        for key, value in entries.items():
            target.writestr(key, value)
    return out.getvalue()


def pickled_number(rng: random.Random, raw: bytes, seeds: list[bytes]) -> bytes:
    """Changes small integers of the pickle (sizes, strides, offsets, counts) in place."""
    start = raw.find(b"_rebuild_tensor_v2")
    new = bytearray(raw)
    for _ in range(rng.choice([1, 1, 3])):
        at = new.find(rng.choice([b"K", b"M", b"J"]), start + rng.randrange(3000)) + 1
        new[at] = rng.choice([0, 1, 2, 255, rng.randrange(256)])
    return bytes(new)


MUTATIONS: dict[str, list[Mutation]] = {
    "gguf": [*BYTE_MUTATIONS, gguf_key, gguf_key, gguf_tensor, gguf_tensor],
    "safetensors": [*BYTE_MUTATIONS, json_header, json_header, json_header],
    "bin": [*BYTE_MUTATIONS, zip_entry, zip_entry, pickled_number, pickled_number],
}


CONFIG_FIELDS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
CONFIG_FIELDS += [
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "rms_norm_eps",
]
CONFIG_FIELDS += ["rope_scaling", "rope_theta", "architectures"]


def mutate_config(rng: random.Random, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of config.json with one of them changed."""
    name = rng.choice(CONFIG_FIELDS)
    values: list[Any] = [None, 0, -1, 1, 2, 2**31, 10**30, 1.5, "64", [], {}, True, False, [64]]
    values += [{"type": "linear", "factor": 2.0}, {"rope_type": "llama3"}, ["LlamaModel"], ["MistralModel"]]
    return fields | {name: rng.choice(values)}


def load(kind: str, folder: Path) -> None:
    """Reads the entire checkpoint: configurations, metadata, every value of every tensor."""
    path = folder / NAMES["gguf"] if kind == "gguf" else folder
    checkpoint = open_checkpoint(path)
    for weight in checkpoint.tensors.values():
        assert weight.to_float32().shape == weight.shape
        assert weight.rows().size == weight.format.size(weight.shape)
    if kind == "gguf":
        dict(open_gguf(path).metadata)


def main(folder: Path, kind: str, count: int) -> None:
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    seeds = [path.read_bytes() for path in sorted(folder.glob(f"{kind}-*"))]
    fields = json.loads((folder / "config.json").read_text())
    work = folder / f"work-{kind}"
    work.mkdir()
    results: Counter[str] = Counter()
    messages: Counter[str] = Counter()
    failures = []
    for index in range(count):
        rng = random.Random(f"{kind}-{index}")
        mutation = rng.choice(MUTATIONS[kind])
        raw = mutation(rng, rng.choice(seeds), seeds)
        # Each mutation is a new file: a file that is still mapped must not change.
        (work / NAMES[kind]).unlink(missing_ok=True)
        (work / NAMES[kind]).write_bytes(raw)
        is_valid = mutation is keep and (kind == "gguf" or rng.random() < 0.4)
        config = mutate_config(rng, fields) if mutation is keep and not is_valid else fields
        (work / "config.json").write_text(json.dumps(config))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            if index % 4 == 0 and kind != "gguf":
                inspect_checkpoint(work)
            load(kind, work)
            results[f"{mutation.__name__}: loaded"] += 1
        except PunaError as exc:
            results[f"{mutation.__name__}: refused"] += 1
            if is_valid:
                failures.append(f"{kind} {index}: a valid file was refused: {exc}"[:300])
            messages[str(exc).removeprefix(str(work))[:60]] += 1
        except BaseException as exc:
            failures.append(f"{kind} {index} {mutation.__name__}: {type(exc).__name__}: {exc}"[:300])
        signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps({"results": results, "different_messages": len(messages), "failures": failures[:20]}))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time")


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, _too_long)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
