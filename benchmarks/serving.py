"""Measures how requests affect each other: shared prefixes, long prompts, speculation, concurrent streams.

    python benchmarks/serving.py {prefix,prompt,speculation,streams,adapters} [--model PATH] [--repeat 5]

prefix       time to the first token of a prompt, and of a second one that shares all but its last tokens
prompt       time between the tokens of 8 requests while a long prompt arrives, and the prompt's time to first token
speculation  tokens per second with and without speculation, on texts that repeat themselves and on others
adapters     decoding with a LoRA of rank 16 on all matrices, for 1 and 16 sequences, compared with none
streams      tokens per second of 64 concurrent streams of `AsyncLLM`, compared with the engine alone
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from itertools import pairwise

import numpy as np

from puna import LLM, AsyncLLM
from puna.backend import Chunk, LowRank, consecutive_pages
from puna.config import LlamaConfig
from puna.engine import Engine, Request

STREAMS, STREAM_TOKENS = 64, 96

REPETITIVE = "Copy this list exactly, three times:\n" + "\n".join(
    f"- item {number}: name=llama{number}, weight={number * 7} kg, colour=brown" for number in range(1, 13)
)
STORY = "Write a short story about a llama who crosses a mountain pass in winter."


def random_prompt(engine: Engine, tokens: int, seed: int) -> tuple[int, ...]:
    """Returns random token ids."""
    random = np.random.default_rng(seed)
    return tuple(random.integers(10, engine.backend.config.vocab_size, tokens).tolist())


def run_until_first_token(engine: Engine, prompt: tuple[int, ...]) -> tuple[float, list[float]]:
    """Runs a request for one token; returns the time to the token, and the times of the steps until then."""
    times = [time.perf_counter()]
    request_id = engine.submit(Request(prompt, 1))
    finished = False
    while not finished:
        events = engine.step()
        times.append(time.perf_counter())
        finished = any(event.request_id == request_id and event.token is not None for event in events)
    return times[-1] - times[0], [end - start for start, end in pairwise(times)]


def measure_prefix(model: str | None, repeat: int, tokens: int) -> None:
    """Prints the time to the first token of prompts with and without a shared prefix."""
    engine = LLM(model)._engine
    run_until_first_token(engine, random_prompt(engine, 64, 0))
    ratios = []
    for seed in range(1, repeat + 1):
        prompt = random_prompt(engine, tokens, seed)
        first, _ = run_until_first_token(engine, prompt)
        second, _ = run_until_first_token(engine, prompt)
        third, _ = run_until_first_token(engine, (*prompt[:-1], 5))
        ratios.append(first / max(second, third))
        print(f"first {first * 1e3:.1f} ms, equal {second * 1e3:.1f} ms, equal but for one token {third * 1e3:.1f} ms")
    print(f"{tokens} tokens: the second request is {statistics.median(ratios):.1f} times as fast")


def measure_prompt(model: str | None, tokens: int) -> None:
    """Prints the times between tokens of 8 requests before and while a long prompt is read."""
    engine = LLM(model, max_batch=9, prefix_cache=False)._engine
    engine.backend.config.max_position_embeddings = max(tokens + 64, engine.backend.config.context_length)
    alone, _ = run_until_first_token(engine, random_prompt(engine, tokens, 0))
    for seed in range(8):
        engine.submit(Request(random_prompt(engine, 30, seed), 2000))
    steps = []
    for _ in range(130):
        started = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - started)
    undisturbed = steps[30:]
    together, disturbed = run_until_first_token(engine, random_prompt(engine, tokens, 9))
    for name, values in (("undisturbed", undisturbed), ("disturbed", disturbed)):
        print(f"{name}: p50 {np.percentile(values, 50) * 1e3:.1f} ms, p99 {np.percentile(values, 99) * 1e3:.1f} ms")
    others = len(disturbed) * statistics.median(undisturbed)
    print(f"p99 between tokens: {np.percentile(disturbed, 99) / np.percentile(undisturbed, 99):.2f} times undisturbed")
    print(f"time to first token: {alone:.2f} s alone, {together:.2f} s with others, of which {others:.2f} s for theirs")
    print(f"without the others' time: {(together - others) / alone:.2f} times alone")


def measure_speculation(model: str | None, repeat: int) -> None:
    """Prints the speed with speculation as a multiple of the speed without; the answers must be equal."""
    llm = LLM(model, prefix_cache=False)
    for name, text, temperature, count in (
        ("repetitive", REPETITIVE, 0.0, 1),
        ("story, most likely tokens", STORY, 0.0, 1),
        ("story, random tokens", STORY, 1.0, 1),
        ("8 stories, random tokens", STORY, 1.0, 8),
    ):
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(repeat + 1):
            answers = set()
            for speculate, seconds in times.items():
                started = time.perf_counter()
                result = llm.chat(
                    [[{"role": "user", "content": f"{text} It is {age} years old."}] for age in range(count)],
                    max_tokens=200, ignore_eos=True, temperature=temperature, seed=turn, speculate=speculate,
                )  # fmt: skip
                answers.add(tuple(answer.ids for answer in result))
                seconds += [time.perf_counter() - started] if turn else []  # the first turn warms up
            assert len(answers) == 1
        ratios = [without / with_ for without, with_ in zip(*times.values(), strict=True)]
        speed = 200 * count / statistics.median(times[False])
        print(f"{name}: {speed:.0f} tokens/s; with speculation {statistics.median(ratios):.3f} times as fast")


def measure_streams(model: str | None, repeat: int) -> None:
    """Prints the total speed of concurrent streams as a multiple of the speed of the engine alone."""
    llm, alone = (kind(model, max_batch=STREAMS, prefix_cache=False) for kind in (AsyncLLM, LLM))
    prompts = [f"Write a long story about the number {number} and a llama." for number in range(STREAMS)]
    ids = [tuple(alone.tokenizer.encode(prompt)) for prompt in prompts]

    async def read(prompt: tuple[int, ...]) -> None:
        options = {"max_tokens": STREAM_TOKENS, "ignore_eos": True, "temperature": 0.0, "speculate": False}
        async for _ in llm.stream(prompt, **options):
            pass

    async def read_all() -> None:
        await asyncio.gather(*map(read, ids))

    ratios = []
    for turn in range(repeat + 1):
        started = time.perf_counter()
        for prompt in ids:
            alone._engine.submit(Request(prompt, STREAM_TOKENS))
        while alone._engine.busy:
            alone._engine.step()
        middle = time.perf_counter()
        asyncio.run(read_all())
        ended = time.perf_counter()
        if turn:  # the first turn warms up
            tokens = STREAMS * STREAM_TOKENS
            ratios.append((middle - started) / (ended - middle))
            print(f"engine {tokens / (middle - started):.0f} tokens/s, streams {tokens / (ended - middle):.0f}")
    print(f"ratio {statistics.median(ratios):.3f}")


def random_adapter(config: LlamaConfig, rank: int) -> dict[str, LowRank]:
    """Returns random low-rank changes of all matrices of the layers."""
    random = np.random.default_rng(0)
    hidden, inner, width = config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim
    kv_width = config.num_key_value_heads * config.head_dim
    sizes = {
        "self_attn.q_proj": (width, hidden), "self_attn.k_proj": (kv_width, hidden),
        "self_attn.v_proj": (kv_width, hidden), "self_attn.o_proj": (hidden, width),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    return {
        f"model.layers.{layer}.{name}.weight": LowRank(
            random.normal(0, 0.01, (rank, inputs)).astype(np.float32),
            random.normal(0, 0.01, (outputs, rank)).astype(np.float32),
        )
        for layer in range(config.num_hidden_layers)
        for name, (outputs, inputs) in sizes.items()
    }


def measure_adapters(model: str | None, repeat: int) -> None:
    """Prints the speed of decoding with an adapter as a multiple of the speed without."""
    backend = LLM(model, backend="native", prefix_cache=False)._engine.backend
    adapter = backend.load_adapter(random_adapter(backend.config, 16))
    for sequences in (1, 16):
        pages = [consecutive_pages(16 + 64, number) for number in range(sequences)]
        ratios = []
        for turn in range(repeat + 1):
            seconds = {}
            for number in (0, adapter):
                started = time.perf_counter()
                for position in range(64):
                    backend.forward([Chunk(own, np.array([5]), position, adapter=number) for own in pages])
                seconds[number] = time.perf_counter() - started
            ratios += [seconds[0] / seconds[adapter]] if turn else []  # the first turn warms up
        print(f"{sequences} sequences: {statistics.median(ratios):.3f} times as fast with a LoRA of rank 16 as without")


def main() -> None:
    """Runs one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["prefix", "prompt", "speculation", "streams", "adapters"])
    parser.add_argument("--model", default=None, help="Model to run; default: puna's default model.")
    parser.add_argument("--repeat", type=int, default=5, help="Measurements of each kind.")
    parser.add_argument("--tokens", type=int, help="Length of the prompt; default: 1000 for prefix, 4000 for prompt.")
    arguments = parser.parse_args()
    if arguments.work == "prefix":
        measure_prefix(arguments.model, arguments.repeat, arguments.tokens or 1000)
    elif arguments.work == "prompt":
        measure_prompt(arguments.model, arguments.tokens or 4000)
    elif arguments.work == "speculation":
        measure_speculation(arguments.model, arguments.repeat)
    elif arguments.work == "adapters":
        measure_adapters(arguments.model, arguments.repeat)
    else:
        measure_streams(arguments.model, arguments.repeat)


if __name__ == "__main__":
    main()
