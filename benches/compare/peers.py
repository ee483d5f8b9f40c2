"""The servers that are compared: how each is started, what it is asked, and where its answer lies.

Each peer has a folder here with its requirements, and what it serves. All are started in a scratch folder that is their home,
so that what they leave lies there, on 127.0.0.1, without access logs.
"""

import json
import os
import re
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import grpc_call
from calls import GrpcCall, HttpCall
from mlp import INPUT, OUTPUT
from processes import NotMeasured

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts"))

import deps  # noqa: E402

ROW = [0.25, -0.5, 0.75, 1.0]

def v2_numbers(answer):
    (output,) = [output for output in answer["outputs"] if output["name"] == OUTPUT]
    return output["data"]


def rows_numbers(answer):
    (row,) = answer["rows"]
    return row


def first_row(answer):
    (row,) = answer
    return row


def own_call(path, numbers):
    """For servers whose JSON is what their author makes it."""
    return HttpCall("HTTP JSON, its own", path, json.dumps({"rows": [ROW]}, separators=(",", ":")), numbers)


def v2_call():
    tensor = {"name": INPUT, "shape": [1, len(ROW)], "datatype": "FP32", "data": ROW}
    return HttpCall("HTTP JSON, V2", "/v2/models/mlp/infer", json.dumps({"inputs": [tensor]}, separators=(",", ":")), v2_numbers)


def v2_calls():
    return [v2_call(), GrpcCall(grpc_call.request("mlp", INPUT, ROW))]


@dataclass
class Place:
    """What a server is started with: the model's file, free ports, and a scratch folder of its own."""

    model: Path
    ports: list
    folder: Path
    bascule: Path


@dataclass
class Peer:
    """A server. `command` makes its command line from a Place, whose first port is for HTTP and the second for gRPC."""

    name: str
    key: str
    command: object
    calls: list = field(default_factory=v2_calls)
    environment: object = lambda place: {}
    package: str = ""

    def part(self):
        """The part of scripts/deps.py that sets it up."""
        return f"compare-{self.key}" if self.package else "onnxruntime"

    def set_up(self):
        try:
            deps.set_up(self.part())
        except (deps.SetupError, OSError) as error:
            raise NotMeasured(f"it can't be installed: {error}") from None

    def version(self):
        """What is pinned; Bascule tells its own."""
        return re.search(rf"^{self.package}==(\S+)", (HERE / self.key / "requirements.txt").read_text(), re.MULTILINE)[1]

    def environment_in(self, place):
        own = {"HOME": str(place.folder), "TMPDIR": str(place.folder), "PYTHONPATH": str(HERE / "shared"), "PYTHONDONTWRITEBYTECODE": "1"}
        return {**os.environ, **own, **self.environment(place)}


def installed(key, program):
    """A program of a peer's environment."""
    return str(deps.DEPS / f"compare-{key}" / "bin" / program)


def python_server(key, place, *more):
    """The peer's serve.py with the model and the first port, and what else it takes."""
    return [installed(key, "python"), str(HERE / key / "serve.py"), str(place.model), str(place.ports[0]), *map(str, more)]


def bascule(place):
    registry = place.folder / "registry"
    version = registry / "mlp" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(place.model.read_bytes())
    http, grpc, admin = (f"127.0.0.1:{port}" for port in place.ports[:3])
    addresses = ["--http", http, "--grpc", grpc, "--admin", admin]
    return [str(place.bascule), "serve", *addresses, "--registry", str(registry), "--state-dir", str(place.folder / "state")]


def bascule_environment(_):
    library = deps.DEPS / "onnxruntime" / "lib" / "libonnxruntime.so"
    return {"BASCULE_ONNXRUNTIME_LIBRARY": os.environ.get("BASCULE_ONNXRUNTIME_LIBRARY", str(library))}


def mlserver(place):
    """MLServer reads a folder of settings; without workers, the model runs in the server's own process."""
    http, grpc, metrics = place.ports[:3]
    ports = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (place.folder / "settings.json").write_text(json.dumps({**ports, "parallel_workers": 0, "debug": False}))
    model = {"name": "mlp", "implementation": "model.MlpRuntime", "parameters": {"uri": str(place.model)}}
    (place.folder / "model-settings.json").write_text(json.dumps(model))
    return [installed("mlserver", "mlserver"), "start", str(place.folder)]


def bentoml(place):
    serve = ["serve", "serve:MlpService", "--working-dir", str(HERE / "bentoml"), "--host", "127.0.0.1"]
    return [installed("bentoml", "bentoml"), *serve, "--port", str(place.ports[0])]


PEERS = [
    Peer("Bascule", "bascule", bascule, environment=bascule_environment),
    Peer(
        "MLServer", "mlserver", mlserver, package="mlserver",
        environment=lambda place: {"PYTHONPATH": f"{HERE / 'shared'}:{HERE / 'mlserver'}"},
    ),
    Peer("KServe", "kserve", lambda place: python_server("kserve", place, place.ports[1]), package="kserve"),
    Peer(
        "LitServe", "litserve", lambda place: python_server("litserve", place), package="litserve",
        calls=[own_call("/predict", rows_numbers)],
    ),
    Peer(
        "BentoML", "bentoml", bentoml, package="bentoml", calls=[own_call("/predict", first_row)],
        environment=lambda place: {"COMPARE_MODEL": str(place.model), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(place.folder)},
    ),
    Peer(
        "Ray Serve", "ray_serve", lambda place: python_server("ray_serve", place, place.folder / "ray"), package="ray",
        calls=[own_call("/", rows_numbers)],
        # On Linux, Ray's own services listen on every address; by the setting for other systems they take the loopback.
        environment=lambda place: {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
    ),
    Peer(
        "PyTriton", "pytriton", lambda place: python_server("pytriton", place, *place.ports[1:3], place.folder / "triton"),
        package="nvidia-pytriton",
        # Triton starts a Python of its own for the function: by this path it finds the library of the one that made the environment,
        # and not another of the system's, which would not fit its modules.
        environment=lambda place: {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""},
    ),
]  # fmt: skip
