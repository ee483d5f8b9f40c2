"""The load: wrk for HTTP and h2load for gRPC. One thread, on one core, with connections that stay open and each send their next
request when the answer to the last one is there."""

import re
import subprocess
from dataclasses import dataclass

from processes import NotMeasured

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}
# An answer that takes longer counts as an error.
ANSWER_LIMIT = 10


@dataclass
class Load:
    """What a load saw: answered requests, requests a second, and times in milliseconds."""

    requests: int
    rate: float
    p50: float
    p99: float


def milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * UNITS[unit]


def found(pattern, text, what):
    match = re.search(pattern, text, re.MULTILINE)
    if not match:
        raise NotMeasured(f"the load generator reported no {what}")
    return match


def read_wrk(output):
    """What wrk printed. Answers other than 2xx and socket errors make the figures worthless: they are an error here."""
    if failed := re.search(r"^\s*Non-2xx or 3xx responses: (\d+)", output, re.MULTILINE):
        raise NotMeasured(f"{failed[1]} answers under load were not 2xx")
    if errors := re.search(r"^\s*Socket errors: (.*[1-9].*)$", output, re.MULTILINE):
        raise NotMeasured(f"socket errors under load: {errors[1]}")
    requests = int(found(r"^\s*(\d+) requests in ", output, "number of requests")[1])
    if requests == 0:
        raise NotMeasured("no request was answered under load")
    return Load(
        requests=requests,
        rate=float(found(r"^Requests/sec:\s+([\d.]+)", output, "rate")[1]),
        p50=milliseconds(found(r"^\s*50%\s+(\S+)", output, "median")[1]),
        p99=milliseconds(found(r"^\s*99%\s+(\S+)", output, "99th percentile")[1]),
    )


def wrk_script(body):
    """A wrk script that posts one JSON body again and again."""
    return f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [==[{body}]==]\n'


def run(command, limit, core):
    """The output of a load generator that is held to a core and ends within a limit."""
    try:
        done = subprocess.run(
            ["taskset", "--cpu-list", str(core), *command], timeout=limit, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"the load generator did not end within {limit:.0f} s") from None
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines()
        raise NotMeasured(f"the load generator failed: {lines[-1] if lines else f'status {done.returncode}'}")
    return done.stdout


def wrk(program, script, url, connections, seconds, core):
    command = [program, "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s", "--latency"]
    command += ["--timeout", f"{ANSWER_LIMIT}s", "--script", str(script), url]
    return read_wrk(run(command, seconds + 2 * ANSWER_LIMIT, core))


def read_h2load(output, log, answer_bytes, connections):
    """What h2load printed and logged. An error of gRPC comes with HTTP status 200 and without a message, so the bytes that came are
    compared with those of as many good answers; at the end up to one for each connection may be under way."""
    counts = found(r"^requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", output, "number of requests")
    done, succeeded, *failures = map(int, counts.groups())
    if any(failures) or succeeded != done:
        raise NotMeasured(f"requests under load failed: {counts[0].strip()}")
    if done == 0:
        raise NotMeasured("no request was answered under load")
    data = int(found(r"\((\d+)\) data$", output, "bytes")[1])
    if abs(data - done * answer_bytes) > connections * answer_bytes:
        raise NotMeasured(f"{done} answers under load came to {data} bytes instead of {done * answer_bytes}")
    times = sorted(int(line.split("\t")[2]) / 1e3 for line in log.splitlines())
    if len(times) < done:
        raise NotMeasured(f"the load generator logged {len(times)} of {done} requests")
    at = lambda part: times[min(len(times) - 1, int(part * len(times)))]  # noqa: E731
    rate = float(found(r"^finished in .*?, ([\d.]+) req/s", output, "rate")[1])
    return Load(requests=done, rate=rate, p50=at(0.5), p99=at(0.99))


def h2load(program, scratch, request, answer_bytes, url, connections, seconds, core):
    log = scratch / "h2load.log"
    log.unlink(missing_ok=True)
    command = [program, "--threads=1", f"--clients={connections}", "--max-concurrent-streams=1", f"--duration={seconds}"]
    command += [f"--data={request}", "--header=content-type: application/grpc", "--header=te: trailers", f"--log-file={log}", url]
    output = run(command, seconds + 2 * ANSWER_LIMIT, core)
    return read_h2load(output, log.read_text() if log.exists() else "", answer_bytes, connections)
