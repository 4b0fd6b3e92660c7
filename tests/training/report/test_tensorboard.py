"""TensorBoard's event files: bytes of its own writer, and values that its reader returns."""

from __future__ import annotations

import struct

import pytest

from puna.training.events import End, EvaluationEvent
from puna.training.report.tensorboard import EventFile, TensorBoardWriter, crc32c
from tests.training.report.runs import loss, play, start, step

RECORDED = (
    "1800000000000000a37f4b22090000e0f374c2da411a0d627261696e2e4576656e743a32b069f15c3c00000000000000c8b7a352090000e0f374"
    "c2da4110012a2f0a110a0a747261696e2f6c6f737315000020400a1a0a13747261696e2f6c6561726e696e675f72617465156f12833a639128c9"
    "2300000000000000b09f7743090000e0f374c2da4110ac022a150a130a0c6576616c2f6772c3b6c39f65150000807f325c32c411000000000000"
    "009d6db52e090000e0f374c2da4110f0a2043a020801f80eaf1e"
)
"""The file of the test below, written by `RecordWriter` and the messages of tensorboard 2.21.0."""


def test_the_bytes_are_those_of_tensorboard(tmp_path):
    file = EventFile(tmp_path, wall_time=1795806159.5)
    file.add(1, {"train/loss": 2.5, "train/learning_rate": 1e-3})
    file.add(300, {"eval/größe": float("inf")})
    file.add(301, {})
    file.restart(70_000)
    file.close()
    assert file.path.name.startswith("events.out.tfevents.1795806159.")
    assert file.path.read_bytes().hex() == RECORDED


def test_the_checksum_is_that_of_rfc_3720():
    """The examples of appendix B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def test_a_second_file_of_the_same_second_has_another_name(tmp_path):
    first, second = EventFile(tmp_path, 1.0), EventFile(tmp_path, 1.0)
    first.close()
    second.close()
    assert first.path != second.path


def scalars(path):
    """Returns (step, tag, value) of the scalars in a file, read by the definition of the format."""
    data, position, values = path.read_bytes(), 0, []
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = data[position + 12 : position + 12 + length]
        position += length + 16
        number = dict(fields(event))
        for _, value in (item for item in fields(number.get(5, b"")) if item[0] == 1):
            scalar = dict(fields(value))
            values.append((number.get(2, 0), scalar[1].decode(), struct.unpack("<f", scalar[2])[0]))
    return values


def fields(message):
    """Yields the numbers and values of the fields of a protocol buffer."""
    position = 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield key >> 3, message[position : position + size]
        position += size


def test_a_run_has_its_losses_and_metrics(tmp_path):
    play([TensorBoardWriter(tmp_path)], tmp_path)
    (path,) = (tmp_path / "tensorboard").iterdir()
    values = scalars(path)
    assert [value for _, tag, value in values if tag == "train/loss"] == pytest.approx(
        [loss(number) for number in range(1, 41)], rel=1e-6
    )
    assert [(number, value) for number, tag, value in values if tag == "eval/accuracy"] == [
        (10, 0.75), (20, 0.75), (30, 0.75), (40, 0.75),
    ]  # fmt: skip
    assert {tag for _, tag, _ in values} == {
        "train/loss", "train/learning_rate", "train/gradient_norm", "train/epoch", "train/tokens_per_second",
        "eval/loss", "eval/accuracy", "eval/f1_macro",
    }  # fmt: skip


def test_tensorboard_reads_the_files_and_hides_repeated_steps(tmp_path):
    """The second process resumes from step 15, so that its values replace those of the first from step 16 on."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TensorBoardWriter(tmp_path)
    play([killed], tmp_path, ends=False)
    killed.ended(End(40, "interrupted"))
    resumed = TensorBoardWriter(tmp_path)
    resumed.started(start(tmp_path, first_step=15))
    resumed.stepped(step(16, loss=9.0))
    resumed.evaluated(EvaluationEvent(16, {"loss": 3.0}))
    resumed.ended(End(16, "finished"))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [item.step for item in scalars] == list(range(1, 17))
    assert [item.value for item in scalars] == pytest.approx(
        [*(loss(number) for number in range(1, 16)), 9.0], rel=1e-6
    )
    assert [item.step for item in events.Scalars("eval/loss")] == [10, 16]
