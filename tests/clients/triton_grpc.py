"""tritonclient.grpc, Triton's own client over gRPC: single calls, callbacks and the stream."""

import queue

import ml_dtypes
import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from checks import (
    ENDLESS, IMAGE, NUMBERS, PATIENCE_SECONDS, SHORT_SECONDS, SUMMANDS, WORDS, classes, raises, same, scores, start, until,
)  # fmt: skip


def tensor(name, array, datatype):
    return grpc.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def code(expected):
    return raises(InferenceServerException, lambda error: error.status() == f"StatusCode.{expected}" and error.message())


class Answers:
    """Keeps what a callback is called with."""

    def __init__(self):
        self.queue = queue.SimpleQueue()

    def __call__(self, result, error):
        self.queue.put((result, error))

    def next(self):
        return self.queue.get(timeout=PATIENCE_SECONDS)


def described(client, checks):
    with checks.check("live and ready"):
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("digits") and client.is_model_ready("digits", "1")
        assert not client.is_model_ready("digits", "9") and not client.is_model_ready("nope")
    with checks.check("server metadata"):
        metadata = client.get_server_metadata()
        assert metadata.name and metadata.version and "classification" in metadata.extensions, metadata
    with checks.check("model metadata"):
        metadata = client.get_model_metadata("digits", as_json=True)
        assert metadata["versions"] == ["1", "2"], metadata
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "64"]}], metadata
        assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": ["-1", "10"]}], metadata
    with checks.check("model configuration"):
        config = client.get_model_config("digits").config
        assert config.name == "digits" and config.max_batch_size == 8 and list(config.input[0].dims) == [64], config
        assert config.output[0].label_filename == "labels.txt" and config.HasField("dynamic_batching"), config


def tensors(client, checks):
    with checks.check("infer"):
        inputs = [tensor("INPUT0", SUMMANDS[0], "INT32"), tensor("INPUT1", SUMMANDS[1], "INT32")]
        result = client.infer("simple", inputs, request_id="a-1")
        same(result.as_numpy("OUTPUT0"), SUMMANDS[0] + SUMMANDS[1])
        same(result.as_numpy("OUTPUT1"), SUMMANDS[0] - SUMMANDS[1])
        assert result.get_response().id == "a-1"
        result = client.infer("simple", inputs, outputs=[grpc.InferRequestedOutput("OUTPUT1")])
        assert [output.name for output in result.get_response().outputs] == ["OUTPUT1"]
        same(result.as_numpy("OUTPUT1"), SUMMANDS[0] - SUMMANDS[1])
    with checks.check("BYTES"):
        same(client.infer("text", [tensor("x", WORDS, "BYTES")]).as_numpy("y"), WORDS)
    with checks.check("classification"):
        result = client.infer("digits", [tensor("x", IMAGE, "FP32")], outputs=[grpc.InferRequestedOutput("y", class_count=3)])
        same(result.as_numpy("y"), classes(2, 3))
    with checks.check("tensors without elements"):
        result = client.infer("text", [tensor("x", np.array([], dtype=np.object_), "BYTES")])
        assert result.as_numpy("y").shape == (0,)
    with checks.check("a version of one's own choice"):
        result = client.infer("digits", [tensor("x", IMAGE, "FP32")], model_version="1")
        same(result.as_numpy("y"), scores(1))
        assert result.get_response().model_version == "1"
    with checks.check("a batch"):
        batch = np.repeat(IMAGE, 8, axis=0) * np.arange(8, dtype=np.float32)[:, None]
        same(client.infer("digits", [tensor("x", batch, "FP32")]).as_numpy("y"), scores(2, batch))
    with checks.check("FP16 and BF16"):
        half = NUMBERS.astype(np.float16)
        same(client.infer("half", [tensor("x", half, "FP16")]).as_numpy("y"), half)
        brain = NUMBERS.astype(ml_dtypes.bfloat16)
        same(client.infer("brain", [tensor("x", brain, "BF16")]).as_numpy("y"), brain)
    with checks.check("a message of 6 MB"):
        large = (np.arange(3_000_000) % 1000).astype(np.float16)
        same(client.infer("half", [tensor("x", large, "FP16")]).as_numpy("y"), large)


def options(client, checks):
    image = tensor("x", IMAGE, "FP32")
    for algorithm in ("gzip", "deflate"):
        with checks.check(algorithm):
            same(client.infer("digits", [image], compression_algorithm=algorithm).as_numpy("y"), scores(2))
    with checks.check("parameters"):
        parameters = {"text": "a", "number": 3, "truth": True, "share": 0.5}
        result = client.infer("digits", [image], parameters=parameters, priority=1, sequence_id="s", sequence_start=True)
        same(result.as_numpy("y"), scores(2))
    with checks.check("a version as a parameter"):
        same(client.infer("digits", [image], parameters={"version": "1"}).as_numpy("y"), scores(1))
    with checks.check("metadata of a call"):
        same(client.infer("digits", [image], headers={"x-request-id": "r-1", "x-bascule-key": "k"}).as_numpy("y"), scores(2))


def callbacks(client, checks):
    endless = [tensor("iterations", ENDLESS, "INT64"), tensor("x", NUMBERS, "FP32")]
    few = [tensor("iterations", np.array(3, dtype=np.int64), "INT64"), tensor("x", NUMBERS, "FP32")]
    with checks.check("several at a time"):
        answers = Answers()
        for number in range(32):
            client.async_infer("digits", [tensor("x", IMAGE * number, "FP32")], answers, request_id=str(number))
        numbers = set()
        for _ in range(32):
            result, error = answers.next()
            assert error is None, error
            number = int(result.get_response().id)
            same(result.as_numpy("y"), scores(2, IMAGE * number))
            numbers.add(number)
        assert numbers == set(range(32))
    with checks.check("a call that is cancelled ends what runs"):
        answers = Answers()
        client.async_infer("slow", endless, answers).cancel()
        result, error = answers.next()
        assert result is None and error.status() == "StatusCode.CANCELLED", error
        same(client.infer("slow", few, client_timeout=PATIENCE_SECONDS).as_numpy("y"), NUMBERS + 3)
    with checks.check("a deadline ends what runs"):
        with code("DEADLINE_EXCEEDED"):
            client.infer("slow", endless, client_timeout=SHORT_SECONDS)
        with code("DEADLINE_EXCEEDED"):
            client.infer("slow", endless, timeout=int(SHORT_SECONDS * 1e6))
        same(client.infer("slow", few, client_timeout=PATIENCE_SECONDS).as_numpy("y"), NUMBERS + 3)


def streams(client, checks):
    image = tensor("x", IMAGE, "FP32")
    with checks.check("a stream"):
        answers = Answers()
        client.start_stream(answers)
        for number in range(8):
            client.async_stream_infer("digits", [image], request_id=str(number), model_version=str(1 + number % 2))
        received = {}
        for _ in range(8):
            result, error = answers.next()
            assert error is None, error
            received[result.get_response().id] = result
            assert result.get_response().parameters["triton_final_response"].bool_param
        for number in range(8):
            same(received[str(number)].as_numpy("y"), scores(1 + number % 2))
        client.stop_stream()
    with checks.check("an error does not end a stream"):
        answers = Answers()
        client.start_stream(answers)
        client.async_stream_infer("nope", [image])
        result, error = answers.next()
        assert result is None and error.message(), error
        client.async_stream_infer("digits", [image], enable_empty_final_response=True)
        result, error = answers.next()
        assert error is None, error
        same(result.as_numpy("y"), scores(2))
        client.stop_stream()
    with checks.check("a stream that is cancelled ends what runs"):
        answers = Answers()
        client.start_stream(answers)
        client.async_stream_infer("slow", [tensor("iterations", ENDLESS, "INT64"), tensor("x", NUMBERS, "FP32")])
        client.stop_stream(cancel_requests=True)
        result, error = answers.next()
        assert result is None and error.status() == "StatusCode.CANCELLED", error
        few = [tensor("iterations", np.array(4, dtype=np.int64), "INT64"), tensor("x", NUMBERS, "FP32")]
        same(client.infer("slow", few, client_timeout=PATIENCE_SECONDS).as_numpy("y"), NUMBERS + 4)


def errors(client, checks):
    image = tensor("x", IMAGE, "FP32")
    refused = "INVALID_ARGUMENT"
    cases = [
        ("an unknown model", "NOT_FOUND", lambda: client.infer("nope", [image])),
        ("an unknown version", "NOT_FOUND", lambda: client.infer("digits", [image], model_version="9")),
        ("a wrong shape", refused, lambda: client.infer("digits", [tensor("x", IMAGE[:, :63], "FP32")])),
        ("too large a batch", refused, lambda: client.infer("digits", [tensor("x", np.repeat(IMAGE, 9, axis=0), "FP32")])),
        ("a wrong datatype", refused, lambda: client.infer("digits", [tensor("x", IMAGE.astype(np.float64), "FP64")])),
        ("an unknown input", refused, lambda: client.infer("digits", [tensor("z", IMAGE, "FP32")])),
        ("a missing input", refused, lambda: client.infer("simple", [tensor("INPUT0", SUMMANDS[0], "INT32")])),
        ("an unknown output", refused, lambda: client.infer("digits", [image], outputs=[grpc.InferRequestedOutput("z")])),
        ("metadata of an unknown model", "NOT_FOUND", lambda: client.get_model_metadata("nope")),
        ("configuration of an unknown model", "NOT_FOUND", lambda: client.get_model_config("nope")),
        ("loading an unknown model", "NOT_FOUND", lambda: client.load_model("nope")),
        ("loading with a configuration", "UNIMPLEMENTED", lambda: client.load_model("spare", config="{}")),
        ("shared memory", "UNIMPLEMENTED", lambda: client.register_system_shared_memory("a", "/a", 64)),
        ("trace settings", "UNIMPLEMENTED", lambda: client.get_trace_settings()),
        ("log settings", "UNIMPLEMENTED", lambda: client.get_log_settings()),
    ]
    for name, expected, call in cases:
        with checks.check(f"{name} is {expected}"), code(expected):
            call()


def repository(client, checks):
    def state():
        (entry,) = [entry for entry in client.get_model_repository_index().models if entry.name == "spare"]
        return entry.state

    def infer():
        return client.infer("spare", [tensor("x", np.zeros((1, 2), np.float32), "FP32")]).as_numpy("y")

    with checks.check("unload and load"):
        assert state() == "READY", state()
        client.unload_model("spare")
        until(lambda: not client.is_model_ready("spare"))
        # It drains meanwhile.
        until(lambda: state() == "UNAVAILABLE")
        with code("NOT_FOUND"):
            infer()
        client.load_model("spare")
        same(infer(), np.ones((1, 2), np.float32))
        assert state() == "READY", state()
    with checks.check("statistics"):

        def count():
            (version,) = client.get_inference_statistics("spare", "1").model_stats
            return version.inference_stats.success.count, version.inference_count

        before = count()
        infer()
        infer()
        assert count() == (before[0] + 2, before[1] + 2), (before, count())
        names = {version.name for version in client.get_inference_statistics().model_stats}
        assert {"digits", "simple", "spare"} <= names, names


def main():
    arguments, checks = start()
    with grpc.InferenceServerClient(arguments.grpc) as client:
        for part in (described, tensors, options, callbacks, streams, errors, repository):
            part(client, checks)
    checks.end()


main()
