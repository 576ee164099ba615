"""Models of Hugging Face on disk: `hf:DIR`, the folder that `model.save_pretrained(DIR)` writes.

Only safetensors weights and the code of the installed package transformers are used. Nothing is downloaded.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from defenses.gauss import normalise_or_uniform
from predictors.base import PredictorOptions
from predictors.foreign import ForeignModel, find_weights, loading, optional, read_folder
from predictors.preprocess import IMAGENET, Preprocess
from utils.cli import UserError
from utils.distributed import warn_once
from utils.files import read_json

QUERIES = ("mask2former", "maskformer", "eomt", "eomt_dinov3")  # model types that answer with classes and masks
PROCESSOR = "preprocessor_config.json"
# Entries by which a config asks for code, weights or kernels from elsewhere.
FOREIGN_CODE = ("auto_map", "custom_pipelines", "transformers_weights", "attn_implementation", "_attn_implementation",
                "_attn_implementation_internal", "quantization_config")


class HuggingFacePredictor(ForeignModel):
    """A model for semantic segmentation, or one with class queries as Mask2Former.

    Its input is that of preprocessor_config.json. Raises `UserError` if the folder holds no such model, only pickles,
    or a config that asks for code from elsewhere.
    """

    def __init__(self, where: str, options: PredictorOptions):
        transformers = optional("transformers", "hf")
        config, weights, folder = read_folder(where, "Hugging Face"), find_weights(where), Path(where)
        preprocess = read_processor(folder)
        _refuse_code(folder)
        self.by_queries = config.get("model_type") in QUERIES
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        auto = (transformers.AutoModelForUniversalSegmentation if self.by_queries
                else transformers.AutoModelForSemanticSegmentation)
        with loading(folder / "config.json", "model for semantic segmentation"):
            model, report = auto.from_pretrained(str(folder.absolute()), local_files_only=True, trust_remote_code=False,
                                                 use_safetensors=True, output_loading_info=True, dtype=torch.float32)
        if wrong := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise UserError(f"{weights} lacks {len(wrong)} weights of the model in config.json, such as "
                            f"{wrong[0][:80]}; the model would be random there")
        names = model.config.id2label
        if self.by_queries:
            preprocess = preprocess.changed({"output": "posterior"})
        super().__init__(where, options, preprocess, model, len(names))
        self.own_names = [str(names[index]) for index in sorted(names)]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=inputs)
        if self.by_queries:
            return class_queries(output.class_queries_logits.float(), output.masks_queries_logits.float())
        return output.logits


def class_queries(classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Posterior (N, C, h, w) of Q queries: logits (N, Q, C + 1), of which the last is no class, and masks (N, Q, h, w).

    The sum over queries of softmax(classes) times sigmoid(masks), divided by its sum over the C classes (Cheng et al.,
    "Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS 2021, section 3.4).
    """
    return normalise_or_uniform(torch.einsum("nqc,nqhw->nchw", classes.softmax(-1)[..., :-1], masks.sigmoid()))


def read_processor(folder: Path) -> Preprocess:
    """The preprocessing of preprocessor_config.json; without this file, that of ImageNet, with a warning."""
    if not (folder / PROCESSOR).is_file():
        warn_once(f"{folder} has no {PROCESSOR}: the normalisation of ImageNet and the size of the images are used")
        return Preprocess(**IMAGENET)
    config = read_folder(str(folder), "Hugging Face", PROCESSOR)
    given: dict[str, object] = {}
    if config.get("do_normalize", "image_mean" in config):
        given = {name: tuple(value) if isinstance(value := config.get(f"image_{name}", default), list) else value
                 for name, default in IMAGENET.items()}
    if config.get("do_resize", True) and "size" in config:
        given |= _size(config["crop_size"] if config.get("do_center_crop") and "crop_size" in config
                       else config["size"], folder / PROCESSOR)
    if config.get("do_flip_channel_order"):
        given["channels"] = "bgr"
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    if not isinstance(factor, (int, float)):
        raise UserError(f"{folder / PROCESSOR}: rescale_factor must be a number")
    scale = 255 * factor
    try:
        return Preprocess(scale=1 if abs(scale - 1) < 1e-6 else scale, **given)
    except UserError as error:
        raise UserError(f"{folder / PROCESSOR}: {error}") from None


def _size(size: object, path: Path) -> dict[str, object]:
    """The entry "size" of a processor, as entries of a `Preprocess`."""
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return {"size": (size["height"], size["width"])}
    if isinstance(size, dict) and "shortest_edge" in size:
        return {"size": size["shortest_edge"], "longest": size.get("longest_edge")}
    if isinstance(size, int):
        return {"size": (size, size)}
    raise UserError(f"{path}: the size {json.dumps(size)[:60]} is not understood; remove it, and give --preprocess "
                    'FILE with "size"')


def _refuse_code(folder: Path) -> None:
    """Raise `UserError` if a JSON file of the folder asks for code or weights from elsewhere."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter, whose base model lies elsewhere; merge both, and save the result")
    for path in sorted(folder.glob("*config.json")):
        if found := next((key for key in _keys(read_json(path)) if key in FOREIGN_CODE), None):
            raise UserError(f"{path} asks for code or weights from elsewhere ({found}); it was not opened. If the "
                            "model runs without, remove this entry")
    index = folder / "model.safetensors.index.json"
    files = read_json(index).get("weight_map", {}) if index.is_file() else {}
    if outside := next((str(name) for name in files.values() if Path(str(name)).name != name), None):
        raise UserError(f"{index} names the file {outside[:60]!r}, which is not in the folder")


def _keys(value: object) -> Iterator[str]:
    """All keys of nested dicts and lists."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
