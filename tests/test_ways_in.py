"""One model has one AUC, through every way in: models of other libraries are trained, and audited in each format."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import must, script, small_scene
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_access import Server, npy
from torch import nn

from datasets import streets
from predictors.preprocess import IMAGENET
from utils import VOID

SIDE, STEPS, STRIDE = 16, 80, 8
CLASSES = len(streets.CLASSES)


class Plain(nn.Module):
    """A model with its normalisation: images float (N, 3, H, W) in 0..1 -> logits (N, C, H, W)."""

    def __init__(self, kind, model, read):
        super().__init__()
        self.kind, self.model, self.read = kind, model, read
        for name, values in IMAGENET.items():
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, images):
        logits = self.read(self.model((images - self.mean) / self.std))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)

    def posterior(self, image):
        """That of one image uint8 (H, W, 3), as float32 (C, H, W)."""
        with torch.inference_mode():
            return self(torch.tensor(image).permute(2, 0, 1)[None].float() / 255)[0].softmax(0).numpy()


def lraspp():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    return Plain("torchvision", model, lambda output: output["out"])


def unet():
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None, classes=CLASSES,
                     decoder_channels=(32, 16, 16, 8, 8))
    return Plain("smp", model, lambda output: output)


def segformer():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        hidden_sizes=[16, 32, 32, 48], decoder_hidden_size=48, depths=[1] * 4, num_attention_heads=[1, 2, 2, 3],
        id2label=dict(enumerate(streets.CLASSES)))
    return Plain("hf", transformers.SegformerForSemanticSegmentation(config), lambda output: output.logits)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with `SIDE` members and as many non-members in image/ and mask/, and members.txt; and their arrays."""
    folder = tmp_path_factory.mktemp("scenes")
    drawn = {f"{index:02}/0": small_scene(index) for index in range(2 * SIDE)}  # each folder is a group
    for name, arrays in drawn.items():
        for kind, array in zip(("image", "mask"), arrays, strict=True):
            (folder / kind / name).parent.mkdir(parents=True)
            Image.fromarray(array).save(folder / kind / f"{name}.png")
    (folder / "members.txt").write_text("\n".join([*drawn][:SIDE]))
    return folder, drawn


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    """A function (build, steps) -> the model, trained on the members, and its AUC by the mean loss, by hand."""
    known = {}

    def train(build, steps=STEPS):
        if (build, steps) in known:
            return known[build, steps]
        torch.manual_seed(0)
        plain, arrays = build(), [*scenes[1].values()]
        images = torch.from_numpy(np.stack([image for image, _ in arrays])).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(np.stack([label for _, label in arrays])).long()
        optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-3, weight_decay=0)
        plain.train()
        for norm in (one for one in plain.modules() if isinstance(one, nn.BatchNorm2d)):
            norm.momentum = 0.1  # torchvision has 0.01, for longer trainings
        for step in range(steps):
            rows = torch.arange(8) * 2 + step % 2  # every second member
            optimizer.zero_grad()
            F.cross_entropy(plain(images[rows]), labels[rows], ignore_index=VOID).backward()
            optimizer.step()
        plain.eval()
        losses = [-np.log(np.take_along_axis(plain.posterior(image), np.where(label == VOID, 0, label)[None], 0)[0])
                  [::STRIDE, ::STRIDE][label[::STRIDE, ::STRIDE] != VOID].mean() for image, label in arrays]
        known[build, steps] = plain, roc_auc_score(np.arange(2 * SIDE) < SIDE, -np.array(losses))
        return known[build, steps]

    return train


def audited(scenes, out, model, *flags):
    """The AUC of the mean loss in an audit of `model`."""
    folder, _ = scenes
    done = must(script("audit.py", "--model", model, "--images", folder / "image", "--masks", folder / "mask",
                       "--members", folder / "members.txt", "--classes", CLASSES, "--attacks", "loss", "--precision",
                       "fp32", "--stride", STRIDE, "--out", out, "--json", *flags))
    [row] = json.loads(done.stdout)["attacks"]
    return row["auc"]


def write_model(plain, folder):
    """Write a model in the format of its library, and return what --model says about it."""
    if plain.kind == "torchvision":
        torch.save(plain.model.state_dict(), folder / "model.pth")
        return f"torchvision:lraspp_mobilenet_v3_large={folder}/model.pth"
    plain.model.save_pretrained(folder / "model")
    return f"{plain.kind}:{folder}/model"


@pytest.mark.slow
@pytest.mark.parametrize("build", [lraspp, unet, segformer])
def test_models_of_other_libraries_have_the_auc_of_a_plain_forward_pass(build, trained, scenes, tmp_path):
    plain, auc = trained(build)
    assert 0.6 < auc < 1, "the model gives away its members, and not without errors"
    assert audited(scenes, tmp_path / "audit", write_model(plain, tmp_path)) == pytest.approx(auc, abs=0.005)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of both exports
@pytest.mark.parametrize("way", ["onnx", "torchscript", "folder", "http"])
def test_every_way_in_has_the_same_auc(way, trained, scenes, tmp_path, monkeypatch, request):
    plain, auc = trained(lraspp)
    drawn = scenes[1]
    example = torch.rand(1, 3, *next(iter(drawn.values()))[1].shape)
    monkeypatch.chdir(tmp_path)  # answers of an endpoint are kept in runs/
    flags, server = [], None
    if way == "onnx":
        pytest.importorskip("onnx")
        torch.onnx.export(plain, (example,), tmp_path / "model.onnx", dynamo=False)
        model = f"onnx:{tmp_path}/model.onnx"
    elif way == "torchscript":
        torch.jit.trace(plain, example).save(tmp_path / "model.pt")
        model, flags = f"torchscript:{tmp_path}/model.pt", ["--trust-code"]
    elif way == "folder":
        for name, (image, _) in drawn.items():
            (tmp_path / "answers" / name).parent.mkdir(parents=True)
            np.save(tmp_path / "answers" / f"{name}.npy", plain.posterior(image))
        model = f"folder:{tmp_path}/answers"
    else:
        server = Server(lambda path, image: (200, {"Content-Type": "application/x-npy"}, npy(plain.posterior(image))))
        request.addfinalizer(server.shutdown)
        model = server.url
    assert audited(scenes, tmp_path / "audit", model, *flags) == pytest.approx(auc, abs=0.005)
    assert not server or len(server.seen) == 2 * SIDE, "each image is asked for once"


@pytest.mark.slow
@pytest.mark.parametrize("entries, cause", [({"channels": "bgr"}, "order RGB"),
                                            ({"mean": None, "std": None}, "the normalisation of ImageNet")])
def test_wrong_inputs_of_a_trained_model_are_named(entries, cause, trained, scenes, tmp_path):
    """By audit.py, before any attack; the repair that it names mends them."""
    folder, _ = scenes
    model = write_model(trained(lraspp)[0], tmp_path)
    (tmp_path / "preprocess.json").write_text(json.dumps(entries))
    done = script("audit.py", "--model", model, "--images", folder / "image", "--masks", folder / "mask", "--members",
                  folder / "members.txt", "--classes", CLASSES, "--attacks", "loss", "--precision", "fp32",
                  "--preprocess", tmp_path / "preprocess.json", "--out", tmp_path / "audit")
    assert done.returncode == 2 and cause in done.stderr and "give --preprocess FILE with {" in done.stderr
    assert not (tmp_path / "audit/attacks").exists() and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_answer_about_members_and_about_images_that_the_model_never_saw(trained, scenes, tmp_path):
    model = write_model(trained(lraspp, 4 * STEPS)[0], tmp_path)  # it memorises its training images
    audited(scenes, tmp_path / "members", model)
    unseen = tmp_path / "unseen"
    for index in range(2 * SIDE):
        for kind, array in zip(("image", "mask"), small_scene(1000 + index), strict=True):
            file = unseen / kind / f"{index:02}" / "0.png"
            file.parent.mkdir(parents=True)
            Image.fromarray(array).save(file)
    (unseen / "members.txt").write_text("\n".join(f"{index:02}/0" for index in range(SIDE)))
    audited((unseen, None), tmp_path / "null", model)
    leak, null = (json.loads((tmp_path / name / "audit.json").read_text())["answer"] for name in ("members", "null"))
    assert leak["verdict"] == "leak" and leak["interval"][0] > 0.5
    assert null["verdict"] == "no evidence" and null["interval"][0] < 0.5 < null["interval"][1]
    assert 0.6 < null["detectable"] < 1
