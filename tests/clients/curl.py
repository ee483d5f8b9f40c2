"""curl, as people type it: HTTP/1.1 and HTTP/2, compression, a file with a tensor, and time-outs."""

import gzip
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from checks import ENDLESS, IMAGE, SHORT_SECONDS, scores, start

TIMED_OUT = 28


class Answer:
    """What curl showed: the last head that it printed, and the body."""

    def __init__(self, shown):
        head, self.body = shown.split(b"\r\n\r\n", 1)
        while self.body.startswith(b"HTTP/"):
            head, self.body = self.body.split(b"\r\n\r\n", 1)
        first, *lines = head.decode().split("\r\n")
        self.version, status = first.split()[:2]
        self.status = int(status)
        self.headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}

    def json(self):
        return json.loads(self.body)


def run(*arguments, data=None):
    return subprocess.run(["curl", "--silent", "--show-error", "--noproxy", "*", *arguments], input=data, capture_output=True)


def curl(*arguments, data=None):
    done = run("--include", "--max-time", "60", *arguments, data=data)
    assert done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr.decode()}"
    return Answer(done.stdout)


def body(images=1, **more):
    tensor = {"name": "x", "shape": [images, 64], "datatype": "FP32", "data": IMAGE.tolist() * images}
    return json.dumps({"inputs": [tensor], **more}).encode()


def slow(iterations):
    inputs = [
        {"name": "iterations", "shape": [], "datatype": "INT64", "data": [int(iterations)]},
        {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]},
    ]
    return json.dumps({"inputs": inputs}).encode()


def plain(base, checks):
    with checks.check("health, over HTTP/1.1 and HTTP/2"):
        for version, flag in (("HTTP/1.1", "--http1.1"), ("HTTP/2", "--http2-prior-knowledge"), ("HTTP/1.1", "--http2")):
            answer = curl(flag, f"{base}/v2/health/live")
            assert answer.version == version and answer.status == 200 and answer.json() == {"live": True}, vars(answer)
        assert curl(f"{base}/v2/health/ready").json() == {"ready": True}
    with checks.check("infer as one types it"):
        for flag in ("--http1.1", "--http2-prior-knowledge"):
            answer = curl(flag, "--data", body(id="a-1").decode(), f"{base}/v2/models/digits/infer")
            assert answer.status == 200 and answer.headers["content-type"] == "application/json", vars(answer)
            found = answer.json()
            assert (found["id"], found["model_name"], found["model_version"]) == ("a-1", "digits", "2"), found
            np.testing.assert_allclose(found["outputs"][0]["data"], scores(2)[0], rtol=1e-6)
    with checks.check("a body in chunks"):
        chunked = ["--header", "Transfer-Encoding: chunked", "--data-binary", "@-"]
        answer = curl(*chunked, f"{base}/v2/models/digits/infer", data=body())
        assert answer.status == 200, vars(answer)
    with checks.check("two requests on one connection"):
        done = run("--write-out", "%{num_connects}\n", *[f"{base}/v2/health/live"] * 2)
        assert done.stdout.decode().split() == ['{"live":true}1', '{"live":true}0'], done.stdout


def binary(base, checks):
    head = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": 256}}]}
    head = json.dumps({**head, "parameters": {"binary_data_output": True}}).encode()
    with checks.check("binary tensors out of a file"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "request"
        path.write_bytes(head + IMAGE.tobytes())
        length = ["--header", f"Inference-Header-Content-Length: {len(head)}"]
        answer = curl(*length, "--data-binary", f"@{path}", f"{base}/v2/models/digits/infer")
        end = int(answer.headers["inference-header-content-length"])
        assert answer.status == 200 and answer.headers["content-type"] == "application/octet-stream", vars(answer)
        assert json.loads(answer.body[:end])["outputs"][0]["parameters"] == {"binary_data_size": 40}
        np.testing.assert_array_equal(np.frombuffer(answer.body[end:], np.float32), scores(2)[0])
    with checks.check("a raw body"):
        raw = ["--header", "Inference-Header-Content-Length: 0", "--data-binary", "@-"]
        answer = curl(*raw, f"{base}/v2/models/digits/infer", data=IMAGE.tobytes())
        assert answer.status == 200, answer.body
        end = int(answer.headers["inference-header-content-length"])
        np.testing.assert_array_equal(np.frombuffer(answer.body[end:], np.float32), scores(2)[0])


def compressed(base, checks):
    for coding in ("gzip", "deflate"):
        with checks.check(f"a {coding} answer"):
            accepted = ["--header", f"Accept-Encoding: {coding}", "--compressed", "--data-binary", "@-"]
            answer = curl(*accepted, f"{base}/v2/models/digits/infer", data=body(images=8))
            assert answer.headers["content-encoding"] == coding, answer.headers
            assert answer.json()["outputs"][0]["shape"] == [8, 10]
    with checks.check("a gzip request"):
        sent = ["--header", "Content-Encoding: gzip", "--data-binary", "@-"]
        answer = curl(*sent, f"{base}/v2/models/digits/infer", data=gzip.compress(body()))
        assert answer.status == 200 and answer.json()["model_name"] == "digits", vars(answer)


def ends(base, checks):
    url = f"{base}/v2/models/slow/infer"
    with checks.check("a caller who goes away ends what runs"):
        for flag in ("--http1.1", "--http2-prior-knowledge"):
            done = run(flag, "--max-time", str(SHORT_SECONDS), "--data-binary", "@-", url, data=slow(ENDLESS))
            assert done.returncode == TIMED_OUT, done
            answer = curl("--data-binary", "@-", url, data=slow(5))
            assert answer.status == 200 and answer.json()["outputs"][0]["data"] == [6.0], vars(answer)
    with checks.check("errors are JSON"):
        for path, expected in (("models/nope", 404), ("nothing", 404), ("models/digits/infer", 405), ("logging", 501)):
            answer = curl(f"{base}/v2/{path}")
            assert answer.status == expected and answer.headers["content-type"] == "application/json", vars(answer)
            assert answer.json()["error"], answer.body


def commands(base, checks):
    with checks.check("an unload that is wrong unloads nothing"):
        answer = curl("--data", '{"parameters": {"unload_dependents": "x"}}', f"{base}/v2/repository/models/spare/unload")
        assert answer.status == 400 and "unload_dependents" in answer.json()["error"], vars(answer)
        assert curl(f"{base}/v2/models/spare/ready").status == 200
    with checks.check("unload, load and index"):
        assert curl("--request", "POST", f"{base}/v2/repository/models/spare/unload?wait=true").status == 200
        assert curl(f"{base}/v2/models/spare").status == 404
        assert curl("--request", "POST", f"{base}/v2/repository/models/spare/load").status == 200
        index = curl("--data", '{"ready": true}', f"{base}/v2/repository/index").json()
        assert ("spare", "1", "READY") in [(entry["name"], entry["version"], entry["state"]) for entry in index], index


def main():
    arguments, checks = start()
    for part in (plain, binary, compressed, ends, commands):
        part(f"http://{arguments.http}", checks)
    checks.end()


main()
