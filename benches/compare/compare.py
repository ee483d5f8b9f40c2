#!/usr/bin/env python3
"""Measures Bascule beside servers that pip installs: the same tiny model, the same load, a table at the end.

    compare.py                                     sets up what is missing, then measures all
    compare.py --only mlserver,litserve            Bascule and these
    compare.py --rounds 5 --seconds 5 --json FILE  longer, and every figure in a file

One server runs at a time, on one core; the load generator has another. Each round starts every server once, one after the
other, so that what changes on the machine meanwhile hits all alike; the table has the medians of the rounds. A server that
can't be installed, started, or asked without a failure is in the table with the reason. README.md beside this file says what
the figures mean. Standard library only.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlp
import processes
from calls import Tools
from peers import PEERS, REPOSITORY, ROW, Place, deps
from processes import NotMeasured, Server
from table import Row, table

START_LIMIT = 120.0
TOLERANCE = 1e-5
WARM_UP_SECONDS = 1


def log(text):
    print(f"compare: {text}", file=sys.stderr, flush=True)


def wait_until_it_answers(call, tools, server, port):
    """The first good answer; some servers take connections, and refuse requests, before they are ready."""
    limit, problem = time.monotonic() + START_LIMIT, "no connection"
    while time.monotonic() < limit:
        if not server.alive():
            raise NotMeasured(f"it ended at its start with status {server.process.returncode}: {server.last_words()}")
        try:
            return call.ask(tools, port)
        except (OSError, http.client.HTTPException, subprocess.TimeoutExpired, NotMeasured) as error:
            problem = str(error) or type(error).__name__
        time.sleep(0.2)
    raise NotMeasured(f"it was not ready within {START_LIMIT:.0f} s ({problem}): {server.last_words()}")


def check(numbers, expected):
    if len(numbers) != mlp.CLASSES:
        raise NotMeasured(f"it answers {len(numbers)} numbers instead of {mlp.CLASSES}")
    # Written so that a NaN is not equal.
    if not all(abs(one - other) <= TOLERANCE for one, other in zip(numbers, expected)):
        raise NotMeasured(f"it answers {numbers} instead of {expected}")


class Comparison:
    """What is measured, with what, and what came out so far."""

    def __init__(self, arguments, scratch):
        self.arguments, self.scratch = arguments, scratch
        self.server_core, self.client_core = sorted(os.sched_getaffinity(0))[:2]
        self.model = scratch / "mlp.onnx"
        self.model.write_bytes(mlp.model())
        self.peers = [peer for peer in PEERS if not arguments.only or peer.key in ("bascule", *arguments.only)]
        self.rows = {(peer.key, call.protocol): Row(peer.name, call.protocol) for peer in self.peers for call in peer.calls}
        self.tools = None
        # What the weights say, until Bascule has answered.
        self.expected = mlp.answer(ROW)

    def rows_of(self, peer):
        return [self.rows[peer.key, call.protocol] for call in peer.calls]

    def attempt(self, rows, action, *arguments):
        """Does something for rows of one server; where that fails, the reason goes into them and they are left out from then on."""
        try:
            action(*arguments)
        except NotMeasured as error:
            for row in rows:
                row.reason = row.reason or str(error)
                log(f"{row.name}, {row.protocol}: not measured: {error}")

    def set_up(self):
        with deps.one_at_a_time():
            deps.set_up("load-tools")
            for peer in self.peers:
                self.attempt(self.rows_of(peer), self.set_up_one, peer)
        programs = [str(deps.DEPS / "load-tools" / "bin" / name) for name in ("wrk", "h2load", "nghttp")]
        self.tools = Tools(*programs, self.scratch, self.arguments.connections, self.client_core)

    def set_up_one(self, peer):
        peer.set_up()
        if peer.key == "bascule":
            program = self.arguments.bascule
            if not os.access(program, os.X_OK):
                raise NotMeasured(f"there is no program {program.name} at --bascule; make build leaves one at the default")
            told = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            version = told.stdout.split()[-1] if told.stdout else ""
        else:
            version = peer.version()
        for row in self.rows_of(peer):
            row.version = version

    def round(self, number):
        for peer in self.peers:
            rows = [row for row in self.rows_of(peer) if not row.reason]
            if rows:
                self.attempt(rows, self.serve, peer, number)

    def serve(self, peer, number):
        """Starts a server, and measures all that it is asked, one after the other."""
        folder = self.scratch / f"{peer.key}-{number}"
        folder.mkdir()
        place = Place(self.model, processes.free_ports(3), folder, self.arguments.bascule)
        log_file = self.scratch / f"{peer.key}.log"
        with Server(peer.command(place), peer.environment_in(place), folder, log_file, self.server_core) as server:
            for call in peer.calls:
                row = self.rows[peer.key, call.protocol]
                if not row.reason:
                    self.attempt([row], self.measure, call, row, server, place.ports[call.port])

    def measure(self, call, row, server, port):
        numbers, answer_bytes = wait_until_it_answers(call, self.tools, server, port)
        check(numbers, self.expected)
        if row.name == "Bascule":
            self.expected = numbers
        call.load(self.tools, port, WARM_UP_SECONDS, answer_bytes)
        processes.hold(self.server_core)
        before = processes.cpu_seconds()
        loaded = call.load(self.tools, port, self.arguments.seconds, answer_bytes)
        cpu = processes.cpu_seconds() - before
        if not server.alive():
            raise NotMeasured(f"it ended under load with status {server.process.returncode}: {server.last_words()}")
        figures = {"rate": loaded.rate, "p50": loaded.p50, "p99": loaded.p99, "cpu": cpu * 1e6 / loaded.requests}
        row.rounds.append(figures)
        told = ", ".join(f"{name} {figure:.1f}" for name, figure in figures.items())
        log(f"round {len(row.rounds)}: {row.name}, {row.protocol}: {told}")

    def bases(self):
        """Bascule's rows: what each protocol is compared with."""
        return [row for (key, _), row in self.rows.items() if key == "bascule"]

    def write_json(self, path):
        rows = [vars(row) | {"medians": row.medians()} for row in self.rows.values()]
        plan = {name: getattr(self.arguments, name) for name in ("rounds", "seconds", "connections")}
        path.write_text(json.dumps({"plan": plan, "rows": rows}, indent=2) + "\n")


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def keys(text):
    known = [peer.key for peer in PEERS]
    chosen = [key.strip() for key in text.split(",") if key.strip()]
    if unknown := [key for key in chosen if key not in known]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}, only {', '.join(known)}")
    return chosen


def compare(arguments, scratch):
    """Sets up, measures and prints; 0 where Bascule has figures."""
    comparison = Comparison(arguments, scratch)
    comparison.set_up()
    for number in range(1, arguments.rounds + 1):
        comparison.round(number)
    print(table(comparison.rows.values(), comparison.bases()))
    if arguments.json:
        comparison.write_json(arguments.json)
    return 0 if any(row.medians() for row in comparison.bases()) else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=keys, default=[], metavar="PEER,…", help="measure Bascule and these")
    parser.add_argument("--rounds", type=positive, default=3, help="the table has their medians (default: 3)")
    parser.add_argument("--seconds", type=positive, default=3, help="of load in one round (default: 3)")
    parser.add_argument("--connections", type=positive, default=32, help="that send (default: 32)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure there")
    parser.add_argument("--bascule", type=Path, default=REPOSITORY / "target" / "release" / "bascule", help="the program to measure")
    arguments = parser.parse_args()
    arguments.bascule = arguments.bascule.absolute()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("error: a server and its load need a core each\nhint: run it where there are two")
    # Ends as Ctrl-C does: through every `finally`.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    processes.become_subreaper()
    # Not under $TMPDIR: Ray puts sockets there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="compare-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        try:
            return compare(arguments, Path(scratch))
        finally:
            with processes.undisturbed():
                processes.end_leftovers()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    except deps.SetupError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
