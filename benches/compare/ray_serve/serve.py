"""The model in Ray Serve: serve.py MODEL PORT FOLDER"""

import signal
import sys

import numpy
import ray
from ray import serve
from session import Mlp


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class MlpDeployment:
    def __init__(self, path):
        self.mlp = Mlp(path)

    async def __call__(self, request):
        rows = numpy.array((await request.json())["rows"], numpy.float32)
        return {"rows": self.mlp(rows).tolist()}


def listen_on_loopback():
    """A replica listens on every address for calls of other deployments, and has no setting for it. Runs in each worker."""
    from ray.serve._private import replica

    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add(server, address.replace("[::]", "127.0.0.1"))


if __name__ == "__main__":
    model, port, folder = sys.argv[1:]
    # The two processors are Ray's own count, for its placement of actors; the core is held from outside.
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=folder, _node_ip_address="127.0.0.1",
        logging_level="warning", runtime_env={"worker_process_setup_hook": listen_on_loopback},
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config={"enable_access_log": False})
    serve.run(MlpDeployment.bind(model), name="mlp", route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
