"""The client module of KServe's SDK, without the package around it.

The package imports its server as well, with the Kubernetes client; a bare package in its place lets the module be imported alone.
"""

import importlib.util
import logging
import sys
import types

_package = types.ModuleType("kserve")
_package.__path__ = importlib.util.find_spec("kserve").submodule_search_locations
sys.modules["kserve"] = _package

from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig  # noqa: E402, F401
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput  # noqa: E402, F401

# It logs each error that it raises.
logging.disable(logging.ERROR)


def request(model, tensors, binary, **more):
    """A request with the tensors (name, array, datatype)."""
    inputs = []
    for name, array, datatype in tensors:
        inputs.append(InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model, inputs, **more)
