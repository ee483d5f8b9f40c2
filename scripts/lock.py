#!/usr/bin/env python3
"""Locks tests/requirements.in and models/requirements.in: writes requirements.txt beside each, versions and hashes pinned.

Run it to move to newer versions, then run the tests. It resolves with uv, which it installs with pip into a folder that is
removed afterwards. The locks hold for CPython 3.11 and newer on Linux, x86_64 and aarch64.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("tests", "models")

# One version of every package for every supported Python, so that a test does not depend on the interpreter.
PROJECT = """
[project]
name = "locked"
version = "0"
requires-python = ">=3.11"
dependencies = [{dependencies}]

[tool.uv]
fork-strategy = "fewest"
environments = ["sys_platform == 'linux' and platform_machine == 'x86_64'", "sys_platform == 'linux' and platform_machine == 'aarch64'"]

# What the module kserve.inference_client imports, within the bounds that kserve 0.21.0 declares.
[[tool.uv.dependency-metadata]]
name = "kserve"
version = "0.21.0"
requires-dist = [
    "cloudevents>=1.6.2,<2", "fastapi>=0.115.3,<1", "grpcio>=1.73,<2", "httpx>=0.27.2,<1", "numpy>=1.26,<3", "orjson>=3.11.6,<4",
    "pandas>=2.2,<3", "protobuf>=6.33.5,<7", "psutil>=5.9.6,<6", "pydantic>=2.5,<3", "python-dateutil>=2.8,<3", "pyyaml>=6,<7",
]
"""


def lock(folder, uv, scratch):
    source = REPOSITORY / folder / "requirements.in"
    wanted = [line.split("#")[0].strip() for line in source.read_text().splitlines()]
    dependencies = ", ".join(f'"{line}"' for line in wanted if line)
    (scratch / "pyproject.toml").write_text(PROJECT.format(dependencies=dependencies))
    subprocess.run([uv, "lock", "--quiet", "--upgrade"], cwd=scratch, check=True)
    export = [uv, "export", "--quiet", "--locked", "--no-emit-project", "--no-annotate", "--no-header", "--format=requirements.txt"]
    text = subprocess.run(export, cwd=scratch, check=True, stdout=subprocess.PIPE, text=True).stdout
    # The environment markers say only what scripts/deps.py has checked already.
    text = re.sub(r" ; [^\\\n]*", " ", text)
    header = f"# Written by scripts/lock.py from {folder}/requirements.in: change that file, not this one.\n"
    (source.parent / "requirements.txt").write_text(header + text)


def main():
    with tempfile.TemporaryDirectory() as scratch:
        venv = Path(scratch) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", "uv"], check=True)
        for folder in FOLDERS:
            work = Path(scratch) / folder
            work.mkdir()
            lock(folder, str(venv / "bin" / "uv"), work)


if __name__ == "__main__":
    main()
