"""A user's own data, and the layouts in which other people store the known data sets."""

import json
from unittest import mock

import numpy as np
import pytest
from conftest import SMALL, must, results, script, small_scene
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_seams import assert_refused

from datasets import bdd100k, cityscapes, find_dataset, labelmefacade, mapillary
from datasets.folder import PARTS, propose_groups, settings
from datasets.inspection import inspect
from datasets.pairs import read_split
from datasets.survey import NEAR, near_duplicates
from utils.cli import UserError

WHITE = 255


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_scenes(root, count=32, mask=lambda label: label, names="{:03d}"):
    """`count` drawn scenes in root/images, and what `mask` makes of their labels in root/masks."""
    for index in range(count):
        image, label = small_scene(index)
        save(root / "images" / f"{names.format(index)}.png", image)
        save(root / "masks" / f"{names.format(index)}.png", mask(label).astype(np.uint8))
    return root


def split(root, *flags):
    return script("datasets/__main__.py", "folder", "--root", root, "--splits", root / "splits", *flags)


def cars(label):
    """Masks of vehicles, 0 and 255, as many tools write them."""
    return np.where((label >= 11) & (label != 255), WHITE, 0)


@pytest.mark.parametrize("mask", [cars, lambda label: cars(label) // WHITE], ids=["0 and 255", "0 and 1"])
def test_a_folder_from_its_images_to_an_attack(tmp_path, mask):
    root = write_scenes(tmp_path, mask=mask)
    printed = must(split(root, "--classes", 2)).stdout
    assert "32 images of 128 x 64" in printed and "2 of 2 classes occur" in printed
    flags, train = ["--dataset", "folder", "--classes", 2, "--root", root], [*SMALL, "--epochs", 1]
    parts = {name: root / "splits" / f"{name}.txt" for name in ("victim_in", "victim_out", "shadow")}
    assert [len(read_split(path, root)) for path in parts.values()] == [8, 8, 16]
    must(script("train_victim.py", *flags, "--train", parts["victim_in"], "--test", parts["victim_out"], "--out",
                root / "victim", *train))
    victim = ["--victim", root / "victim" / "last.pth.tar"]  # the data set is that of the victim
    must(script("train_shadow.py", *victim, "--root", root, "--split", parts["shadow"], *train, "--out",
                root / "shadow"))
    must(script("train_attacker.py", "--shadow", root / "shadow", "--patch-size", 12, "--width", 0.125, "--epochs", 1,
                "--out", root / "attacker"))
    must(script("attack.py", *victim, "-resume", root / "attacker" / "best.pth.tar", "--root", root, "--members",
                parts["victim_in"], "--non-members", parts["victim_out"], "--out", root / "run"))
    assert results(root / "run")["members"] == 8
    must(script("train_victim.py", "--continue", root / "victim"))


def test_names_ids_and_colours(tmp_path):
    names, ids, colours = (tmp_path / name for name in ("names.txt", "ids.txt", "colours.txt"))
    names.write_text("background\ncar\nroad sign\n")
    ids.write_text("# ids of a tool\n7 0\n26 car\n0 void\n")
    colours.write_text("0 0 0 0\n255 0 0 car\n255 255 255 void\n")
    by_id = find_dataset(f"folder:{settings(None, str(names), str(ids))}")
    assert by_id.CLASSES == ("background", "car", "road sign")
    assert by_id.decode(np.array([[7, 26, 0]], np.uint8), tmp_path).tolist() == [[0, 1, 255]]
    with pytest.raises(UserError, match="holds id 5, which --label-map does not have; add a line `5 CLASS`"):
        by_id.decode(np.array([[7, 5]], np.uint8), tmp_path)
    by_colour = find_dataset(f"folder:{settings(None, str(names), str(colours))}")
    pixels = np.array([[(0, 0, 0), (255, 0, 0), (255, 255, 255)]], np.uint8)
    assert by_colour.decode(pixels, tmp_path).tolist() == [[0, 1, 255]]
    with pytest.raises(UserError, match="the colour 1 2 3"):
        by_colour.decode(np.array([[(1, 2, 3)]], np.uint8), tmp_path)


@pytest.mark.parametrize("flags, message", [
    ([], "needs --classes N"), (["--classes", 1], "between 2 and 254"), (["--classes", "many"], "--classes"),
    (["--class-names", "names.txt", "--classes", 5], "has 3 names"), (["--label-map", "bad.txt"], "`ID CLASS`"),
    (["--label-map", "unknown.txt"], "there is no class tree"), (["--label-map", "mixed.txt"], "ids and colours"),
    (["--label-map", "missing.txt"], "missing.txt")])
def test_settings_that_cannot_be(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    texts = {"names": "a\nb\nc\n", "bad": "0 0 0\n", "unknown": "0 tree\n", "mixed": "0 0\n1 2 3 1\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    result = script("datasets/__main__.py", "folder", "--root", tmp_path, *flags, cwd=tmp_path)
    assert_refused(result, message)


def test_class_flags_without_a_folder_are_refused():
    assert_refused(script("train_victim.py", "--classes", 3), "go with --dataset folder")


def test_images_and_masks_that_do_not_match(tmp_path):
    root = write_scenes(tmp_path)
    (root / "masks" / "003.png").rename(root / "masks" / "3.png")
    assert_refused(split(root, "--classes", 19), "1 of 32 files", "images/003.png", "have no file of the same name")
    (root / "images" / "003.png").unlink()
    assert_refused(split(root, "--classes", 19), "masks/3.png")
    (root / "masks").rename(root / "annotations")
    assert_refused(split(root, "--classes", 19), "must hold the folders images and masks", "annotations/")
    assert not (root / "splits").exists()


def test_masks_in_which_255_may_be_two_things(tmp_path):
    root = write_scenes(tmp_path, mask=cars)
    save(root / "masks" / "000.png", np.where(cars(small_scene(0)[1]) > 0, 1, 0).astype(np.uint8))
    assert_refused(split(root, "--classes", 2), "255 may be class 1 or void", "--label-map")
    (tmp_path / "map.txt").write_text("0 0\n1 1\n255 1\n")
    must(split(root, "--label-map", tmp_path / "map.txt"))


@pytest.mark.parametrize("kind, other", [("masks", "labels"), ("images", "img")])
def test_two_folders_of_one_kind(tmp_path, kind, other):
    root = write_scenes(tmp_path, count=8)
    (root / other).mkdir()
    assert_refused(split(root, "--classes", 19), f"holds {kind}/ and {other}/")


def test_a_name_with_a_line_break_is_refused_before_anything_is_written(tmp_path):
    root = write_scenes(tmp_path)
    for kind in ("images", "masks"):
        (root / kind / "031.png").rename(root / kind / "a\nb.png")
    for flags in ([], ["--short-side", 32, "--copy", tmp_path / "copy"]):
        assert_refused(split(root, "--classes", 19, *flags), r"'images/a\nb.png' has a character that cannot be"
                       " printed")
        assert not (root / "splits").exists() and not (tmp_path / "copy").exists()


def test_names_with_spaces_are_listed_and_copied(tmp_path):
    root = write_scenes(tmp_path)
    for kind in ("images", "masks"):
        (root / kind / "031.png").rename(root / kind / "# a b.png")
    must(split(root, "--classes", 19, "--short-side", 32, "--copy", tmp_path / "copy"))
    pairs = [pair for part in PARTS for pair in read_split(root / "splits" / f"{part}.txt", tmp_path / "copy")]
    assert len(pairs) == 32 and "images/# a b.png" in [pair.image for pair in pairs]


def test_a_further_folder_of_images_and_hidden_files_are_reported(tmp_path):
    root = write_scenes(tmp_path)
    save(root / "more" / "images" / "a.png", small_scene(99)[0])
    for kind in ("images", "masks"):
        (root / kind / "004.png").rename(root / kind / ".004.png")
    result = must(split(root, "--classes", 19))
    assert f"warning: {root / 'more' / 'images'} is left out" in result.stderr
    assert f"1 hidden or unfinished files in {root / 'images'}, such as .004.png" in result.stderr


def test_a_link_in_the_images_to_a_folder_above(tmp_path):
    root = write_scenes(tmp_path, count=8)
    (root / "images" / "loop").symlink_to(root)
    assert_refused(split(root, "--classes", 19), "are the same folder; remove the link")


def test_too_few_groups_for_the_parts(tmp_path):
    root = write_scenes(tmp_path, count=3)
    assert_refused(split(root, "--classes", 19), "has 3 groups of images", "until there are 4 groups")
    for index in range(3, 6):  # copies, which are left out
        for kind in ("images", "masks"):
            (root / kind / f"{index}.png").write_bytes((root / kind / "000.png").read_bytes())
    assert_refused(split(root, "--classes", 19), "too few groups of images that are no copies", "would be empty")
    assert not (root / "splits").exists()
    must(split(write_scenes(tmp_path / "four", count=4), "--classes", 19))


@pytest.mark.parametrize("names, lines, message", [
    ("a\nb\na\n", None, "has the name a twice"), ("a\n7\n", None, "has 7 as a name"),
    ("0 road\n1 car\n", None, "seem to be `ID NAME`"), ("a\nb\nVoid\n", None, "Void would be a class like any other"),
    ("ignore\na\nb\n", "0 ignore\n1 a\n2 b\n", "ignore would be a class"),
    ("a\nb\n", "7 a\n8 b\n07 b\n", "line 3: 7 already has 0, and now 1"),
    ("a\nb\n", "1 2 3 a\n1 2 3 void\n", "line 2: 1 2 3 already has 0, and now 255")])
def test_names_and_maps_with_two_meanings(tmp_path, names, lines, message):
    (tmp_path / "names.txt").write_text(names)
    (tmp_path / "map.txt").write_text(lines or "")
    with pytest.raises(UserError, match=message):
        settings(None, str(tmp_path / "names.txt"), lines and str(tmp_path / "map.txt"))


def test_names_and_maps_that_are_meant(tmp_path):
    (tmp_path / "names.txt").write_text("void\na\n2 wheels\n")
    (tmp_path / "map.txt").write_text("0 void\n7 a\n8 2\n7 a\n")
    found = find_dataset(f"folder:{settings(None, str(tmp_path / 'names.txt'), str(tmp_path / 'map.txt'))}")
    assert found.decode(np.array([[0, 7, 8]], np.uint8), tmp_path).tolist() == [[255, 1, 2]]


def test_grey_masks_with_three_channels(tmp_path):
    root = write_scenes(tmp_path, count=8)
    label = small_scene(0)[1]
    save(root / "masks" / "000.png", np.repeat(label[..., None], 3, 2))
    (tmp_path / "map.txt").write_text("".join(f"{value} {value}\n" for value in range(19)) + "255 void\n")
    for flags in (["--classes", 19], ["--label-map", tmp_path / "map.txt"]):
        assert_refused(split(root, *flags), "000.png: expected one id per pixel", "its channels are equal")
    save(root / "masks" / "000.png", np.stack([label, label, label // 2], 2))
    for flags in (["--classes", 19], ["--label-map", tmp_path / "map.txt"]):
        result = split(root, *flags)
        assert_refused(result, "000.png: expected one id per pixel")
        assert "channels are equal" not in result.stderr


def test_ids_outside_the_classes(tmp_path):
    assert_refused(split(write_scenes(tmp_path), "--classes", 5), "holds id", "has classes 0..4")


def test_copies_are_left_out_and_groups_stay_whole(tmp_path):
    root = write_scenes(tmp_path, names="drive{0:03d}_7")
    for index in range(32):  # eight drives of four frames
        for kind in ("images", "masks"):
            (root / kind / f"drive{index:03d}_7.png").rename(root / kind / f"drive{index // 4}_{index % 4}.png")
    for kind in ("images", "masks"):
        (root / kind / "drive7_9.png").write_bytes((root / kind / "drive0_0.png").read_bytes())
    printed = must(split(root, "--classes", 19)).stdout
    assert "8 groups of 4 to 5 images" in printed and "1 images are copies of others" in printed
    parts = [read_split(root / "splits" / f"{name}.txt", root) for name in
             ("victim_in", "victim_out", "shadow_in", "shadow_out")]
    groups = [{pair.group for pair in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 8 and sum(map(len, parts)) == 32


def test_groups_are_folders_or_names_without_their_number():
    nested = [f"{city}/{index}" for city in "abcdefgh" for index in range(3)]
    assert propose_groups(images := [f"images/{name}.png" for name in nested], nested)[:4] == ["a", "a", "a", "b"]
    named = [f"{name}_{index:03d}" for name in "abcdefgh" for index in range(3)]
    assert propose_groups(images, named)[:4] == ["a", "a", "a", "b"]
    single = [str(index) for index in range(24)]
    assert propose_groups(images, single) == images


def test_near_duplicates_are_found(tmp_path):
    looks = []
    for index in range(8):
        image, _ = small_scene(index)
        save(tmp_path / f"{index}.png", image)
        Image.fromarray(image).resize((96, 48)).save(tmp_path / f"{index}.jpg", quality=60)
        looks.append([inspect(tmp_path / f"{index}.{kind}", tmp_path / "none", None).look
                      for kind in ("png", "jpg")])
    found = near_duplicates(*zip(*looks, strict=True))
    assert {pair for pair in found if pair[0] == pair[1]} == {(index, index) for index in range(8)}


@given(seed=st.integers(0, 2**32), alike=st.booleans(), grouped=st.booleans())
def test_near_duplicates_are_those_of_all_pairs(seed, alike, grouped):
    """Also where images have no contrast, are mirrored, are as near as another one, or are of one group."""
    rng = np.random.default_rng(seed)
    bases = rng.integers(0, 256, (2 if alike else 40, 2, 16), np.uint8)

    def draw():
        bits = np.unpackbits(rng.choice(bases)[:: rng.choice([-1, 1])])
        bits[rng.choice(256, rng.integers(0, 16), replace=False)] ^= 1
        return None if rng.random() < 0.1 else np.packbits(bits).tobytes().hex()

    first, second = ([draw() for _ in range(rng.integers(0, 40))] for _ in range(2))
    groups = tuple([str(rng.choice(["a", "b", "c"])) for _ in side] for side in (first, second)) if grouped else None

    def nearest(row):
        distances = [
            min((int(first[row][:32], 16) ^ int(half, 16)).bit_count() for half in (look[:32], look[32:]))
            if first[row] and look and not (groups and groups[0][row] == groups[1][column]) else 128
            for column, look in enumerate(second)]
        return [(row, distances.index(min(distances)))] if min(distances, default=128) <= NEAR else []

    with mock.patch("datasets.survey.BLOCK", 7):
        assert near_duplicates(first, second, groups) == [pair for row in range(len(first)) for pair in nearest(row)]


# The layouts of other people


def test_bdd100k_in_its_present_layout(tmp_path):
    for side, count in (("train", 4001), ("val", 2)):
        (tmp_path / "images" / "10k" / side).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "images" / "10k" / side / f"{index:05d}.jpg").touch()
    pair = bdd100k.splits(tmp_path)["shadow_in"][0]
    assert (pair.image, pair.label) == ("images/10k/train/00000.jpg", "labels/sem_seg/masks/train/00000.png")
    result = script("datasets/__main__.py", "bdd100k", "--root", tmp_path, "--splits", tmp_path / "splits")
    assert_refused(result, "4003 of 4003 labels are missing", "labels/sem_seg/masks/train/00000.png", "holds images/")


def test_vistas_2_has_the_labels_of_1_2_in_a_folder(tmp_path):
    for side, count in (("training", 10001), ("validation", 2)):
        (tmp_path / side / "images").mkdir(parents=True)
        (tmp_path / side / "v1.2" / "labels").mkdir(parents=True)
        for index in range(count):
            (tmp_path / side / "images" / f"{index:05d}.jpg").touch()
    assert mapillary.splits(tmp_path)["shadow_in"][0].label == "training/v1.2/labels/00000.png"
    with pytest.raises(UserError, match=r"ids of Vistas v1\.2 are 0\.\.65"):
        mapillary.decode(np.array([[13, 100]], np.uint8), tmp_path / "labels" / "x.png")


def test_ids_and_colours_that_a_data_set_does_not_have(tmp_path):
    with pytest.raises(UserError, match="label ids of Cityscapes"):
        cityscapes.decode(np.array([[7, 40]], np.uint8), tmp_path / "x_labelIds.png")
    with pytest.raises(UserError, match=r"the colour \(1, 2, 3\)"):
        labelmefacade.decode(np.array([[(0, 0, 0), (1, 2, 3)]], np.uint8), tmp_path / "x.png")


def test_camvid_with_other_names_of_folders(tmp_path):
    for index in range(40):
        image, label = small_scene(index)
        save(tmp_path / "train" / f"d_{index:03d}.png", image)
        save(tmp_path / "train_labels" / f"d_{index:03d}.png", label % 12)
    result = script("datasets/__main__.py", "camvid", "--root", tmp_path, "--splits", tmp_path / "splits")
    assert_refused(result, "labels are missing, such as", "trainannot/d_000.png", "holds train/, train_labels/")
    (tmp_path / "train").rename(tmp_path / "frames")
    result = script("datasets/__main__.py", "camvid", "--root", tmp_path, "--splits", tmp_path / "splits")
    assert_refused(result, "has no images of CamVid in train/, val/ or test/", "frames/")
    assert not (tmp_path / "splits").exists()


@pytest.mark.parametrize("line, message", [("my images/1.png labels/1.png g x", "a name with a space in double quotes"),
                                           ("images\\1.png labels\\1.png", "write / in place of"),
                                           ("images/1.png labels/1.png", "holds ids/")])
def test_split_files_with_paths_that_are_not_there(tmp_path, line, message):
    (tmp_path / "data" / "ids").mkdir(parents=True)
    (tmp_path / "s.txt").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / "s.txt", tmp_path / "data")


@pytest.mark.parametrize("lines, message", [
    ("i/1.png l/1.png a\ni/2.png l/2.png\n", "has no group in 1 of 2 lines"),
    ("i/1.png l/1.png\ni/2.png l/1.png\n", "lists the label l/1.png for 2 images")])
def test_split_files_that_may_not_be_meant(tmp_path, capsys, lines, message):
    for name in ("i/1.png", "i/2.png", "l/1.png", "l/2.png"):
        save(tmp_path / name, np.zeros((4, 4), np.uint8))
    (tmp_path / "s.txt").write_text("i/1.png l/1.png\ni/2.png l/2.png\n")
    assert len(read_split(tmp_path / "s.txt", tmp_path)) == 2 and not capsys.readouterr().err
    (tmp_path / "s.txt").write_text(lines)
    read_split(tmp_path / "s.txt", tmp_path)
    assert f"s.txt {message}" in capsys.readouterr().err


def test_settings_are_plain_json():
    text = json.loads(settings(3, None, None))
    assert text == {"classes": ["class 0", "class 1", "class 2"], "ids": {}, "colours": {}}
