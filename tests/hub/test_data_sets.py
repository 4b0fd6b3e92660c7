"""Data sets of the hub: the files of one split are downloaded once, into the cache of data sets."""

from __future__ import annotations

import json

from tests.hub.test_hub import machine  # noqa: F401

FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train-0.jsonl": b'{"text": "a"}\n{"text": "b"}\n',
    "data/train-1.jsonl": b'{"text": "c"}\n',
    "data/test-0.jsonl": b'{"text": "d"}\n',
}

PROGRAM = """
import json, sys
from puna.errors import ModelNotFoundError
from puna.training.data.readers.open import open_rows
def texts(data, split):
    try:
        rows = open_rows(data, split)
    except ModelNotFoundError as exc:
        return str(exc)
    return "".join(rows.read(index).values["text"] for index in range(len(rows)))
print(json.dumps([texts(*item) for item in json.loads(sys.argv[1])]))
"""


def read(machine, *requests, **environment):  # noqa: F811
    """Returns the joined texts of the rows of each (data, split), or the message of the error."""
    result = machine.run("-c", PROGRAM, json.dumps(requests), **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_files_of_a_split_are_downloaded_once(machine):  # noqa: F811
    machine.hub.add("datasets/owner/words", FILES)
    machine.hub.add("datasets/owner/more", {"x.jsonl": b'{"text": "e"}'})
    assert read(machine, ("owner/words", "train")) == ["abc"]
    files = [line for line in machine.hub.requests if line.startswith("GET /datasets/owner/words/resolve")]
    assert len(files) == 2 and not any("test-0" in line for line in files)
    before = machine.hub.bytes_sent
    assert read(machine, ("owner/words", "train"), ("owner/words:train-1", "train")) == ["abc", "c"]
    assert machine.hub.bytes_sent == before
    assert read(machine, ("owner/words", "test"), (["owner/words", "owner/more"], "train")) == ["d", "abce"]
    assert (machine.home / "hf/hub/datasets--owner--words").is_dir()
    assert read(machine, ("owner/words", "train"), HF_HUB_OFFLINE="1") == ["abc"]


def test_a_missing_data_set_or_split_is_an_error(machine):  # noqa: F811
    machine.hub.add("datasets/owner/words", FILES)
    split, name = read(machine, ("owner/words", "validation"), ("owner/nothing", "train"))
    assert "no data files of the split 'validation'; the data set has README.md, data/test-0.jsonl" in split
    assert "owner/nothing" in name and "no public data set of this name" in name
