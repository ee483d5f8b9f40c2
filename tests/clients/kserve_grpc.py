"""The KServe SDK's InferenceGRPCClient."""

import asyncio

import grpc
import numpy as np

from checks import (
    ENDLESS, IMAGE, NUMBERS, PATIENCE_SECONDS, SHORT_SECONDS, SUMMANDS, WORDS, as_bytes, classes, raises, same, scores, start,
)  # fmt: skip
from kserve_client import InferenceGRPCClient, RequestedOutput, request


def code(expected):
    return raises(grpc.aio.AioRpcError, lambda error: error.code() == expected and error.details())


async def main():
    arguments, checks = start()
    client = InferenceGRPCClient(arguments.grpc, retries=0)
    with checks.check("live and ready"):
        assert await client.is_server_live() is True and await client.is_server_ready() is True
        assert await client.is_model_ready("digits") is True and await client.is_model_ready("nope") is False
    # Not binary means the typed lists of the message.
    for binary in (False, True):
        kind = "raw bytes" if binary else "typed lists"
        with checks.check(f"infer, {kind}"):
            tensors = [("INPUT0", SUMMANDS[0], "INT32"), ("INPUT1", SUMMANDS[1], "INT32")]
            response = await client.infer(request("simple", tensors, binary, request_id="a-1"))
            same(response.get_output_by_name("OUTPUT0").as_numpy(), SUMMANDS[0] + SUMMANDS[1])
            same(response.get_output_by_name("OUTPUT1").as_numpy(), SUMMANDS[0] - SUMMANDS[1])
            assert response.id == "a-1" and response.model_version == "1"
        with checks.check(f"BYTES, {kind}"):
            response = await client.infer(request("text", [("x", WORDS, "BYTES")], binary))
            same(as_bytes(response.outputs[0].as_numpy()), WORDS)
        with checks.check(f"classification and version, {kind}"):
            outputs = [RequestedOutput("y", {"classification": 3})]
            asked = request("digits", [("x", IMAGE, "FP32")], binary, request_outputs=outputs, model_version="1")
            same(as_bytes((await client.infer(asked)).outputs[0].as_numpy()), classes(1, 3))
    with checks.check("parameters and headers"):
        asked = request("digits", [("x", IMAGE, "FP32")], True, parameters={"text": "a", "number": 3, "truth": True})
        same((await client.infer(asked, headers=(("x-request-id", "r-1"),))).outputs[0].as_numpy(), scores(2))
    with checks.check("a hundred at a time"):
        calls = [client.infer(request("digits", [("x", IMAGE * n, "FP32")], True)) for n in range(100)]
        for number, response in enumerate(await asyncio.gather(*calls)):
            same(response.outputs[0].as_numpy(), scores(2, IMAGE * number))
    with checks.check("a deadline ends what runs"):
        tensors = [("iterations", ENDLESS, "INT64"), ("x", NUMBERS, "FP32")]
        with code(grpc.StatusCode.DEADLINE_EXCEEDED):
            await client.infer(request("slow", tensors, True), timeout=SHORT_SECONDS)
        tensors[0] = ("iterations", np.array(3, dtype=np.int64), "INT64")
        response = await client.infer(request("slow", tensors, True), timeout=PATIENCE_SECONDS)
        same(response.outputs[0].as_numpy(), NUMBERS + 3)
    with checks.check("an unknown model is NOT_FOUND"), code(grpc.StatusCode.NOT_FOUND):
        await client.infer(request("nope", [("x", IMAGE, "FP32")], True))
    with checks.check("a wrong shape is INVALID_ARGUMENT"), code(grpc.StatusCode.INVALID_ARGUMENT):
        await client.infer(request("digits", [("x", IMAGE[:, :63], "FP32")], True))
    await client.close()
    checks.end()


asyncio.run(main())
