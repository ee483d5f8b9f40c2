"""The KServe SDK's InferenceRESTClient."""

import asyncio

import httpx
import numpy as np

from checks import ENDLESS, IMAGE, NUMBERS, SHORT_SECONDS, SUMMANDS, WORDS, as_bytes, classes, raises, same, scores, start
from kserve_client import InferenceRESTClient, RequestedOutput, RESTConfig, request


def status(expected):
    """The client takes the text out of an error only where its content type is exactly that of JSON."""
    return raises(httpx.HTTPStatusError, lambda error: error.response.status_code == expected and not str(error).startswith(", "))


async def main():
    arguments, checks = start()
    base = f"http://{arguments.http}"
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    with checks.check("live and ready"):
        assert await client.is_server_live(base) is True and await client.is_server_ready(base) is True
        assert await client.is_model_ready(base, "digits") and not await client.is_model_ready(base, "nope")
    for binary in (False, True):
        kind = "binary" if binary else "JSON"
        with checks.check(f"infer, {kind}"):
            tensors = [("INPUT0", SUMMANDS[0], "INT32"), ("INPUT1", SUMMANDS[1], "INT32")]
            headers = {}
            asked = request("simple", tensors, binary, request_id="a-1", parameters={"binary_data_output": binary})
            response = await client.infer(base, asked, "simple", response_headers=headers)
            same(response.get_output_by_name("OUTPUT0").as_numpy(), SUMMANDS[0] + SUMMANDS[1])
            same(response.get_output_by_name("OUTPUT1").as_numpy(), SUMMANDS[0] - SUMMANDS[1])
            assert response.id == "a-1" and response.model_name == "simple"
            assert ("inference-header-content-length" in headers) == binary, headers
        with checks.check(f"BYTES, {kind}"):
            response = await client.infer(base, request("text", [("x", WORDS, "BYTES")], binary), "text")
            same(as_bytes(response.outputs[0].as_numpy()), WORDS)
        with checks.check(f"classification, {kind}"):
            outputs = [RequestedOutput("y", {"classification": 3, "binary_data": binary})]
            asked = request("digits", [("x", IMAGE, "FP32")], binary, request_outputs=outputs)
            same(as_bytes((await client.infer(base, asked, "digits")).outputs[0].as_numpy()), classes(2, 3))
    with checks.check("FP16"):
        half = NUMBERS.astype(np.float16)
        asked = request("half", [("x", half, "FP16")], True, parameters={"binary_data_output": True})
        same((await client.infer(base, asked, "half")).outputs[0].as_numpy(), half)
    with checks.check("a plain dictionary, parameters and headers"):
        asked = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": IMAGE.tolist()}], "parameters": {"a": 1}}
        response = await client.infer(base, asked, "digits", headers={"x-request-id": "r-1"})
        same(response.outputs[0].as_numpy(), scores(2))
    with checks.check("a hundred at a time"):
        calls = [client.infer(base, request("digits", [("x", IMAGE * n, "FP32")], True), "digits") for n in range(100)]
        for number, response in enumerate(await asyncio.gather(*calls)):
            same(response.outputs[0].as_numpy(), scores(2, IMAGE * number))
    with checks.check("a time-out ends what runs"):
        tensors = [("iterations", ENDLESS, "INT64"), ("x", NUMBERS, "FP32")]
        with raises(httpx.ReadTimeout, lambda error: True):
            await client.infer(base, request("slow", tensors, True), "slow", timeout=SHORT_SECONDS)
        with status(504):
            await client.infer(base, request("slow", tensors, True, parameters={"timeout": int(SHORT_SECONDS * 1e6)}), "slow")
        tensors[0] = ("iterations", np.array(3, dtype=np.int64), "INT64")
        same((await client.infer(base, request("slow", tensors, True), "slow")).outputs[0].as_numpy(), NUMBERS + 3)
    with checks.check("an unknown model is a 404"), status(404):
        await client.infer(base, request("nope", [("x", IMAGE, "FP32")], True), "nope")
    with checks.check("a wrong shape is a 400"), status(400):
        await client.infer(base, request("digits", [("x", IMAGE[:, :63], "FP32")], True), "digits")
    await client.close()
    checks.end()


asyncio.run(main())
