"""The model in BentoML: bentoml serve serve:MlpService, with the file's path in COMPARE_MODEL."""

import os

import bentoml
import numpy
from session import Mlp


@bentoml.service(workers=1)
class MlpService:
    def __init__(self):
        self.mlp = Mlp(os.environ["COMPARE_MODEL"])

    @bentoml.api
    def predict(self, rows: list[list[float]]) -> list[list[float]]:
        return self.mlp(numpy.array(rows, numpy.float32)).tolist()
