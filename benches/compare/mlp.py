"""The model that every server answers with: a small MLP, f32[N,4] → f32[N,3], as the bytes of an ONNX file.

It is written field by field, so that no ONNX package is needed here. Its run takes a few microseconds: what is compared is the
servers, not the runtime. The weights only have to be the same each time, and such that a swapped row or column shows.
"""

import math
import struct

INPUT, OUTPUT = "x", "y"
COLUMNS, HIDDEN, CLASSES = 4, 16, 3
FLOAT = 1
IR_VERSION, OPSET = 8, 13


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    """One field of a protobuf message: an int as a varint; text, bytes and messages with their length before them."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name, dimensions, values):
    raw = struct.pack(f"<{len(values)}f", *values)
    return b"".join(field(1, size) for size in dimensions) + field(2, FLOAT) + field(8, name) + field(9, raw)


def node(operator, inputs, output):
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(3, output) + field(4, operator)


def port(name, columns):
    """An input or output of the graph, with as many rows as the caller likes."""
    shape = field(1, field(2, "N")) + field(1, field(1, columns))
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, shape)))


def weights(rows, columns, seed):
    return [math.sin(seed + 1.7 * row + 0.9 * column) for row in range(rows) for column in range(columns)]


W1, B1 = weights(COLUMNS, HIDDEN, 0.3), weights(1, HIDDEN, 0.7)
W2, B2 = weights(HIDDEN, CLASSES, 1.1), weights(1, CLASSES, 1.9)


def layer(row, matrix, bias):
    return [sum(value * matrix[at * len(bias) + column] for at, value in enumerate(row)) + bias[column] for column in range(len(bias))]


def answer(row):
    """What the model answers for one row, to the precision of f32."""
    return layer([max(0.0, value) for value in layer(row, W1, B1)], W2, B2)


def model():
    """The whole file."""
    tensors = [
        tensor("w1", [COLUMNS, HIDDEN], W1),
        tensor("b1", [HIDDEN], B1),
        tensor("w2", [HIDDEN, CLASSES], W2),
        tensor("b2", [CLASSES], B2),
    ]
    nodes = [
        node("MatMul", [INPUT, "w1"], "m1"),
        node("Add", ["m1", "b1"], "a1"),
        node("Relu", ["a1"], "r1"),
        node("MatMul", ["r1", "w2"], "m2"),
        node("Add", ["m2", "b2"], OUTPUT),
    ]
    graph = b"".join(field(1, each) for each in nodes) + field(2, "mlp") + b"".join(field(5, each) for each in tensors)
    graph += field(11, port(INPUT, COLUMNS)) + field(12, port(OUTPUT, CLASSES))
    return field(1, IR_VERSION) + field(2, "bascule") + field(7, graph) + field(8, field(1, "") + field(2, OPSET))
