"""Writes a run's numbers for TensorBoard.

An event file is a series of records: u64 length, u32 masked CRC of these 8 bytes, the data, u32 masked CRC of the data.
The data is a protocol buffer `Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary =
5; }` with `Summary { repeated Value value = 1; }` and `Value { string tag = 1; float simple_value = 2; TensorProto
tensor = 8; SummaryMetadata metadata = 9; }`.

Source: TensorFlow, core/util/event.proto, core/framework/summary.proto, core/lib/io/record_writer (the framing).
"""
from __future__ import annotations

import os
import secrets
import struct
import time
from pathlib import Path

from ..errors import LoraFastError
from .events import Continuation, Evaluation, Event, Step, numbers

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protocol buffers."""

SESSION_START = 1
STRING_TENSOR = 7


class EventFile:
    """A new event file in a folder; to be used in a `with` block."""

    def __init__(self, folder: str | os.PathLike, iteration: int) -> None:
        """iteration: where the run goes on; TensorBoard forgets what an earlier file says from there on.

        LoraFastError if the file cannot be written.
        """
        self.path = Path(folder) / f"events.out.tfevents.{int(time.time())}.lorafast.{secrets.token_hex(4)}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "xb", buffering=0)
        except OSError as error:
            raise LoraFastError(f"cannot write {self.path}: {error.strerror}") from None
        self._write(0, field(3, b"brain.Event:2"))
        self._write(iteration + 1, field(7, field(1, SESSION_START)))

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step | Evaluation):
            self._write(event.iteration, field(5, b"".join(scalar(*number) for number in numbers(event).items())))
        elif isinstance(event, Continuation):
            self._write(event.iteration, field(5, text(f"sample/{event.prompt}", event.prompt + event.text)))

    def _write(self, step: int, content: bytes) -> None:
        try:
            self.file.write(framed(field(1, time.time()) + field(2, step) + content))
        except OSError as error:
            raise LoraFastError(f"cannot write {self.path}: {error.strerror}") from None

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()


def scalar(tag: str, value: float) -> bytes:
    """A Summary with one number."""
    return field(1, field(1, tag.encode()) + varint(2 << 3 | FIXED32) + struct.pack("<f", value))


def text(tag: str, value: str) -> bytes:
    """A Summary with one text: a string tensor that the plugin "text" shows."""
    tensor = field(1, STRING_TENSOR) + field(8, value.encode("utf-8", "replace"))
    metadata = field(1, field(1, b"text"))
    return field(1, field(1, tag.encode("utf-8", "replace")) + field(8, tensor) + field(9, metadata))


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protocol buffer: a varint, a double, or bytes (a string or an embedded message)."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | FIXED64) + struct.pack("<d", value)
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def varint(n: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def framed(data: bytes) -> bytes:
    """A record of an event file."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated right by 15 bits, plus a constant: so that a CRC of data that holds CRCs is none of these."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)      # Castagnoli's polynomial, reversed
    return byte


CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]
