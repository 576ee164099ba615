"""Files from elsewhere, broken or made to harm: each is one `UserError` that names it, at once and in little memory."""

import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from datasets.posteriors import read_posterior
from evaluation.compare import read_paired
from reproduce.collect import maps_of
from utils import arrays, untrusted
from utils.arrays import read_npy, read_npz
from utils.cli import UserError

TERA = 2**40


def header(descr="'<f4'", shape="(3, 4, 5)", body=b"", version=1, order="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + body


HOSTILE = {
    "a terabyte": header(shape=f"({TERA}, 1, 1)"),
    "more than 64 bits": header(shape=f"({TERA}, {TERA}, {TERA})"),
    "64 bits that overflow to nothing": header(shape=f"({2**62}, 4, 1)"),
    "64 bits that overflow to what is there": header(shape=f"({2**62 + 1}, 1, 4)", body=bytes(16)),
    "negative": header(shape="(-1, -1, 4)", body=bytes(16)),
    "items of no bytes": header("'<U0'", f"({TERA},)"),
    "a text of a terabyte": header(f"'<U{TERA}'", "(1,)"),
    "longer than it says": header(body=bytes(300)),
    "shorter than it says": header(body=bytes(200)),
    "objects": header("'|O'", "(1, 1, 1)", body=b"cos\nsystem\n(S'true'\ntR."),
    "records": header("[('a', '<f4')]", body=bytes(240)),
    "arrays within": header("('<f4', (5,))", "(3, 4)", body=bytes(240)),
    "dates": header("'<M8[s]'", "(1,)", body=bytes(8)),
    "a type that is none": header("'<f3'", "(1,)", body=bytes(3)),
    "code": header(shape="__import__('os')", body=bytes(4)),
    "deep nesting": header(shape="(" * 5000 + ")" * 5000),
    "an escape": header("'<f4\\d'"),
    "a version to come": header(version=9, body=bytes(240)),
    "a header that never ends": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "nothing": b"",
    "half": header()[:30],
    "something else": b"GIF89a" * 50,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_arrays_that_are_none(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("x.npy", content)
    tracemalloc.start()
    for read, name in ((read_npy, "a.npy"), (read_posterior, "a.npy"), (read_npz, "a.npz")):
        with pytest.raises(UserError, match=rf"{name} cannot be read as a \.np"):
            read(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.float16), np.asfortranarray(np.arange(12.0).reshape(3, 4)),
                                   np.array(5), np.zeros((0, 7)), np.array(["ab", "cé"]), np.ones(5, bool),
                                   np.arange(5, dtype=">i4")])
def test_plain_arrays_read_as_they_are(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array, y=array)
    for found in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz")["y"]):
        assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    assert list(read_npz(tmp_path / "a.npz", ("y", "z"))) == ["y"]


def patch_entry(path, offset, value):
    """Overwrite bytes of the first entry in the directory of a zip."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize("offset, value, message", [
    (24, b"\xf0\xff\xff\xff", "more than 1 GiB"), (24, b"\x00\x00\x01\x00", "tells of"), (8, b"\x01", "encrypted"),
    (10, b"\x0e", "deflate"), (10, b"\x08", ""), (16, b"\x00", "CRC")])
def test_archives_of_arrays_that_lie(tmp_path, monkeypatch, offset, value, message):
    monkeypatch.setattr(arrays, "LIMIT", 2**30)
    np.savez(tmp_path / "a.npz", x=np.zeros((200, 200)))
    patch_entry(tmp_path / "a.npz", offset, value)
    with pytest.raises(UserError, match=rf"a\.npz cannot be read as a \.npz file: .*{message}"):
        read_npz(tmp_path / "a.npz")


def test_an_entry_past_its_claim_is_not_inflated(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2**22))
    patch_entry(tmp_path / "a.npz", 24, (1000).to_bytes(4, "little"))
    tracemalloc.start()
    with pytest.raises(UserError):
        read_npz(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_archives_of_too_many_entries(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=1, y=2)
    monkeypatch.setattr(untrusted, "ENTRIES", 1)
    with pytest.raises(UserError, match="has 2 entries"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("read", [read_npy, read_npz, read_posterior])
def test_what_is_no_file(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", ".", "pipe", "x" * 300, "nul\0"):
        with pytest.raises(UserError):
            read(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_posterior_takes_little_more_than_itself(tmp_path, dtype):
    stored = np.random.default_rng(0).dirichlet(np.ones(19), 128 * 256).T.reshape(19, 128, 256).astype(dtype)
    np.save(tmp_path / "p.npy", stored)
    tracemalloc.start()
    found = read_posterior(tmp_path / "p.npy")
    assert tracemalloc.get_traced_memory()[1] < 1.3 * found.nbytes
    tracemalloc.stop()
    np.testing.assert_array_equal(found, np.maximum(stored.astype(np.float32), 2.0**-24 if dtype == np.float16 else 0))


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_are_refused_without_a_warning(tmp_path):
    np.save(tmp_path / "p.npy", np.full((2, 3, 3), 1e300))
    with pytest.raises(UserError, match="infinite"):
        read_posterior(tmp_path / "p.npy")


# Runs

def run_folder(folder, scores="image,member,score\na,1,0.5\nb,0,0.25\n", **columns):
    folder.mkdir(exist_ok=True)
    columns = {"image": np.array(["a", "b"]), "group": np.array(["a", "b"]), "score": np.array([0.5, 0.25])} | columns
    np.savez(folder / "patches.npz", **columns)
    (folder / "scores.csv").write_text(scores)
    return folder


def test_a_run_that_is_fine(tmp_path):
    (scores,), member, group = read_paired([run_folder(tmp_path / "run")])
    assert scores.tolist() == [0.5, 0.25] and member.tolist() == [True, False] and group == ["a", "b"]


@pytest.mark.parametrize("scores", [
    "", "image,member\na,1\n", "image,member,score\na,1,x\nb,0,1\n", "image,member,score\na,1,nan\nb,0,1\n",
    "image,member,score\na,1,1\nc,0,1\n", "image,member,score\na,1,1\na,1,1\n", "image,member,score\na,1,1\nb,2,1\n",
    "image,member,score\na,1,1\nb,1,1\n", "image,member,score\na,1,1\n", "image,member,score\na,1\nb,0\n",
    "image,member,score\n\0,1,1\n", "image,member,score\n" + "a" * 200_000])
def test_scores_that_cannot_be_read(tmp_path, scores):
    with pytest.raises(UserError, match=r"scores\.csv"):
        read_paired([run_folder(tmp_path / "run", scores)])


@pytest.mark.parametrize("columns", [
    {"group": np.array(["a"])}, {"image": np.array([["a", "b"]])}, {"image": np.array([1, 2])},
    {"group": np.array(["a", None], object)}])
def test_patches_that_cannot_be_read(tmp_path, columns):
    with pytest.raises(UserError, match=r"patches\.npz"):
        read_paired([run_folder(tmp_path / "run", **columns)])


def test_maps_that_are_none(tmp_path):
    run = run_folder(tmp_path / "run")
    for maps in ({}, {"a:loss": np.zeros((2, 2))}, {"a:loss": np.array(["x"]), "a:cam": np.array(["x"])}):
        (run / "cam").mkdir(exist_ok=True)
        np.savez(run / "cam" / "maps.npz", **maps)
        with pytest.raises(UserError, match="has drawn no member"):
            maps_of(run, [True, False])
