"""Segmentation models and attackers: number of parameters, shapes, dilation, and the tensors of the release."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models import MODELS, build_segmenter
from models.attacker import Attacker, halvings_for
from models.backbones import Backbone
from predictors.base import PredictorOptions, Query, Record
from predictors.checkpoint import ModelPredictor
from training.options import SegmenterTraining
from training.segmentation import segmentation_loss

ROOT = Path(__file__).resolve().parents[1]
BINARY = ("pranet", "infnet")
SMALL = {"backbone": "resnet10t", "stages": 3, "width": 16, "classes": 5, "output_stride": 16}


def query(model, image, stride):
    record = Record("a", "a", None, Path("a"), Path("a"))
    return ModelPredictor(model, 5, PredictorOptions(stride=stride)).predict([Query(record, image)])[0]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_number_of_parameters_of_the_papers_models():
    with torch.device("meta"):
        psp = build_segmenter({"name": "pspnet"})
        assert (parameters(psp), parameters(psp) - parameters(psp.auxiliary)) == (68_072_166, 65_707_475)
        assert parameters(build_segmenter({"name": "upernet"})) == 83_147_219
        assert parameters(build_segmenter({"name": "upernet", "width": 256})) == 60_856_019
        # the models for ADE20K whose weights are published
        for backbone, count in (("resnet50s", 64_222_294), ("resnet101s", 83_214_422)):
            assert parameters(build_segmenter({"name": "upernet", "backbone": backbone, "classes": 150})) == count
        assert parameters(build_segmenter({"name": "deeplabv3plus"})) == pytest.approx(43.5e6, rel=0.01)
        assert parameters(build_segmenter({"name": "dpc"})) == pytest.approx(41.6e6, rel=0.01)
        assert parameters(build_segmenter({"name": "hrnetv2"})) == 66_519_030
        assert parameters(build_segmenter({"name": "unet"})) == 31_037_698
        # published: 32.55 and 33.12 million, with the classifier of the backbone for ImageNet
        assert parameters(build_segmenter({"name": "pranet"})) + 2_049_000 == 32_547_319
        assert parameters(build_segmenter({"name": "infnet"})) + 2_049_000 == 33_121_721
        assert [parameters(Attacker(channels=c)) for c in (1, 38)] == [23_634_754, 23_656_066]


def test_pspnet_also_dilates_the_first_blocks():
    with torch.device("meta"):
        body = Backbone("resnet101s", 8).body
    assert [body.layer3[0].conv2.dilation, body.layer4[0].conv2.dilation] == [(2, 2), (4, 4)]
    assert [body.layer3[0].conv2.padding, body.layer4[0].conv2.padding] == [(2, 2), (4, 4)]


@pytest.mark.parametrize("name", MODELS)
def test_segmenters_have_gradients_and_logits_of_the_image_size(name):
    torch.manual_seed(0)
    backbone, classes = ("hrnet_w18_small" if name == "hrnetv2" else "resnet10t"), 2 if name in BINARY else 5
    options = SegmenterTraining(model=name, backbone=backbone, width=8, output_stride=16)
    model = build_segmenter(options.spec(classes))
    images, labels = torch.rand(2, 3, 50, 71), torch.randint(0, classes, (2, 50, 71))
    outputs = model(images)
    for logits in outputs if isinstance(outputs, tuple) else (outputs,) if torch.is_tensor(outputs) else ():
        assert logits.shape == (2, classes, 50, 71)
    segmentation_loss(outputs, labels, 0.4).backward()
    assert all(p.grad is not None for p in model.parameters())
    logits = model.eval()(images)
    assert logits.shape == (2, classes, 50, 71) and logits.dtype == torch.float32


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_query_returns_every_strided_pixel(stride):
    model = build_segmenter({"name": "pspnet", **SMALL}).eval()
    image = np.random.default_rng(0).integers(0, 255, (50, 71, 3), np.uint8)
    posterior = query(model, image, stride)
    assert posterior.shape == (5, -(-50 // stride), -(-71 // stride))
    full = query(model, image, 1)
    torch.testing.assert_close(posterior, full[:, ::stride, ::stride])
    torch.testing.assert_close(posterior.sum(0), torch.ones(posterior.shape[1:]))


def test_imagenet_weights_without_a_download():
    plain, loaded = (Backbone("efficientnet_lite0", 16, pretrained=p).eval() for p in (False, True))
    first = [body.body.conv_stem.weight for body in (plain, loaded)]
    assert not torch.equal(*first) and loaded.mean == (0.5, 0.5, 0.5)
    with torch.inference_mode():
        spread = [f.std().item() for f in loaded(torch.rand(1, 3, 64, 64))]
    assert all(0.05 < s < 20 for s in spread), "features of trained weights have a moderate size"


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_attacker_returns_logits_and_features(arch):
    model = Attacker(arch, 3, width=0.25).eval()
    logits, features = model(torch.rand(2, 3, 90, 90))
    assert logits.shape == (2, 2) and features.shape[:1] + features.shape[2:] == (2, 12, 12)
    assert model(torch.rand(1, 3, 33, 57))[0].shape == (1, 2)


def test_attacker_has_the_tensors_of_the_release():
    keys = set(Attacker().state_dict())
    assert {f"conv1.{i}.weight" for i in (0, 1, 3, 4, 6)} | {"bn1.weight", "fc.weight"} <= keys
    assert {"layer1.0.downsample.0.weight", "layer4.2.conv3.weight", "layer3.5.bn2.running_mean"} <= keys
    with torch.device("meta"):
        model, dilated = Attacker(), Attacker(dilated=True)
    assert [getattr(model, f"layer{i}")[0].conv2.stride[0] for i in (1, 2, 3, 4)] == [1, 2, 1, 1]
    assert [[block.conv2.dilation[0] for block in (layer[0], layer[1])] for layer in (dilated.layer3, dilated.layer4)] \
        == [[1, 2], [2, 4]]


def test_logits_stay_different_under_bf16():
    model = Attacker("resnet18", 1, width=0.125).eval()
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(torch.rand(16, 1, 24, 24))
    assert logits.dtype == torch.float32 and len(set(logits[:, 1].tolist())) == 16


@pytest.mark.slow
def test_other_packages_do_not_import_our_folders():
    """timm tries `import datasets`, a package of Hugging Face; it must not import our folder of that name."""
    code = ("import sys, timm, timm.data, torchvision\n"
            "print([m for m in ('datasets', 'models', 'utils') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_fold_norms_keeps_the_logits(arch):
    torch.manual_seed(0)
    attacker = Attacker(arch, 2, width=0.25).train()
    for _ in range(3):
        attacker(torch.randn(8, 2, 24, 24))  # changes the running statistics
    patches = torch.randn(5, 2, 24, 24)
    with torch.inference_mode():
        plain, _ = attacker.eval()(patches)
        folded, features = attacker.fold_norms()(patches)
    assert torch.allclose(plain, folded, atol=1e-4) and features.shape[0] == 5
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in attacker.modules())


@pytest.mark.parametrize("size, halvings", [(90, 3), (30, 3), (17, 3), (15, 2), (9, 2), (8, 1), (5, 1), (4, 0)])
def test_small_patches_are_halved_less_often(size, halvings):
    assert halvings_for(size) == halvings
    model = Attacker("resnet18", 1, width=0.125, halvings=halvings).eval()
    with torch.no_grad():
        _, features = model(torch.rand(1, 1, size, size))
    assert min(features.shape[-2:]) >= 3


def test_an_attack_on_stored_posteriors_imports_no_network_library(tmp_path):
    """timm and the compiler of PyTorch take two seconds to import, and this attack needs neither."""
    code = ("import runpy, sys\n"
            "sys.argv = ['attack.py', *sys.argv[1:]]\n"
            "runpy.run_path('attack.py', run_name='__main__')\n"
            "print('imported:', 'torch' in sys.modules, {'timm', 'torchvision', 'torch._dynamo'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code, "--out", tmp_path / "run"], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported: True set()"
