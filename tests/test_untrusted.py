"""Files from elsewhere, broken or made to harm: each is one `UserError` that names it, at once and in little memory."""

import csv
import os
import random
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import ROOT, must, script
from PIL import Image

from attacks.activation import CamMaps, CamResult
from datasets import camvid, cityscapes, images, labelmefacade, mapillary, streets
from datasets.images import load_ids, load_image
from datasets.pairs import Pair, load_label, load_pair, read_split, write_split
from evaluation.activation import draw, file_name, write_cams
from evaluation.compare import read_paired
from predictors.stored import list_records, read_posterior
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


@pytest.mark.parametrize("read", [read_npy, read_npz, read_posterior, load_image, load_ids])
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


# Images and labels

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLOURS = np.stack([RAMP, RAMP + 50, RAMP + 100], -1)


def saved(path, image, kind="PNG", **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, kind, **options)
    return path


def turned(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def palette(indices=RAMP):
    image = Image.fromarray(indices, "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([value for i in range(256) for value in (i, (i + 50) % 256, (i + 100) % 256)])
    return image


GREY16 = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
ALPHA = np.full((3, 4, 1), 7, np.uint8)
READ = {
    "another suffix": (COLOURS, "BMP", {}, COLOURS),
    "16 bits": (GREY16, "PNG", {}, np.repeat((GREY16 >> 8)[..., None], 3, 2)),
    "16 bits, TIFF": (GREY16, "TIFF", {}, np.repeat((GREY16 >> 8)[..., None], 3, 2)),
    "palette": (palette(), "PNG", {}, COLOURS),
    "palette with transparency": (palette(), "PNG", {"transparency": bytes([0, 9, 255])}, COLOURS),
    "palette with one clear colour": (palette(), "PNG", {"transparency": 3}, COLOURS),
    "colours with a clear one": (COLOURS, "PNG", {"transparency": (0, 50, 100)}, COLOURS),
    "alpha": (np.concatenate([COLOURS, ALPHA], 2), "PNG", {}, COLOURS),
    "grey and alpha": (Image.fromarray(np.concatenate([RAMP[..., None], ALPHA], 2), "LA"), "PNG", {},
                       np.repeat(RAMP[..., None], 3, 2)),
    "turned": (np.rot90(COLOURS), "PNG", turned(), COLOURS),
    "turned, TIFF": (np.rot90(COLOURS), "TIFF", turned(), COLOURS),
    "mirrored": (COLOURS[:, ::-1], "PNG", turned(orientation=2), COLOURS),
    "turned 16 bits": (np.rot90(GREY16), "PNG", turned(), np.repeat((GREY16 >> 8)[..., None], 3, 2)),
    "two frames": (COLOURS, "PNG", {"save_all": True, "append_images": [Image.fromarray(COLOURS[::-1])]}, COLOURS),
    "two frames, WEBP": (COLOURS, "WEBP", {"save_all": True, "append_images": [Image.fromarray(COLOURS[::-1])],
                                           "lossless": True}, COLOURS),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content, kind, options, expected", READ.values(), ids=READ)
def test_images_of_every_kind(tmp_path, content, kind, options, expected):
    found = load_image(saved(tmp_path / "i.png", content, kind, **options))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


IDS = {
    "grey": (RAMP, {}, RAMP), "palette": (palette(), {}, RAMP), "16 bits": (RAMP.astype(np.uint16), {}, RAMP),
    "palette with transparency": (palette(), {"transparency": bytes([0, 9])}, RAMP),
    "grey and alpha": (Image.fromarray(np.concatenate([RAMP[..., None], ALPHA], 2), "LA"), {}, RAMP),
    "colours and alpha": (np.concatenate([COLOURS, ALPHA], 2), {}, COLOURS), "turned": (np.rot90(RAMP), turned(), RAMP),
    "one bit": (RAMP > 5, {}, (RAMP > 5).astype(np.uint8)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content, options, expected", IDS.values(), ids=IDS)
def test_labels_of_every_kind(tmp_path, content, options, expected):
    found = load_ids(saved(tmp_path / "l.png", content, **options))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("content, kind, label, message", [
    (np.zeros((3, 4), np.float32), "TIFF", False, "floating-point"),
    (np.zeros((3, 4), np.float32), "TIFF", True, r"\(F\)"), (Image.new("CMYK", (4, 3)), "TIFF", True, r"\(CMYK\)"),
    (np.full((3, 4), 70000, np.int32), "TIFF", False, "16 bits"),
    (np.full((3, 4), -1, np.int32), "TIFF", False, "16 bits"),
    (np.full((3, 4), 300, np.uint16), "PNG", True, "holds id 300"),
    (np.full((3, 4), 65535, np.uint16), "PNG", True, "holds id 65535"),
    (np.full((3, 4), -2, np.int32), "TIFF", True, "holds id -2"), (COLOURS, "GIF", False, "none of PNG"),
    (COLOURS, "EPS", False, "none of PNG"), (COLOURS, "ICO", True, "none of PNG")])
def test_images_and_labels_that_are_none(tmp_path, content, kind, label, message):
    with pytest.raises(UserError, match=rf"f\.png cannot be read as {'a label' if label else 'an image'}: .*{message}"):
        (load_ids if label else load_image)(saved(tmp_path / "f.png", content, kind))


@pytest.mark.parametrize("dataset, name", [
    (cityscapes, "a_gtFine_labelIds.png"), (mapillary, "a.png"), (camvid, "a.png"), (streets, "a.png"),
    (labelmefacade, "a.png")])
def test_no_id_reaches_past_a_table(tmp_path, dataset, name):
    for value in (256, 300, 65535):
        with pytest.raises(UserError, match=f"holds id {value}"):
            load_label(saved(tmp_path / name, np.full((3, 4), value, np.uint16)), dataset)
    if dataset is not labelmefacade:
        one = load_label(saved(tmp_path / name, RAMP > 5), dataset)
        np.testing.assert_array_equal(one, load_label(saved(tmp_path / name, (RAMP > 5).astype(np.uint8)), dataset))


def test_a_pair_of_which_one_was_turned(tmp_path):
    saved(tmp_path / "i.png", COLOURS, **turned())
    saved(tmp_path / "l.png", RAMP)
    with pytest.raises(UserError, match=r"is 4 x 3, its image 3 x 4; was one of them turned by its EXIF"):
        load_pair(Pair("i.png", "l.png", "g", tmp_path), streets)


def bomb(width, height):
    """A PNG of a few bytes whose header claims to be large."""
    import zlib

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(bytes(100)))
            + chunk(b"IEND", b""))


def seeds(folder):
    """Small files of every format, to be broken."""
    compressed = ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    options = [("PNG", {}), ("PNG", turned()), ("JPEG", {}), ("JPEG", turned()), ("BMP", {}), ("PPM", {}), ("WEBP", {}),
               *(("TIFF", {"compression": how}) for how in compressed)]
    big = np.tile(COLOURS, (6, 6, 1))
    return [saved(folder / f"{i}", big, kind, **more).read_bytes() for i, (kind, more) in enumerate(options)]


def test_broken_images_are_one_line_and_no_other(tmp_path):
    """In a process of its own, since libtiff writes past Python; every file is read, or refused by one `UserError`."""
    rng = random.Random(0)
    for number, content in enumerate(seeds(tmp_path) * 12):
        content = bytearray(content)
        for _ in range(rng.choice((1, 2, 5))):
            content[rng.randrange(len(content))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        (tmp_path / f"{number}.png").write_bytes(content[: rng.choice((None, rng.randrange(len(content))))])
    for number, size in enumerate(((2**20, 100), (12000, 10000), (2**31 - 1, 2**31 - 1), (0, 5))):
        (tmp_path / f"bomb{number}.png").write_bytes(bomb(*size))
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from datasets.images import load_ids, load_image
from utils.cli import UserError
for path in sorted(Path({str(tmp_path)!r}).glob("*.png")):
    for load in (load_image, load_ids):
        try:
            load(path)
            print("read", path.name)
        except UserError as error:
            assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1, error
            print("refused", path.name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "", result.stderr[-2000:]
    assert result.stdout.count("read ") > 20 and result.stdout.count("refused ") > 20
    assert result.stdout.count("refused bomb") == 8


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PIXELS", 11)
    with pytest.raises(UserError, match="4 x 3; it may have 11 pixels"):
        load_image(saved(tmp_path / "i.png", COLOURS))


def test_a_copy_keeps_colours_and_ids(tmp_path):
    """An image in a palette is copied in its colours, one turned by its EXIF upright."""
    for side in ("train", "trainannot"):
        (tmp_path / "in" / side).mkdir(parents=True)
    for index in range(40):
        saved(tmp_path / f"in/train/d_{index:03d}.png", palette().transpose(Image.Transpose.ROTATE_90), **turned())
        saved(tmp_path / f"in/trainannot/d_{index:03d}.png", RAMP.astype(np.uint16))
    must(script("datasets/__main__.py", "camvid", "--root", tmp_path / "in", "--short-side", 3, "--copy",
                tmp_path / "out", "--splits", tmp_path / "splits"))
    image, label = load_pair(read_split(tmp_path / "splits/random/victim_in.txt", tmp_path / "out")[0], camvid)
    np.testing.assert_array_equal(image, COLOURS)
    np.testing.assert_array_equal(label, np.where(RAMP == 11, 255, RAMP))
    (tmp_path / "in/train/d_x.png").touch()
    result = script("datasets/__main__.py", "camvid", "--root", tmp_path / "in", "--splits", tmp_path / "splits")
    assert result.returncode == 2 and "d_x.png is no frame" in result.stderr


# Split files, blocks and runs

@pytest.mark.parametrize("line", [
    "../a.png b.png", "a.png x/../../b.png", "/../a.png b.png", "a/.. b.png", "/ b.png", ". b.png", "a.png\0 b.png",
    "a\x1b[31m.png b.png", "a\x0cb.png", "a\x85b.png", "a.png b\u2028.png", "a\u202eb.png c.png", "a.png b.png g\x07",
    "a/" * 3000 + "a.png b.png"])
def test_lines_that_a_split_cannot_have(tmp_path, line):
    path = tmp_path / "s.txt"
    path.write_text(f"good.png good_label.png\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"s\.txt, line 2: ") as raised:
        read_split(path, tmp_path, must_exist=False)
    assert len(str(raised.value)) < 500 and str(raised.value).isprintable()


def test_split_files_that_are_none(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"stra\xdfe.png b.png\n")
    (tmp_path / "folder.txt").mkdir()
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(TERA)
    for name in ("latin.txt", "folder.txt", "huge.txt", "none.txt"):
        with pytest.raises(UserError, match=name):
            read_split(tmp_path / name)
    folder = tmp_path / "shards"
    (folder / "b.txt").mkdir(parents=True)
    (folder / "a.txt").write_text("a.png b.png\n")
    with pytest.raises(UserError, match=r"b\.txt"):
        read_split(folder, must_exist=False)


def test_split_files_as_editors_write_them(tmp_path):
    lines = "\ufeffbä/a.v1/1.png\tl/1.png\r\n./c//2.png l/2.png # \x07\r\nd.e/3 l/3.png"
    (tmp_path / "s.txt").write_bytes(lines.encode())
    assert [pair.name for pair in read_split(tmp_path / "s.txt", must_exist=False)] == ["bä/a.v1/1", "c/2", "d.e/3"]


def test_two_images_whose_posteriors_would_be_one_file(tmp_path):
    (tmp_path / "s.txt").write_text("a/1.png l/1.png\na/1.jpg l/2.png\n")
    with pytest.raises(UserError, match=r"names a/1\.jpg twice, or with two suffixes"):
        read_split(tmp_path / "s.txt", must_exist=False)


def test_a_name_that_a_split_cannot_hold(tmp_path):
    for name in ("a b.png", "a#b.png"):
        with pytest.raises(UserError, match="cannot hold"):
            write_split(tmp_path / "s.txt", [Pair(name, "l.png", "g")])
    assert not (tmp_path / "s.txt").exists()


@pytest.mark.parametrize("content", [b"train/a\n", b"train/a g h\n", b"train/\xff g\n"])
def test_blocks_that_cannot_be_read(tmp_path, content):
    (tmp_path / "groups.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"groups\.txt"):
        list_records(tmp_path)


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


# Names

def cam_of(name):
    maps = CamMaps(np.ones((4, 6), np.float32), np.ones((4, 6), np.float32), None, None)
    return CamResult(name, True, name, (None,), (None,), None, [maps])


def test_a_name_is_no_formula(tmp_path):
    draw(tmp_path / "a.png", cam_of(r"train/$\frac{$"), None)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_every_drawing_has_a_file_of_its_own(tmp_path):
    names = ["a/b_c", "a_b/c"]
    write_cams(tmp_path / "cam", [cam_of(name) for name in names], None, 0)
    drawn = {path.name for path in (tmp_path / "cam").glob("*.png")}
    assert len(drawn) == 2 and "a_b_c.png" in drawn and [path.name for path in tmp_path.iterdir()] == ["cam"]
    with open(tmp_path / "cam" / "correlations.csv") as file:
        assert [row["image"] for row in csv.DictReader(file)] == names
    taken = set()
    names += ["a/b/c", "train/a", *(f"{'long/' * 80}{i}" for i in range(2)), "é" * 150]
    files = [file_name(name, taken) for name in names]
    assert len(set(files)) == len(names) and files[3] == "train_a" and not any("/" in name for name in files)
    assert max(len(name.encode()) for name in files) <= 200
