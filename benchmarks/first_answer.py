"""Measures how long the first answers of a new server take: to one prompt, then to 16 at once, then both again.

    python benchmarks/first_answer.py [MODEL] [OPTION OF puna serve ...]

On a GPU (`--backend torch --device cuda`), the first answers should take about as long as the later ones, because
decoding is compiled before the server is ready; with `--lazy-compile`, they wait for the compiler.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

TOKENS = 32


def answer(url: str, model: str, number: int) -> float:
    """Returns the seconds that an answer of TOKENS tokens takes."""
    fields = {"model": model, "prompt": f"{number} llamas", "max_tokens": TOKENS, "ignore_eos": True}
    start = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(fields).encode(), headers)
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["usage"]["completion_tokens"] == TOKENS
    return time.perf_counter() - start


def main() -> None:
    """Starts a server and prints the times; every answer has TOKENS tokens."""
    command = [sys.executable, "-m", "puna", "serve", *sys.argv[1:], "--port", "0", "--json", "--log", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise SystemExit("the server did not start")
            ready = json.loads(line)
            print(f"ready after {ready['seconds']:.1f} s")
            for turn in ("first", "second"):
                for count in (1, 16):
                    with ThreadPoolExecutor(count) as threads:
                        seconds = [*threads.map(lambda n: answer(ready["url"], ready["model"], n), range(count))]
                    print(f"{turn} {count:2} at once: the slowest after {max(seconds):.2f} s")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
