"""Models of torchvision, segmentation-models-pytorch and Hugging Face: loaded from disk, they answer as they are."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, must, scores, script

from predictors import open_predictor
from predictors.base import Access, PredictorOptions, Query, Record
from predictors.foreign import optional
from predictors.preprocess import IMAGENET, Preprocess
from utils.cli import UserError

CLASSES = 5
IMAGE = np.random.default_rng(0).integers(0, 256, (52, 70, 3), np.uint8)
MEAN, STD = (torch.tensor(IMAGENET[name])[:, None, None] for name in ("mean", "std"))
PLAIN = (torch.from_numpy(IMAGE.transpose(2, 0, 1).copy()).float() / 255 - MEAN) / STD
PADDED = F.pad(PLAIN, (0, 96 - 70, 0, 64 - 52))[None]


class Code:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def query():
    return Query(Record("a", "a", None, Path("a.png"), Path("missing.png")), IMAGE)


def ask(where, stride=1, **changes):
    """The posterior of the predictor `where` for IMAGE."""
    predictor = open_predictor(str(where), PredictorOptions(stride=stride, access=Access(preprocess=changes or {})))
    [found] = predictor.predict([query()])
    assert found.dtype == torch.float32 and found.shape == (predictor.classes, -(-52 // stride), -(-70 // stride))
    return found


def full(logits, size=(52, 70)):
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="session")
def vision(tmp_path_factory):
    """LR-ASPP and DeepLabV3 with an auxiliary head, with random weights, and their files."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large

    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    models = {"lraspp_mobilenet_v3_large": lraspp_mobilenet_v3_large, "deeplabv3_mobilenet_v3_large":
              lambda **rest: deeplabv3_mobilenet_v3_large(aux_loss=True, **rest)}
    for name, build in models.items():
        models[name] = build(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
        torch.save(models[name].state_dict(), folder / f"{name}.pth")
    return folder, models


@pytest.fixture(scope="session")
def smp_folder(tmp_path_factory):
    """A function (activation, classes) -> folder of a U-Net with random weights, and the model without activation."""
    smp = pytest.importorskip("segmentation_models_pytorch")

    def make(activation, classes=CLASSES, **rest):
        torch.manual_seed(0)
        model = smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None, classes=classes,
                         decoder_channels=(16, 8, 8, 8, 8), activation=activation, **rest).eval()
        folder = tmp_path_factory.mktemp("smp")
        model.save_pretrained(folder)
        model.segmentation_head[2] = torch.nn.Identity()
        return folder, model
    return make


@pytest.fixture(scope="session")
def segformer(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, depths=[1] * 4, num_attention_heads=[1] * 4,
        id2label={0: "<script>alert(1)</script>", 1: "b\x1b[31m", 2: "c", 3: "d", 4: "e"})
    folder, model = tmp_path_factory.mktemp("segformer"), transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(folder)
    write_processor(folder, size={"height": 64, "width": 96})
    return folder, model


def write_processor(folder, **entries):
    content = {"do_normalize": True, "image_mean": IMAGENET["mean"], "image_std": IMAGENET["std"], "do_rescale": True,
               "rescale_factor": 1 / 255, "do_resize": "size" in entries} | entries
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def mask2former(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4,
                                       out_features=[f"stage{i}" for i in range(1, 5)])
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=CLASSES, hidden_dim=32, feature_size=32, mask_feature_size=32,
        encoder_layers=1, decoder_layers=2, num_queries=6, num_attention_heads=2, dim_feedforward=16,
        encoder_feedforward_dim=16)
    folder = tmp_path_factory.mktemp("mask2former")
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    model.save_pretrained(folder)
    write_processor(folder)
    return folder, model


def copy(folder, tmp_path, **config):
    """A copy of a folder, with changed entries of config.json."""
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return tmp_path / "copy"


# Answers

@torch.inference_mode()
@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_torchvision(vision, name):
    folder, models = vision
    expected = models[name](PLAIN[None])["out"][0]
    close(ask(f"torchvision:{name}={folder / name}.pth"), expected.softmax(0))
    close(ask(f"torchvision:{name}={folder / name}.pth", 4), expected[:, ::4, ::4].softmax(0))


@torch.inference_mode()
def test_preprocess_changes_what_was_guessed(vision):
    folder, models = vision
    name = "lraspp_mobilenet_v3_large"
    where = f"torchvision:{name}={folder / name}.pth"
    plain = torch.from_numpy(IMAGE[..., ::-1].transpose(2, 0, 1).copy()).float()
    expected = models[name](plain[None])["out"][0].softmax(0)
    close(ask(where, channels="bgr", scale=255, mean=None, std=None), expected)
    merged = ask(where, channels="bgr", scale=255, mean=None, std=None, classes=(0, 1, 1, 255, 255))
    close(merged[1], expected[1:3].sum(0) / expected[:3].sum(0))


@torch.inference_mode()
@pytest.mark.parametrize("activation", [None, "softmax2d", "logsoftmax"])
def test_smp(smp_folder, activation):
    folder, model = smp_folder(activation)
    close(ask(f"smp:{folder}"), model(PADDED)[0, :, :52, :70].softmax(0))


@torch.inference_mode()
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_binary_smp_has_two_classes(smp_folder, activation):
    folder, model = smp_folder(activation, classes=1, aux_params={"classes": 3})
    p = model(PADDED)[0][0, :, :52, :70].sigmoid()
    close(ask(f"smp:{folder}"), torch.cat([1 - p, p]))


def test_encoders_have_their_normalisation():
    pytest.importorskip("segmentation_models_pytorch")
    from predictors.smp import DPN, HALF, encoder_normalisation

    assert encoder_normalisation("resnet34", None) == encoder_normalisation("timm-efficientnet-b0", None) == IMAGENET
    assert encoder_normalisation("inceptionv4", "imagenet") == encoder_normalisation("tu-vit_base_patch16_224", None)
    assert encoder_normalisation("dpn68", None) == DPN and encoder_normalisation("efficientnet-b0", "advprop") == HALF


@torch.inference_mode()
def test_segformer(segformer):
    folder, model = segformer
    small = F.interpolate(torch.from_numpy(IMAGE.transpose(2, 0, 1).copy()).float()[None], (64, 96), mode="bilinear",
                          antialias=True, align_corners=False) / 255
    logits = model((small - MEAN) / STD).logits
    assert logits.shape[2:] == (16, 24)
    close(ask(f"hf:{folder}"), full(logits).softmax(0))
    close(ask(f"hf:{folder}", size=None), full(model(PLAIN[None]).logits).softmax(0))


@torch.inference_mode()
def test_segformer_against_the_processor_of_transformers(segformer):
    transformers = pytest.importorskip("transformers")
    folder, _ = segformer
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(IMAGE, return_tensors="pt")["pixel_values"]
    found = open_predictor(f"hf:{folder}").preprocess.prepare(IMAGE)
    assert pixels.shape[1:] == found.shape and (pixels[0] - found).abs().max() < 1.01 / 255 / 0.22


@torch.inference_mode()
def test_class_queries_of_mask2former(mask2former):
    folder, model = mask2former
    output = model(pixel_values=PLAIN[None])
    classes, masks = output.class_queries_logits[0].softmax(-1), output.masks_queries_logits[0].sigmoid()
    slow = torch.zeros(CLASSES, *masks.shape[1:])
    for query_index in range(len(masks)):
        for label in range(CLASSES):
            slow[label] += classes[query_index, label] * masks[query_index]
    slow = F.interpolate((slow / slow.sum(0))[None], (52, 70), mode="bilinear", align_corners=False)[0]
    close(ask(f"hf:{folder}"), slow)


def test_class_names_are_kept_as_text(segformer):
    names = open_predictor(f"hf:{segformer[0]}").own_names
    assert names[:2] == ["<script>alert(1)</script>", "b\x1b[31m"]


@pytest.mark.parametrize("entries, expected", [
    ({"size": 64}, {"size": (64, 64)}), ({"size": {"shortest_edge": 80, "longest_edge": 130}},
                                         {"size": 80, "longest": 130}),
    ({"size": {"height": 9, "width": 8}, "do_center_crop": True, "crop_size": {"height": 7, "width": 6}},
     {"size": (7, 6)}), ({"do_normalize": False}, {"mean": None, "std": None}),
    ({"do_rescale": False}, {"scale": 255}), ({"do_flip_channel_order": True}, {"channels": "bgr"}),
    ({"image_mean": [0.5] * 3}, {"mean": (0.5,) * 3}), ({"size": {"height": 9, "width": 8}, "do_resize": False}, {})])
def test_processors(tmp_path, entries, expected):
    from predictors.huggingface import read_processor

    write_processor(tmp_path, **entries)
    assert read_processor(tmp_path) == Preprocess(**IMAGENET).changed(expected)


@pytest.mark.parametrize("content, message", [
    ('{"size": {"max_height": 3}}', "the size .* is not understood"), ('{"image_mean": ["x"]}', '"mean"'),
    ('{"size": {"height": "<b>", "width": 3}}', '"size"'), ('{"rescale_factor": "1"}', "rescale_factor"), ("[]", "one"),
    ('{"image_mean": [1, 2]}', "2 numbers")])
def test_processors_that_are_refused(tmp_path, content, message):
    from predictors.huggingface import read_processor

    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        read_processor(tmp_path)
    assert "preprocessor_config.json" in str(raised.value)


# In attack.py

def test_attack_on_a_model_of_torchvision(world, vision, tmp_path):
    """attack.py queries it; --preprocess goes to it, and is stored with the posteriors that are kept."""
    folder, _ = vision
    name = "lraspp_mobilenet_v3_large"
    (tmp_path / "p.json").write_text('{"classes": [0, 1, 2, 3, 4], "mean": null, "std": null}')
    for number, text in enumerate(("pedestrian", "road", "sky", "car", "tree")):
        (tmp_path / "names.txt").open("a").write(f"{text}\n")
        (tmp_path / "map.txt").open("a").writelines(f"{id} {number}\n" for id in range(number, 19, 5))
    (tmp_path / "map.txt").open("a").write("255 void\n")
    command = ["attack.py", "--attack", "loss", "--victim", f"torchvision:{name}={folder / name}.pth", "--root",
               world / "data", "--members", world / "victim_in.txt", "--non-members", world / "victim_out.txt",
               "--precision", "fp32", "--dataset", "folder", "--class-names", tmp_path / "names.txt", "--label-map",
               tmp_path / "map.txt"]
    found = []
    for number, more in enumerate(([], ["--preprocess", tmp_path / "p.json"])):
        must(script(*command, *more, "--out", tmp_path / f"run{number}", "--keep", tmp_path / "kept"))
        found.append(scores(tmp_path / f"run{number}"))
    assert found[0] != found[1]
    (tmp_path / "p.json").write_text('{"clases": [0]}')
    result = script(*command, "--preprocess", tmp_path / "p.json", "--out", tmp_path / "none")
    assert result.returncode == 2 and "there is no entry 'clases'" in result.stderr


def test_preprocess_is_refused_where_it_has_no_effect(world, live, tmp_path):
    (tmp_path / "p.json").write_text("{}")
    result = script("attack.py", "--preprocess", tmp_path / "p.json", "--attack", "loss")
    assert result.returncode == 2 and "--preprocess has no effect on posteriors on disk" in result.stderr
    (tmp_path / "p.json").write_text('{"scale": 255}')
    result = script("attack.py", *live, "--preprocess", tmp_path / "p.json", "--attack", "loss")
    assert result.returncode == 2 and "--preprocess has no effect on" in result.stderr


# Hostile and broken files: one line, nothing executed

def refused(where, message):
    with pytest.raises(UserError, match=message) as raised:
        open_predictor(str(where)).predict([query()])
    assert len(str(raised.value)) < 800 and "\n" not in str(raised.value)


def test_torchvision_files_that_are_refused(vision, tmp_path):
    folder, models = vision
    name = "lraspp_mobilenet_v3_large"
    file = folder / f"{name}.pth"
    for where in ("deeplabv3_resnet50", f"resnet50={file}", f"={file}", f"{name}="):
        refused(f"torchvision:{where}", "expected torchvision:NAME=FILE")
    refused(f"torchvision:{name}={tmp_path / 'none.pth'}", "no such file of weights")
    refused(f"torchvision:deeplabv3_mobilenet_v3_large={file}", "weights of another model: .* is missing")
    evil = tmp_path / "evil.pth"
    torch.save({"classifier.4.weight": Code(tmp_path / "ran")}, evil)
    refused(f"torchvision:{name}={evil}", "more than tensors and plain values")
    evil.write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    refused(f"torchvision:{name}={evil}", "neither the zip file")
    torch.save({"conv.weight": torch.zeros(1)}, evil)
    refused(f"torchvision:{name}={evil}", "classifier.4.weight is missing")
    state = models[name].state_dict()
    torch.save({"state_dict": state | {"classifier.low_classifier.weight": torch.zeros(7, 40, 1, 1)}}, evil)
    refused(f"torchvision:{name}={evil}", "weights of another model: the shape of")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("config, message", [
    ({"classes": 7}, "weights of another model: the shape of"), ({"_model_class": "system"}, "names no model"),
    ({"_model_class": ["Unet"]}, "names no model"), ({"activation": "argmax"}, "gives no posterior"),
    ({"activation": ["softmax"]}, "gives no posterior"),
    ({"checkpoint_path": "/x.pth"}, "no argument 'checkpoint_path'"),
    ({"encoder_name": "tu-hf-hub:evil/model"}, "no name of an encoder"),
    ({"encoder_name": "tu-local-dir:/x"}, "no name of an encoder"), ({"encoder_name": "<b>"}, "no name of an encoder"),
    ({"encoder_name": "none"}, "cannot be built"), ({"decoder_channels": [2**40] * 5}, "cannot be built|shape of"),
    ({"in_channels": 4}, "shape of")])
def test_smp_configs_that_are_refused(smp_folder, tmp_path, config, message):
    refused(f"smp:{copy(smp_folder(None)[0], tmp_path, **config)}", message)


def test_smp_model_with_four_channels(smp_folder):
    folder, _ = smp_folder(None, in_channels=4)
    refused(f"smp:{folder}", "reads 4 channels, and 3 are given")
    found = ask(f"smp:{folder}", channels="rgbb", mean=(0.0,) * 4, std=(1.0,) * 4)
    assert found.isfinite().all()


def test_smp_downloads_nothing(smp_folder, tmp_path):
    folder, model = smp_folder(None)
    with torch.inference_mode():
        close(ask(f"smp:{copy(folder, tmp_path, encoder_weights='imagenet')}"),
              model(PADDED)[0, :, :52, :70].softmax(0))


@pytest.mark.parametrize("kind, fixture", [("smp", "smp_folder"), ("hf", "segformer")])
def test_folders_that_are_refused(request, tmp_path, kind, fixture):
    made = request.getfixturevalue(fixture)
    folder, _ = made(None) if callable(made) else made
    refused(f"{kind}:{tmp_path / 'none'}", "there is no folder")
    (tmp_path / "empty").mkdir()
    refused(f"{kind}:{tmp_path / 'empty'}", r"must hold config\.json")
    place = copy(folder, tmp_path)
    (place / "model.safetensors").unlink()
    refused(f"{kind}:{place}", r"holds no model\.safetensors$")
    with open(place / "pytorch_model.bin", "wb") as file:
        pickle.dump(Code(tmp_path / "ran"), file)
    refused(f"{kind}:{place}", "pytorch_model.bin can hold code and is not opened")
    (place / "model.safetensors").write_bytes(b"\xff" * 64)
    refused(f"{kind}:{place}", "cannot be read as")
    (place / "config.json").write_text("[1]")
    refused(f"{kind}:{place}", "one JSON object")
    (place / "config.json").write_text("{")
    refused(f"{kind}:{place}", "cannot be read as a JSON file")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("config, message", [
    ({"auto_map": {"AutoConfig": "evil.Config"}}, r"asks for code .*auto_map"),
    ({"nested": [{"auto_map": {"AutoModel": "evil.Model"}}]}, "auto_map"),
    ({"transformers_weights": "../x.safetensors"}, "transformers_weights"),
    ({"attn_implementation": "kernels-community/x"}, "attn_implementation"),
    ({"model_type": "evil", "auto_map": {}}, "auto_map"), ({"model_type": "evil"}, "cannot be read as a model"),
    ({"model_type": "bert"}, "cannot be read as a model"), ({"model_type": ["segformer"]}, "cannot be read as a model"),
    ({"id2label": {"0": "a", "1": "b"}}, "cannot be read as a model|lacks"),
    ({"depths": [1, 1, 1, 2]}, "lacks .* weights"), ({"hidden_sizes": "x"}, "cannot be read as a model")])
def test_hugging_face_configs_that_are_refused(segformer, tmp_path, config, message):
    place = copy(segformer[0], tmp_path, **config)
    (place / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(f"hf:{place}", message)
    assert not (tmp_path / "ran").exists()


def test_hugging_face_folders_that_point_elsewhere(segformer, tmp_path):
    place = copy(segformer[0], tmp_path)
    (place / "preprocessor_config.json").write_text('{"auto_map": {"AutoImageProcessor": "evil.P"}}')
    refused(f"hf:{place}", "preprocessor_config.json asks for code")
    (place / "preprocessor_config.json").unlink()
    (place / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    refused(f"hf:{place}", "not in the folder")
    (place / "model.safetensors.index.json").unlink()
    (place / "adapter_config.json").write_text("{}")
    refused(f"hf:{place}", "adapter")


def test_missing_packages_are_named(monkeypatch):
    with pytest.raises(UserError, match=r"hf: needs the package no_such_package; install it with `pip install -r req"):
        optional("no_such_package", "hf")


@pytest.mark.slow
def test_no_package_imports_our_folders(segformer, smp_folder, tmp_path):
    """`datasets`, `models` and `utils` are folders here, and names of packages elsewhere: nobody else imports ours."""
    folders = [f"hf:{segformer[0]}", f"smp:{smp_folder(None)[0]}"]
    code = f"""
import sys, builtins
real, ours, found = builtins.__import__, {str(ROOT)!r}, []
def watch(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__file__") or ""
    if level == 0 and name.partition(".")[0] in ("datasets", "models", "utils", "training", "evaluation"):
        if importer and "site-packages" in importer:
            found.append((importer, name))
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = watch
sys.path.insert(0, ours)
from predictors import open_predictor
for where in {folders!r}:
    open_predictor(where)
assert not found, found
assert sys.modules["datasets"].__file__.startswith(ours)
print("fine")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.stdout == "fine\n", result.stderr[-2000:]
