"""tritonclient.http.aio, Triton's own client over HTTP for asyncio."""

import asyncio

import numpy as np
import tritonclient.http.aio as http
from tritonclient.utils import InferenceServerException

from checks import (
    ENDLESS, IMAGE, NUMBERS, SHORT_SECONDS, SUMMANDS, WORDS, as_bytes, classes, raises, same, scores, start, until_async,
)  # fmt: skip


def tensor(name, array, datatype, binary=True):
    tensor = http.InferInput(name, list(array.shape), datatype)
    return tensor.set_data_from_numpy(array, binary_data=binary)


def status(expected):
    return raises(InferenceServerException, lambda error: error.status() == str(expected) and error.message())


async def described(client, checks):
    with checks.check("live and ready"):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("digits", "2") and not await client.is_model_ready("nope")
    with checks.check("metadata and configuration"):
        assert "binary_tensor_data" in (await client.get_server_metadata())["extensions"]
        assert (await client.get_model_metadata("digits"))["versions"] == ["1", "2"]
        assert (await client.get_model_config("digits"))["max_batch_size"] == 8


async def tensors(client, checks):
    for binary in (False, True):
        kind = "binary" if binary else "JSON"
        with checks.check(f"infer, {kind}"):
            inputs = [tensor("INPUT0", SUMMANDS[0], "INT32", binary), tensor("INPUT1", SUMMANDS[1], "INT32", binary)]
            outputs = [http.InferRequestedOutput(name, binary) for name in ("OUTPUT0", "OUTPUT1")]
            result = await client.infer("simple", inputs, outputs=outputs, request_id="a-1")
            same(result.as_numpy("OUTPUT0"), SUMMANDS[0] + SUMMANDS[1])
            same(result.as_numpy("OUTPUT1"), SUMMANDS[0] - SUMMANDS[1])
            assert result.get_response()["id"] == "a-1"
        with checks.check(f"BYTES and classes, {kind}"):
            outputs = [http.InferRequestedOutput("y", binary)]
            result = await client.infer("text", [tensor("x", WORDS, "BYTES", binary)], outputs=outputs)
            same(as_bytes(result.as_numpy("y")), WORDS)
            outputs = [http.InferRequestedOutput("y", binary, class_count=2)]
            result = await client.infer("digits", [tensor("x", IMAGE, "FP32", binary)], outputs=outputs)
            same(as_bytes(result.as_numpy("y")), classes(2, 2))
    for algorithm in ("gzip", "deflate"):
        with checks.check(f"{algorithm} both ways"):
            ways = {f"{way}_compression_algorithm": algorithm for way in ("request", "response")}
            same((await client.infer("digits", [tensor("x", IMAGE, "FP32")], **ways)).as_numpy("y"), scores(2))
    with checks.check("a hundred at a time"):
        calls = [client.infer("digits", [tensor("x", IMAGE * n, "FP32")], model_version=str(1 + n % 2)) for n in range(100)]
        for number, result in enumerate(await asyncio.gather(*calls)):
            same(result.as_numpy("y"), scores(1 + number % 2, IMAGE * number))
    with checks.check("a caller who goes away ends what runs"):
        inputs = [tensor("iterations", ENDLESS, "INT64"), tensor("x", NUMBERS, "FP32")]
        with raises(asyncio.TimeoutError, lambda error: True):
            await asyncio.wait_for(client.infer("slow", inputs), SHORT_SECONDS)
        inputs[0] = tensor("iterations", np.array(2, dtype=np.int64), "INT64")
        same((await client.infer("slow", inputs)).as_numpy("y"), NUMBERS + 2)


async def errors(client, checks):
    image = tensor("x", IMAGE, "FP32")
    cases = [
        ("an unknown model", 404, lambda: client.infer("nope", [image])),
        ("an unknown version", 404, lambda: client.infer("digits", [image], model_version="9")),
        ("a wrong shape", 400, lambda: client.infer("digits", [tensor("x", IMAGE[:, :63], "FP32")])),
        ("loading an unknown model", 404, lambda: client.load_model("nope")),
    ]
    for name, expected, call in cases:
        with checks.check(f"{name} is a {expected}"), status(expected):
            await call()


async def repository(client, checks):
    async def states():
        return {entry["name"]: entry.get("state") for entry in await client.get_model_repository_index()}

    async def gone():
        # It drains a while after it has ceased to be ready.
        return not await client.is_model_ready("spare") and (await states())["spare"] == "UNAVAILABLE"

    with checks.check("unload, load, index and statistics"):
        await client.unload_model("spare")
        await until_async(gone)
        assert (await states())["simple"] == "READY"
        await client.load_model("spare")
        assert await client.is_model_ready("spare")
        (version,) = (await client.get_inference_statistics("simple"))["model_stats"]
        assert version["inference_stats"]["success"]["count"] == 2, version


async def main():
    arguments, checks = start()
    async with http.InferenceServerClient(arguments.http) as client:
        for part in (described, tensors, errors, repository):
            await part(client, checks)
    checks.end()


asyncio.run(main())
