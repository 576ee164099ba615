"""U-Net, PraNet and Inf-Net: their loss, their two classes, and a training with an attack."""

import math
from dataclasses import fields

import pytest
import torch
from conftest import must, results, script
from test_folder import cars, split, write_scenes
from test_seams import assert_refused

from models import MODELS, build_segmenter
from models.reverse_attention import SideOutputs, edges_of, structure_loss
from training import segmentation
from training.options import SegmenterTraining
from training.segmentation import image_losses, segmentation_loss
from utils import VOID

SMALL = ["--width", 8, "--epochs", 1, "--batch", 4, "--workers", 0, "--crop", 64, 64, "--precision", "fp32"]


def random_labels(shape, void=0.0):
    """Labels 0 and 1 in large blocks, of which the share `void` is void."""
    labels = (torch.nn.functional.interpolate(torch.randn(shape[0], 1, 3, 4), shape[1:])[:, 0] > 0).long()
    return labels.masked_fill(torch.rand(shape) < void, VOID)


def slow_structure_loss(logits, labels):
    """The loss of one image, position by position: logits and labels (H, W)."""
    height, width = labels.shape
    entropy = common = union = known = 0.0
    for y in range(height):
        for x in range(width):
            if labels[y, x] == VOID:
                continue
            window = labels[max(0, y - 15) : y + 16, max(0, x - 15) : x + 16]
            target, member = float(labels[y, x] == 1), 1 / (1 + math.exp(-logits[y, x]))
            weight = 1 + 5 * abs(float((window == 1).sum()) / 31**2 - target)
            entropy -= math.log(member if target else 1 - member)
            common += weight * member * target
            union += weight * (member + target)
            known += 1
    return entropy / known + 1 - (common + 1) / (union - common + 1)


@pytest.mark.parametrize("void", [0.0, 0.3])
def test_structure_loss_is_that_of_a_literal_version(void):
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(2, 20, 37), random_labels((2, 20, 37), void)
    slow = [slow_structure_loss(*pair) for pair in zip(logits.double(), labels, strict=True)]
    assert structure_loss(logits, labels).tolist() == pytest.approx(slow, rel=1e-5)


def test_structure_loss_is_that_of_the_released_code():
    """The cross-entropy of the released code is one mean over the batch, which weights that sum to 1 leave as it is."""
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 24, 24), random_labels((3, 24, 24))
    mask = labels.float()
    mean = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask)
    weight = 1 + 5 * (torch.nn.functional.avg_pool2d(mask, 31, 1, 15) - mask).abs()
    iou = []
    for p, m, w in zip(logits.sigmoid(), mask, weight, strict=True):
        iou.append(((p * m * w).sum() + 1) / (((p + m - p * m) * w).sum() + 1))
    assert structure_loss(logits, labels).mean().item() == pytest.approx(float(mean + 1 - torch.stack(iou).mean()))


def test_void_has_no_part_in_the_losses():
    torch.manual_seed(0)
    labels = random_labels((2, 20, 37), 0.3)
    labels[1] = VOID
    maps = [torch.randn(2, 20, 37, requires_grad=True) for _ in range(5)]
    losses = SideOutputs(tuple(maps[:4]), maps[4]).image_losses(labels)
    losses.sum().backward()
    assert losses[1] == 0 and losses[0] > 0
    for one in maps:
        assert (one.grad[labels == VOID] == 0).all() and (one.grad[labels != VOID] != 0).all()


def test_edges_are_where_the_two_classes_meet():
    labels = torch.zeros(1, 6, 7, dtype=torch.long)
    labels[0, :, 3:] = 1
    labels[0, 3:, 5:] = VOID
    expected = torch.zeros(1, 6, 7)
    expected[0, :, 2:4] = 1
    assert torch.equal(edges_of(labels), expected)
    assert not edges_of(torch.full((1, 4, 4), VOID)).any()


@pytest.mark.parametrize("name, outputs", [("pranet", 4), ("infnet", 5)])
def test_side_outputs_and_the_posterior(name, outputs):
    torch.manual_seed(0)
    model = build_segmenter({"name": name, "backbone": "resnet10t", "width": 8})
    images, labels = torch.rand(2, 3, 64, 64), random_labels((2, 64, 64))
    sides = model(images)
    maps = [*sides.maps, *([] if sides.edge is None else [sides.edge])]
    assert len(maps) == outputs and all(one.shape == (2, 64, 64) for one in maps)
    assert segmentation_loss(sides, labels, 0.4).item() == pytest.approx(image_losses(sides, labels, 0.4).mean().item())
    with torch.no_grad():
        logits = model.eval()(images)
        maps, _ = model.head(model.backbone(images))
        last = torch.nn.functional.interpolate(maps[-1], (64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(logits.softmax(1)[:, 1], last.sigmoid())


def test_the_loss_of_two_processes_is_that_of_one(monkeypatch):
    torch.manual_seed(0)
    maps, labels = torch.randn(4, 5, 24, 24), random_labels((5, 24, 24), 0.2)
    whole = segmentation_loss(SideOutputs(tuple(maps), maps[0]), labels, 0.4)
    monkeypatch.setattr(segmentation, "sum_over_processes", lambda count: count * 0 + 5)
    parts = [segmentation_loss(SideOutputs(tuple(maps[:, part]), maps[0, part]), labels[part], 0.4)
             for part in (slice(0, 3), slice(3, 5))]
    torch.testing.assert_close(sum(parts), whole)


def test_a_map_corrects_where_the_coarser_map_is_low():
    """Where the coarse map is high, the features of the branch are multiplied by 0: it adds nothing that they say."""
    torch.manual_seed(0)
    branch = build_segmenter({"name": "pranet", "backbone": "resnet10t", "width": 8}).eval().head.branches[1]
    features, other = torch.randn(2, 1, 256, 8, 8)
    high = torch.full((1, 1, 4, 4), 1000.0)
    with torch.no_grad():
        assert torch.equal(branch(features, high, None), branch(other, high, None))
        assert not torch.equal(branch(features, -high, None), branch(other, -high, None))


@pytest.fixture(scope="module")
def polyps(tmp_path_factory):
    """A folder of two classes, its split files, and the flags that name them."""
    root = write_scenes(tmp_path_factory.mktemp("polyps"), count=16, mask=cars)
    must(split(root, "--classes", 2))
    flags = ["--dataset", "folder", "--classes", 2, "--root", root, "--train", root / "splits" / "victim_in.txt",
             "--test", root / "splits" / "victim_out.txt"]
    return root, flags


def attack(root, victim, out, *flags):
    return script("attack.py", "--attack", "loss", "--victim", victim, "--root", root, "--members",
                  root / "splits" / "victim_in.txt", "--non-members", root / "splits" / "victim_out.txt", "--out", out,
                  *flags)


@pytest.mark.slow
def test_pranet_from_its_training_to_an_attack(polyps, tmp_path):
    root, flags = polyps
    must(script("train_victim.py", *flags, "--model", "pranet", *SMALL, "--epochs", 2, "--out", tmp_path / "victim"))
    must(script("train_victim.py", "--continue", tmp_path / "victim"))
    stored = torch.load(tmp_path / "victim" / "last.pth.tar", weights_only=True)["model"]
    assert stored["arguments"].keys() == {"backbone", "width", "group_norms"} and stored["name"] == "pranet"
    must(attack(root, tmp_path / "victim", tmp_path / "attack"))
    assert results(tmp_path / "attack")["members"] == 4
    refused = attack(root, tmp_path / "victim", tmp_path / "dropout", "-test-dropout", 0.5)
    assert_refused(refused, "has no dropout layer")


def test_unet_from_dpsgd_to_an_attack_with_dropout(polyps, tmp_path):
    root, flags = polyps
    must(script("train_victim.py", *flags, "--model", "unet", *SMALL, "-dpsgd", "--out", tmp_path / "victim"))
    stored = torch.load(tmp_path / "victim" / "last.pth.tar", weights_only=True)["model"]
    assert stored["arguments"] == {"width": 8, "dropout": 0.1, "group_norms": ["head", "backbone"]}
    must(attack(root, tmp_path / "victim", tmp_path / "dropout", "-test-dropout", 0.5))


def test_per_image_gradients_of_a_model_with_its_own_loss(polyps, tmp_path):
    must(script("train_victim.py", *polyps[1], "--model", "infnet", *SMALL, "-dpsgd", "--out", tmp_path / "victim"))
    assert "dpsgd" in results(tmp_path / "victim")


def test_settings_without_effect_are_settings():
    settings = {field.name for field in fields(SegmenterTraining)}
    assert all(settings >= set(entry.unused) for entry in MODELS.values())


@pytest.mark.parametrize("name", ["hrnetv2", "unet", "infnet"])
def test_plan(name):
    backbone = {"hrnetv2": ["--backbone", "hrnet_w18_small"], "unet": []}.get(name, ["--backbone", "resnet10t"])
    width = ["--width", 8] if name != "hrnetv2" else []
    printed = must(script("train_victim.py", "--plan", "--images", 100, "--dataset", "folder", "--classes", 2,
                          "--model", name, *backbone, *width, "--crop", 64, 64)).stdout
    assert printed.startswith(f"{name} ({backbone[1]}): " if backbone else "unet: ") and "parameters" in printed


def test_models_that_cannot_be_are_refused_before_anything_is_written(polyps, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    flags = [*polyps[1][:2], *polyps[1][4:]]
    for name in ("pranet", "infnet"):
        result = script("train_victim.py", *flags, "--class-names", tmp_path / "names.txt", "--model", name, "--out",
                        tmp_path / "run")
        assert_refused(result, f"{name} separates one kind of region", "two classes, not 3; choose another --model")
    assert_refused(script("train_victim.py", *polyps[1], "--model", "hrnetv2", "--out", tmp_path / "run"),
                   "hrnetv2 needs an HRNet as its backbone, not resnet10t; give --backbone hrnet_w18_small")
    assert_refused(script("train_shadow.py", *polyps[1], "--model", "unet", "--backbone", "resnet18", "--out",
                          tmp_path / "run"), "--backbone has no effect on unet; leave it out")
    assert not (tmp_path / "run").exists()
