"""What servers are asked, over HTTP and over gRPC: once, to see whether the answer is right, and under load."""

import http.client
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc_call
import load
from processes import NotMeasured


@dataclass
class Tools:
    """The load generators, a scratch folder for what they read and write, and how they are to be used."""

    wrk: str
    h2load: str
    nghttp: str
    scratch: Path
    connections: int
    core: int


@dataclass
class HttpCall:
    """A JSON body for a path; `numbers` finds the model's numbers in the answer. `port` says which of a server's ports."""

    protocol: str
    path: str
    body: str
    numbers: object
    port: int = 0

    def ask(self, tools, port):
        """The numbers of one answer, and its length in bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=load.ANSWER_LIMIT)
        try:
            connection.request("POST", self.path, self.body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        text = " ".join(body.decode(errors="replace").split())[:160]
        if answer.status != 200:
            raise NotMeasured(f"it answers {answer.status}: {text}")
        try:
            return [float(number) for number in self.numbers(json.loads(body))], len(body)
        except (ValueError, KeyError, TypeError):
            raise NotMeasured(f"it answers with something else: {text}") from None

    def load(self, tools, port, seconds, answer_bytes):
        script = tools.scratch / "post.lua"
        script.write_text(load.wrk_script(self.body))
        return load.wrk(tools.wrk, script, f"http://127.0.0.1:{port}{self.path}", tools.connections, seconds, tools.core)


@dataclass
class GrpcCall:
    """One row for the model's method of the Open Inference Protocol."""

    message: bytes
    protocol: str = "gRPC, V2"
    port: int = 1

    def prepare(self, tools, port):
        request = tools.scratch / "request.grpc"
        request.write_bytes(self.message)
        return request, f"http://127.0.0.1:{port}{grpc_call.METHOD}"

    def ask(self, tools, port):
        """The numbers of one answer, and its length in bytes."""
        request, url = self.prepare(tools, port)
        headers = ["--header=:method: POST", "--header=content-type: application/grpc", "--header=te: trailers"]
        command = [tools.nghttp, f"--timeout={load.ANSWER_LIMIT}", f"--data={request}", *headers, url]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=2 * load.ANSWER_LIMIT
        )
        if not done.stdout:
            raise NotMeasured(f"it answers nothing over gRPC: {' '.join(done.stderr.decode(errors='replace').split())[:160]}")
        return grpc_call.numbers(done.stdout), len(done.stdout)

    def load(self, tools, port, seconds, answer_bytes):
        request, url = self.prepare(tools, port)
        return load.h2load(tools.h2load, tools.scratch, request, answer_bytes, url, tools.connections, seconds, tools.core)
