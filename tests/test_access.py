"""Models and answers of other people: each way in gives the posterior of a plain forward pass, or one line."""

import http.server
import io
import json
import os
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import must, scores, script, small_scene, write_tree
from PIL import Image
from torch import nn

from datasets.pairs import Pair, write_split
from predictors import endpoint, onnx, open_predictor, own_process
from predictors.base import Access, PredictorOptions, Query, Record
from utils.cli import UserError
from utils.distributed import WARNED

CLASSES, STRIDE = 5, 4
TRUST = Access(trust_code=True)


class Net(nn.Module):
    """A segmentation model with random weights, whose logits are far from 0..1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 1)
        nn.init.normal_(self.last.weight, std=3)

    def forward(self, x):
        return self.last(self.first(x).relu())


NET = Net().eval()
IMAGE = small_scene(0)[0][:40, :56]


def query(image=IMAGE, name="img/0"):
    return Query(Record(name, name, True, Path("none"), Path("none")), image)


def logits(image=IMAGE):
    with torch.inference_mode():
        return NET(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255)[0]


def expected(image=IMAGE):
    return logits(image)[:, ::STRIDE, ::STRIDE].softmax(dim=0)


def predict(where, access=None, *queries, classes=CLASSES):
    WARNED.clear()
    options = PredictorOptions(stride=STRIDE, access=access or Access(), classes=classes)
    return open_predictor(str(where), options).predict(queries or [query()])


def same(found, wanted=None):
    torch.testing.assert_close(found, expected() if wanted is None else wanted, atol=1e-5, rtol=1e-4)


def refused(where, message, access=None, *queries, classes=CLASSES):
    with pytest.raises(UserError, match=message) as raised:
        predict(where, access, *queries, classes=classes)
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 800
    return str(raised.value)


# ONNX, written by hand: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto

def varint(value):
    value, out = value % 2**64, b""
    while value > 127:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def part(number, value):
    """A field of a message: an integer, or text or bytes."""
    if isinstance(value, int):
        return varint(8 * number) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(8 * number + 2) + varint(len(value)) + value


def tensor(name, array, location=None):
    dims = b"".join(part(1, size) for size in array.shape)
    place = part(9, array.astype("<f4").tobytes()) if location is None else (
        part(13, part(1, "location") + part(2, location)) + part(14, 1))
    return dims + part(2, 1) + part(8, name) + place


def node(kind, inputs, output, **attributes):
    out = b"".join(part(1, one) for one in inputs) + part(2, output) + part(4, kind)
    for name, value in attributes.items():
        if isinstance(value, bytes):
            body = part(20, 4) + part(5, value)
        elif isinstance(value, int):
            body = part(20, 2) + part(3, value)
        else:
            body = part(20, 7) + b"".join(part(8, one) for one in value)
        out += part(5, part(1, name) + body)
    return out


def value(name, shape, kind=1):
    dims = b"".join(part(1, part(1, one) if isinstance(one, int) else part(2, one)) for one in shape)
    return part(1, name) + part(2, part(1, part(1, kind) + part(2, dims)))


def model(nodes, weights, shape, kind=1, extra=b"", domains=("",), more_inputs=()):
    graph = b"".join(part(1, one) for one in nodes) + part(2, "net") + b"".join(part(5, one) for one in weights)
    graph += b"".join(part(11, one) for one in (value("x", shape, kind), *more_inputs))
    graph += part(12, value("y", ("n", "a", "b", "c")))
    opsets = b"".join(part(8, part(1, domain) + part(2, 17)) for domain in domains)
    return part(1, 8) + part(7, graph + extra) + opsets


def weights_of(**locations):
    return [tensor(name, one.detach().numpy(), locations.get(name.replace(".", "_")))
            for name, one in NET.state_dict().items()]


def nodes_of(layout="nchw", softmax=False, out_layout=None, cast=False):
    steps = []
    at = "x"
    if cast:
        steps += [node("Cast", [at], "f", to=1), node("Div", ["f", "full"], "d")]
        at = "d"
    if layout == "nhwc":
        steps.append(node("Transpose", [at], "t", perm=[0, 3, 1, 2]))
        at = "t"
    steps += [node("Conv", [at, "first.weight", "first.bias"], "h", pads=[1, 1, 1, 1]), node("Relu", ["h"], "r"),
              node("Conv", ["r", "last.weight", "last.bias"], "l")]
    at = "l"
    if softmax:
        steps.append(node("Softmax", [at], "s", axis=1))
        at = "s"
    perm = [0, 2, 3, 1] if (out_layout or layout) == "nhwc" else [0, 1, 2, 3]
    return [*steps, node("Transpose", [at], "y", perm=perm)]


def write_onnx(path, shape=("n", 3, "h", "w"), kind=1, weights=None, **form):
    full = [tensor("full", np.array(255.0))] if form.get("cast") else []
    path.write_bytes(model(nodes_of(**form), [*(weights or weights_of()), *full], shape, kind))
    return f"onnx:{path}"


@pytest.mark.parametrize("form", [
    {}, {"softmax": True}, {"shape": (1, 3, "h", "w")}, {"shape": (1, 3, 40, 56)},
    {"layout": "nhwc", "shape": ("n", "h", "w", 3)}, {"layout": "nhwc", "shape": (1, 40, 56, 3), "softmax": True},
    {"out_layout": "nhwc"}, {"layout": "nhwc", "out_layout": "nchw", "shape": ("n", "h", "w", 3)},
    {"kind": 2, "cast": True}], ids=str)
def test_onnx_gives_the_posterior_of_the_model(tmp_path, form, capsys):
    same(predict(write_onnx(tmp_path / "m.onnx", **form))[0])
    kind = "posteriors" if form.get("softmax") else "logits"
    assert capsys.readouterr().err.count(f"its answers are read as {kind}") == 1


@pytest.mark.parametrize("shape, size, channels", [
    ((1, 5, 40, 56), (40, 56), 5), (("n", 5, "h", "w"), None, 5), (("n", "h", "w", 5), None, 5),
    ((1, 40, 56, 5), (40, 56), 5), ((1, 40, 40, 40), (40, 40), None), (("n", "a", "b", "c"), None, None),
    ((1, 5, 20, 28), (40, 56), None), ((1, 5, 40, 56), None, None), ((40, 56), (40, 56), None)])
def test_classes_of_an_onnx_model(shape, size, channels):
    assert onnx.channels_of(shape, size) == channels


def test_onnx_of_a_fixed_size_gets_a_resized_image(tmp_path):
    from predictors.preprocess import Preprocess

    whole = Preprocess(size=(24, 32))
    with torch.inference_mode():
        wanted = whole.posterior(NET(whole.prepare(IMAGE)[None])[0], IMAGE.shape[:2], STRIDE)
    same(predict(write_onnx(tmp_path / "m.onnx", shape=(1, 3, 24, 32)))[0], wanted)


def test_onnx_with_other_channels(tmp_path):
    first = NET.first.weight.detach().numpy()
    for bands, channels in ((1, "g"), (6, "rgbbgr")):
        kernel = np.zeros((8, bands, 3, 3), np.float32)
        kernel[:, : min(bands, 3)] = first[:, 1:2] if bands == 1 else first
        weights = [tensor("first.weight", kernel), *weights_of()[1:]]
        where = write_onnx(tmp_path / "m.onnx", shape=(1, bands, "h", "w"), weights=weights)
        grey = IMAGE if bands == 6 else np.stack([0 * IMAGE[..., 1], IMAGE[..., 1], 0 * IMAGE[..., 1]], -1)
        if bands == 6:
            refused(where, "reads 6 channels, and an image has 3: name the colour")
        same(predict(where, Access(preprocess={"channels": channels} if bands == 6 else {}))[0], expected(grey))


def test_onnx_with_weights_in_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").write_bytes(NET.first.weight.detach().numpy().tobytes())
    where = write_onnx(tmp_path / "in" / "m.onnx", weights=weights_of(first_weight="w.bin"))
    same(predict(where)[0])
    (tmp_path / "link.onnx").symlink_to(tmp_path / "in" / "m.onnx")
    same(predict(f"onnx:{tmp_path}/link.onnx")[0])


def inside(kind, location):
    """A graph that has a tensor with a location in one of the places where a tensor can lie."""
    hidden = tensor("first.weight", NET.first.weight, location)
    plain, sparse = weights_of(), part(1, hidden)
    constant = part(1, "value") + part(20, 4) + part(5, hidden)
    deep = part(1, "then_branch") + part(20, 5) + part(6, part(1, part(4, "Constant") + part(5, constant)))
    nodes = nodes_of()
    extra = {"initializer": part(5, hidden), "sparse": part(15, sparse),
             "constant": part(1, part(4, "Constant") + part(2, "k") + part(5, constant)),
             "branch": part(1, part(4, "If") + part(1, "x") + part(2, "k") + part(5, deep))}.get(kind, b"")
    content = model(nodes, plain, ("n", 3, "h", "w"), extra=extra)
    if kind == "second graph":
        content += part(7, part(5, hidden))
    if kind == "function":
        content += part(25, part(1, "f") + part(7, part(4, "Constant") + part(5, constant)))
    if kind == "training":
        content += part(20, part(2, part(5, hidden)))
    return content


PLACES = ("initializer", "sparse", "constant", "branch", "second graph", "function", "training")


@pytest.mark.parametrize("kind", PLACES)
def test_external_locations_are_found_wherever_a_tensor_can_lie(kind):
    assert onnx.external_locations(inside(kind, "../secret")) == {"../secret"}
    assert onnx.external_locations(inside("none", "../secret")) == set()


@pytest.mark.parametrize("location", ["../secret", "{root}/secret", "link", "folder/../../secret", "none", "", ".",
                                      "*/_ORT_MEM_ADDR_/*", "folder"])
def test_onnx_with_weights_elsewhere_is_refused_before_it_is_loaded(tmp_path, monkeypatch, location):
    import onnxruntime

    (tmp_path / "in" / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(NET.first.weight.detach().numpy().tobytes())
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **kwargs: pytest.fail("it was loaded"))
    path = tmp_path / "in" / "m.onnx"
    for kind in PLACES:
        path.write_bytes(inside(kind, location.format(root=tmp_path)))
        refused(f"onnx:{path}", "m.onnx cannot be read as an ONNX model: its weights .* no file in its folder")


@pytest.mark.parametrize("content, message", [
    (b"", "cannot be read as an ONNX model"), (b"GIF89a" * 50, "cannot be read as an ONNX model"),
    (b"\x00\x00\x00\x00ORTM" + bytes(100), "cannot be read as an ONNX model"),
    (b"\x80\x04cposix\nsystem\n(S'true'\ntR.", "cannot be read as an ONNX model"),
    (model([node("Evil", ["x"], "y")], [], ("n", 3, "h", "w")), "cannot be read as an ONNX model"),
    (model(nodes_of(), weights_of(), (4, 3, "h", "w")), "reads 4 images at once"),
    (model(nodes_of(), weights_of(), ("n", 3, "h", "w"), more_inputs=[value("z", (1,))]), "it must have one image"),
    (model(nodes_of(), weights_of()[:3], ("n", 3, "h", "w")), "cannot be read as an ONNX model"),
    (model([node("ReduceMean", ["x"], "y", keepdims=0)], [], ("n", 3, "h", "w")), "must be posteriors or logits"),
    (model([node("Log", ["zero"], "y")], [tensor("zero", np.zeros((1, 5, 4, 4)))], ("n", 3, "h", "w")), "NaN or inf"),
], ids=range(10))
def test_hostile_onnx_is_one_line(tmp_path, content, message, capfd):
    (tmp_path / "m.onnx").write_bytes(content)
    refused(f"onnx:{tmp_path}/m.onnx", message)
    assert capfd.readouterr() == ("", "")


def test_missing_onnxruntime_and_missing_file(tmp_path, monkeypatch):
    refused("onnx:none.onnx", "none.onnx: no such ONNX model")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    refused("onnx:none.onnx", "pip install -r requirements-audit.txt")


def test_another_number_of_classes_than_the_data_set(tmp_path):
    where = write_onnx(tmp_path / "m.onnx")
    refused(where, f"has {CLASSES} classes, and the data set has 19", classes=19)
    merged = predict(where, Access(preprocess={"classes": (0, 1, 1, 2, 0)}), classes=3)[0]
    wanted = expected()
    same(merged, torch.stack([wanted[0] + wanted[4], wanted[1] + wanted[2], wanted[3]]))


# Files that can run code

FUNCTIONS = """
import os, sys, time
import numpy as np
from pathlib import Path

Path(__file__).with_name("marker").touch()
POSTERIOR = np.load(Path(__file__).with_name("logits.npy"))

def logits(image):
    print("this is no answer")
    assert image.dtype == np.uint8 and image.shape == (40, 56, 3)
    return POSTERIOR

def posterior(image):
    exp = np.exp(POSTERIOR.astype(float))
    return {"out": [exp / exp.sum(0)]}

def labels(image):
    return POSTERIOR.argmax(0)

def hangs(image):
    if image[0, 0, 0] == 7:
        time.sleep(100)
    return POSTERIOR

def dies(image):
    os._exit(3)

def fails(image):
    raise ValueError("\\x1b[31m first line\\nsecond line")

def objects(image):
    return np.array([os.system, None], dtype=object)

def text(image):
    return "nothing"
"""


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "model.py").write_text(FUNCTIONS)
    np.save(tmp_path / "logits.npy", logits().numpy())
    return f"python:{tmp_path}/model.py"


@pytest.mark.parametrize("name", ["logits", "posterior"])
def test_python_function_gives_its_posterior(functions, name, capfd):
    same(predict(f"{functions}:{name}", TRUST)[0])
    assert "this is no answer" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["torchscript", "exported"])
def test_torch_files_give_the_posterior_of_the_model(tmp_path, kind):
    path, example = tmp_path / "m.pt2", torch.zeros(1, 3, 40, 56)
    if kind == "torchscript":
        torch.jit.trace(NET, example).save(path)
    else:
        sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        torch.export.save(torch.export.export(NET, (example,), dynamic_shapes=[sizes]), path)
    images = [IMAGE, IMAGE[:32]]
    for found, image in zip(predict(f"{kind}:{path}", TRUST, *map(query, images)), images, strict=True):
        same(found, expected(image))


def test_without_trust_code_nothing_is_loaded(functions, tmp_path, monkeypatch):
    monkeypatch.setattr(own_process, "Worker", lambda *words: pytest.fail("a process was started"))
    (tmp_path / "m.pt").write_bytes(b"x")
    for where in (f"{functions}:logits", f"torchscript:{tmp_path}/m.pt", f"exported:{tmp_path}/m.pt"):
        refused(where, "can run any code .*--trust-code")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("where, message", [
    ("python:{}/model.py", "give FILE.py:FUNCTION"), ("python:{}/model.py:a b", "give FILE.py:FUNCTION"),
    ("python:{}/none.py:f", "no such file"), ("torchscript:{}/none.pt", "no such file"),
    ("python:{}/model.py:none", "its process ended: .*no attribute 'none'"),
    ("python:{}/model.py:dies", "its process ended: exit code 3"),
    ("python:{}/model.py:fails", "its process ended: second line"),
    ("python:{}/model.py:objects", "its process ended: .*allow_pickle"),
    ("python:{}/model.py:text", "must be posteriors or logits"),
    ("exported:{}/model.py", "its process ended: ")])
def test_broken_code_is_one_line(functions, tmp_path, where, message):
    refused(where.format(tmp_path), message, TRUST)


def test_process_that_hangs_is_killed(functions, monkeypatch):
    predictor = open_predictor(f"{functions}:hangs", PredictorOptions(stride=STRIDE, access=TRUST))
    same(predictor.predict([query()])[0])
    monkeypatch.setattr(own_process, "TIMEOUT", 0.5)
    with pytest.raises(UserError, match="gave no answer within"):
        predictor.predict([query(np.full((40, 56, 3), 7, np.uint8))])
    assert predictor.worker.process.returncode == -9


def test_process_ends_with_its_predictor(functions):
    predictor = open_predictor(f"{functions}:logits", PredictorOptions(stride=STRIDE, access=TRUST))
    predictor.predict([query()])
    process = predictor.worker.process
    assert process.poll() is None
    del predictor
    assert process.returncode == -9


EVIL = b"cposix\nsystem\n(S'touch evil'\ntR."


@pytest.mark.parametrize("answer", [
    EVIL, b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    + EVIL, b""], ids=["pickle", "objects", "nothing"])
def test_answers_of_a_hostile_process_are_refused(functions, tmp_path, monkeypatch, answer):
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(own_process, "WORKER", worker)
    monkeypatch.setattr(own_process, "TIMEOUT", 20.0)
    for size in (len(answer), 2**63):
        worker.write_text(f"import sys\nsys.stdin.buffer.read(8)\n"
                          f"sys.stdout.buffer.write({size.to_bytes(8, 'little') + answer!r})\n")
        refused(f"{functions}:logits", "gave no plain array|its process ended", TRUST)
    assert not (tmp_path / "marker").exists() and not os.path.exists("evil")


# Answers on disk

def records(folder, names=("img/0", "img/1")):
    """Write images and labels, and return queries without pixels."""
    queries = []
    for index, name in enumerate(names):
        image, label = (part[:40, :56] for part in small_scene(index))
        for kind, array in (("image", image), ("label", label)):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{name}.png")
        queries.append(Query(Record(name, name, True, *(folder / kind / f"{name}.png" for kind in ("image", "label"))),
                             None))
    return queries


def write_answer(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps({"posterior": array.tolist()}))
    elif path.suffix == ".png":
        Image.fromarray(array.astype(np.uint8)).save(path)
    else:
        np.save(path, array)


@pytest.mark.parametrize("name", ["0.npy", "img/0.npy", "0.json"])
def test_answers_in_a_folder(tmp_path, name):
    [one, _] = records(tmp_path)
    write_answer(tmp_path / "answers" / name, logits().softmax(0).numpy())
    same(predict(f"folder:{tmp_path}/answers", None, one)[0])


def one_hot(labels, classes=CLASSES):
    return torch.nn.functional.one_hot(torch.as_tensor(labels.astype(np.int64)), classes).permute(2, 0, 1).float()


@pytest.mark.parametrize("name", ["0.png", "0.npy", "0.json"])
def test_labels_in_a_folder_are_one_hot_posteriors(tmp_path, name, capsys):
    [one, _] = records(tmp_path)
    labels = logits().argmax(0).numpy()
    write_answer(tmp_path / "answers" / name, labels)
    same(predict(f"folder:{tmp_path}/answers", None, one)[0], one_hot(labels[::STRIDE, ::STRIDE]))
    assert "one-hot: give -argmax" in capsys.readouterr().err
    small = labels[::2, ::2]  # each position stands for two pixels in a row
    write_answer(tmp_path / "answers" / name, small)
    same(predict(f"folder:{tmp_path}/answers", None, one)[0], one_hot(small.repeat(2, 0).repeat(2, 1)[::4, ::4]))
    write_answer(tmp_path / "answers" / name, labels + 1)
    refused(f"folder:{tmp_path}/answers", "holds the label 5, and there are 5 classes", None, one)
    mapped = predict(f"folder:{tmp_path}/answers", Access(preprocess={"classes": (0, 0, 1, 1, 2, 2)}), one, classes=3)
    same(mapped[0], one_hot(((labels + 1) // 2)[::STRIDE, ::STRIDE], 3))
    refused(f"folder:{tmp_path}/answers", "number of classes is not known", None, one, classes=None)


def test_answers_that_are_missing_or_serve_two_images(tmp_path):
    queries = records(tmp_path, ("a/0", "b/0", "b/1"))
    answers = tmp_path / "answers"
    refused(f"folder:{answers}", "holds no answers", None, *queries)
    write_answer(answers / "0.npy", logits().numpy())
    refused(f"folder:{answers}", "would be the answer for a/0 and b/0", None, *queries)
    write_answer(answers / "b" / "0.npy", logits().numpy())
    refused(f"folder:{answers}", r"no answer for b/1; add 1\.npy", None, *queries)


@pytest.mark.parametrize("name, content, message", [
    ("0.npy", EVIL, r"0\.npy cannot be read as a \.npy array"), ("0.json", b"[" * 100000, "as a JSON file"),
    ("0.json", b"[[1, 2], [3]]", "as a JSON file"), ("0.json", b'{"a": [[1, 2]]}', "one of the keys"),
    ("0.json", b'[["a", "b"]]', "must be posteriors"), ("0.json", b"[[[NaN]]]", "NaN"), ("0.json", b"3", "must be"),
    ("0.json", b"[[[[]]]]", "must be posteriors"), ("0.png", b"GIF89a", "as a label"), ("0.txt", b"0", "as a label"),
    ("0.json", b"[[1e999, 0], [1, 1]]", "NaN or inf")])
def test_hostile_answers_in_a_folder(tmp_path, name, content, message):
    [one, _] = records(tmp_path)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / name).write_bytes(content)
    refused(f"folder:{tmp_path}/answers", message, None, one)


# Endpoints

class Server(http.server.ThreadingHTTPServer):
    """A loopback server whose `answer` maps the path and the image of a request to (status, headers, content)."""

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen = answer, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers)))
        image = np.asarray(Image.open(io.BytesIO(body), formats=["PNG"]))
        status, headers, content = self.server.answer(self.path, image)
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        for piece in content if isinstance(content, list) else [content]:
            self.wfile.write(piece)
            time.sleep(0.1 if isinstance(content, list) else 0)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that starts a server; answers are kept in runs/answers of `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.1)))
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def png(array):
    content = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def answer_of(kind):
    """What a good endpoint answers about an image."""
    def answer(path, image):
        posterior = logits(image).softmax(0).numpy()
        content = {"application/json": lambda: json.dumps({"posterior": posterior.tolist()}).encode(),
                   "image/png": lambda: png(posterior.argmax(0))}.get(kind.partition(";")[0], lambda: npy(posterior))()
        return 200, {"Content-Type": kind, "Content-Length": len(content)}, content
    return answer


@pytest.mark.parametrize("kind", ["application/x-npy", "application/octet-stream", "application/json; charset=utf-8"])
def test_endpoint_gives_the_posterior_of_the_model(serve, kind):
    server = serve(answer_of(kind))
    same(predict(f"{server.url}/predict?model=a")[0])
    assert [path for path, _ in server.seen] == ["/predict?model=a"]
    same(predict(f"{server.url}/predict?model=a")[0])
    assert len(server.seen) == 1  # the answer was kept
    predict(f"{server.url}/other")
    assert len(server.seen) == 2


def test_endpoint_that_answers_labels(serve):
    server = serve(answer_of("image/png"))
    same(predict(server.url)[0], one_hot(logits().argmax(0).numpy()[::STRIDE, ::STRIDE]))


def test_budget_of_queries_and_its_continuation(serve):
    server = serve(answer_of("application/x-npy"))
    queries = [query(IMAGE[:, start : start + 32], f"img/{start}") for start in range(4)]
    refused(server.url, "^--query-budget 2 is used up; .*runs/answers/.*continues", Access(query_budget=2), *queries)
    assert len(server.seen) == 2
    refused(server.url, "^--query-budget 2 is used up", Access(query_budget=2), *queries)  # the model is opened again
    assert len(server.seen) == 2
    endpoint.SENT.clear()  # as in a new process
    found = predict(server.url, Access(query_budget=2), *queries)
    assert len(server.seen) == 4
    for one, asked in zip(found, queries, strict=True):
        same(one, expected(asked.image))


def test_failed_requests_are_repeated_and_count(serve):
    good = answer_of("application/x-npy")
    failures = [503, 429]
    server = serve(lambda *asked: (failures.pop(), {"Retry-After": "1"}, b"") if failures else good(*asked))
    same(predict(server.url)[0])
    assert len(server.seen) == 3
    failures += [503] * 9
    other = query(IMAGE[:32])
    refused(server.url, r"failed for img/0 in 4 attempts: status 503", None, other)
    assert len(server.seen) == 7
    endpoint.SENT.clear()
    refused(server.url, "--query-budget 1 is used up", Access(query_budget=1), other)


def settings(tmp_path, **entries):
    (tmp_path / "endpoint.json").write_text(json.dumps(entries))
    return f"http:{tmp_path}/endpoint.json"


def typed(kind, content, **more):
    return 200, {"Content-Type": kind} | more, content


@pytest.mark.parametrize("answer, message", [
    (typed("text/html", b"<script>alert(1)</script>"), "the type text/html"),
    (typed("application/x-npy", b"garbage"), "cannot be used: .*as a .npy array"),
    (typed("application/x-npy", npy(np.zeros(3))), "cannot be used: .*must be posteriors"),
    (typed("application/x-npy", EVIL), "as a .npy array"),
    (typed("application/x-npy", npy(np.full((5, 4, 4), np.nan))), "NaN or inf"),
    (typed("application/x-npy", npy(np.ones((300, 1, 1), "f4"))), "at most 254 classes"),
    (typed("application/json", b"import os"), "as a JSON file"), (typed("image/png", b"GIF89a"), "as a label"),
    (typed("image/png", png(IMAGE[:4, :4])), "cannot be used: .*must be posteriors"),
    (typed("application/x-npy", b"", **{"Content-Encoding": "gzip"}), "not be compressed"),
    (typed("application/x-npy", bytes(5000)), "more than 0.00390625 MiB"),
    (typed("application/x-npy", b"", **{"Content-Length": str(2**40)}), "more than 0.00390625 MiB"),
    (typed("application/x-npy", bytes(10), **{"Content-Length": "20"}), "failed for img/0 in 1 attempts: Incomp"),
    (typed("application/x-npy", [b"x"] * 40), "no complete answer within 0.5 seconds"),
    ((404, {}, b""), "answers with status 404"), ((201, {"Content-Type": "image/png"}, b""), "status 201"),
    ((401, {}, b""), "answers with status 401"), ((302, {}, b""), "status 302"),
])
def test_hostile_endpoints_are_one_line(serve, tmp_path, monkeypatch, answer, message):
    monkeypatch.setattr(endpoint, "LIMIT", 4096)
    server = serve(lambda path, image: answer)
    refused(settings(tmp_path, url=server.url, timeout=0.5, retries=0), message)
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(kept) <= ("NaN" in message or "classes" in message)  # arrays, which another --preprocess may accept


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(serve, status):
    target = serve(answer_of("application/x-npy"))
    server = serve(lambda path, image: (status, {"Location": f"{target.url}/elsewhere"}, b""))
    assert f"redirects to {target.url}/elsewhere" in refused(server.url, "which is not followed")
    assert target.seen == [] and len(server.seen) == 1


@pytest.mark.parametrize("talk", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nX: "])
def test_endpoint_that_hangs_or_speaks_no_http(tmp_path, monkeypatch, talk):
    """The last one sends its headers without an end, one byte at a time."""
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        def accept():
            connection, _ = server.accept()
            with connection, __import__("contextlib").suppress(OSError):
                connection.sendall(talk)
                for _ in range(30):
                    time.sleep(0.1)
                    connection.sendall(b"x" if talk else b"")
        thread = threading.Thread(target=accept)
        thread.start()
        started = time.monotonic()
        where = settings(tmp_path, url=f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.5, retries=0)
        refused(where, "no complete answer within 0.5 seconds|failed for img/0 in 1 attempts")
        assert time.monotonic() - started < 2.5
        thread.join()


def test_endpoint_that_does_not_exist(tmp_path, monkeypatch):
    import socket

    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused(settings(tmp_path, url=f"http://127.0.0.1:{port}", retries=0), "in 1 attempts: .*refused")


@pytest.mark.parametrize("entries, message", [
    ({"url": "ftp://a"}, '"url"'), ({"url": "http://user:word@a/"}, "without a user"), ({"url": "http://"}, '"url"'),
    ({"url": "http://a:99999/"}, '"url"'), ({"url": "http://a/\r\nHost: b"}, '"url"'), ({"url": 3}, '"url"'),
    ({"url": "http://a", "rate": 0}, '"rate"'), ({"url": "http://a", "retries": 1.5}, '"retries"'),
    ({"url": "http://a", "timeout": True}, '"timeout"'), ({"url": "http://a", "cache": ""}, '"cache"'),
    ({"url": "http://a", "token": "NO_SUCH_VARIABLE"}, "no variable NO_SUCH"), ({"rate": 3}, "must hold one JSON"),
    ({"url": "http://a", "tokens": "x"}, "there is no entry 'tokens'")])
def test_wrong_settings_of_an_endpoint(tmp_path, entries, message):
    refused(settings(tmp_path, **entries), message)


def test_settings_of_an_endpoint(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_THE_TEST", "abc")
    server = serve(answer_of("application/x-npy"))
    same(predict(settings(tmp_path, url=server.url, token="TOKEN_OF_THE_TEST", cache=str(tmp_path / "kept")))[0])
    assert server.seen[0][1]["Authorization"] == "Bearer abc" and len(list((tmp_path / "kept").glob("*/*.npy"))) == 1


def test_rate_of_requests(serve, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    server = serve(answer_of("application/x-npy"))
    predict(settings(tmp_path, url=server.url, rate=0.5), None, query(), query(IMAGE[:32]))
    waits = [pause for pause in pauses if pause]
    assert len(waits) == 1 and 0 < waits[0] <= 2


# The script

@pytest.fixture
def victim(tmp_path):
    """A folder with an ONNX victim of 19 classes, and the flags of attack.py that query it about 4 + 4 images."""
    torch.manual_seed(1)
    last = nn.Conv2d(8, 19, 1)
    weights = [*weights_of()[:2], tensor("last.weight", 9 * last.weight.detach().numpy()),
               tensor("last.bias", last.bias.detach().numpy())]
    write_onnx(tmp_path / "m.onnx", weights=weights)
    queries = records(tmp_path, [f"{index}" for index in range(8)])
    for side, part in (("in", queries[:4]), ("out", queries[4:])):
        write_split(tmp_path / f"{side}.txt", [Pair(f"image/{one.record.name}.png", f"label/{one.record.name}.png",
                                                    one.record.name) for one in part])
    return ["attack.py", "--attack", "loss", "--patch-size", 3, "--root", tmp_path, "--members", tmp_path / "in.txt",
            "--non-members", tmp_path / "out.txt", "--precision", "fp32", "--out", tmp_path / "run"]


def test_attack_on_an_onnx_model(victim, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"channels": "bgr"}))
    found = []
    for flags in ([], ["--preprocess", tmp_path / "p.json"]):
        run = tmp_path / f"run{len(flags)}"
        must(script(*victim[:-1], run, "--victim", f"onnx:{tmp_path}/m.onnx", *flags))
        found.append(scores(run))
    assert found[0].keys() == found[1].keys() and found[0] != found[1] and len(found[0]) == 8


@pytest.mark.parametrize("flags, message", [
    (["--trust-code"], "--trust-code has no effect on posteriors on disk"),
    (["--query-budget", 3], "--query-budget has no effect on posteriors on disk"),
    (["--preprocess", "p.json"], "--preprocess has no effect on posteriors on disk"),
    (["--victim", "onnx:m.onnx", "--trust-code"], "--trust-code has no effect on m.onnx"),
    (["--victim", "onnx:m.onnx", "--query-budget", 3], "--query-budget has no effect on m.onnx"),
    (["--victim", "m.onnx", "--preprocess", "none.json"], "none.json: no such JSON file"),
    (["--victim", "stored:tree", "--preprocess", "p.json"], "--preprocess has no effect on tree"),
    (["--victim", "python:m.py:f"], "give --trust-code"), (["--victim", "http://a:b@c"], "without a user")])
def test_flags_without_effect(victim, tmp_path, flags, message):
    (tmp_path / "m.py").write_text("raise SystemExit(0)")
    (tmp_path / "p.json").write_text(json.dumps({"channels": "bgr"}))
    write_tree(tmp_path / "tree")
    command = victim if "--victim" in flags else ["attack.py", "--attack", "loss"]
    result = script(*command, *flags, cwd=tmp_path)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "run").exists()
