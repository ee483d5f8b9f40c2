"""The model in PyTriton: serve.py MODEL HTTP-PORT GRPC-PORT METRICS-PORT FOLDER"""

import signal
import sys
from pathlib import Path

import numpy
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from session import INPUT, OUTPUT, Mlp

if __name__ == "__main__":
    model, http_port, grpc_port, metrics_port, folder = sys.argv[1:]
    mlp = Mlp(model)

    @batch
    def infer(**inputs):
        return {OUTPUT: mlp(inputs[INPUT])}

    config = TritonConfig(
        http_address="127.0.0.1", http_port=int(http_port), grpc_address="127.0.0.1", grpc_port=int(grpc_port),
        metrics_port=int(metrics_port), metrics_address="127.0.0.1", log_verbose=0, allow_metrics=False,
    )  # fmt: skip
    with Triton(config=config, workspace=Path(folder)) as triton:
        triton.bind(
            model_name="mlp", infer_func=infer, inputs=[Tensor(name=INPUT, dtype=numpy.float32, shape=(4,))],
            outputs=[Tensor(name=OUTPUT, dtype=numpy.float32, shape=(3,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
        )  # fmt: skip
        # It stops, and tidies up, on Ctrl-C only.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        triton.serve()
