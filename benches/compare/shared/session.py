"""What the Python servers run: the same ONNX Runtime as Bascule's, on one thread, since each server has one core."""

import onnxruntime

INPUT = "x"
OUTPUT = "y"


class Mlp:
    """The model of a file; called with rows f32[N,4], it answers f32[N,3]."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, rows):
        return self.session.run([OUTPUT], {INPUT: rows})[0]
