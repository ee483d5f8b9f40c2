"""tritonclient.http, Triton's own client over HTTP."""

import ml_dtypes
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from checks import (
    ENDLESS, IMAGE, NUMBERS, SHORT_SECONDS, SUMMANDS, WORDS, as_bytes, classes, raises, same, scores, start, until,
)  # fmt: skip


def tensor(name, array, datatype, binary=True):
    tensor = http.InferInput(name, list(array.shape), datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary)


def status(expected):
    return raises(InferenceServerException, lambda error: error.status() == str(expected) and error.message())


def described(client, checks):
    with checks.check("live and ready"):
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("digits") and client.is_model_ready("digits", "1")
        assert not client.is_model_ready("digits", "9") and not client.is_model_ready("nope")
    with checks.check("server metadata"):
        metadata = client.get_server_metadata()
        assert metadata["name"] and metadata["version"], metadata
        assert {"binary_tensor_data", "classification", "model_repository", "statistics"} <= set(metadata["extensions"]), metadata
    with checks.check("model metadata"):
        metadata = client.get_model_metadata("digits")
        assert metadata["name"] == "digits" and metadata["versions"] == ["1", "2"], metadata
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}], metadata
        assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}], metadata
        assert client.get_model_metadata("text", "1")["inputs"][0]["datatype"] == "BYTES"
    with checks.check("model configuration"):
        config = client.get_model_config("digits")
        assert config["max_batch_size"] == 8 and config["input"][0]["dims"] == [64], config
        assert config["output"][0]["label_filename"] == "labels.txt", config


def tensors(client, checks):
    for binary in (False, True):
        kind = "binary" if binary else "JSON"
        with checks.check(f"infer, {kind} tensors"):
            inputs = [tensor("INPUT0", SUMMANDS[0], "INT32", binary), tensor("INPUT1", SUMMANDS[1], "INT32", binary)]
            outputs = [http.InferRequestedOutput("OUTPUT1", binary), http.InferRequestedOutput("OUTPUT0", not binary)]
            result = client.infer("simple", inputs, outputs=outputs, request_id="a-1")
            same(result.as_numpy("OUTPUT0"), SUMMANDS[0] + SUMMANDS[1])
            same(result.as_numpy("OUTPUT1"), SUMMANDS[0] - SUMMANDS[1])
            assert result.get_response()["id"] == "a-1", result.get_response()
        with checks.check(f"BYTES, {kind}"):
            result = client.infer("text", [tensor("x", WORDS, "BYTES", binary)], outputs=[http.InferRequestedOutput("y", binary)])
            same(as_bytes(result.as_numpy("y")), WORDS)
        with checks.check(f"classification, {kind}"):
            outputs = [http.InferRequestedOutput("y", binary, class_count=3)]
            result = client.infer("digits", [tensor("x", IMAGE, "FP32", binary)], outputs=outputs)
            same(as_bytes(result.as_numpy("y")), classes(2, 3))
        with checks.check(f"tensors without elements, {kind}"):
            empty = np.array([], dtype=np.object_)
            result = client.infer("text", [tensor("x", empty, "BYTES", binary)], outputs=[http.InferRequestedOutput("y", binary)])
            assert result.as_numpy("y").shape == (0,)
    with checks.check("outputs that nobody asked for by name"):
        same(client.infer("digits", [tensor("x", IMAGE, "FP32")]).as_numpy("y"), scores(2))
    with checks.check("a version of one's own choice"):
        result = client.infer("digits", [tensor("x", IMAGE, "FP32")], model_version="1")
        same(result.as_numpy("y"), scores(1))
        assert result.get_response()["model_version"] == "1"
    with checks.check("a batch"):
        batch = np.repeat(IMAGE, 8, axis=0) * np.arange(8, dtype=np.float32)[:, None]
        same(client.infer("digits", [tensor("x", batch, "FP32")]).as_numpy("y"), scores(2, batch))
    with checks.check("FP16 and BF16"):
        half = NUMBERS.astype(np.float16)
        same(client.infer("half", [tensor("x", half, "FP16")]).as_numpy("y"), half)
        brain = NUMBERS.astype(ml_dtypes.bfloat16)
        same(client.infer("brain", [tensor("x", brain, "BF16")]).as_numpy("y"), brain)
    with checks.check("a large tensor"):
        large = (np.arange(3_000_000) % 1000).astype(np.float16)
        same(client.infer("half", [tensor("x", large, "FP16")]).as_numpy("y"), large)


def options(client, checks):
    for algorithm in ("gzip", "deflate"):
        with checks.check(f"{algorithm} both ways"):
            inputs = [tensor("x", IMAGE, "FP32")]
            ways = {f"{way}_compression_algorithm": algorithm for way in ("request", "response")}
            same(client.infer("digits", inputs, **ways).as_numpy("y"), scores(2))
            outputs = [http.InferRequestedOutput("y", binary_data=False)]
            same(client.infer("digits", inputs, outputs=outputs, **ways).as_numpy("y"), scores(2))
    with checks.check("parameters"):
        parameters = {"text": "a", "number": 3, "truth": True}
        result = client.infer(
            "digits", [tensor("x", IMAGE, "FP32")], parameters=parameters, priority=1, sequence_id=7, sequence_start=True,
        )  # fmt: skip
        same(result.as_numpy("y"), scores(2))
    with checks.check("a version as a parameter"):
        same(client.infer("digits", [tensor("x", IMAGE, "FP32")], parameters={"version": "1"}).as_numpy("y"), scores(1))
    with checks.check("several at a time"):
        waiting = [client.async_infer("digits", [tensor("x", IMAGE * n, "FP32")], request_id=str(n)) for n in range(1, 17)]
        for number, request in enumerate(waiting, 1):
            result = request.get_result()
            same(result.as_numpy("y"), scores(2, IMAGE * number))
            assert result.get_response()["id"] == str(number)
    with checks.check("a deadline ends what runs"):
        inputs = [tensor("iterations", ENDLESS, "INT64"), tensor("x", NUMBERS, "FP32")]
        with status(504):
            client.infer("slow", inputs, timeout=int(SHORT_SECONDS * 1e6))
        inputs[0] = tensor("iterations", np.array(3, dtype=np.int64), "INT64")
        same(client.infer("slow", inputs).as_numpy("y"), NUMBERS + 3)


def errors(client, checks):
    image = tensor("x", IMAGE, "FP32")
    cases = [
        ("an unknown model", 404, lambda: client.infer("nope", [image])),
        ("an unknown version", 404, lambda: client.infer("digits", [image], model_version="9")),
        ("a wrong shape", 400, lambda: client.infer("digits", [tensor("x", IMAGE[:, :63], "FP32")])),
        ("too large a batch", 400, lambda: client.infer("digits", [tensor("x", np.repeat(IMAGE, 9, axis=0), "FP32")])),
        ("a wrong datatype", 400, lambda: client.infer("digits", [tensor("x", IMAGE.astype(np.float64), "FP64")])),
        ("an unknown input", 400, lambda: client.infer("digits", [tensor("z", IMAGE, "FP32")])),
        ("a missing input", 400, lambda: client.infer("simple", [tensor("INPUT0", SUMMANDS[0], "INT32")])),
        ("an unknown output", 400, lambda: client.infer("digits", [image], outputs=[http.InferRequestedOutput("z")])),
        ("metadata of an unknown model", 404, lambda: client.get_model_metadata("nope")),
        ("configuration of an unknown model", 404, lambda: client.get_model_config("nope")),
        ("loading an unknown model", 404, lambda: client.load_model("nope")),
        ("loading with a configuration", 501, lambda: client.load_model("spare", config="{}")),
        ("shared memory", 501, lambda: client.register_system_shared_memory("a", "/a", 64)),
        ("trace settings", 501, lambda: client.get_trace_settings()),
        ("log settings", 501, lambda: client.update_log_settings({"log_info": True})),
    ]
    for name, expected, call in cases:
        with checks.check(f"{name} is a {expected}"), status(expected):
            call()


def repository(client, checks):
    def entry():
        (entry,) = [entry for entry in client.get_model_repository_index() if entry["name"] == "spare"]
        return entry

    def infer():
        return client.infer("spare", [tensor("x", np.zeros((1, 2), np.float32), "FP32")]).as_numpy("y")

    with checks.check("unload and load"):
        assert entry()["state"] == "READY" and entry()["version"] == "1", entry()
        client.unload_model("spare")
        until(lambda: not client.is_model_ready("spare"))
        # It drains meanwhile.
        until(lambda: entry().get("state") == "UNAVAILABLE")
        with status(404):
            infer()
        client.load_model("spare")
        same(infer(), np.ones((1, 2), np.float32))
        assert entry()["state"] == "READY", entry()
    with checks.check("statistics"):

        def count():
            (version,) = client.get_inference_statistics("spare", "1")["model_stats"]
            assert version["name"] == "spare" and version["version"] == "1", version
            return version["inference_stats"]["success"]["count"], version["inference_count"]

        before = count()
        infer()
        infer()
        assert count() == (before[0] + 2, before[1] + 2), (before, count())
        names = {version["name"] for version in client.get_inference_statistics()["model_stats"]}
        assert {"digits", "simple", "spare"} <= names, names


def main():
    arguments, checks = start()
    with http.InferenceServerClient(arguments.http, concurrency=4) as client:
        for part in (described, tensors, options, errors, repository):
            part(client, checks)
    checks.end()


main()
