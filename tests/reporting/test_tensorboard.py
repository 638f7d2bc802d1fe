"""Event files, read by a reader of their format written for this test, and by TensorBoard where it is installed."""
import struct

import pytest

from lorafast.errors import LoraFastError
from lorafast.reporting.events import Continuation, Ended, Evaluation, Step
from lorafast.reporting.tensorboard import EventFile, masked_crc, varint


def parse(data: bytes) -> dict[int, list]:
    """The fields of a protocol buffer by number."""
    fields, at = {}, 0

    def take_varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = take_varint()
        if key & 7 == 0:
            value = take_varint()
        elif key & 7 == 2:
            size = take_varint()
            value, at = data[at:at + size], at + size
        else:
            size, letter = {1: (8, "<d"), 5: (4, "<f")}[key & 7]
            value, at = struct.unpack_from(letter, data, at)[0], at + size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def records(data: bytes) -> list[dict[int, list]]:
    out, at = [], 0
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        assert crc == masked_crc(data[at:at + 8])
        content = data[at + 12:at + 12 + length]
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked_crc(content)
        out.append(parse(content))
        at += 16 + length
    return out


@pytest.fixture
def folder(tmp_path):
    with EventFile(tmp_path / "runs" / "a", 4) as write:
        write(Step(5, 2.5, 1e-3, 0.5, 300, 0, 0.25))
        write(Evaluation(5, 1.5, 7, True))
        write(Continuation(5, "Shall", " I"))
        write(Ended(5, "enough", 1.0))
    return tmp_path / "runs" / "a"


def test_checksum_and_varint():
    crc = (masked_crc(b"123456789") - 0xA282EAD8) & 0xFFFFFFFF
    assert (crc << 15 | crc >> 17) & 0xFFFFFFFF == 0xE3069283           # CRC-32C's check value
    assert [varint(n) for n in (0, 127, 128, 300)] == [b"\x00", b"\x7f", b"\x80\x01", b"\xac\x02"]


def test_contents(folder):
    path, = folder.iterdir()
    version, start, step, evaluation, sample = records(path.read_bytes())
    assert version[3] == [b"brain.Event:2"] and version[1][0] > 1.7e9
    assert start[2] == [5] and parse(start[7][0]) == {1: [1]}
    values = {parse(value)[1][0]: parse(value)[2][0] for event in (step, evaluation) for value in parse(event[5][0])[1]}
    assert values == pytest.approx({
        b"train/loss": 2.5, b"train/learning_rate": 1e-3, b"train/gradient_norm": 0.5, b"speed/tokens_per_second": 1200,
        b"evaluation/loss": 1.5, b"evaluation/perplexity": 4.481689}, rel=1e-6)
    assert {event[2][0] for event in (step, evaluation, sample)} == {5}
    value = parse(parse(sample[5][0])[1][0])
    assert value[1] == [b"sample/Shall"] and parse(value[8][0])[8] == [b"Shall I"]


def test_tensorboard_reads_it(folder):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = accumulators.EventAccumulator(str(folder))
    accumulator.Reload()
    assert {tag: accumulator.Scalars(tag)[0].step for tag in accumulator.Tags()["scalars"]}["train/loss"] == 5
    assert accumulator.Tensors("sample/Shall")[0].tensor_proto.string_val == [b"Shall I"]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LoraFastError, match="cannot write"):
        EventFile(tmp_path / "file" / "folder", 0)
