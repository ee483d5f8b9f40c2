#!/usr/bin/env python3
"""Locks the requirements.in of tests/, models/ and benches/compare/*/: writes requirements.txt beside each, versions and hashes
pinned. `lock.py FOLDER…` locks those folders only; `tests:moto` is requirements-moto.in of tests/.

Run it to move to newer versions, then run the tests. It resolves with uv, which it installs with pip into a folder that is
removed afterwards. The locks hold for CPython 3.11 and newer on Linux, x86_64 and aarch64, where PYTHONS says nothing else.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
COMPARED = sorted(str(path.parent.relative_to(REPOSITORY)) for path in (REPOSITORY / "benches" / "compare").glob("*/requirements.in"))
FOLDERS = ["tests", "tests:mlflow", "tests:moto", "models", *COMPARED]

# Servers that declare which Pythons they run on.
PYTHONS = {"benches/compare/mlserver": ">=3.11,<3.13", "benches/compare/pytriton": ">=3.11,<3.13"}

# One version of every package for every supported Python, so that a test does not depend on the interpreter.
PROJECT = """
[project]
name = "locked"
version = "0"
requires-python = "{python}"
dependencies = [{dependencies}]

[tool.uv]
fork-strategy = "fewest"
environments = ["sys_platform == 'linux' and platform_machine == 'x86_64'", "sys_platform == 'linux' and platform_machine == 'aarch64'"]
"""

CLIENTS_OF_KSERVE = """
# What the module kserve.inference_client imports, within the bounds that kserve 0.21.0 declares.
[[tool.uv.dependency-metadata]]
name = "kserve"
version = "0.21.0"
requires-dist = [
    "cloudevents>=1.6.2,<2", "fastapi>=0.115.3,<1", "grpcio>=1.73,<2", "httpx>=0.27.2,<1", "numpy>=1.26,<3", "orjson>=3.11.6,<4",
    "pandas>=2.2,<3", "protobuf>=6.33.5,<7", "psutil>=5.9.6,<6", "pydantic>=2.5,<3", "python-dateutil>=2.8,<3", "pyyaml>=6,<7",
]
"""


def lock(what, uv, scratch):
    folder, _, variant = what.partition(":")
    name = f"requirements-{variant}" if variant else "requirements"
    source = REPOSITORY / folder / f"{name}.in"
    wanted = [line.split("#")[0].strip() for line in source.read_text().splitlines()]
    dependencies = ", ".join(f'"{line}"' for line in wanted if line)
    project = PROJECT.format(dependencies=dependencies, python=PYTHONS.get(what, ">=3.11"))
    (scratch / "pyproject.toml").write_text(project + (CLIENTS_OF_KSERVE if what == "tests" else ""))
    subprocess.run([uv, "lock", "--quiet", "--upgrade"], cwd=scratch, check=True)
    export = [uv, "export", "--quiet", "--locked", "--no-emit-project", "--no-annotate", "--no-header", "--format=requirements.txt"]
    text = subprocess.run(export, cwd=scratch, check=True, stdout=subprocess.PIPE, text=True).stdout
    # The environment markers say only what scripts/deps.py has checked already.
    text = re.sub(r" ; [^\\\n]*", " ", text)
    header = f"# Written by scripts/lock.py from {folder}/{name}.in: change that file, not this one.\n"
    source.with_suffix(".txt").write_text(header + text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", default=FOLDERS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        venv = Path(scratch) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "--quiet", "uv"], check=True)
        for folder in arguments.folders:
            work = Path(scratch) / folder
            work.mkdir(parents=True)
            lock(folder, str(venv / "bin" / "uv"), work)


if __name__ == "__main__":
    main()
