"""One inference over gRPC, as bytes: HTTP/2 tools send and receive them as they are, and no gRPC library is needed here.

Field numbers are those of the Open Inference Protocol (ModelInferRequest, ModelInferResponse).
"""

import struct

from mlp import field
from processes import NotMeasured

METHOD = "/inference.GRPCInferenceService/ModelInfer"
# A byte that says "not compressed", and the length.
FRAME = struct.Struct(">BI")


def request(model, name, row):
    """A framed request for one row of f32, as raw little-endian bytes."""
    tensor = field(1, name) + field(2, "FP32") + field(3, bytes([1, len(row)]))
    message = field(1, model) + field(5, tensor) + field(7, struct.pack(f"<{len(row)}f", *row))
    return FRAME.pack(0, len(message)) + message


def read_varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def fields(data):
    """Numbers and values of a message's fields; those of a fixed size are passed over."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = read_varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = read_varint(data, at)
            yield number, data[at : at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[kind]


def floats(data):
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def numbers(answer):
    """The numbers of a framed answer with one output: raw, or as typed contents."""
    try:
        _, length = FRAME.unpack_from(answer)
        message = list(fields(answer[FRAME.size : FRAME.size + length]))
        raw = [value for number, value in message if number == 6]
        contents = [value for number, value in message if number == 5 for number, value in fields(value) if number == 5]
        typed = [value for each in contents for number, value in fields(each) if number == 6]
        (found,) = raw or typed
        return floats(found)
    except (struct.error, IndexError, KeyError, ValueError):
        raise NotMeasured(f"it answers with something else over gRPC: {bytes(answer[:40])!r}") from None
