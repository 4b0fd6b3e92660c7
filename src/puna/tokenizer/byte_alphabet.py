"""GPT-2's alphabet: a printable character for each byte (github.com/openai/gpt-2, src/encoder.py, 2019).

Printable bytes of Latin-1 stand for themselves; the other 68 take the characters from U+0100 on, in order.
"""

from __future__ import annotations

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

BYTE_TO_CHARACTER: dict[int, str] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + index) for index, byte in enumerate(_OTHERS)
}
CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
