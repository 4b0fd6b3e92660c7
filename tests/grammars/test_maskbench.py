"""The 2,000 schemas of MaskBench: no wrong document is accepted, and each refusal names a keyword."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from puna.errors import RequestError
from puna.grammars.keywords import keyword_of, with_keyword
from puna.grammars.rules import read_rule, unique_keys

pytest.importorskip("llguidance")
from puna.grammars.library import byte_tokenizer, make_matcher

pytestmark = pytest.mark.soak

SERVED = 0.84


@pytest.fixture(scope="module")
def rows(shared: Path) -> list[dict[str, Any]]:
    path = shared / "fixtures/maskbench/schemas.jsonl.gz"
    if not path.exists():
        pytest.skip("the schemas of MaskBench are not here")
    with gzip.open(path) as file:
        return [json.loads(line) for line in file]


def compiled(schema: Any) -> tuple[Any, str | None]:
    """Returns a matcher of bytes for a schema, and why it is refused."""
    try:
        rule = read_rule({"json_schema": schema})
    except RequestError as exc:
        return None, str(exc)
    assert rule is not None
    matcher, error = make_matcher(rule.grammar, byte_tokenizer())
    return matcher, None if error is None else with_keyword(error, rule.text)


def accepts(matcher: Any, document: Any) -> bool:
    """Returns whether the matcher accepts a document, written without spaces."""
    state = matcher.deep_copy()
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return all(map(state.consume_token, text.encode())) and state.is_accepting()


def random_document(matcher: Any, rng: random.Random, longest: int = 1500) -> str | None:
    """Returns a document of bytes that the matcher allows, chosen at random; None if it becomes too long."""
    state, document, mask = matcher.deep_copy(), bytearray(), np.zeros(9, np.uint32)
    while len(document) < longest:
        if state.is_accepting() and (state.is_stopped() or rng.random() < 0.3):
            return document.decode()
        state.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[:256]).tolist()
        ending = [byte for byte in allowed if byte in b'"}],'] if len(document) > 200 and rng.random() < 0.7 else []
        printable = [byte for byte in allowed if 32 <= byte < 127] if rng.random() < 0.95 else []
        document.append(rng.choice(ending or printable or allowed))
        state.consume_token(document[-1])
    return None


def test_documents_are_accepted_as_they_should_be(rows):
    served, rejected, documents = 0, 0, 0
    for row in rows:
        matcher, error = compiled(row["schema"])
        if error is not None:
            keyword = keyword_of(error, json.dumps(row["schema"])) or re.sub(
                ".* in (\\w+); the largest.*", r"\1", error
            )
            assert f'"{keyword}"' in json.dumps(row["schema"]), (row["name"], error)
            continue
        served += 1
        for test in row["tests"]:
            documents += 1
            accepted = accepts(matcher, test["data"])
            assert test["valid"] or not accepted, row["name"]
            rejected += test["valid"] and not accepted
    print(f"{served} of {len(rows)} schemas served, {documents} documents, {rejected} valid ones not accepted")
    assert served >= SERVED * len(rows)
    assert rejected < 0.002 * documents  # keys in another order than that of the schema


def test_random_documents_are_valid_under_another_implementation(rows):
    checked = 0
    for number, row in enumerate(rows):
        matcher, error = compiled(row["schema"])
        if error is not None:
            continue
        validator = jsonschema.validators.validator_for(row["schema"], jsonschema.Draft202012Validator)(row["schema"])
        for seed in range(3):
            document = random_document(matcher, random.Random(1000 * seed + number))
            try:
                value = None if document is None else json.loads(document, object_pairs_hook=unique_keys)
            except ValueError:  # a repeated key, which the server reports at the end of the answer
                continue
            if document is not None:
                checked += 1
                assert validator.is_valid(value), (row["name"], document)
    assert checked > 3000
