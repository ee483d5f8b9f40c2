#!/usr/bin/env python3
"""Runs the tests and says in one line how many passed, failed and were skipped: never fewer failures than there were.

    run_tests.py short                     every test that is not marked #[ignore], loom, the scripts, the sample models
    run_tests.py long [--box SECONDS]      the tests marked #[ignore] (they are the long ones), fuzzing, the demo; with a box,
                                           as many as fit, starting at another one each day and commit
    run_tests.py gpu                                       the tests that need an NVIDIA GPU
    run_tests.py check NAME -- COMMAND     one command that passes or fails
    run_tests.py total                     the sum of what the calls above wrote to the file $BASCULE_TALLY

A test that can't run adds `skipped: <test>: <reason>` to the file $BASCULE_SKIP_LOG and returns; it is counted here as skipped,
not as passed. Standard library only.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or "target")
CARGO = os.environ.get("CARGO", "cargo")
LOCKED = ["--locked"] if os.environ.get("CI") == "true" else []

# No suite takes nearly as long; a hang must end as a failure.
SHORT_LIMIT = 40 * 60
LONG_LIMIT = 30 * 60
FUZZ_SECONDS = 60
CASE_LIMIT = 20 * 60


class Tally:
    """What passed, and the names of what failed and of what was skipped."""

    def __init__(self, passed=0, failed=(), skipped=()):
        self.passed, self.failed, self.skipped = passed, list(failed), list(skipped)

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def line(self):
        return f"{self.passed} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"

    def write(self):
        """Adds itself to the file that `total` sums."""
        path = os.environ.get("BASCULE_TALLY")
        if path:
            with open(path, "a") as file:
                file.write(json.dumps(vars(self)) + "\n")

    def report(self):
        for entry in self.skipped:
            print(f"skipped: {entry}")
        for entry in self.failed:
            print(f"FAILED: {entry}")
        print(self.line(), flush=True)
        return 1 if self.failed else 0


def read_cargo_output(output, status, suite):
    """The tally of `cargo test`, and how many tests it left out as ignored. A test program that ended without giving its counts,
    a failure that was counted but not named, and a status that no failure explains are failures too."""
    tally, left = Tally(), 0
    program, counted, named = None, True, []

    def end_program():
        if not counted:
            tally.failed.extend(named or [f"{suite}: {program} crashed"])

    for line in output:
        if started := re.match(r"\s+(?:Running|Doc-tests) (.+)", line):
            end_program()
            program, counted, named = started[1], False, []
        elif failed := re.match(r"test (.+?)(?: - should panic)? \.\.\. FAILED", line):
            named.append(f"{suite}: {failed[1]}")
        elif result := re.match(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored;", line):
            lost = max(0, int(result[2]) - len(named))
            tally.failed += named + [f"{suite}: a test of {program} whose name was lost"] * lost
            tally.passed += int(result[1])
            left += int(result[3])
            counted, named = True, []
    end_program()
    if status != 0 and not tally.failed:
        tally.failed.append(f"{suite}: cargo ended with status {status}")
    return tally, left


@contextlib.contextmanager
def skip_log():
    """An empty file for the tests to name what they skip, and the list that is filled from it."""
    with tempfile.TemporaryDirectory() as folder:
        path, skipped = Path(folder) / "skipped", []
        path.touch()
        yield str(path), skipped
        # A test may find out twice.
        for line in dict.fromkeys(path.read_text().splitlines()):
            skipped.append(line[len("skipped: ") :] if line.startswith("skipped: ") else line)


def test_environment(log):
    """What tests are told: where the skip log is, and what `make test-deps` set up, where it is there."""
    # Fake runtimes panic by the thousand, as they are told to: a backtrace each takes longer than the tests.
    # BASCULE_TEST_BACKTRACE=1 has them all the same.
    environment = {**os.environ, "BASCULE_SKIP_LOG": log, "RUST_BACKTRACE": os.environ.get("BASCULE_TEST_BACKTRACE", "0")}
    places = {
        "BASCULE_ONNXRUNTIME_LIBRARY": ".deps/onnxruntime/lib/libonnxruntime.so",
        "BASCULE_TEST_PYTHON": ".deps/venv/bin/python",
        "BASCULE_TEST_MODELS": ".deps/models",
        "BASCULE_TEST_TORCH": ".deps/torch/lib",
        "BASCULE_TEST_SERVERS": ".deps",
    }
    for name, place in places.items():
        if (REPOSITORY / place).exists():
            environment.setdefault(name, str(REPOSITORY / place))
    if "BASCULE_TEST_TORCH" in environment:
        environment.setdefault("BASCULE_TEST_TORCH_PLUGIN", str(REPOSITORY / TARGET / "release" / "libbascule_torch.so"))
    return environment


def run(command, limit, environment=None, folder=REPOSITORY):
    """Runs a command, shows its output and returns it with the exit status; status None where the limit (seconds) ended it."""
    print(f"$ {' '.join(map(str, command))}", flush=True)
    late, output = threading.Event(), []
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, errors="replace", start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as child:  # fmt: skip

        def stop():
            late.set()
            # The session is the child's own: nothing else is in it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            for line in child.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                output.append(line.rstrip("\n"))
            status = child.wait()
        except KeyboardInterrupt:
            stop()
            raise
        finally:
            timer.cancel()
    return output, None if late.is_set() else status


def cargo_suite(name, command, environment=None):
    """Runs `cargo test` and tallies it; returns also how many tests it left out as ignored."""
    with skip_log() as (log, skipped):
        output, status = run(command, SHORT_LIMIT, {**test_environment(log), **(environment or {})})
        if status is None:
            tally, left = read_cargo_output(output, 0, name)
            tally.failed.append(f"{name}: did not end within {SHORT_LIMIT} s")
        else:
            tally, left = read_cargo_output(output, status, name)
    tally.skipped += skipped
    tally.passed -= len(skipped)
    return tally, left


def check(name, command, limit=SHORT_LIMIT):
    _, status = run(command, limit)
    return Tally(passed=1) if status == 0 else Tally(failed=[name if status is not None else f"{name}: did not end within {limit} s"])


def torch():
    """The plugin that runs TorchScript, where libtorch is there: built first, since its tests open it as a gateway does. Its profile is
    that of `make torch`, so that libtorch's wrapper is compiled once."""
    if not (REPOSITORY / ".deps/torch").exists():
        return Tally(skipped=["torch: libtorch is not installed; `make torch` installs it"])
    place = str(REPOSITORY / ".deps/torch")
    package = [*LOCKED, "--release", "--package", "bascule-runtime-torch"]
    built = check("torch plugin", ["env", f"LIBTORCH={place}", CARGO, "build", *package])
    if built.failed:
        return built
    # The tests of its parts are linked with libtorch, which lies where no linker looks.
    environment = {"LIBTORCH": place, "LD_LIBRARY_PATH": f"{place}/lib"}
    built.add(cargo_suite("torch", [CARGO, "test", *package], environment)[0])
    return built


def short():
    tally = check("scripts", [sys.executable, "-m", "unittest", "discover", "--start-directory", "scripts"])
    tally.add(check("comparison", [sys.executable, "-m", "unittest", "discover", "--start-directory", "benches/compare"]))
    tally.add(check("sample models", [sys.executable, "models/train.py", "--check"]))
    tally.add(torch())
    suite, left = cargo_suite("workspace", [CARGO, "test", *LOCKED, "--no-fail-fast"])
    tally.add(suite)
    # Another cfg builds other artefacts: a folder of its own keeps both warm.
    loom = {"RUSTFLAGS": f"{os.environ.get('RUSTFLAGS', '')} --cfg loom".strip(), "CARGO_TARGET_DIR": str(TARGET / "loom")}
    tally.add(cargo_suite("loom", [CARGO, "test", *LOCKED, "--package", "bascule-handoff", "--release", "--lib"], loom)[0])
    if left:
        print(f"{left} long tests are left to `make test-all`")
    return tally


def gpu():
    """The tests that need an NVIDIA GPU, one at a time: each wants to see the memory that it has itself taken."""
    command = [CARGO, "test", *LOCKED, "--package", "bascule", "--test", "gpu", "--", "--test-threads=1"]
    return cargo_suite("gpu", command)[0]


# ---- the long tests


class BuildError(Exception):
    """The test programs do not build; cargo has said why."""


class Case:
    """One long test: a name, a command, the folder to run it in, and what it needs that is not there, if anything. `prepare` is a
    command that comes first and does not count against the limit."""

    def __init__(self, name, command, folder=REPOSITORY, lacks=None, limit=CASE_LIMIT, prepare=None):
        self.name, self.command, self.folder, self.lacks, self.limit, self.prepare = name, command, folder, lacks, limit, prepare


def ignored_tests():
    """One case for each test marked #[ignore], run by itself out of its test program."""
    build = [CARGO, "test", *LOCKED, "--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(build, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        raise BuildError
    cases = []
    for message in map(json.loads, built.stdout.splitlines()):
        if message.get("reason") != "compiler-artifact" or not message.get("executable") or not message["profile"]["test"]:
            continue
        program, folder = message["executable"], Path(message["manifest_path"]).parent
        listed = subprocess.run([program, "--ignored", "--list", "--format=terse"], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
        for line in listed.stdout.splitlines():
            if line.endswith(": test"):
                test = line[: -len(": test")]
                cases.append(Case(f"{message['target']['name']}: {test}", [program, "--ignored", "--exact", test, "--nocapture"], folder))
    return cases


def fuzz_targets():
    """One case for each cargo-fuzz target in the repository, starting from the inputs in fuzz/seeds/<target>/."""
    cases = []
    manifests = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "fuzz/Cargo.toml", "*/fuzz/Cargo.toml"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.split()  # fmt: skip
    lacks, fuzzer, sanitizer = fuzzing_tools()
    for manifest in manifests:
        folder = (REPOSITORY / manifest).parent
        for target in sorted((folder / "fuzz_targets").glob("*.rs")):
            where = [f"--fuzz-dir={folder}", f"--target-dir={(REPOSITORY / TARGET / 'fuzz').resolve()}"]
            corpus = folder / "corpus" / target.stem
            corpus.mkdir(parents=True, exist_ok=True)
            seeds = [str(path) for path in [folder / "seeds" / target.stem] if path.is_dir()]
            runs = [target.stem, str(corpus), *seeds, "--", f"-max_total_time={FUZZ_SECONDS}"]
            # The first builds for all: that takes minutes, and none where nothing has changed.
            build = [*fuzzer, "build", *sanitizer, *where]
            command = [*fuzzer, "run", *sanitizer, *where, *runs]
            cases.append(Case(f"fuzz: {target.stem}", command, folder.parent, lacks, prepare=build))
    return cases


def fuzzing_tools():
    """What is missing for fuzzing, if anything, and the command that runs a target."""
    fuzzer = next(filter(shutil.which, [os.environ.get("CARGO_FUZZ", ""), "cargo-fuzz"]), None)
    if fuzzer is None:
        return "cargo-fuzz is not installed (cargo install cargo-fuzz)", [], []
    # Coverage needs flags that stable Rust hides; address checks, which need nightly, add little where there is no unsafe code.
    return None, ["env", "RUSTC_BOOTSTRAP=1", fuzzer], ["--sanitizer=none"]


def rotated(cases, turn):
    start = turn % len(cases) if cases else 0
    return cases[start:] + cases[:start]


def turn():
    """A number that changes with the day and with the commit."""
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int(time.time() // 86_400) + int(commit.stdout.strip() or "0", 16)


def run_case(case, left):
    """Runs a case within its limit and the seconds left, and tallies it."""
    if case.lacks:
        return Tally(skipped=[f"{case.name}: {case.lacks}"])
    if case.prepare:
        began = time.monotonic()
        _, status = run(case.prepare, left, folder=case.folder)
        if status is None:
            return Tally(skipped=[f"{case.name}: its build was cut off by the end of this run's time box"])
        if status != 0:
            return Tally(failed=[f"{case.name}: does not build"])
        left -= time.monotonic() - began
    limit = min(case.limit, left)
    with skip_log() as (log, skipped):
        environment = {**test_environment(log), "CARGO_MANIFEST_DIR": str(case.folder)}
        _, status = run(case.command, limit, environment, case.folder)
    if status is None and limit < case.limit:
        return Tally(skipped=[f"{case.name}: cut off after {limit:.0f} s by the end of this run's time box"])
    if status is None:
        return Tally(failed=[f"{case.name}: did not end within {limit} s"])
    if status != 0:
        return Tally(failed=[case.name])
    return Tally(skipped=skipped) if skipped else Tally(passed=1)


def long(box):
    end = time.monotonic() + box if box is not None else float("inf")
    try:
        cases = [*ignored_tests(), *fuzz_targets(), Case("demo", ["make", "demo"], limit=LONG_LIMIT)]
    except BuildError:
        return Tally(failed=["long: the tests do not build"])
    tally = Tally()
    for case in rotated(cases, turn() if box is not None else 0):
        left = end - time.monotonic()
        if left < 10:
            tally.skipped.append(f"{case.name}: not in this run's time box, which starts at another test each day and commit")
        else:
            tally.add(run_case(case, left))
    return tally


def total():
    tally = Tally()
    for line in Path(os.environ["BASCULE_TALLY"]).read_text().splitlines():
        tally.add(Tally(**json.loads(line)))
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("short")
    commands.add_parser("gpu")
    commands.add_parser("long").add_argument("--box", type=float, metavar="SECONDS")
    checked = commands.add_parser("check")
    checked.add_argument("name")
    checked.add_argument("run", nargs="+", metavar="COMMAND")
    commands.add_parser("total")
    arguments = parser.parse_args()
    if arguments.command == "total":
        return total().report()
    if arguments.command == "check":
        tally = check(arguments.name, arguments.run)
    else:
        tally = {"short": short, "gpu": gpu, "long": lambda: long(arguments.box)}[arguments.command]()
    tally.write()
    return tally.report()


if __name__ == "__main__":
    sys.exit(main())
