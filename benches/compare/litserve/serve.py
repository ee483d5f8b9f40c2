"""The model in LitServe: serve.py MODEL PORT"""

import sys

import litserve
import numpy
from session import Mlp


class MlpApi(litserve.LitAPI):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def setup(self, device):
        self.mlp = Mlp(self.path)

    def decode_request(self, request):
        return numpy.array(request["rows"], numpy.float32)

    def predict(self, rows):
        return self.mlp(rows)

    def encode_response(self, answer):
        return {"rows": answer.tolist()}


if __name__ == "__main__":
    model, port = sys.argv[1:]
    server = litserve.LitServer(MlpApi(model), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, log_level="warning", generate_client_file=False)
