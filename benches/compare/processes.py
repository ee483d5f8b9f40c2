"""Servers under measurement: one runs at a time, on one core, and nothing of it is left afterwards.

Some servers start others that outlive them or leave their process group. So this process makes itself the one that inherits
orphans (a child subreaper of Linux): whatever is below it in the tree of processes, apart from a load generator while one
runs, belongs to the server. That makes CPU time complete, and the end as well.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
TERM_LIMIT = 15.0
KILL_LIMIT = 10.0


class NotMeasured(Exception):
    """Why a server has no figures; the text goes into the table."""


def become_subreaper():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "can't become the parent of orphans")


def free_ports(count):
    """Ports of 127.0.0.1 that nothing listens on now; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def parse_stat(text):
    """Parent and CPU ticks out of /proc/PID/stat: those of the process and of its ended, waited-for children."""
    # The second field is the command in parentheses and may hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), sum(map(int, fields[11:15]))


def below(root, parents):
    """All that descend from a process, by a map from each process to its parent."""
    children = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, front = [], [root]
    while front:
        front = [child for pid in front for child in children.get(pid, [])]
        found += front
    return found


def tree():
    """The processes below this one, each with its CPU ticks."""
    parents, ticks = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            # It may have ended since it was listed.
            with contextlib.suppress(OSError):
                parents[int(entry)], ticks[int(entry)] = parse_stat(Path("/proc", entry, "stat").read_text())
    return {pid: ticks[pid] for pid in below(os.getpid(), parents)}


def cpu_seconds():
    """CPU time, user and system, that all processes of the server have used so far."""
    return sum(tree().values()) / TICKS_PER_SECOND


def hold(core):
    """Holds every thread of the server to a core, whatever it chose itself."""
    for pid in tree():
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread), {core})


@contextlib.contextmanager
def undisturbed():
    """A second Ctrl-C must not cut off what ends a server; it takes seconds, not minutes."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Server:
    """A server process in a session, and so a process group, of its own; use it in a `with`."""

    def __init__(self, command, environment, folder, log, core):
        self.command, self.environment, self.folder, self.log, self.core = command, environment, folder, log, core

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["taskset", "--cpu-list", str(self.core), *self.command], cwd=self.folder, env=self.environment,
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return self

    def alive(self):
        return self.process.poll() is None

    def last_words(self):
        """The last line that it wrote about an error, or else the last one: a reason that fits a table."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if re.search(r"\w", line)]
        errors = [line for line in lines if re.search(r"error|exception|fail", line, re.IGNORECASE)]
        return (errors or lines or ["it said nothing"])[-1][:160]

    def __exit__(self, *_):
        with undisturbed():
            # The first process only: it ends its children in its own order, and tidies up after them.
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TERM_LIMIT)
            # The group is the server's own, and keeps its id for as long as anything is in it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(KILL_LIMIT)
            end_leftovers()


def end_leftovers():
    """Ends what left the server's group. All of it is below this process, which runs nothing else by now."""
    limit = time.monotonic() + KILL_LIMIT
    while left := tree():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            # Only direct children can be waited for; the others become ours when their parent is gone.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > limit:
            raise RuntimeError(f"processes that can't be ended: {sorted(left)}")
        time.sleep(0.02)
