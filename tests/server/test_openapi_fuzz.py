"""schemathesis sends random requests, valid and invalid, to every path of a server; responses match OpenAPI.

`make fuzz-server` runs this for half an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import live_server, tool_checkpoint

pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

SECONDS = os.environ.get("PUNA_FUZZ_SECONDS", "120")

EXCLUDED = (
    "positive_data_acceptance",  # a request may fit the schema and not the model: ids outside of the vocabulary
    "unsupported_method",  # a POST that is not JSON is refused before the path is considered
    "missing_required_header", "ignored_auth", "object_level_authorization",  # the server has no key
)  # fmt: skip

CONFIG = """
[checks.negative_data_rejection]
expected-statuses = ["4xx", 503]
"""

PROGRAM = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"


def schema_of(address: str) -> dict[str, Any]:
    """Returns the OpenAPI document, in which the field `model` has the one name that exists."""
    with urllib.request.urlopen(f"{address}/openapi.json") as response:
        document: dict[str, Any] = json.load(response)
    for path in document["paths"].values():
        for operation in path.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            for schema in (body, *body.get("anyOf", ())):
                if "model" in schema.get("properties", {}):
                    optional = [] if "model" in schema.get("required", ()) else [None]
                    schema["properties"]["model"] = {"enum": ["golden", *optional]}
    return document


@pytest.mark.soak
def test_every_response_matches_openapi(tmp_path: Path) -> None:
    from puna import AsyncLLM
    from puna.server.settings import Limits

    model = AsyncLLM(tool_checkpoint(tmp_path), "native")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with live_server(model, limits=Limits(tokens=8, n=2, prompts=4), body_seconds=600) as address:
        (tmp_path / "openapi.json").write_text(json.dumps(schema_of(address)))
        # One worker: in threads, Hypothesis parses lambdas, and CPython 3.11 counts the depth of all threads together.
        command = (
            *("run", "openapi.json", "--url", address, "--max-time", SECONDS, "--no-color"),
            *("--exclude-checks", ",".join(EXCLUDED), "--suppress-health-check", "all", "--continue-on-failure"),
            *("--request-timeout", "120", "--max-response-time", "100"),  # other processes may stop the machine
        )
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    model.close()
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-2000:]
    print(result.stdout[-2500:])
