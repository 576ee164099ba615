"""Class activation maps (CAMs): their values and positions, their correlations, and the files of attack.py -cam."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import must, results, script, write_attacker, write_tree
from PIL import Image

from attacks.activation import activation_map, compute_maps, correlation, resize
from attacks.learned import member_logits
from models.attacker import Attacker, InputSpec
from reproduce.cells import unpack, write_cell
from utils.device import CPU_FP32


def small_attacker(channels=1, **options):
    torch.manual_seed(0)
    return Attacker("resnet18", channels, 0.125, **options).eval()


def correlations(folder):
    """The rows of correlations.csv by name of the image."""
    with open(folder / "correlations.csv") as file:
        return {row.pop("image"): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("shape", [(12, 12), (33, 70), (90, 41)])
@pytest.mark.parametrize("folded", [False, True])
def test_mean_of_the_cam_plus_bias_is_the_difference_of_the_logits(shape, folded):
    model = small_attacker(3)
    model.fc.bias.data = torch.tensor([0.3, -0.9])
    model = model.fold_norms() if folded else model
    image = torch.rand(3, *shape)
    logits = member_logits(model, image[None], CPU_FP32, 1)[0]
    cam = activation_map(model, image, CPU_FP32)
    assert cam.shape == tuple(-(-n // 8) for n in shape)
    assert float(cam.double().mean()) + (-0.9 - 0.3) == pytest.approx(logits[1] - logits[0], abs=1e-4)


@pytest.mark.parametrize("dilated", [False, True])
def test_feature_i_belongs_to_position_8_i(dilated):
    """With symmetric kernels, a map of 8 n + 1 positions and its mirror image have mirrored CAMs.

    Let feature i be at position 8 i + b. Mirrored, it is feature n - i, at position 8 (n - i) + b, and also at position
    8 n - (8 i + b). Both are equal only if b is 0.
    """
    model = small_attacker(dilated=dilated)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = (parameter + parameter.flip(2, 3)) / 2
    image = torch.rand(1, 41, 65)
    cam, mirrored = (activation_map(model, x, CPU_FP32) for x in (image, image.flip(1, 2)))
    assert cam.shape == (6, 9)
    torch.testing.assert_close(cam.flip(0, 1), mirrored, atol=1e-5, rtol=1e-4)
    assert cam.std() > 0


def test_resized_map_has_each_feature_at_its_position_and_repeats_the_last():
    cam = torch.tensor([[0.0, 8.0, 0.0], [16.0, 24.0, 16.0]])
    fine = resize(cam, (16, 20), 8)
    assert fine.shape == (16, 20) and torch.equal(fine[::8, ::8], cam)
    assert fine[0, 3] == 3 and fine[4, 8] == 16 and torch.equal(fine[9:], fine[8:9].expand(7, -1))


def test_correlation_of_arrays_with_known_values():
    ramp = np.arange(10, dtype=np.float32)
    assert correlation(ramp, 3 * ramp + 2) == pytest.approx(1) and correlation(ramp, -ramp) == pytest.approx(-1)
    assert correlation(np.array([1, 2, 3, 4]), np.array([1, -1, -1, 1])) == pytest.approx(0)
    assert correlation(ramp, np.zeros(10)) is None and correlation(np.full(10, 5 + 1e-7), ramp) is None
    assert correlation(np.ones(1), np.ones(1)) is None


class CopiesItsInput(torch.nn.Module):
    """An attacker whose features are its input at every eighth position; `sign` is the weight of the member."""

    stride = 8

    def __init__(self, sign):
        super().__init__()
        self.fc = torch.nn.Linear(1, 2)
        self.fc.weight.data = torch.tensor([[0.0], [sign]])

    def forward(self, x):
        features = x[:, :, ::8, ::8]
        return self.fc(features.mean(dim=(2, 3))), features


@pytest.mark.parametrize("sign", [1.0, -2.0])
def test_cam_of_an_attacker_that_copies_the_loss_map(sign):
    """A loss map that bilinear resizing restores has correlation 1 or -1. Void positions, where it is 0, do not count.
    """
    loss = torch.linspace(0.1, 4, 17).expand(9, 17)
    posterior = torch.stack([(-loss).exp(), 1 - (-loss).exp()])
    label = torch.zeros(9, 17, dtype=torch.uint8)
    label[1:8, 1:8] = 255
    maps = compute_maps(CopiesItsInput(sign), posterior, label, InputSpec("loss", 8, 1e-30), CPU_FP32)
    assert maps.pearson == pytest.approx(np.sign(sign), abs=1e-3)
    assert maps.spearman == pytest.approx(np.sign(sign), abs=1e-3)
    assert np.isnan(maps.loss[2, 2]) and maps.loss[0, 16] == pytest.approx(4, abs=1e-4)


def is_blank(path):
    """Whether a drawing has fewer than 50 grey values."""
    with Image.open(path) as image:
        return np.unique(np.asarray(image.convert("L"))).size < 50


@pytest.mark.slow
@pytest.mark.parametrize("kind, flags", [("loss", []), ("concate", ["-argmax"]), ("loss", ["-gauss", 0.3])])
def test_attack_writes_correlations_and_drawings(world, live, tmp_path, kind, flags):
    base = ["attack.py", "-resume", world / kind / "best.pth.tar", *live, *flags]
    out = must(script(*base, "-cam", tmp_path / "cam", "--cam-images", 1, "--out", tmp_path / "run")).stdout
    assert "correlation of activation map and loss map: members" in out
    rows, summary = correlations(tmp_path / "cam"), results(tmp_path / "run")["cam"]
    assert len(rows) == 16 and list(rows) == sorted(rows)
    assert set(next(iter(rows.values()))) == {"member", "pearson", "spearman"} | (
        {"pearson_before", "spearman_before", "cam_kept"} if flags else set())
    for side, member in (("members", "1"), ("non_members", "0")):
        values = [float(row["pearson"]) for row in rows.values() if row["member"] == member and row["pearson"]]
        assert all(-1 <= value <= 1 for value in values)
        if values:
            assert summary[f"correlation_{side}"] == pytest.approx(np.mean(values))
            assert summary[f"correlation_{side}_interval"] is None  # 8 groups a side
    assert summary["without_correlation"] == sum(row["pearson"] == "" for row in rows.values())
    assert ("cam_kept_members" in summary) == bool(flags)
    drawn = sorted(path.name for path in (tmp_path / "cam").glob("*.png"))
    assert drawn == ["img_0.png", "img_100.png"]
    assert not any(is_blank(tmp_path / "cam" / name) for name in drawn)
    must(script(*base, "-cam", tmp_path / "undrawn", "--cam-images", 0, "--out", tmp_path / "second"))
    assert not list((tmp_path / "undrawn").glob("*.png"))
    assert (tmp_path / "undrawn" / "correlations.csv").read_bytes() == (
        tmp_path / "cam" / "correlations.csv").read_bytes()


@pytest.mark.slow
def test_cams_change_no_score_and_those_before_the_defense_are_those_without_it(world, live, tmp_path):
    base = ["attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "-argmax", "--out"]
    must(script(*base, tmp_path / "plain"))
    must(script(*base, tmp_path / "cams", "-cam", tmp_path / "cams" / "cam", "--cam-images", 0))
    assert (tmp_path / "plain" / "scores.csv").read_bytes() == (tmp_path / "cams" / "scores.csv").read_bytes()
    before = results(tmp_path / "cams")["cam"]["correlation_before_members"]
    must(script(*base[:-2], "--out", tmp_path / "open", "-cam", tmp_path / "open" / "cam", "--cam-images", 0))
    assert before == results(tmp_path / "open")["cam"]["correlation_members"]


@pytest.fixture
def folder(tmp_path):
    """A folder with loss.pth.tar, an attacker, and examples/, a tree of two members and two non-members."""
    write_tree(tmp_path / "examples", names=("a", "b"))
    write_attacker(tmp_path / "loss.pth.tar")
    return tmp_path


def attack(folder, *flags):
    return script("attack.py", "-resume", folder / "loss.pth.tar", "--examples", folder / "examples", "--out",
                  folder / "out", *flags)


def test_constant_loss_map_has_no_correlation_and_is_counted(folder):
    """Under Argmax an image with no wrong position has a loss map of zeros."""
    for name in ("a", "b"):
        with Image.open(folder / "examples" / "train" / "label" / f"{name}.png") as image:
            label = np.asarray(image)[::4, ::4]
        right = np.where(label == 255, 0, label)[None] == np.arange(19)[:, None, None]
        np.save(folder / "examples" / "train" / "pred_sgd" / f"{name}.npy", (0.9 * right + 0.1 / 19).astype(np.float32))
    must(attack(folder, "-argmax", "-cam", folder / "cam", "--cam-images", 1))
    summary, rows = results(folder / "out")["cam"], correlations(folder / "cam")
    assert summary["without_correlation"] == 2 and summary["correlation_members"] is None
    assert summary["correlation_members_interval"] is None and summary["correlation_non_members"] is not None
    assert rows["train/a"]["pearson"] == rows["train/a"]["spearman"] == "" and rows["val/a"]["pearson"]
    assert (folder / "cam" / "train_a.png").stat().st_size > 5000


def test_collected_maps_are_those_of_the_drawn_image(folder):
    run = folder / "out"
    must(attack(folder, "-argmax", "-cam", run / "cam", "--cam-images", 1))
    args = json.loads((run / "args.json").read_text())
    args["args"]["victim"] = str(folder / "loss.pth.tar")  # the runs of the workflow query a live victim
    (run / "args.json").write_text(json.dumps(args))
    (folder / "args.json").write_text('{"commit": "x"}')
    write_cell(run, folder / "cell.json", folder / "images.json", maps=True)
    maps = json.loads((folder / "cell.json").read_text())["maps"]
    loss, cam = (unpack(maps[kind]).reshape(maps["shape"]) for kind in ("loss", "cam"))
    with Image.open(folder / "examples" / "train" / "label" / "a.png") as image:
        label = np.asarray(image)[::4, ::4]
    predicted = np.load(folder / "examples" / "train" / "pred_sgd" / "a.npy").argmax(0)
    expected = np.where(label == 255, np.nan, np.where(predicted == label, 0, -np.log(1e-30) / 50))
    np.testing.assert_allclose(loss, expected, rtol=1e-3, atol=1e-6)
    assert maps["image"] == "train/a" and loss.shape == cam.shape and np.ptp(cam) > 0
    must(attack(folder, "-cam", folder / "cam", "--cam-images", 0, "--out", folder / "undrawn"))
    assert not np.load(folder / "cam" / "maps.npz").files


@pytest.mark.parametrize("flags, message", [
    (["--threshold", "loss"], "no activation map"), (["--cam-images", -1], "between 0 and"),
])
def test_cam_flags_that_are_refused(folder, flags, message):
    result = attack(folder, "-cam", folder / "cam", *flags)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (folder / "out").exists() and not (folder / "cam").exists()


def test_cam_folder_that_is_a_file(folder):
    result = attack(folder, "-cam", folder / "loss.pth.tar")
    assert result.returncode == 2 and "folder" in result.stderr and not (folder / "out").exists()
