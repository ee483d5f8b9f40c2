"""What every client script shares: its arguments, the models that it finds, and how it counts.

A script prints one line for each check and ends with 1 where one failed. The models (tests/integration/clients.rs writes them):

    digits   version n answers n times the first ten of 64 numbers; versions 1 and 2, labels, batches of up to 8
    simple   sum and difference of two INT32 tensors, batches of up to 8
    text     its BYTES as they are
    half     its FP16 numbers as they are
    brain    its BF16 numbers as they are
    slow     adds 1 to its numbers as often as it is told, which may be longer than anybody waits
    spare    for loading and unloading
"""

import argparse
import contextlib
import faulthandler
import sys
import time
import traceback

import numpy as np

# A script that hangs shows where, and fails. Everything that is waited for takes milliseconds.
LIMIT_SECONDS = 120
PATIENCE_SECONDS = 30
# How long a caller of a model that does not end waits for it.
SHORT_SECONDS = 0.2

IMAGE = (np.arange(64, dtype=np.float32) / 64)[None]
LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SUMMANDS = (np.arange(16, dtype=np.int32)[None], np.full((1, 16), 3, dtype=np.int32))
WORDS = np.array([b"plain", "größer".encode(), b"", bytes([0x22, 0x5C, 0x0A])], dtype=np.object_)
# Far more additions than fit into any time-out.
ENDLESS = np.array(10**15, dtype=np.int64)
NUMBERS = np.array([1.5, -2.0], dtype=np.float32)


def scores(version, image=IMAGE):
    """What a version of `digits` answers."""
    return np.float32(version) * image[:, :10]


class Checks:
    """Counts and names what was checked."""

    def __init__(self):
        self.passed, self.failed = 0, 0

    @contextlib.contextmanager
    def check(self, name):
        try:
            yield
        except Exception:
            self.failed += 1
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
        else:
            self.passed += 1
            print(f"ok {name}", flush=True)

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed or not self.passed else 0)


def start():
    """The addresses from the command line, and a count that begins."""
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", required=True)
    parser.add_argument("--grpc", required=True)
    return parser.parse_args(), Checks()


@contextlib.contextmanager
def raises(kind, matches):
    """Expects an exception of a kind, for which `matches` is true."""
    try:
        yield
    except kind as error:
        if not matches(error):
            raise
    else:
        raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def same(found, expected):
    """Expects an array, element by element, with its shape and type."""
    assert found is not None, "no such output"
    np.testing.assert_array_equal(found, expected)
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    assert found.dtype == expected.dtype, f"{found.dtype} is not {expected.dtype}"


def until(question):
    """Asks until the answer is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not question():
        assert time.monotonic() < end, "still not true"


async def until_async(question):
    """Asks until the answer is true."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not await question():
        assert time.monotonic() < end, "still not true"


def classes(version, count):
    """The best classes of IMAGE as `digits` names them."""
    ranked = sorted(range(10), key=lambda index: -scores(version)[0, index])[:count]
    return np.array([[f"{scores(version)[0, index]:f}:{index}:{LABELS[index]}".encode() for index in ranked]], dtype=np.object_)


def as_bytes(array):
    """BYTES come back as text or as bytes, whichever way they travelled."""
    flat = [item if isinstance(item, bytes) else item.encode() for item in array.flatten()]
    return np.array(flat, dtype=np.object_).reshape(array.shape)
