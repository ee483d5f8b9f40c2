"""Tests of the comparison's own arithmetic: a figure that is read wrongly, or a failure that is overlooked, looks like a result."""

import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import compare
import grpc_call
import mlp
import processes
from load import read_h2load, read_wrk, wrk_script
from peers import HERE, PEERS, first_row, rows_numbers, v2_numbers
from processes import NotMeasured, Server
from table import Row, table

GOOD = """Running 3s test @ http://127.0.0.1:8000/v2/models/mlp/infer
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.04ms  812.00us  14.26ms   93.41%
    Req/Sec    32.51k     2.12k   35.90k    76.67%
  Latency Distribution
     50%  890.00us
     75%    1.10ms
     90%    1.57ms
     99%    1.02s
  97250 requests in 3.00s, 24.30MB read
Requests/sec:  32403.11
Transfer/sec:      8.10MB
"""
REFUSED = GOOD.replace("Requests/sec", "  Non-2xx or 3xx responses: 17\nRequests/sec")
BROKEN = GOOD.replace("Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 1\nRequests/sec")
HARMLESS = GOOD.replace("Requests/sec", "  Socket errors: connect 0, read 0, write 0, timeout 0\nRequests/sec")

GRPC = """progress: 93% of clients started
Application protocol: h2c

finished in 1.01s, 4.00 req/s, 429.54KB/s
requests: 4 total, 6 started, 4 done, 4 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 4 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 429.54KB (439845) total, 133.73KB (136939) headers (space savings 85.80%), 168B (168) data
                     min         max         mean         sd        +/- sd
time for request:      256us     32.11ms      7.39ms      4.63ms    77.09%
"""
LOG = "".join(f"17958974008516{time}\t200\t{time}000\n" for time in (14, 11, 12, 13))


class ReadH2load(unittest.TestCase):
    def refused(self, output, reason, log=LOG):
        with self.assertRaisesRegex(NotMeasured, reason):
            read_h2load(output, log, 42, 2)

    def test_figures(self):
        for data in ("168B (168)", "252B (252)"):
            load = read_h2load(GRPC.replace("168B (168)", data), LOG, 42, 2)
            self.assertEqual((load.requests, load.rate, load.p50, load.p99), (4, 4.0, 13.0, 14.0))

    def test_a_failed_request_leaves_no_figures(self):
        self.refused(GRPC.replace("4 succeeded, 0 failed", "3 succeeded, 1 failed"), "requests under load failed")
        self.refused(GRPC.replace("168B (168)", "0B (0)"), "4 answers under load came to 0 bytes instead of 168")
        self.refused(GRPC.replace("4 done, 4 succeeded", "0 done, 0 succeeded"), "no request was answered")
        self.refused(GRPC, "logged 0 of 4", log="")
        self.refused("", "no number of requests")


class GrpcMessages(unittest.TestCase):
    def test_a_request(self):
        message = b"\x0a\x01m" b"\x2a\x0d" b"\x0a\x01x" b"\x12\x04FP32" b"\x1a\x02\x01\x01" b"\x3a\x04\x00\x00\x80\x3f"
        self.assertEqual(grpc_call.request("m", "x", [1.0]), b"\x00\x00\x00\x00" + bytes([len(message)]) + message)

    def test_the_numbers_of_an_answer(self):
        one = b"\x00\x00\x80\x3f"
        raw = mlp.field(1, "m") + mlp.field(5, mlp.field(1, "y")) + mlp.field(6, one)
        typed = mlp.field(5, mlp.field(1, "y") + mlp.field(5, mlp.field(6, one * 2)))
        for message, numbers in ((raw, [1.0]), (typed, [1.0, 1.0])):
            self.assertEqual(grpc_call.numbers(grpc_call.FRAME.pack(0, len(message)) + message), numbers)
        for answer in (b"", b"\x00\x00\x00\x00\x00", b"\x00\x00\x00\x00\x02\x32\xff"):
            with self.assertRaises(NotMeasured):
                grpc_call.numbers(answer)


class ReadWrk(unittest.TestCase):
    def refused(self, output, reason):
        with self.assertRaisesRegex(NotMeasured, reason):
            read_wrk(output)

    def test_figures_and_their_units(self):
        for output in (GOOD, HARMLESS):
            load = read_wrk(output)
            self.assertEqual((load.requests, load.rate), (97250, 32403.11))
            self.assertAlmostEqual(load.p50, 0.89)
            self.assertAlmostEqual(load.p99, 1020.0)

    def test_a_failed_request_leaves_no_figures(self):
        self.refused(REFUSED, "17 answers under load were not 2xx")
        self.refused(BROKEN, "socket errors under load: connect 0, read 3, write 0, timeout 1")
        self.refused(GOOD.replace("97250", "0"), "no request was answered")
        self.refused("unable to connect to 127.0.0.1:1 Connection refused", "no number of requests")

    def test_the_script_carries_the_body_as_it_is(self):
        self.assertIn('wrk.body = [==[{"rows":[[0.25]]}]==]', wrk_script('{"rows":[[0.25]]}'))


class Table(unittest.TestCase):
    def figures(self, *cpus):
        return [{"rate": 1e9 / cpu, "p50": cpu / 10, "p99": cpu, "cpu": cpu} for cpu in cpus]

    def test_medians_and_the_ratio_over_the_same_transport(self):
        http = Row("Bascule", "HTTP JSON, V2", "1", self.figures(50.0, 40.0, 400.0))
        grpc = Row("Bascule", "gRPC, V2", "1", self.figures(100.0))
        others = [Row("Other", "gRPC, V2", "", self.figures(500.0)), Row("Other", "HTTP JSON, its own", "", self.figures(500.0))]
        self.assertEqual(
            table([http, grpc, *others], [http, grpc]).splitlines()[2:],
            [
                "| Bascule 1 | HTTP JSON, V2 | 20,000,000 | 5.00 | 50.00 | 50 | 1.0 |",
                "| Other | HTTP JSON, its own | 2,000,000 | 50.00 | 500.00 | 500 | 10.0 |",
                "| Bascule 1 | gRPC, V2 | 10,000,000 | 10.00 | 100.00 | 100 | 1.0 |",
                "| Other | gRPC, V2 | 2,000,000 | 50.00 | 500.00 | 500 | 5.0 |",
            ],
        )

    def test_nobody_is_dropped(self):
        base, failed = Row("Bascule", "p", reason="a|b"), Row("Other", "p", "2", self.figures(1.0), "it ended")
        lines = table([base, failed, Row("Third", "p", rounds=self.figures(10.0))], [base]).splitlines()[2:]
        self.assertEqual(lines[0], "| Bascule | p | not measured: a/b |  |  |  |  |")
        self.assertEqual(lines[1], "| Other 2 | p | not measured: it ended |  |  |  |  |")
        self.assertTrue(lines[2].endswith("| 10 | – |"), lines[2])


class Answers(unittest.TestCase):
    def test_where_the_numbers_lie(self):
        self.assertEqual(v2_numbers({"outputs": [{"name": "y", "data": [1, 2, 3]}]}), [1, 2, 3])
        self.assertEqual((rows_numbers({"rows": [[1, 2, 3]]}), first_row([[1, 2, 3]])), ([1, 2, 3], [1, 2, 3]))

    def test_other_numbers_are_no_answer(self):
        compare.check([1.0, 2.0, 3.0], [1.0, 2.0, 3.000001])
        for numbers in ([1.0, 2.0], [1.0, 2.0, 3.1], [1.0, 2.0, float("nan")]):
            with self.assertRaises(NotMeasured):
                compare.check(numbers, [1.0, 2.0, 3.0])

    def test_every_peer_is_pinned(self):
        for peer in PEERS:
            if peer.package:
                self.assertRegex(peer.version(), r"^\d+\.")
                self.assertTrue((HERE / peer.key / "requirements.in").is_file())


class Model(unittest.TestCase):
    def test_the_bytes_of_fields(self):
        self.assertEqual(mlp.varint(300), b"\xac\x02")
        self.assertEqual(mlp.field(1, "ab") + mlp.field(8, 5), b"\x0a\x02ab\x40\x05")
        self.assertIn(b"MatMul", mlp.model())

    def test_the_answer_is_that_of_the_weights(self):
        self.assertEqual(mlp.layer([1.0, 2.0], [1.0, 0.0, -1.0, 0.0, 1.0, 0.5], [10.0, 20.0, 30.0]), [11.0, 22.0, 30.0])
        self.assertEqual(len(mlp.answer([0.25, -0.5, 0.75, 1.0])), mlp.CLASSES)


class Processes(unittest.TestCase):
    def test_cpu_of_a_process_and_of_its_ended_children(self):
        stat = "7 (a) b) S 3 7 7 0 -1 4194560 100 0 0 0 11 2 30 4 20 0 1 0 5 6 7"
        self.assertEqual(processes.parse_stat(stat), (3, 47))

    def test_what_is_below_a_process(self):
        self.assertEqual(sorted(processes.below(1, {2: 1, 3: 2, 4: 9, 5: 3})), [2, 3, 5])

    def test_nothing_of_a_server_is_left(self):
        # It ignores the request to end, and leaves a child in a session of its own, which writes its id.
        code = (
            "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
            "print(child.pid, flush=True); time.sleep(600)"
        )
        # Its own process: this one is not to become the parent of other tests' orphans.
        runner = (
            "import os, sys, time, processes; from pathlib import Path; processes.become_subreaper(); processes.TERM_LIMIT = 0.2\n"
            "log = Path(sys.argv[1]) / 'log'; core = min(os.sched_getaffinity(0))\n"
            "with processes.Server([sys.executable, '-c', sys.argv[2]], None, sys.argv[1], log, core) as server:\n"
            "    while not log.read_text().endswith('\\n'): time.sleep(0.01)\n"
            "    child = int(log.read_text()); assert {server.process.pid, child} <= set(processes.tree()), processes.tree()\n"
            "assert not processes.tree(); print('ended', os.path.exists(f'/proc/{child}'))"
        )
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", runner, folder, code], stdout=subprocess.PIPE, text=True, cwd=HERE, timeout=60,
            )  # fmt: skip
        self.assertEqual(done.stdout, "ended False\n")

    def test_what_a_server_said_last_is_its_reason(self):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            code = "print('first'); print('no such library')"
            with Server([sys.executable, "-c", code], None, folder, log, min(os.sched_getaffinity(0))) as server:
                limit = time.monotonic() + 30
                while server.alive() and time.monotonic() < limit:
                    time.sleep(0.01)
            self.assertEqual(server.last_words(), "no such library")


if __name__ == "__main__":
    unittest.main()
