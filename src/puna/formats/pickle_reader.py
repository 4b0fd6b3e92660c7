"""A pickle reader that can build only plain values and descriptions of tensors.

`pickle.Unpickler` with a restricted `find_class` would still let a hostile file allocate unlimited memory (a memo index
of 2^31, a byte string of 2^40) or overflow the C stack (hashing nested tuples). This reader can call only functions in
a table of the few names that `torch.save` writes for a state dict, and supports only the opcodes that a state dict
needs. Each byte of the pickle creates at most one small value, so the size of the pickle bounds the memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from puna.errors import CheckpointError, show

Global = Callable[..., Any]

PICKLE_LIMIT = 4 * 2**20
"""Maximum size of a pickle in bytes, enough for 20,000 tensors. Reading a pickle needs up to 100 times its size."""


@dataclass(frozen=True)
class StorageClass:
    """The name of a torch storage class. A pickle can pass it as an argument, but cannot call it."""

    name: str


@dataclass
class _Machine:
    """The pickle virtual machine: a stack, marks (positions in the stack), and the memo."""

    data: bytes
    globals: dict[str, Global | StorageClass]
    persistent: Callable[[Any], Any]
    position: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.position:
            raise CheckpointError(f"the pickle needs {size} bytes at byte {self.position} of {len(self.data)}")
        self.position += size
        return self.data[self.position - size : self.position]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError(f"the pickle pops more values than it has pushed, at byte {self.position}")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise CheckpointError(f"the pickle needs a mark that it has not pushed, at byte {self.position}")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise CheckpointError(f"the pickle adds items to a non-{kind.__name__}, at byte {self.position}")
        return self.stack[-1]


_Step = Callable[[_Machine], object]


def read_pickle(data: bytes, names: dict[str, Global | StorageClass], persistent: Callable[[Any], Any]) -> Any:
    """Returns the object that a pickle describes.

    Args:
        names: the globals that the pickle may use, by "module.name".
        persistent: resolves persistent ids, which torch uses for storages.

    Raises:
        CheckpointError: an opcode or global that a state dict does not need, or a damaged pickle.
    """
    if len(data) > PICKLE_LIMIT:
        raise CheckpointError(
            f"the pickle has {len(data)} bytes; the limit is {PICKLE_LIMIT}. Save only the state dict"
        )
    machine = _Machine(data, names, persistent)
    while True:
        opcode = machine.take(1)
        if opcode == b".":
            return machine.pop()
        step = _OPCODES.get(opcode)
        if step is None:
            raise CheckpointError(
                f"the pickle has the opcode {opcode!r} at byte {machine.position - 1}, which no state dict needs"
            )
        step(machine)


def _resolve(machine: _Machine, module: Any, name: Any) -> None:
    full = f"{module}.{name}"
    if full not in machine.globals:
        raise CheckpointError(
            f"the pickle uses the global {show(full)}, which no tensor of float32, float16 or bfloat16 needs. "
            "Do not trust the file, or save only the state dict"
        )
    machine.stack.append(machine.globals[full])


def _global(machine: _Machine) -> None:
    names = []
    for _ in range(2):
        end = machine.data.find(b"\n", machine.position, machine.position + 1024)
        if end < 0:
            raise CheckpointError(f"the pickle has an unterminated name at byte {machine.position}")
        names.append(_text(machine.take(end - machine.position)))
        machine.take(1)
    _resolve(machine, *names)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise CheckpointError(f"the pickle names a global with a value that is not text, at byte {machine.position}")
    _resolve(machine, module, name)


def _call(machine: _Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    if not callable(function) or type(arguments) is not tuple:
        raise CheckpointError(f"the pickle calls a value that is not a function, at byte {machine.position}")
    try:
        machine.stack.append(function(*arguments))
    except TypeError as exc:
        raise CheckpointError(f"the pickle describes a tensor with the wrong arguments ({exc})") from exc


def _build(machine: _Machine) -> None:
    """Ignores attributes of a state dict: torch sets only `_metadata`, the versions of modules."""
    machine.pop()
    machine.top(dict)


def _put(machine: _Machine, index: int) -> None:
    if not machine.stack:
        raise CheckpointError(f"the pickle stores a value in the memo before creating one, at byte {machine.position}")
    machine.memo[index] = machine.stack[-1]


def _get(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        raise CheckpointError(f"the pickle reads memo item {index}, which is not set, at byte {machine.position}")
    machine.stack.append(machine.memo[index])


def _set(machine: _Machine, items: list[Any]) -> None:
    target = machine.top(dict)
    if len(items) % 2:
        raise CheckpointError(f"the pickle sets a key without a value, at byte {machine.position}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Keys must be scalars: hashing nested tuples recurses in C, to a depth that the file chooses.
        if not isinstance(key, str | int | float | bytes | None):
            raise CheckpointError(f"the pickle has a {type(key).__name__} as a key; keys of a state dict are names")
        if isinstance(key, str) and key in target:
            raise CheckpointError(f"the pickle has the key {key!r} twice; the file is damaged, download it again")
        target[key] = value


def _append(machine: _Machine, items: list[Any]) -> None:
    machine.top(list).extend(items)


def _tuple(machine: _Machine, size: int) -> None:
    items = [machine.pop() for _ in range(size)]
    machine.stack.append(tuple(reversed(items)))


def _long(machine: _Machine) -> int:
    return int.from_bytes(machine.take(machine.number("<B")), "little", signed=True)


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise CheckpointError(f"the pickle has text that is not UTF-8 ({exc})") from exc


def _push(value: Callable[[_Machine], Any]) -> _Step:
    return lambda m: m.stack.append(value(m))


_OPCODES: dict[bytes, _Step] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME: its size is only useful when reading a stream
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"0": lambda m: m.pop(),
    b"N": _push(lambda m: None),
    b"\x88": _push(lambda m: True),
    b"\x89": _push(lambda m: False),
    b"J": _push(lambda m: m.number("<i")),
    b"K": _push(lambda m: m.number("<B")),
    b"M": _push(lambda m: m.number("<H")),
    b"G": _push(lambda m: m.number(">d")),
    b"\x8a": _push(_long),
    b"X": _push(lambda m: _text(m.take(m.number("<I")))),
    b"\x8c": _push(lambda m: _text(m.take(m.number("<B")))),
    b"\x8d": _push(lambda m: _text(m.take(m.number("<Q")))),
    b"B": _push(lambda m: m.take(m.number("<I"))),
    b"C": _push(lambda m: m.take(m.number("<B"))),
    b"]": _push(lambda m: []),
    b"}": _push(lambda m: {}),
    b")": _push(lambda m: ()),
    b"t": lambda m: m.stack.append(tuple(m.pop_mark())),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"q": lambda m: _put(m, m.number("<B")),
    b"r": lambda m: _put(m, m.number("<I")),
    b"\x94": lambda m: _put(m, len(m.memo)),  # MEMOIZE
    b"h": lambda m: _get(m, m.number("<B")),
    b"j": lambda m: _get(m, m.number("<I")),
    b"a": lambda m: _append(m, [m.pop()]),
    b"e": lambda m: _append(m, m.pop_mark()),
    b"s": lambda m: _set(m, [m.pop(), m.pop()][::-1]),
    b"u": lambda m: _set(m, m.pop_mark()),
    b"c": _global,
    b"\x93": _stack_global,
    b"Q": lambda m: m.stack.append(m.persistent(m.pop())),
    b"R": _call,
    b"b": _build,
}
"""Opcodes of protocols 2 to 5, described in `pickletools`, without those for instances, classes and extensions."""
