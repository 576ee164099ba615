"""Models in ONNX files, which onnxruntime runs on the CPU. An ONNX file holds no code."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from predictors.arrays import ArrayPredictor
from predictors.base import PredictorOptions
from predictors.preprocess import Preprocess
from utils.cli import UserError
from utils.untrusted import reading

if TYPE_CHECKING:
    import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
         "tensor(uint8)": np.uint8}  # of the input
BANDS = 16  # a dimension of the input that is larger is a height or a width
# The parts of an ONNX file in which a tensor can lie: message -> number of a field -> its message (onnx.proto).
# Fields of a single message are repeated, too: then none of several copies is overlooked.
MESSAGES = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"}, "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"}, "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"}, "Sparse": {1: "Tensor", 2: "Tensor"}, "Tensor": {13: "Entry"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Entry": {1: "", 2: ""}}  # key and value, of which the key `location` has the path of a file


class ONNX(ArrayPredictor):
    """A model with one input (1, C, H, W) or (1, H, W, C), of any or of a fixed size; its first output is read."""

    def __init__(self, where: str, options: PredictorOptions):
        self.session = open_session(where)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) != 4:
            shown = ", ".join(f"{one.type} {one.shape}" for one in inputs)[:200]
            raise UserError(f"{where} has the inputs {shown or 'none'}; it must have one image (1, C, H, W) or (1, H, "
                            "W, C) of floats or uint8")
        [self.input] = inputs
        default, bands = read_form(where, self.input.shape)
        if self.input.type == "tensor(uint8)":
            default = default.changed({"scale": 255})
        super().__init__(where, options, default)
        output = self.session.get_outputs()[0]
        channels = channels_of(output.shape, default.size) if "float" in output.type else None
        self.classes = self.preprocess.kept or (channels and max(channels, 2))
        if bands and bands != len(self.preprocess.channels):
            raise UserError(f"{where} reads {bands} channels, and an image has 3: name the colour of each channel in "
                            f'--preprocess, such as {{"channels": "{("bgr" * bands)[:bands]}"}}')

    def answer(self, inputs: torch.Tensor, key: str) -> np.ndarray:
        pixels = inputs.numpy().astype(TYPES[self.input.type])[None]
        try:
            output = np.asarray(self.session.run(None, {self.input.name: pixels})[0])
        except Exception as error:  # onnxruntime has exceptions of its own for a damaged or an unsuitable model
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.where} failed with an input {pixels.shape}: {reason}; "
                            '"size" or "multiple" in --preprocess changes the input') from None
        return self._as_input(output[0] if output.ndim == 4 and len(output) == 1 else output, inputs)

    def _as_input(self, output: np.ndarray, inputs: torch.Tensor) -> np.ndarray:
        """An output (C, h, w) or (h, w, C) in the layout of the input, if the size of the input tells which it is."""
        own, other = (slice(1, None), slice(2)) if self.preprocess.layout == "nchw" else (slice(2), slice(1, None))
        size = tuple(inputs.shape[own])
        if output.ndim == 3 and output.shape[other] == size != output.shape[own]:
            return np.moveaxis(output, *((-1, 0) if self.preprocess.layout == "nchw" else (0, -1)))
        return output


def channels_of(shape: Sequence[int | str | None], size: tuple[int, int] | None) -> int | None:
    """The number of channels of an output (1, C, h, w) or (1, h, w, C); None if its form does not say which they are.

    A dimension of any length is no integer. `size`: that of the input, if it is fixed.
    """
    if len(shape) != 4:
        return None
    of_size = (lambda places: tuple(places) == size) if size else (
        lambda places: not any(isinstance(one, int) for one in places))
    found = [channels for channels, places in ((shape[1], shape[2:]), (shape[3], shape[1:3]))
             if isinstance(channels, int) and channels > 0 and of_size(places)]
    return found[0] if len(found) == 1 else None


def open_session(where: str) -> "onnxruntime.InferenceSession":
    """Load a model. Raises `UserError` if onnxruntime is missing, or if the file is no ONNX model or names files."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"onnx:{where} needs onnxruntime: pip install -r requirements-audit.txt") from None
    with reading(where, "ONNX model"):
        check_external_data(Path(where))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")  # what `check_external_data` has read
        options.log_severity_level = 4  # an error is one line, that of the exception
        return onnxruntime.InferenceSession(str(Path(where).resolve()), options, providers=["CPUExecutionProvider"])


def check_external_data(path: Path) -> None:
    """Raise `ValueError` if a tensor of an ONNX file lies in a file outside its folder, or in none that exists."""
    folder = path.resolve().parent
    for location in external_locations(path.read_bytes()):
        place = (folder / location).resolve()  # follows links
        if not place.is_relative_to(folder) or not place.is_file():
            raise ValueError(f"its weights are in {location[:100]!r}, which is no file in its folder")


def external_locations(content: bytes) -> set[str]:
    """The paths of files that the tensors of an ONNX file name. Raises an exception if it is none."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # onnxruntime needs it

    file = descriptor_pb2.FileDescriptorProto(name="tensors.proto", package="tensors", syntax="proto2")
    for name, parts in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, part in parts.items():
            kind = {"type": 11, "type_name": f".tensors.{part}"} if part else {"type": 12}  # a message, or bytes
            message.field.add(name=f"f{number}", number=number, label=3, **kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    model = message_factory.GetMessageClass(pool.FindMessageTypeByName("tensors.Model"))()
    model.ParseFromString(content)
    found, rest = set(), [model]
    while rest:
        message = rest.pop()
        if message.DESCRIPTOR.name == "Entry" and b"location" in message.f1:
            found |= {value.decode() for value in message.f2}
        elif message.DESCRIPTOR.name != "Entry":
            rest += [part for _, parts in message.ListFields() for part in parts]
    return found


def read_form(where: str, shape: list) -> tuple[Preprocess, int | None]:
    """Layout, size and channels of an input with four dimensions, of which a dimension of any length is no integer.

    Second, the number of channels, if it is fixed.
    """
    fixed = [one if isinstance(one, int) and one > 0 else None for one in shape]
    if fixed[0] not in (None, 1):
        raise UserError(f"{where} reads {fixed[0]} images at once; export it for one image, or for any number")
    first, last = (one if one and one <= BANDS else None for one in (fixed[1], fixed[3]))
    layout = "nhwc" if last and (not first or last < first) else "nchw"
    bands, size = (fixed[3], fixed[1:3]) if layout == "nhwc" else (fixed[1], fixed[2:])
    channels = "g" if bands == 1 else "rgb"
    return Preprocess(channels=channels, layout=layout, size=tuple(size) if all(size) else None), bands
