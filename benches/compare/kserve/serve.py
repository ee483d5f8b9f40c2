"""The model in KServe's Python server: serve.py MODEL HTTP-PORT GRPC-PORT"""

import logging
import sys

import kserve
import uvicorn
from grpc.aio import _server
from kserve.utils.utils import generate_uuid
from session import OUTPUT, Mlp


class MlpModel(kserve.Model):
    def __init__(self, path):
        super().__init__("mlp")
        self.mlp = Mlp(path)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        answer = self.mlp(payload.inputs[0].as_numpy())
        output = kserve.InferOutput(name=OUTPUT, shape=list(answer.shape), datatype="FP32")
        output.set_data_from_numpy(answer, binary_data=False)
        return kserve.InferResponse(response_id=generate_uuid(), model_name=self.name, infer_outputs=[output])


class LocalConfig(uvicorn.Config):
    """KServe listens on every address and has no setting for it; a benchmark is nobody else's business."""

    def __init__(self, app, host, **settings):
        super().__init__(app, host="127.0.0.1", **settings)


class LocalServer(_server.Server):
    """The same for gRPC."""

    def add_insecure_port(self, address):
        return super().add_insecure_port(address.replace("[::]", "127.0.0.1"))


if __name__ == "__main__":
    model, http_port, grpc_port = sys.argv[1:]
    uvicorn.Config, _server.Server = LocalConfig, LocalServer
    server = kserve.ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), workers=1)
    # It writes lines for each request otherwise; the other servers write none either.
    for logger in ("uvicorn.access", "kserve", "kserve.trace"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    server.start([MlpModel(model)])
