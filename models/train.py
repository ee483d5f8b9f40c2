#!/usr/bin/env python3
"""Trains the sample model `digits` on scikit-learn's handwritten digits, and publishes it into the repository beside this file.

    version 1   logistic regression on standardised pixels
    version 2   a small convolutional network, trained here in NumPy

Both take `image` FP32 [N, 64], the raw pixels 0 to 16 of an 8 × 8 picture row by row, and give `probabilities` FP32 [N, 10]
and `digit` INT64 [N], so that one can replace the other. Of the 1,797 pictures the last 382 are held out: they lie in
testset/, and are used for nothing but the accuracy in the manifests. The pictures of one writer follow each other there, so
the accuracy is that on hands which training never saw; a shuffled split flatters every model.

    python models/train.py               train, and publish the versions that are not there yet
    python models/train.py --out DIR     the same into another repository
    python models/train.py --check       compare every committed file with its manifest, and the answers with the golden ones

The packages are pinned in models/requirements.txt; `make train` sets them up and runs this. Weights are computed in double
precision and rounded to a grid of 2⁻¹², so that the last bits, in which processors differ, do not reach the files: training
again gives the same bytes. A version that was published is never changed; delete it by hand to publish it anew.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

# One thread, so that sums are always taken in one order. OpenBLAS reads this when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent
MODEL = "digits"
SEED = 20260501
HELD_OUT = 382
CREATED = {1: "2026-05-04T09:00:00Z", 2: "2026-05-11T09:00:00Z"}
WEIGHT_GRID = 2.0**12

# Version 2.
CHANNELS = (16, 32)
EPOCHS = 30
BATCH = 64
LEARNING_RATE = 2e-3

SIGNATURE = {
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}],
    "outputs": [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "digit", "datatype": "INT64", "shape": [-1]},
    ],
    "batch_axis": 0,
}
GOLDEN_TOLERANCE = 1e-4
SETTINGS = "# Settings of the sample model. Its signature is in each version's manifest.\nmax_batch_size = 32\n"


# ---- the data


def digits():
    """The pictures and labels as (train, held out), each (float64 [n, 64], int64 [n])."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return (pixels[:-HELD_OUT], labels[:-HELD_OUT]), (pixels[-HELD_OUT:], labels[-HELD_OUT:])


# ---- version 1: logistic regression


def train_linear(pixels, labels):
    """Mean and deviation of each pixel, and the weights [64, 10] and biases [10] of a softmax over standardised pixels."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = pixels.mean(axis=0), pixels.std(axis=0)
    # Some pixels are blank in every picture; they carry nothing and must not divide by nought.
    deviation[deviation == 0] = 1.0
    # The loss is strictly convex: at this tolerance every processor ends at the same point of the weight grid.
    fitted = LogisticRegression(tol=1e-10, max_iter=20_000).fit((pixels - mean) / deviation, labels)
    return {"mean": mean, "deviation": deviation, "weights": fitted.coef_.T, "biases": fitted.intercept_}


# ---- version 2: a convolutional network


def conv3x3(x, weights):
    """Same-size convolution of x [n, c, h, w] with weights [o, c, 3, 3]: the result [n, o, h, w] and the unrolled windows."""
    import numpy as np

    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c * 9)
    result = rows @ weights.reshape(len(weights), -1).T
    return result.reshape(n, h, w, len(weights)).transpose(0, 3, 1, 2), rows


def conv3x3_gradients(gradient, rows, weights):
    """Gradients of the weights, the biases and the input, from that of the result."""
    flat = gradient.transpose(0, 2, 3, 1).reshape(-1, len(weights))
    flipped = weights.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    return (flat.T @ rows).reshape(weights.shape), flat.sum(axis=0), conv3x3(gradient, flipped)[0]


def network_gradients(p, x, labels):
    """Gradients of the mean cross-entropy by parameter, for pictures x [n, 1, 8, 8]."""
    import numpy as np

    n, filters = len(x), CHANNELS[1]
    a1, rows1 = conv3x3(x, p["w1"])
    h1 = np.maximum(a1 + p["b1"][:, None, None], 0)
    a2, rows2 = conv3x3(h1, p["w2"])
    h2 = np.maximum(a2 + p["b2"][:, None, None], 0)
    blocks = h2.reshape(n, filters, 4, 2, 4, 2)
    pooled = blocks.max(axis=(3, 5), keepdims=True)
    flat = pooled.reshape(n, -1)
    logits = flat @ p["w3"] + p["b3"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    d_logits = odds / odds.sum(axis=1, keepdims=True)
    d_logits[np.arange(n), labels] -= 1
    d_logits /= n

    g = {"w3": flat.T @ d_logits, "b3": d_logits.sum(axis=0)}
    d_pooled = (d_logits @ p["w3"].T).reshape(pooled.shape)
    d_h2 = (d_pooled * (blocks == pooled)).reshape(h2.shape) * (h2 > 0)
    g["w2"], g["b2"], d_h1 = conv3x3_gradients(d_h2, rows2, p["w2"])
    g["w1"], g["b1"], _ = conv3x3_gradients(d_h1 * (h1 > 0), rows1, p["w1"])
    return g


def shifted(x, random):
    """Each picture moved by up to one pixel in each direction: handwriting is not centred."""
    import numpy as np

    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    down, right = random.integers(0, 3, size=(2, len(x)))
    return np.stack([picture[:, i : i + 8, j : j + 8] for picture, i, j in zip(padded, down, right)])


def train_network(pixels, labels):
    """Weights and biases of conv 3×3 → ReLU → conv 3×3 → ReLU → max pool 2×2 → dense, by Adam with a falling rate."""
    import numpy as np

    random = np.random.default_rng(SEED)
    first, second = CHANNELS

    def start(*shape, inputs):
        return random.standard_normal(shape) * np.sqrt(2 / inputs)

    p = {
        "w1": start(first, 1, 3, 3, inputs=9), "b1": np.zeros(first),
        "w2": start(second, first, 3, 3, inputs=9 * first), "b2": np.zeros(second),
        "w3": start(16 * second, 10, inputs=16 * second), "b3": np.zeros(10),
    }  # fmt: skip
    means = {name: np.zeros_like(value) for name, value in p.items()}
    squares = {name: np.zeros_like(value) for name, value in p.items()}
    pictures = (pixels / 16).reshape(-1, 1, 8, 8)
    steps, step = EPOCHS * -(-len(pictures) // BATCH), 0
    for _ in range(EPOCHS):
        order = random.permutation(len(pictures))
        for chosen in np.split(order, range(BATCH, len(order), BATCH)):
            step += 1
            rate = LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, g in network_gradients(p, shifted(pictures[chosen], random), labels[chosen]).items():
                means[name] = 0.9 * means[name] + 0.1 * g
                squares[name] = 0.999 * squares[name] + 0.001 * g * g
                p[name] -= rate * (means[name] / (1 - 0.9**step)) / (np.sqrt(squares[name] / (1 - 0.999**step)) + 1e-8)
    return p


# ---- ONNX files


def onnx_model(name, nodes, constants):
    """An ONNX file's bytes: nodes from `image` to `logits`, then the two outputs that both versions share."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes = [helper.make_node(op, inputs, [output], **attributes) for op, inputs, output, attributes in nodes]
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["logits"], ["digit"], axis=1, keepdims=0))
    tensors = []
    for constant, value in constants.items():
        if value.dtype == np.float64:
            value = (np.round(value * WEIGHT_GRID) / WEIGHT_GRID).astype(np.float32)
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), constant))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("digit", TensorProto.INT64, ["batch"]),
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="models/train.py")
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def linear_onnx(p):
    nodes = [
        ("Sub", ["image", "mean"], "centred", {}),
        ("Div", ["centred", "deviation"], "standardised", {}),
        ("Gemm", ["standardised", "weights", "biases"], "logits", {}),
    ]
    return onnx_model("digits-linear", nodes, p)


def network_onnx(p):
    import numpy as np

    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        ("Div", ["image", "white"], "scaled", {}),
        # A nought keeps the batch axis, so that an empty batch has a shape too.
        ("Reshape", ["scaled", "picture"], "pictures", {}),
        ("Conv", ["pictures", "w1", "b1"], "a1", conv),
        ("Relu", ["a1"], "h1", {}),
        ("Conv", ["h1", "w2", "b2"], "a2", conv),
        ("Relu", ["a2"], "h2", {}),
        ("MaxPool", ["h2"], "pooled", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["pooled"], "flat", {"axis": 1}),
        ("Gemm", ["flat", "w3", "b3"], "logits", {}),
    ]
    return onnx_model("digits-convolutional", nodes, {"white": np.array(16.0), "picture": np.array([0, 1, 8, 8]), **p})


# ---- running them


def run(onnx_bytes, pixels):
    """What ONNX Runtime answers for pixels [n, 64]: probabilities [n, 10] and digit [n]."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    return session.run(["probabilities", "digit"], {"image": np.asarray(pixels, dtype=np.float32)})


def golden_samples(onnx_bytes, pixels, labels):
    """One held-out picture of each digit with this version's answer, for whoever loads the version to compare with."""
    import numpy as np

    samples = []
    for digit in range(10):
        picture = pixels[np.flatnonzero(labels == digit)[:1]]
        probabilities, answer = run(onnx_bytes, picture)
        samples.append({
            "inputs": {"image": {"datatype": "FP32", "shape": [1, 64], "data": [int(pixel) for pixel in picture[0]]}},
            "outputs": {
                "probabilities": {"datatype": "FP32", "shape": [1, 10], "data": [round(float(p), 6) for p in probabilities[0]]},
                "digit": {"datatype": "INT64", "shape": [1], "data": [int(answer[0])]},
            },
            "tolerance": {"probabilities": GOLDEN_TOLERANCE},
        })  # fmt: skip
    return lines({"schema": 1}, "samples", samples)


def accuracy(onnx_bytes, pixels, labels):
    return round(float((run(onnx_bytes, pixels)[1] == labels).mean()), 4)


# ---- the repository


def lines(head, name, items):
    """JSON bytes of an object whose last member is a list, one line per item."""
    start = json.dumps(head, separators=(",", ":"))[:-1]
    body = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
    return f'{start},"{name}":[\n{body}\n]}}\n'.encode()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def put_if_absent(path, content):
    """Writes a file that does not exist yet; the same content is fine, another is refused. True where it was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if path.read_bytes() != content:
            sys.exit(f"error: {path} exists with other content\nhint: what was published is never changed; delete it by hand to replace it")
        return False
    path.write_bytes(content)
    return True


def publish(repository, version, files, score, lineage):
    """Writes blobs, then the manifest, then the change log, in that order, as every publisher does."""
    entries = []
    for path, content in sorted(files.items()):
        entries.append({"path": path, "sha256": sha256(content), "bytes": len(content)})
        put_if_absent(repository / MODEL / "blobs" / entries[-1]["sha256"], content)
    manifest = {
        "schema": 1,
        "model": MODEL,
        "version": version,
        "format": "onnx",
        "entrypoint": "model.onnx",
        "files": entries,
        "signature": SIGNATURE,
        "golden": "golden.json",
        "lineage": lineage,
        "metrics": {"accuracy": score, "held_out": HELD_OUT},
        "tags": {"architecture": {1: "linear", 2: "convolutional"}[version]},
        "created": CREATED[version],
        "publisher": "models/train.py",
    }
    content = (json.dumps(manifest, indent=2) + "\n").encode()
    if put_if_absent(repository / MODEL / "versions" / str(version) / "manifest.json", content):
        changes = repository / "_changes"
        seq = 1 + max((int(entry.stem) for entry in changes.glob("*.json")), default=0)
        change = {"seq": seq, "model": MODEL, "what": "publish", "version": version}
        put_if_absent(changes / f"{seq:020}.json", (json.dumps(change) + "\n").encode())
        print(f"published {MODEL} version {version}: accuracy {score} on {HELD_OUT} held-out pictures")
    else:
        print(f"{MODEL} version {version} is published already, with the same bytes")


def write_testset(folder, pixels, labels):
    """The held-out pictures, and one of them as a request for HTTP and as an array. Returns the digest of the set."""
    import numpy as np

    pictures = [[int(pixel) for pixel in picture] for picture in pixels]
    samples = [{"digit": int(label), "image": picture} for picture, label in zip(pictures, labels)]
    content = lines({"schema": 1, "model": MODEL}, "samples", samples)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digits.json").write_bytes(content)
    request = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": pictures[0]}]}
    (folder / "request.json").write_text(json.dumps(request) + "\n")
    np.save(folder / "image.npy", pixels[:1].astype(np.float32))
    return sha256(content)


def train(repository):
    (train_x, train_y), (test_x, test_y) = digits()
    held_out = write_testset(repository / "testset", test_x, test_y)
    put_if_absent(repository / MODEL / "model.toml", SETTINGS.encode())
    models = [(1, linear_onnx(train_linear(train_x, train_y))), (2, network_onnx(train_network(train_x, train_y)))]
    for version, content in models:
        files = {"model.onnx": content, "golden.json": golden_samples(content, test_x, test_y)}
        lineage = {
            "run_id": f"{MODEL}-{version}-seed-{SEED}",
            "code": "models/train.py",
            "data": f"scikit-learn load_digits; held out: sha256:{held_out}",
            "parent": version - 1 or None,
        }
        publish(repository, version, files, accuracy(content, test_x, test_y), lineage)


# ---- the check


def check_files(repository):
    """Every problem of the committed files: contents against manifests, the change log against the versions."""
    problems, named = [], set()
    manifests = sorted((repository / MODEL / "versions").glob("*/manifest.json"))
    for path in manifests:
        for entry in json.loads(path.read_text())["files"]:
            blob = repository / MODEL / "blobs" / entry["sha256"]
            named.add(blob)
            content = blob.read_bytes() if blob.is_file() else None
            if content is None:
                problems.append(f"{path}: {entry['path']}: blob {entry['sha256']} is missing")
            elif (sha256(content), len(content)) != (entry["sha256"], entry["bytes"]):
                problems.append(f"{path}: {entry['path']}: its blob has other content than the manifest says")
    problems += [f"{blob}: no manifest names this blob" for blob in (repository / MODEL / "blobs").iterdir() if blob not in named]
    log = [json.loads(path.read_text()) for path in sorted((repository / "_changes").glob("*.json"))]
    if [entry["seq"] for entry in log] != list(range(1, len(log) + 1)):
        problems.append("_changes has gaps")
    if {entry["version"] for entry in log} != {int(path.parent.name) for path in manifests}:
        problems.append("_changes and versions/ name different versions")
    return problems


def check_answers(repository):
    """Every golden answer and accuracy that ONNX Runtime does not reproduce."""
    import numpy as np

    problems = []
    samples = json.loads((repository / "testset" / "digits.json").read_text())["samples"]
    pixels, labels = np.array([s["image"] for s in samples]), np.array([s["digit"] for s in samples])
    for path in sorted((repository / MODEL / "versions").glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        files = {entry["path"]: (repository / MODEL / "blobs" / entry["sha256"]).read_bytes() for entry in manifest["files"]}
        for number, sample in enumerate(json.loads(files[manifest["golden"]])["samples"]):
            answers = zip(("probabilities", "digit"), run(files["model.onnx"], [sample["inputs"]["image"]["data"]]))
            for name, answer in answers:
                apart = np.abs(answer[0] - np.array(sample["outputs"][name]["data"])).max()
                if apart > sample["tolerance"].get(name, 0):
                    problems.append(f"{path}: golden sample {number}: {name} is {apart} away from what is expected")
        measured = accuracy(files["model.onnx"], pixels, labels)
        if measured != manifest["metrics"]["accuracy"]:
            problems.append(f"{path}: accuracy is {measured}, the manifest says {manifest['metrics']['accuracy']}")
    return problems


def check(repository):
    problems = check_files(repository)
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        print("not checked: golden answers and accuracy, which need the packages of models/requirements.txt")
    else:
        problems += check_answers(repository)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{repository}: {len(problems)} problems")
    return 1 if problems else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check what is committed instead of training")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR", help="the repository (default: the folder of this file)")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.out)
    train(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
