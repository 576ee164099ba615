"""What a user can get wrong ends in one line, exit code 2, and nothing half-written."""

import argparse
import os
import pathlib
import pickle
import shutil
import signal
import struct
import zipfile

import numpy as np
import pytest
import torch
from conftest import SMALL, must, script, write_tree
from PIL import Image

from datasets.transforms import Augmented
from models.attacker import Attacker
from utils.checkpoints import save_checkpoint
from utils.names import spreadsheet_safe

VIEW = {"input": "loss", "size": 12, "floor": 1e-30, "void": "zero", "stride": 4, "argmax": False, "tau": 0.9}


@pytest.fixture
def place(tmp_path):
    """A tree of three images a side and an attacker that reads it."""
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
    ({"format": 99, "state_dict": {}}, "not of format 1"),
])
def test_checkpoint_of_something_else(place, content, message):
    torch.save(content, place / "loss.pth.tar")
    fails(place, message)


def test_victim_where_the_attacker_belongs(world, place):
    fails(place, "attack it with --victim", "-resume", world / "victim" / "last.pth.tar")


def test_attacker_where_the_victim_belongs(place):
    fails(place, "no segmentation model", "--victim", place / "loss.pth.tar", "--members", "a", "--non-members", "b")


def test_real_tar_is_refused(place):
    import tarfile

    with tarfile.open(place / "real.tar", "w") as tar:
        tar.add(place / "loss.pth.tar", "loss.pth.tar")
    fails(place, "tar -xf", "-resume", place / "real.tar")


def test_same_image_on_both_sides(world, live, place):
    fails(place, "is in both", *live, "--non-members", world / "victim_in.txt")


def test_missing_split(live, place):
    fails(place, "no such split file", *live, "--members", place / "none.txt")


def test_training_on_a_missing_image(world, tmp_path):
    (tmp_path / "s.txt").write_text("img/none.png label/none.png\n" * 1)
    result = script("train_victim.py", "--root", world / "data", "--train", tmp_path / "s.txt", "--test",
                    tmp_path / "s.txt", "--workers", 0, "--out", tmp_path / "run")
    assert result.returncode == 2 and "none.png, which is not there" in result.stderr
    assert not (tmp_path / "run").exists()


def test_too_few_images_to_hold_out(place):
    result = script("train_attacker.py", "--posteriors", place / "examples", "--patch-size", 12, "--out", place / "run")
    assert result.returncode == 2 and "too few" in result.stderr and not (place / "run").exists()


def test_a_run_is_not_overwritten(world):
    result = script("train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
                    world / "victim_out.txt", "--out", world / "victim")
    assert result.returncode == 2 and "holds a run already" in result.stderr


def test_broken_image_in_a_worker_is_one_line(world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    victim = next(iter((world / "victim_in.txt").read_text().splitlines())).split()[0]
    (data / victim).write_bytes((data / victim).read_bytes()[:2000])
    result = script("train_victim.py", "--root", data, "--train", world / "victim_in.txt", "--test",
                    world / "victim_out.txt", *SMALL, "--workers", 1, "--out", tmp_path / "run")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert "cannot be read as an image" in result.stderr


@pytest.mark.parametrize("flags, message", [
    (["--output-stride", 4], "cannot have 2 stages at output stride 4"),
    (["--backbone", "resnet19"], "not a timm backbone"), (["--batch", 1], "two images"),
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


def write_checkpoint(place, zipped=True, **changes):
    """The place's attacker with other contents, None for none."""
    checkpoint = torch.load(place / "loss.pth.tar", weights_only=True) | changes
    torch.save({key: value for key, value in checkpoint.items() if value is not None}, place / "loss.pth.tar",
               _use_new_zipfile_serialization=zipped)


def spec_with(**changes):
    arguments = {"arch": "resnet18", "channels": 1, "width": 0.125} | changes
    return {"name": "attacker", "classes": 19, "arguments": arguments}


@pytest.mark.parametrize("message, model", [
    ("another model", spec_with(width=60000.0)), ("understands", spec_with(width=1e9)),
    ("understands", spec_with(width=float("nan"))), ("understands", spec_with(halvings=2**40)),
    ("cannot be built", spec_with(arch="resnet9000")), ("cannot be built", spec_with(channels=-1)),
    ("cannot be built", spec_with(surprise=1)), ("cannot be built", spec_with(channels="x")),
    ("no attacker but", {"name": "pspnet"}), ("understands", {"name": 3}), ("understands", [1]),
    ("its classes", {"name": "attacker", "arguments": spec_with()["arguments"]}),
    ("cannot be built", {"name": "attacker", "classes": 19}),
])
def test_model_descriptions_that_no_one_should_build(place, message, model):
    write_checkpoint(place, model=model)
    fails(place, message)


@pytest.mark.parametrize("view", [
    None, 3, {}, {**VIEW, "size": -1}, {**VIEW, "size": "12"}, {**VIEW, "floor": 0}, {**VIEW, "tau": float("nan")},
    {**VIEW, "input": ["loss"]}, {**VIEW, "void": "other"}, {**VIEW, "more": 1}, {**VIEW, "argmax": 2}])
def test_views_that_cannot_be(place, view):
    write_checkpoint(place, view=view)
    fails(place, "input settings")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("message, tensor", [
    ("NaN or infinite", lambda w: w * float("nan")), ("another model", lambda w: w.to(torch.complex64)),
    ("another model", lambda w: w.int()), ("sparse", lambda w: w.to_sparse()),
    ("larger tensors", lambda w: torch.zeros(1).expand(2**40)), ("should be", lambda w: w[:3]),
    ("sparse", lambda w: w.to("meta")),
])
def test_tensors_that_are_no_weights(place, zipped, message, tensor):
    state = torch.load(place / "loss.pth.tar", weights_only=True)["state_dict"]
    write_checkpoint(place, zipped, state_dict=state | {"conv1.0.weight": tensor(state["conv1.0.weight"])})
    fails(place, message)


def rewrite(path, change, how=zipfile.ZIP_STORED):
    """Write a zip anew: `change` gets (name, content) and returns the content."""
    with zipfile.ZipFile(path) as zipped:
        entries = {name: zipped.read(name) for name in zipped.namelist()}
    with zipfile.ZipFile(path, "w", how) as zipped:
        for name, content in entries.items():
            zipped.writestr(name, change(name, content))


@pytest.mark.parametrize("message, change, how", [
    ("would grow", lambda name, content: content + bytes(10**7 if name.endswith("/3") else 0), zipfile.ZIP_DEFLATED),
    ("describes more", lambda name, content: content + bytes(2**23 if "pkl" in name else 0), zipfile.ZIP_STORED),
    ("record size", lambda name, content: content[:16] if name.endswith("/3") else content, zipfile.ZIP_STORED),
])
def test_zips_that_lie_about_their_tensors(place, message, change, how):
    rewrite(place / "loss.pth.tar", change, how)
    fails(place, message)


def test_a_second_list_of_entries_is_not_followed(place):
    path = place / "loss.pth.tar"
    path.write_bytes(b"PK\3\4" + path.read_bytes())
    fails(place, "list of entries")


def test_old_stream_that_claims_a_terabyte(place):
    write_checkpoint(place, zipped=False, state_dict={"conv1.0.weight": torch.zeros(4)})
    content = (place / "loss.pth.tar").read_bytes()
    for claim in (struct.pack("<i", 2**30), b"\x00\x00\x00\x40"):
        (place / "loss.pth.tar").write_bytes(content.replace(b"K\x04\x85", b"J" + claim + b"\x85"))
        fails(place, "loss.pth.tar")
    terabytes = b"\x8a\x06" + struct.pack("<q", 2**40)[:6]
    (place / "loss.pth.tar").write_bytes(content.replace(b"K\x04Nt", terabytes + b"Nt"))
    fails(place, "loss.pth.tar")


@pytest.mark.parametrize("message, content", [
    ("neither the zip", pickle.dumps(argparse.Namespace(lr=1))), ("neither the zip", pickle.dumps(np.zeros(3))),
    ("neither the zip", b"cos\nsystem\n(S'touch pwned'\ntR."), ("neither the zip", b"\x1f\x8b" + bytes(100)),
    ("tar -xf", bytes(257) + b"ustar\x0000" + bytes(300)),
])
def test_files_that_are_no_checkpoints_at_all(place, message, content):
    (place / "loss.pth.tar").write_bytes(content)
    fails(place, message)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name, extra", [
    ("argparse.Namespace", argparse.Namespace(lr=0.1)), ("numpy", np.zeros(3)), ("was not opened", pathlib.Path("x"))])
def test_checkpoints_with_more_than_tensors_name_it(place, zipped, name, extra):
    write_checkpoint(place, zipped, args=extra)
    fails(place, name)
    fails(place, "was not opened")


@pytest.mark.parametrize("where", ["format", "model", "args", "more"])
def test_what_a_small_file_says_many_times_over(place, where):
    nested = ["ha"] * 10
    for _ in range(12):
        nested = [nested] * 10
    write_checkpoint(place, **{where: nested})
    fails(place, "describes more")


def test_a_key_that_is_hashed_for_days(place):
    nested = ()
    for _ in range(40):
        nested = (nested, nested)
    key = pickle.dumps(nested, 2)[2:-1]
    torch.save({"state_dict": {}}, place / "loss.pth.tar")
    rewrite(place / "loss.pth.tar", lambda name, content: (
        b"\x80\x02}(X\x0a\x00\x00\x00state_dict}" + key + b"K\x01u." if name.endswith("data.pkl") else content))
    fails(place, "describes more")


def test_torchscript_is_not_run(place):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(place / "loss.pth.tar"))
    fails(place, "TorchScript")


@pytest.mark.parametrize("change, message", [
    ({"args": {"epochs": "many"}}, "does not take"), ({"args": {"surprise": 1}}, "does not take"),
    ({"args": {"crop": [1, 2, 3]}}, "does not take"), ({"args": {"model": "vgg"}}, "does not take"),
    ({"args": 3}, "its args"), ({"epoch": -1}, "epoch -1"), ({"epoch": "2"}, "its epoch"),
    ({"minutes": None}, "its minutes"),
    ({"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}}, "another optimizer"),
    ({"optimizer": 3}, "another optimizer"), ({"optimizer": None}, "another optimizer"),
    ({"args": {"width": 32768}}, "another model"),
])
def test_continuing_from_what_someone_changed(world, tmp_path, change, message):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "last.pth.tar"
    checkpoint = torch.load(world / "victim" / "last.pth.tar", weights_only=True)
    if isinstance(change.get("args"), dict):
        change = {"args": checkpoint["args"] | change["args"]}
    torch.save(checkpoint | change, path)
    before = path.read_bytes()
    result = script("train_victim.py", "--continue", tmp_path / "run")
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert path.read_bytes() == before and not (tmp_path / "run" / "results.json").exists()


def test_names_do_not_steer_the_terminal(place):
    result = script("attack.py", "-resume", place / "\x1b[2J\n.pth.tar")
    assert result.returncode == 2 and "\\x1b[2J .pth" in result.stderr and result.stderr.count("\n") == 1


def test_names_that_spreadsheets_would_compute(tmp_path):
    written = {"=1+1": "./=1+1", "-x": "./-x", "train/a": "train/a"}
    assert {name: spreadsheet_safe(name) for name in written} == written


def test_worker_that_is_killed_as_for_want_of_memory(world, tmp_path, monkeypatch):
    args = ["--root", world / "data", "--train", world / "victim_in.txt", "--test", world / "victim_out.txt", *SMALL,
            "--epochs", 4]
    must(script("train_victim.py", *args, "--out", tmp_path / "whole"))
    main, real = os.getpid(), Augmented.__getitem__

    def killed(self, item):
        if os.getpid() != main and item[0] == 3:  # which it reads ahead, an epoch or less
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(Augmented, "__getitem__", killed)
        result = script("train_victim.py", *args, "--workers", 1, "--out", tmp_path / "run")
    assert result.returncode == 2 and "memory ran out" in result.stderr and result.stderr.count("\n") == 1
    must(script("train_victim.py", "--continue", tmp_path / "run", "--workers", 0))
    one, two = (torch.load(tmp_path / run / "last.pth.tar", weights_only=True) for run in ("run", "whole"))
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())


def test_loss_that_is_no_number(world, tmp_path):
    args = ["--root", world / "data", "--train", world / "victim_in.txt", "--test", world / "victim_out.txt", *SMALL]
    result = script("train_victim.py", *args, "--lr", 1e30, "--out", tmp_path / "run")
    assert result.returncode == 2 and "smaller --lr" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("where", ["/proc/run", "/sys/run"])
def test_folders_that_cannot_be_written(place, where):
    fails(place, where, "--out", where)
