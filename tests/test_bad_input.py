"""What a user can get wrong ends in one line, exit code 2, and nothing half-written."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL, script, write_tree
from PIL import Image

from models.attacker import Attacker
from utils.checkpoints import save_checkpoint

VIEW = {"input": "loss", "size": 12, "floor": 1e-30, "void": "zero", "stride": 4, "argmax": False, "tau": 0.9}


@pytest.fixture
def place(tmp_path):
    """A tree of three pictures a side and an attacker that reads it."""
    write_tree(tmp_path / "examples")
    spec = {"name": "attacker", "classes": 19, "arguments": {"arch": "resnet18", "channels": 1, "width": 0.125}}
    save_checkpoint(tmp_path / "loss.pth.tar", spec, Attacker(**spec["arguments"]).state_dict(), view=VIEW)
    return tmp_path


def fails(place, message, *flags):
    before = sorted(p for p in place.rglob("*"))
    result = script("attack.py", "-resume", place / "loss.pth.tar", "--examples", place / "examples",
                    "--out", place / "out", *flags)
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("attack.py: error: "), result.stderr
    assert message in lines[0], lines[0]
    assert sorted(p for p in place.rglob("*")) == before


def test_the_place_itself_is_fine(place):
    result = script("attack.py", "-resume", place / "loss.pth.tar", "--examples", place / "examples", "--out",
                    place / "out")
    assert result.returncode == 0, result.stderr


def corrupt_posterior(place, array=None, content=None):
    path = place / "examples" / "val" / "pred_sgd" / "b.npy"
    if array is not None:
        np.save(path, array(np.load(path)))
    else:
        path.write_bytes(content(path.read_bytes()))


def with_nan(array):
    array[0, 3, 3] = np.nan
    return array


@pytest.mark.parametrize("message, array", [
    ("NaN", with_nan),
    ("NaN", lambda a: -a),
    ("trained for 19", lambda a: a[:11] / a[:11].sum(0)),
    ("trained at stride 4", lambda a: a[:, :, :-3]),
    ("(C, H, W)", lambda a: a[0]),
    ("(C, H, W)", lambda a: a.astype(int)),
    ("cannot be read", lambda a: np.array([{"a": 1}], dtype=object)),
])
def test_bad_posterior(place, message, array):
    corrupt_posterior(place, array=array)
    fails(place, message)


@pytest.mark.parametrize("content", [lambda c: c[:50], lambda c: c[:5000], lambda c: b"", lambda c: b"junk" * 100])
def test_broken_npy(place, content):
    corrupt_posterior(place, content=content)
    fails(place, "b.npy")


def test_map_smaller_than_the_patch(place):
    write_tree(place / "examples", size=(40, 128))
    fails(place, "smaller than the attacker's 12 x 12 patch")


def test_label_outside_the_classes(place):
    path = place / "examples" / "train" / "label" / "a.png"
    Image.fromarray(np.full((64, 128), 40, np.uint8)).save(path)
    fails(place, "holds id 40")


def test_label_all_void(place):
    path = place / "examples" / "train" / "label" / "a.png"
    Image.fromarray(np.full((64, 128), 255, np.uint8)).save(path)
    fails(place, "void everywhere")


def test_label_missing_and_truncated(place):
    path = place / "examples" / "train" / "label" / "a.png"
    path.write_bytes(path.read_bytes()[:300])
    fails(place, "a.png cannot be read")
    path.unlink()
    fails(place, "no such label")


def test_one_side_is_empty(place):
    for path in (place / "examples" / "val" / "pred_sgd").iterdir():
        path.unlink()
    fails(place, "holds no .npy")
    fails(place, "holds no .npy", "--examples", place / "nowhere")


@pytest.mark.parametrize("flags, message", [
    (["-num-patch", 0], "1 or more"), (["-gauss", -1], "0 or more"), (["-gauss", "nan"], "0 or more"),
    (["--victim", "x"], "--members"), (["--members", "x"], "--victim"), (["-input", "concate"], "reads -input loss"),
    (["--threshold", "loss", "--select", "full"], "threshold"), (["--patch-size", 7], "patches of 12"),
    (["-resume", "nowhere.pth.tar"], "no such checkpoint"),
])
def test_flags_that_make_no_sense(place, flags, message):
    fails(place, message, *flags)


@pytest.mark.parametrize("keep", [0, 10, 1000, 50000])
def test_truncated_checkpoint(place, keep):
    path = place / "loss.pth.tar"
    path.write_bytes(path.read_bytes()[:keep])
    fails(place, "loss.pth.tar")


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoint_that_tries_to_run_code(place, zipped):
    torch.save({"state_dict": {"conv1.0.weight": _Evil(place / "pwned")}}, place / "loss.pth.tar",
               _use_new_zipfile_serialization=zipped)
    fails(place, "was not opened")
    assert not (place / "pwned").exists()


@pytest.mark.parametrize("content, message", [
    ({"state_dict": {"fc.weight": torch.zeros(2)}}, "no attacker"), ({"state_dict": 3}, "no state_dict"),
    ([1, 2], "no state_dict"), ({"state_dict": {"conv1.0.weight": torch.zeros(64, 1, 3, 3)}}, "another model"),
    ({"format": 99, "state_dict": {}}, "format 99"),
])
def test_checkpoint_of_something_else(place, content, message):
    torch.save(content, place / "loss.pth.tar")
    fails(place, message)


def test_victim_where_the_attacker_belongs(world, place):
    fails(place, "ask it with --victim", "-resume", world / "victim" / "last.pth.tar")


def test_attacker_where_the_victim_belongs(place):
    fails(place, "no segmentation model", "--victim", place / "loss.pth.tar", "--members", "a", "--non-members", "b")


def test_real_tar_is_refused(place):
    import tarfile

    with tarfile.open(place / "real.tar", "w") as tar:
        tar.add(place / "loss.pth.tar", "loss.pth.tar")
    fails(place, "tar -xf", "-resume", place / "real.tar")


def test_same_picture_on_both_sides(world, live, place):
    fails(place, "is in both", *live, "--non-members", world / "victim_in.txt")


def test_missing_split(live, place):
    fails(place, "no such split file", *live, "--members", place / "none.txt")


def test_training_on_a_missing_picture(world, tmp_path):
    (tmp_path / "s.txt").write_text("img/none.png label/none.png\n" * 1)
    result = script("train_victim.py", "--root", world / "data", "--train", tmp_path / "s.txt", "--test",
                    tmp_path / "s.txt", "--workers", 0, "--out", tmp_path / "run")
    assert result.returncode == 2 and "none.png, which is not there" in result.stderr
    assert not (tmp_path / "run").exists()


def test_too_few_pictures_to_hold_out(place):
    result = script("train_attacker.py", "--posteriors", place / "examples", "--patch-size", 12, "--out", place / "run")
    assert result.returncode == 2 and "too few" in result.stderr and not (place / "run").exists()


def test_a_run_is_not_overwritten(world):
    result = script("train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
                    world / "victim_out.txt", "--out", world / "victim")
    assert result.returncode == 2 and "holds a run already" in result.stderr


def test_broken_picture_in_a_worker_is_one_line(world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    victim = next(iter((world / "victim_in.txt").read_text().splitlines())).split()[0]
    (data / victim).write_bytes((data / victim).read_bytes()[:2000])
    result = script("train_victim.py", "--root", data, "--train", world / "victim_in.txt", "--test",
                    world / "victim_out.txt", *SMALL, "--workers", 1, "--out", tmp_path / "run")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert "cannot be read as a picture" in result.stderr


@pytest.mark.parametrize("flags, message", [
    (["--output-stride", 4], "has no 2 stages at output stride 4"), (["--backbone", "resnet19"], "no timm backbone"),
    (["--batch", 1], "two pictures"),
])
def test_models_that_cannot_be(world, tmp_path, flags, message):
    result = script("train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
                    world / "victim_out.txt", *SMALL, *flags, "--out", tmp_path / "run")
    assert result.returncode == 2 and message in result.stderr


def test_attacker_of_another_stride(place):
    write_tree(place / "examples", stride=2)
    fails(place, "trained at stride 4")


def test_position_without_a_posterior(place):
    corrupt_posterior(place, array=lambda a: a * (np.arange(a[0].size).reshape(a[0].shape) != 5))
    fails(place, "all are 0")
