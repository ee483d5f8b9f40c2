"""Tests of run_tests.py: a tally that hides a failure would make every other test worthless."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import run_tests
from run_tests import Case, Tally, read_cargo_output, rotated, run_case

GOOD = """
     Running unittests src/lib.rs (target/debug/deps/one-1)

running 3 tests
test a ... ok
test b ... ignored, long
test c ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""
BAD = """
     Running tests/two.rs (target/debug/deps/two-2)

running 2 tests
test x::y ... FAILED
test z - should panic ... ok

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""
LOST = BAD.replace("test x::y ... FAILED", "test x::y ... some output of the test's own\nFAILED")
CRASHED = """
     Running tests/three.rs (target/debug/deps/three-3)

running 2 tests
error: test failed, to rerun pass `--test three`
  process didn't exit successfully: (signal: 11, SIGSEGV: invalid memory reference)
"""
# Edition 2024 runs doc tests in two lots under one heading.
DOC = """
   Doc-tests one

running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""


class ReadCargoOutput(unittest.TestCase):
    def check(self, output, status, passed, failed, left=0):
        tally, ignored = read_cargo_output(output.splitlines(), status, "s")
        self.assertEqual((tally.passed, tally.failed, ignored), (passed, failed, left))

    def test_counts(self):
        self.check(GOOD, 0, 2, [], left=1)
        self.check(GOOD + DOC, 0, 4, [], left=1)
        self.check(GOOD + BAD + DOC, 101, 5, ["s: x::y"], left=1)

    def test_no_failure_is_lost(self):
        self.check(LOST, 101, 1, ["s: a test of tests/two.rs (target/debug/deps/two-2) whose name was lost"])
        self.check(CRASHED + DOC, 101, 2, ["s: tests/three.rs (target/debug/deps/three-3) crashed"])
        self.check(DOC + CRASHED, 101, 2, ["s: tests/three.rs (target/debug/deps/three-3) crashed"])
        self.check(GOOD, 101, 2, ["s: cargo ended with status 101"], left=1)
        self.check("error: could not compile `one`", 101, 0, ["s: cargo ended with status 101"])


class Cases(unittest.TestCase):
    def outcome(self, code, left=60.0, **more):
        with contextlib.redirect_stdout(io.StringIO()):
            tally = run_case(Case("c", [sys.executable, "-c", code], **more), left)
        return tally.passed, tally.failed, tally.skipped

    def test_outcomes(self):
        self.assertEqual(self.outcome("pass"), (1, [], []))
        self.assertEqual(self.outcome("exit(3)"), (0, ["c"], []))
        self.assertEqual(self.outcome("pass", lacks="no x"), (0, [], ["c: no x"]))

    def test_a_skip_is_not_a_pass(self):
        code = "import os; open(os.environ['BASCULE_SKIP_LOG'], 'a').write('skipped: t: no library\\n' * 2)"
        self.assertEqual(self.outcome(code), (0, [], ["t: no library"]))

    def test_a_hang_fails_and_the_end_of_the_box_skips(self):
        hang = "import threading; threading.Event().wait()"
        self.assertEqual(self.outcome(hang, limit=0.2), (0, ["c: did not end within 0.2 s"], []))
        self.assertEqual(self.outcome(hang, left=0.2), (0, [], ["c: cut off after 0 s by the end of this run's time box"]))

    def test_what_comes_first_must_succeed_and_may_take_longer_than_the_test(self):
        prepare = lambda code: {"prepare": [sys.executable, "-c", code]}  # noqa: E731
        hang = "import threading; threading.Event().wait()"
        self.assertEqual(self.outcome("pass", **prepare("pass")), (1, [], []))
        self.assertEqual(self.outcome("pass", **prepare("exit(1)")), (0, ["c: does not build"], []))
        skipped = "c: its build was cut off by the end of this run's time box"
        self.assertEqual(self.outcome("pass", left=0.2, **prepare(hang)), (0, [], [skipped]))

    def test_rotation_starts_elsewhere_and_leaves_nothing_out(self):
        self.assertEqual([rotated([1, 2, 3], turn) for turn in (0, 1, 5)], [[1, 2, 3], [2, 3, 1], [3, 1, 2]])
        self.assertEqual(rotated([], 7), [])


class Totals(unittest.TestCase):
    def test_what_is_written_is_summed(self):
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"BASCULE_TALLY": str(Path(folder) / "t")}):
            Tally(2, ["a"], ["b: c"]).write()
            Tally(3).write()
            self.assertEqual(run_tests.total().line(), "5 passed, 1 failed, 1 skipped")

    def test_the_last_line_and_the_exit_status(self):
        command = [sys.executable, run_tests.__file__, "check", "nought", "--", sys.executable, "-c"]
        for code, line, status in (("pass", "1 passed, 0 failed, 0 skipped", 0), ("exit(9)", "0 passed, 1 failed, 0 skipped", 1)):
            environment = {name: value for name, value in os.environ.items() if name != "BASCULE_TALLY"}
            done = subprocess.run([*command, code], stdout=subprocess.PIPE, text=True, env=environment)
            self.assertEqual((done.stdout.splitlines()[-1], done.returncode), (line, status))


if __name__ == "__main__":
    unittest.main()
