"""TensorBoard's event files, written without TensorBoard.

An event file is a sequence of TFRecords, each with a protocol buffer `Event`. The subset for scalars is short: two
checksums per record and six fields. PyTorch's `SummaryWriter` would need the package tensorboard and its dependencies,
grpcio and protobuf, in every environment that trains. Tests compare the bytes with those of TensorBoard's own writer.
"""

from __future__ import annotations

import platform
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from puna.files import make_folder, storage_errors
from puna.training.events import End, EvaluationEvent, Observer, Start, StepEvent

FOLDER = "tensorboard"


class TensorBoardWriter(Observer):
    """Writes the numbers of a run for TensorBoard: `tensorboard --logdir RUNS` shows and compares them.

    Args:
        folder: the folder of the run's result; the event file is in its folder `tensorboard`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._file: EventFile | None = None

    def started(self, event: Start) -> None:
        """Opens a new event file. For a resumed run, TensorBoard hides the steps that run again."""
        self._file = EventFile(self._folder)
        if event.first_step:
            self._file.restart(event.first_step + 1)

    def stepped(self, event: StepEvent) -> None:
        """Writes the loss, the learning rate, the gradient norm and the speed."""
        self._add(
            event.step,
            {
                "train/loss": event.loss,
                "train/learning_rate": event.learning_rate,
                "train/gradient_norm": event.gradient_norm,
                "train/epoch": event.epoch,
                "train/tokens_per_second": event.tokens / event.seconds if event.seconds > 0 else 0.0,
            },
        )

    def evaluated(self, event: EvaluationEvent) -> None:
        """Writes each metric that is a number."""
        numbers = {f"eval/{name}": value for name, value in event.metrics.items() if _is_number(value)}
        self._add(event.step, numbers)

    def ended(self, event: End) -> None:
        """Closes the file."""
        if self._file is not None:
            with suppress(OSError):  # the disk is full, and that may be the reason of the end
                self._file.close()
            self._file = None

    def _add(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._file is not None:
            self._file.add(step, scalars)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class EventFile:
    """An event file, whose records are complete on the disk after each call.

    Args:
        folder: created if it does not exist.
        wall_time: seconds since 1970, the time of the events; the clock if None.
    """

    def __init__(self, folder: Path, wall_time: float | None = None) -> None:
        make_folder(folder)
        self._wall_time = wall_time
        self.path = _unused(folder, f"events.out.tfevents.{int(self._now()):010d}.{platform.node()}")
        with storage_errors(self.path):
            self._file: IO[bytes] = self.path.open("wb")
        self._write(0, _text(3, "brain.Event:2"))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one event with the value of each tag."""
        summary = b"".join(
            _message(1, _text(1, tag) + b"\x15" + struct.pack("<f", _float32(value))) for tag, value in scalars.items()
        )
        if summary:
            self._write(step, _message(5, summary))

    def restart(self, step: int) -> None:
        """Writes the start of a resumed process: earlier events from `step` on are hidden (`SessionLog.START`)."""
        self._write(step, _message(7, b"\x08\x01"))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _now(self) -> float:
        return time.time() if self._wall_time is None else self._wall_time

    def _write(self, step: int, content: bytes) -> None:
        counter = b"\x10" + _varint(step) if step else b""
        event = b"\x09" + struct.pack("<d", self._now()) + counter + content
        with storage_errors(self.path):
            self._file.write(record(event))
            self._file.flush()


def _unused(folder: Path, name: str) -> Path:
    """Returns the path of a new file: two processes may start in the same second."""
    names = [name, *(f"{name}.{number}" for number in range(1, 1000))]
    return next(folder / item for item in names if not (folder / item).exists())


def _float32(value: float) -> float:
    """Returns a value in the range of float32; larger values are infinite, as in TensorBoard."""
    largest = 3.4028235677973366e38
    return (
        value if abs(value) < largest else float("nan") if value != value else float("inf") * (1 if value > 0 else -1)
    )


def record(data: bytes) -> bytes:
    """Returns a TFRecord: the length and the data, each followed by its checksum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data))


def _masked_crc(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Returns the CRC-32C (Castagnoli) of some bytes, RFC 3720 appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # the reflected polynomial 0x1EDC6F41
    return value


_TABLE = tuple(map(_table_entry, range(256)))


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _message(number: int, content: bytes) -> bytes:
    """Returns a field with a length: a message, a text or bytes."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())
