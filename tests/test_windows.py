"""Queries about overlapping windows and their mirror images."""

import argparse
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script
from hypothesis import given, settings
from hypothesis import strategies as st

from models.windows import Windowed, starts
from predictors import add_windows_flag
from utils import resume


class Corner(torch.nn.Module):
    """Logits that depend on the position in the image and on its colours, so that windows and mirrors matter."""

    def forward(self, images):
        height, width = images.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([images.sum(1) * (rows + 1) / height, 3 * images[:, 0] * (columns + 1) / width,
                            images[:, 1] - images[:, 2]], dim=1)


def slowly(model, image, size):
    """The mean posterior of one image (3, H, W), pixel by pixel over the windows that contain it."""
    _, whole_y, whole_x = image.shape
    height, width = min(size[0], whole_y), min(size[1], whole_x)
    sums, counts = np.zeros((3, whole_y, whole_x)), np.zeros((whole_y, whole_x))
    tops, lefts = ([*range(0, whole - side, -(-2 * side // 3)), whole - side]
                   for whole, side in ((whole_y, height), (whole_x, width)))
    for top in tops:
        for left in lefts:
            window = image[:, top : top + height, left : left + width]
            for mirrored in (False, True):
                p = model(window.flip(-1)[None] if mirrored else window[None])[0].softmax(0)
                p = p.flip(-1) if mirrored else p
                for y in range(height):
                    for x in range(width):
                        sums[:, top + y, left + x] += p[:, y, x].double().numpy()
                        counts[top + y, left + x] += 1
    return sums / counts


@pytest.mark.parametrize("shape, size", [((9, 14), (6, 6)), ((5, 7), (6, 6)), ((6, 6), (6, 6)), ((12, 6), (6, 9))])
def test_mean_over_windows_and_mirrors(shape, size):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    answers = Windowed(Corner(), size)(images).softmax(1)
    for image, answer in zip(images, answers, strict=True):
        np.testing.assert_allclose(answer.numpy(), slowly(Corner(), image, size), atol=1e-6)


@settings(deadline=None)
@given(whole=st.integers(1, 3000), side=st.integers(1, 900))
def test_windows_cover_the_image(whole, side):
    side = min(whole, side)
    found = starts(whole, side)
    assert found[0] == 0 and found[-1] == whole - side and found == sorted(set(found))
    assert all(after - before <= -(-2 * side // 3) for before, after in pairwise(found))


def test_windows_of_the_release_of_pspnet():
    """Windows of 713 pixels, 476 apart: four along 2048 pixels, and two along 1024 (hszhao/semseg)."""
    assert starts(2048, 713) == [0, 476, 952, 1335] and starts(1024, 713) == [0, 311]


def test_a_run_with_windows_can_be_resumed():
    """A checkpoint stores True for windows of the training crops, or a height and a width."""
    flags = argparse.ArgumentParser()
    add_windows_flag(flags, "it")
    [flag] = (action for action in flags._actions if action.dest == "windows")
    for words in ([], ["--windows"], ["--windows", "40", "48"]):
        value = flags.parse_args(words).windows
        assert resume._accepts(flag, value) and value in (False, True, (40, 48))
    assert not any(resume._accepts(flag, value) for value in ("yes", 40, [0, 48], ["a", "b"]))


@pytest.mark.slow
def test_windows_in_the_scripts(world, live, tmp_path):
    """Crops of 64 x 128 are the complete image, so only its mirror image changes the answers."""
    must(script("attack.py", "--attack", "loss", *live, "--out", tmp_path / "plain"))
    must(script("attack.py", "--attack", "loss", *live, "--windows", "--keep", tmp_path / "kept", "--out",
                tmp_path / "windows"))
    plain, windows = (scores(tmp_path / name) for name in ("plain", "windows"))
    assert plain.keys() == windows.keys() and plain != windows
    assert np.corrcoef([plain[name][1] for name in plain], [windows[name][1] for name in plain])[0, 1] > 0.8
    must(script("attack.py", "--attack", "loss", *live, "--keep", tmp_path / "kept", "--out", tmp_path / "again"))
    for name, (_, score) in scores(tmp_path / "again").items():
        assert score == pytest.approx(plain[name][1], abs=2e-3)  # what was kept with --windows is not read without it
    must(script("train_attacker.py", "--shadow", world / "shadow", "--windows", "--patch-size", 12, "--width", 0.125,
                "--epochs", 1, "--out", tmp_path / "attacker", "--precision", "fp32"))
    assert (world / "shadow" / "posteriors-s4-windows").is_dir() and results(tmp_path / "attacker")["epoch"] == 1
    must(script("attack.py", "--attack", "loss", *live, "--windows", 40, 48, "--keep", tmp_path / "kept", "--out",
                tmp_path / "small"))
    small = scores(tmp_path / "small")
    assert small.keys() == plain.keys()
    assert all(small[name] != other[name] for other in (plain, windows) for name in small)
    must(script("train_attacker.py", "--shadow", world / "shadow", "--windows", 40, 48, "--patch-size", 12, "--width",
                0.125, "--epochs", 1, "--stride", 4, "--out", tmp_path / "attacker-small"))
    assert (world / "shadow" / "posteriors-s4-windows-40-48").is_dir()
    refused = script("attack.py", "--attack", "loss", *live, "--windows", 40, "--out", tmp_path / "one")
    assert refused.returncode == 2 and "a height and a width" in refused.stderr
    refused = script("attack.py", "--attack", "loss", "--windows", "--out", tmp_path / "stored")
    assert refused.returncode == 2 and "--windows" in refused.stderr
