"""tritonclient.grpc.aio, Triton's own client over gRPC for asyncio."""

import asyncio

import numpy as np
import tritonclient.grpc.aio as grpc
from tritonclient.utils import InferenceServerException

from checks import (
    ENDLESS, IMAGE, NUMBERS, PATIENCE_SECONDS, SHORT_SECONDS, SUMMANDS, WORDS, classes, raises, same, scores, start, until_async,
)  # fmt: skip


def tensor(name, array, datatype):
    return grpc.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array)


def code(expected):
    return raises(InferenceServerException, lambda error: error.status() == f"StatusCode.{expected}" and error.message())


async def described(client, checks):
    with checks.check("live and ready"):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("digits", "2") and not await client.is_model_ready("nope")
    with checks.check("metadata and configuration"):
        assert "classification" in (await client.get_server_metadata()).extensions
        assert list((await client.get_model_metadata("digits")).versions) == ["1", "2"]
        assert (await client.get_model_config("digits")).config.max_batch_size == 8


async def tensors(client, checks):
    image = tensor("x", IMAGE, "FP32")
    with checks.check("infer"):
        inputs = [tensor("INPUT0", SUMMANDS[0], "INT32"), tensor("INPUT1", SUMMANDS[1], "INT32")]
        result = await client.infer("simple", inputs, request_id="a-1")
        same(result.as_numpy("OUTPUT0"), SUMMANDS[0] + SUMMANDS[1])
        same(result.as_numpy("OUTPUT1"), SUMMANDS[0] - SUMMANDS[1])
        assert result.get_response().id == "a-1"
    with checks.check("BYTES and classes"):
        same((await client.infer("text", [tensor("x", WORDS, "BYTES")])).as_numpy("y"), WORDS)
        result = await client.infer("digits", [image], outputs=[grpc.InferRequestedOutput("y", class_count=2)])
        same(result.as_numpy("y"), classes(2, 2))
    for algorithm in ("gzip", "deflate"):
        with checks.check(algorithm):
            same((await client.infer("digits", [image], compression_algorithm=algorithm)).as_numpy("y"), scores(2))
    with checks.check("a hundred at a time"):
        calls = [client.infer("digits", [tensor("x", IMAGE * n, "FP32")], model_version=str(1 + n % 2)) for n in range(100)]
        for number, result in enumerate(await asyncio.gather(*calls)):
            same(result.as_numpy("y"), scores(1 + number % 2, IMAGE * number))


async def ends(client, checks):
    endless = [tensor("iterations", ENDLESS, "INT64"), tensor("x", NUMBERS, "FP32")]
    few = [tensor("iterations", np.array(3, dtype=np.int64), "INT64"), tensor("x", NUMBERS, "FP32")]
    with checks.check("a deadline ends what runs"):
        with code("DEADLINE_EXCEEDED"):
            await client.infer("slow", endless, client_timeout=SHORT_SECONDS)
        same((await client.infer("slow", few, client_timeout=PATIENCE_SECONDS)).as_numpy("y"), NUMBERS + 3)
    with checks.check("a task that is cancelled ends what runs"):
        with raises(asyncio.TimeoutError, lambda error: True):
            await asyncio.wait_for(client.infer("slow", endless), SHORT_SECONDS)
        same((await client.infer("slow", few, client_timeout=PATIENCE_SECONDS)).as_numpy("y"), NUMBERS + 3)


async def streams(client, checks):
    image = tensor("x", IMAGE, "FP32")

    async def requests():
        for number in range(8):
            model = "nope" if number == 3 else "digits"
            yield {"model_name": model, "inputs": [image], "request_id": str(number)}

    with checks.check("a stream with an error in it"):
        results, failures = {}, []
        async for result, error in client.stream_infer(requests()):
            if error is not None:
                failures.append(error)
            else:
                results[result.get_response().id] = result
        assert len(failures) == 1 and failures[0].message(), failures
        assert set(results) == set("0124567"), results.keys()
        for result in results.values():
            same(result.as_numpy("y"), scores(2))


async def errors(client, checks):
    image = tensor("x", IMAGE, "FP32")
    cases = [
        ("an unknown model", "NOT_FOUND", lambda: client.infer("nope", [image])),
        ("an unknown version", "NOT_FOUND", lambda: client.infer("digits", [image], model_version="9")),
        ("a wrong shape", "INVALID_ARGUMENT", lambda: client.infer("digits", [tensor("x", IMAGE[:, :63], "FP32")])),
        ("loading an unknown model", "NOT_FOUND", lambda: client.load_model("nope")),
    ]
    for name, expected, call in cases:
        with checks.check(f"{name} is {expected}"), code(expected):
            await call()


async def repository(client, checks):
    async def states():
        return {entry.name: entry.state for entry in (await client.get_model_repository_index()).models}

    async def gone():
        # It drains a while after it has ceased to be ready.
        return not await client.is_model_ready("spare") and (await states())["spare"] == "UNAVAILABLE"

    with checks.check("unload, load, index and statistics"):
        await client.unload_model("spare")
        await until_async(gone)
        assert (await states())["simple"] == "READY"
        await client.load_model("spare")
        assert await client.is_model_ready("spare")
        (version,) = (await client.get_inference_statistics("simple")).model_stats
        assert version.inference_stats.success.count == 1, version


async def main():
    arguments, checks = start()
    async with grpc.InferenceServerClient(arguments.grpc) as client:
        for part in (described, tensors, ends, streams, errors, repository):
            await part(client, checks)
    checks.end()


asyncio.run(main())
