"""Broken and hostile files: each raises one `UserError` that names the file, quickly and with little memory."""

import contextlib
import csv
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from conftest import ROOT, must, script, write_tree
from PIL import Image

from attacks.activation import CamMaps, CamResult
from datasets import images
from datasets.images import load_ids, load_image
from datasets.pairs import Pair, load_label, load_pair, read_split, write_split
from evaluation.activation import draw, file_name, write_cams
from evaluation.stored_scores import read_paired
from predictors.stored import list_records, read_posterior
from reproduce.cells import maps_of
from utils import arrays, untrusted
from utils.arrays import read_npy, read_npz
from utils.cli import UserError

TERA = 2**40


@contextlib.contextmanager
def peak_memory_below(limit):
    """Assert that the block allocates less than `limit` bytes at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def header(descr="'<f4'", shape="(3, 4, 5)", body=b"", version=1, order="False"):
    """Return a .npy file with this header, followed by `body`."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text + body


HOSTILE = {
    "terabyte": header(shape=f"({TERA}, 1, 1)"),
    "size of more than 64 bits": header(shape=f"({TERA}, {TERA}, {TERA})"),
    "size that overflows to 0": header(shape=f"({2**62}, 4, 1)"),
    "size that overflows to the file size": header(shape=f"({2**62 + 1}, 1, 4)", body=bytes(16)),
    "negative size": header(shape="(-1, -1, 4)", body=bytes(16)),
    "items of 0 bytes": header("'<U0'", f"({TERA},)"),
    "text of a terabyte": header(f"'<U{TERA}'", "(1,)"),
    "longer than the header says": header(body=bytes(300)),
    "shorter than the header says": header(body=bytes(200)),
    "objects": header("'|O'", "(1, 1, 1)", body=b"cos\nsystem\n(S'true'\ntR."),
    "records": header("[('a', '<f4')]", body=bytes(240)),
    "nested arrays": header("('<f4', (5,))", "(3, 4)", body=bytes(240)),
    "dates": header("'<M8[s]'", "(1,)", body=bytes(8)),
    "unknown type": header("'<f3'", "(1,)", body=bytes(3)),
    "code": header(shape="__import__('os')", body=bytes(4)),
    "deep nesting": header(shape="(" * 5000 + ")" * 5000),
    "escape sequence": header("'<f4\\d'"),
    "unknown version": header(version=9, body=bytes(240)),
    "header without an end": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "empty file": b"",
    "half a header": header()[:30],
    "GIF file": b"GIF89a" * 50,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_arrays_are_refused(tmp_path, content):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("x.npy", content)
    with peak_memory_below(2**22):
        for read, name in ((read_npy, "a.npy"), (read_posterior, "a.npy"), (read_npz, "a.npz")):
            with pytest.raises(UserError, match=rf"{name} cannot be read as a \.np"):
                read(tmp_path / name)


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.float16), np.asfortranarray(np.arange(12.0).reshape(3, 4)),
                                   np.array(5), np.zeros((0, 7)), np.array(["ab", "cé"]), np.ones(5, bool),
                                   np.arange(5, dtype=">i4")])
def test_plain_arrays_are_read_unchanged(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array, y=array)
    for loaded in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz")["y"]):
        assert loaded.dtype == array.dtype and loaded.shape == array.shape and np.array_equal(loaded, array)
    assert list(read_npz(tmp_path / "a.npz", ("y", "z"))) == ["y"]


def patch_entry(path, offset, value):
    """Overwrite bytes of the first entry in the central directory of a zip file."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02") + offset
    content[start : start + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize("offset, value, message", [
    (24, b"\xf0\xff\xff\xff", "more than 1 GiB"), (24, b"\x00\x00\x01\x00", "describes"), (8, b"\x01", "encrypted"),
    (10, b"\x0e", "deflate"), (10, b"\x08", ""), (16, b"\x00", "CRC")])
def test_npz_files_with_a_false_directory_are_refused(tmp_path, monkeypatch, offset, value, message):
    monkeypatch.setattr(arrays, "LIMIT", 2**30)
    np.savez(tmp_path / "a.npz", x=np.zeros((200, 200)))
    patch_entry(tmp_path / "a.npz", offset, value)
    with pytest.raises(UserError, match=rf"a\.npz cannot be read as a \.npz file: .*{message}"):
        read_npz(tmp_path / "a.npz")


def test_no_more_is_inflated_than_an_entry_claims(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2**22))
    patch_entry(tmp_path / "a.npz", 24, (1000).to_bytes(4, "little"))
    with peak_memory_below(2**22), pytest.raises(UserError):
        read_npz(tmp_path / "a.npz")


def test_npz_file_with_too_many_entries_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=1, y=2)
    monkeypatch.setattr(untrusted, "MAX_ENTRIES", 1)
    with pytest.raises(UserError, match="has 2 entries"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("read", [read_npy, read_npz, read_posterior, load_image, load_ids])
def test_paths_that_are_not_files_are_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", ".", "pipe", "x" * 300, "nul\0"):
        with pytest.raises(UserError):
            read(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_reading_a_posterior_allocates_little_more_than_its_size(tmp_path, dtype):
    stored = np.random.default_rng(0).dirichlet(np.ones(19), 128 * 256).T.reshape(19, 128, 256).astype(dtype)
    np.save(tmp_path / "p.npy", stored)
    with peak_memory_below(1.3 * 4 * stored.size):  # float32
        posterior = read_posterior(tmp_path / "p.npy")
    smallest = 2.0**-24 if dtype == np.float16 else 0
    np.testing.assert_array_equal(posterior, np.maximum(stored.astype(np.float32), smallest))


@pytest.mark.filterwarnings("error")
def test_too_large_numbers_are_refused_without_a_warning(tmp_path):
    np.save(tmp_path / "p.npy", np.full((2, 3, 3), 1e300))
    with pytest.raises(UserError, match="infinite"):
        read_posterior(tmp_path / "p.npy")


# Images and labels

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4)
COLOURS = np.stack([RAMP, RAMP + 50, RAMP + 100], -1)


def save_image(path, image, kind="PNG", **options):
    """Save an array or Pillow image and return the path."""
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, kind, **options)
    return path


def exif_rotation(orientation=6):
    """Options of `save_image` that set the EXIF orientation; 6: rotated by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def palette(indices=RAMP):
    """Return a palette image whose colours are those of `COLOURS`."""
    image = Image.fromarray(indices, "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([value for i in range(256) for value in (i, (i + 50) % 256, (i + 100) % 256)])
    return image


GREY16 = np.array([[0, 255, 256, 40000, 65535]], np.uint16)
ALPHA = np.full((3, 4, 1), 7, np.uint8)
READABLE = {
    "another suffix": (COLOURS, "BMP", {}, COLOURS),
    "16 bits": (GREY16, "PNG", {}, np.repeat((GREY16 >> 8)[..., None], 3, 2)),
    "16 bits, TIFF": (GREY16, "TIFF", {}, np.repeat((GREY16 >> 8)[..., None], 3, 2)),
    "palette": (palette(), "PNG", {}, COLOURS),
    "palette with transparency": (palette(), "PNG", {"transparency": bytes([0, 9, 255])}, COLOURS),
    "palette with one transparent colour": (palette(), "PNG", {"transparency": 3}, COLOURS),
    "RGB with one transparent colour": (COLOURS, "PNG", {"transparency": (0, 50, 100)}, COLOURS),
    "alpha": (np.concatenate([COLOURS, ALPHA], 2), "PNG", {}, COLOURS),
    "grey and alpha": (Image.fromarray(np.concatenate([RAMP[..., None], ALPHA], 2), "LA"), "PNG", {},
                       np.repeat(RAMP[..., None], 3, 2)),
    "rotated": (np.rot90(COLOURS), "PNG", exif_rotation(), COLOURS),
    "rotated, TIFF": (np.rot90(COLOURS), "TIFF", exif_rotation(), COLOURS),
    "mirrored": (COLOURS[:, ::-1], "PNG", exif_rotation(orientation=2), COLOURS),
    "rotated, 16 bits": (np.rot90(GREY16), "PNG", exif_rotation(), np.repeat((GREY16 >> 8)[..., None], 3, 2)),
    "two frames": (COLOURS, "PNG", {"save_all": True, "append_images": [Image.fromarray(COLOURS[::-1])]}, COLOURS),
    "two frames, WEBP": (COLOURS, "WEBP", {"save_all": True, "append_images": [Image.fromarray(COLOURS[::-1])],
                                           "lossless": True}, COLOURS),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content, kind, options, expected", READABLE.values(), ids=READABLE)
def test_images_of_every_kind(tmp_path, content, kind, options, expected):
    image = load_image(save_image(tmp_path / "i.png", content, kind, **options))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


READABLE_LABELS = {
    "grey": (RAMP, {}, RAMP), "palette": (palette(), {}, RAMP), "16 bits": (RAMP.astype(np.uint16), {}, RAMP),
    "palette with transparency": (palette(), {"transparency": bytes([0, 9])}, RAMP),
    "grey and alpha": (Image.fromarray(np.concatenate([RAMP[..., None], ALPHA], 2), "LA"), {}, RAMP),
    "RGB and alpha": (np.concatenate([COLOURS, ALPHA], 2), {}, COLOURS),
    "rotated": (np.rot90(RAMP), exif_rotation(), RAMP),
    "one bit": (RAMP > 5, {}, (RAMP > 5).astype(np.uint8)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content, options, expected", READABLE_LABELS.values(), ids=READABLE_LABELS)
def test_labels_of_every_kind(tmp_path, content, options, expected):
    label = load_ids(save_image(tmp_path / "l.png", content, **options))
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("content, kind, is_label, message", [
    (np.zeros((3, 4), np.float32), "TIFF", False, "floating-point"),
    (np.zeros((3, 4), np.float32), "TIFF", True, r"\(F\)"), (Image.new("CMYK", (4, 3)), "TIFF", True, r"\(CMYK\)"),
    (np.full((3, 4), 70000, np.int32), "TIFF", False, "16 bits"),
    (np.full((3, 4), -1, np.int32), "TIFF", False, "16 bits"),
    (np.full((3, 4), 300, np.uint16), "PNG", True, "holds id 300"),
    (np.full((3, 4), 65535, np.uint16), "PNG", True, "holds id 65535"),
    (np.full((3, 4), -2, np.int32), "TIFF", True, "holds id -2"), (COLOURS, "GIF", False, "none of PNG"),
    (COLOURS, "EPS", False, "none of PNG"), (COLOURS, "ICO", True, "none of PNG")])
def test_other_images_and_labels_are_refused(tmp_path, content, kind, is_label, message):
    name, load = ("a label", load_ids) if is_label else ("an image", load_image)
    with pytest.raises(UserError, match=rf"f\.png cannot be read as {name}: .*{message}"):
        load(save_image(tmp_path / "f.png", content, kind))


@pytest.mark.parametrize("dataset, name", [
    ("cityscapes", "a_gtFine_labelIds.png"), ("mapillary", "a.png"), ("camvid", "a.png"), ("streets", "a.png"),
    ("labelmefacade", "a.png")])
def test_ids_above_255_are_refused(tmp_path, dataset, name):
    for value in (256, 300, 65535):
        with pytest.raises(UserError, match=f"holds id {value}"):
            load_label(save_image(tmp_path / name, np.full((3, 4), value, np.uint16)), dataset)
    if dataset != "labelmefacade":
        one_bit = load_label(save_image(tmp_path / name, RAMP > 5), dataset)
        eight_bits = load_label(save_image(tmp_path / name, (RAMP > 5).astype(np.uint8)), dataset)
        np.testing.assert_array_equal(one_bit, eight_bits)


def png(bits, colour, row):
    """The bytes of a PNG of 4 x 1 pixels with `bits` per channel; `colour`: 0 grey, 2 RGB, 4 grey and alpha."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, colour, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" + row)),
              (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(content)) + kind + content
                                           + struct.pack(">I", zlib.crc32(kind + content)) for kind, content in chunks)


IDS = struct.pack(">4H", 0, 1, 2, 3)


@pytest.mark.parametrize("content", [
    png(2, 0, bytes([0b00011011])), png(4, 0, bytes([0x01, 0x23])), png(16, 2, IDS * 3), png(16, 4, IDS * 2),
    png(16, 6, IDS * 4), b"P5\n4 1\n18\n" + bytes(range(4)), b"P2\n4 1\n18\n0 1 2 3\n"])
def test_labels_that_reading_would_change_are_refused(tmp_path, content):
    """Pillow reads the ids 0, 1, 2, 3 in 2 bits as 0, 85, 170, 255, of which the last is void."""
    (tmp_path / "l.png").write_bytes(content)
    with pytest.raises(UserError, match=r"l\.png cannot be read as a label: .*save it as PNG with 8 bits"):
        load_ids(tmp_path / "l.png")
    assert load_image(tmp_path / "l.png").shape == (1, 4, 3)


@pytest.mark.parametrize("content", [png(16, 0, IDS), png(8, 0, bytes(range(4))), b"P5\n4 1\n255\n" + bytes(range(4))])
def test_labels_that_reading_does_not_change(tmp_path, content):
    (tmp_path / "l.png").write_bytes(content)
    assert load_ids(tmp_path / "l.png").tolist() == [[0, 1, 2, 3]]


def test_pair_with_one_exif_orientation(tmp_path):
    save_image(tmp_path / "i.png", COLOURS, **exif_rotation())
    save_image(tmp_path / "l.png", RAMP)
    with pytest.raises(UserError, match=r"is 4 x 3, its image 3 x 4; perhaps the EXIF orientation of only one"):
        load_pair(Pair("i.png", "l.png", "g", tmp_path), "streets")


def bomb(width, height):
    """Return a PNG file of a few bytes whose header claims this size."""
    import zlib

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(bytes(100)))
            + chunk(b"IEND", b""))


def small_files(folder):
    """Return the bytes of a small valid file of every format."""
    compressions = ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    formats = [("PNG", {}), ("PNG", exif_rotation()), ("JPEG", {}), ("JPEG", exif_rotation()), ("BMP", {}), ("PPM", {}),
               ("WEBP", {}), *(("TIFF", {"compression": name}) for name in compressions)]
    image = np.tile(COLOURS, (6, 6, 1))
    return [save_image(folder / f"{i}", image, kind, **more).read_bytes() for i, (kind, more) in enumerate(formats)]


def test_broken_images_give_one_line_each(tmp_path):
    """Every file is read, or refused by one `UserError`. Needs a new process, since libtiff writes to stderr itself."""
    rng = random.Random(0)
    for number, content in enumerate(small_files(tmp_path) * 12):
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


def test_image_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PIXELS", 11)
    with pytest.raises(UserError, match="4 x 3; at most 11 pixels are allowed"):
        load_image(save_image(tmp_path / "i.png", COLOURS))


def test_resized_copy_keeps_colours_and_ids(tmp_path):
    """The copy of a palette image has its colours; the copy of an image with an EXIF orientation is rotated."""
    for side in ("train", "trainannot"):
        (tmp_path / "in" / side).mkdir(parents=True)
    for index in range(40):
        save_image(tmp_path / f"in/train/d_{index:03d}.png", palette().transpose(Image.Transpose.ROTATE_90),
                   **exif_rotation())
        save_image(tmp_path / f"in/trainannot/d_{index:03d}.png", RAMP.astype(np.uint16))
    must(script("datasets/__main__.py", "camvid", "--root", tmp_path / "in", "--short-side", 3, "--copy",
                tmp_path / "out", "--splits", tmp_path / "splits"))
    image, label = load_pair(read_split(tmp_path / "splits/random/victim_in.txt", tmp_path / "out")[0], "camvid")
    np.testing.assert_array_equal(image, COLOURS)
    np.testing.assert_array_equal(label, np.where(RAMP == 11, 255, RAMP))
    (tmp_path / "in/train/d_x.png").touch()
    result = script("datasets/__main__.py", "camvid", "--root", tmp_path / "in", "--splits", tmp_path / "splits")
    assert result.returncode == 2 and "d_x.png is not a frame" in result.stderr


# Split files, groups and runs

@pytest.mark.parametrize("line", [
    "../a.png b.png", "a.png x/../../b.png", "/../a.png b.png", "a/.. b.png", "/ b.png", ". b.png", "a.png\0 b.png",
    "a\x1b[31m.png b.png", "a\x0cb.png", "a\x85b.png", "a.png b\u2028.png", "a\u202eb.png c.png", "a.png b.png g\x07",
    "a/" * 3000 + "a.png b.png", '"a b.png c.png', '"a b.png"c.png', '"a\tb.png" c.png', '"a\x07 b.png" c.png',
    '"" b.png', '"a b.png" "', '"a\\b.png" c.png', '"a b.png\\" c.png', '"../a b.png" c.png', '" /.. " c.png "g" "h"',
    '"a b.png"\x85c.png', "\"" + "a/" * 3000 + ' a.png" b.png'])
def test_invalid_lines_of_split_files(tmp_path, line):
    path = tmp_path / "s.txt"
    path.write_text(f"good.png good_label.png\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"s\.txt, line 2: ") as raised:
        read_split(path, tmp_path, must_exist=False)
    assert len(str(raised.value)) < 500 and str(raised.value).isprintable()


def test_invalid_split_files(tmp_path):
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


def test_split_files_of_other_editors(tmp_path):
    lines = "\ufeffbä/a.v1/1.png\tl/1.png\r\n./c//2.png l/2.png # \x07\r\nd.e/3 l/3.png"
    (tmp_path / "s.txt").write_bytes(lines.encode())
    assert [pair.name for pair in read_split(tmp_path / "s.txt", must_exist=False)] == ["bä/a.v1/1", "c/2", "d.e/3"]


def test_images_that_differ_only_in_the_suffix_are_refused(tmp_path):
    (tmp_path / "s.txt").write_text("a/1.png l/1.png\na/1.jpg l/2.png\n")
    with pytest.raises(UserError, match=r"lists a/1\.jpg twice, or with two suffixes"):
        read_split(tmp_path / "s.txt", must_exist=False)


def test_names_that_cannot_be_listed_are_refused(tmp_path):
    for name in ("a\nb.png", "a\tb.png", "a\u2028b.png", "a\x1b[31m.png", "a\udcff.png", ""):
        for pair in (Pair(name, "l.png", "g"), Pair("i.png", name, "g"), Pair("i.png", "l.png", name)):
            with pytest.raises(UserError, match="cannot hold; rename the file") as raised:
                write_split(tmp_path / "s.txt", [pair])
            assert str(raised.value).isprintable()
    assert not (tmp_path / "s.txt").exists()


@pytest.mark.parametrize("content", [b"train/a\n", b"train/a g h\n", b"train/\xff g\n"])
def test_invalid_groups_file(tmp_path, content):
    write_tree(tmp_path)
    (tmp_path / "groups.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"groups\.txt"):
        list_records(tmp_path)


def run_folder(folder, scores="image,member,score\na,1,0.5\nb,0,0.25\n", **columns):
    """Write patches.npz and scores.csv of an attack on two images; `columns` replace arrays of patches.npz."""
    folder.mkdir(exist_ok=True)
    columns = {"image": np.array(["a", "b"]), "group": np.array(["a", "b"]), "score": np.array([0.5, 0.25])} | columns
    np.savez(folder / "patches.npz", **columns)
    (folder / "scores.csv").write_text(scores)
    return folder


def test_valid_run(tmp_path):
    (scores,), member, group = read_paired([run_folder(tmp_path / "run")])
    assert scores.tolist() == [0.5, 0.25] and member.tolist() == [True, False] and group == ["a", "b"]


@pytest.mark.parametrize("scores", [
    "", "image,member\na,1\n", "image,member,score\na,1,x\nb,0,1\n", "image,member,score\na,1,nan\nb,0,1\n",
    "image,member,score\na,1,1\nc,0,1\n", "image,member,score\na,1,1\na,1,1\n", "image,member,score\na,1,1\nb,2,1\n",
    "image,member,score\na,1,1\nb,1,1\n", "image,member,score\na,1,1\n", "image,member,score\na,1\nb,0\n",
    "image,member,score\n\0,1,1\n", "image,member,score\n" + "a" * 200_000])
def test_invalid_scores(tmp_path, scores):
    with pytest.raises(UserError, match=r"scores\.csv"):
        read_paired([run_folder(tmp_path / "run", scores)])


@pytest.mark.parametrize("columns", [
    {"group": np.array(["a"])}, {"image": np.array([["a", "b"]])}, {"image": np.array([1, 2])},
    {"group": np.array(["a", None], object)}])
def test_invalid_patches(tmp_path, columns):
    with pytest.raises(UserError, match=r"patches\.npz"):
        read_paired([run_folder(tmp_path / "run", **columns)])


def test_invalid_maps(tmp_path):
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


def test_name_with_a_formula_is_drawn_as_text(tmp_path):
    draw(tmp_path / "a.png", cam_of(r"train/$\frac{$"), None)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_every_drawing_has_its_own_file(tmp_path):
    names = ["a/b_c", "a_b/c"]
    write_cams(tmp_path / "cam", [cam_of(name) for name in names], None)
    drawn = {path.name for path in (tmp_path / "cam").glob("*.png")}
    assert len(drawn) == 2 and "a_b_c.png" in drawn and [path.name for path in tmp_path.iterdir()] == ["cam"]
    with open(tmp_path / "cam" / "correlations.csv") as file:
        assert [row["image"] for row in csv.DictReader(file)] == names
    used = set()
    names += ["a/b/c", "train/a", *(f"{'long/' * 80}{i}" for i in range(2)), "é" * 150]
    files = [file_name(name, used) for name in names]
    assert len(set(files)) == len(names) and files[3] == "train_a" and not any("/" in name for name in files)
    assert max(len(name.encode()) for name in files) <= 200
