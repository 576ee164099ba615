"""Split files, labels, augmentation and the scenes of streets."""

import gzip
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from datasets import (
    DATASETS,
    WITHOUT_LABELS,
    camvid,
    cityscapes,
    find_dataset,
    folder,
    labelmefacade,
    mapillary,
    streets,
)
from datasets.images import describe_file, load_ids
from datasets.pairs import LINE, Pair, deal, load_label, load_pair, read_fields, read_split, write_split
from datasets.transforms import Augmented, augment
from utils.cli import UserError
from utils.randomness import stream

AUTHORS = Path(__file__).resolve().parents[2] / "shared" / "authors-splits"


def test_split_file_round_trip(tmp_path):
    pairs = [Pair("a/1.png", "b/1.png", "a/1.png", Path("r")), Pair("a/2.png", "b/2.png", "block", Path("r"))]
    write_split(tmp_path / "s.txt", pairs, "a comment")
    assert read_split(tmp_path / "s.txt", "r", must_exist=False) == pairs


PRINTED = st.sampled_from("ab #\"'\\./äß雪") | st.characters(exclude_categories=["C", "Z"])
NAMES = st.text(PRINTED, min_size=1, max_size=9)
PATHS = NAMES.map(lambda name: PurePosixPath("d", name.strip("/")).as_posix()).filter(lambda path: ".." not in path)


@settings(deadline=None)
@given(st.lists(st.builds(Pair, PATHS, PATHS, NAMES, st.just(Path("r"))), min_size=1, max_size=4,
                unique_by=lambda pair: pair.name), st.sampled_from(["", "a comment", 'of "quotes" and \\']))
def test_any_names_that_can_be_printed_come_back_from_a_split_file(tmp_path_factory, pairs, comment):
    path = tmp_path_factory.mktemp("split") / "s.txt"
    write_split(path, pairs, comment)
    assert read_split(path, "r", must_exist=False) == pairs
    assert [fields[0] for _, fields in read_fields(path, LINE)] == [pair.image for pair in pairs]


def test_quotes_in_split_files(tmp_path):
    lines = ['"a b.png" l/1.png "g h" # "tail"', "it's.png l'2.png", '5".png a"b.png', r'"#\"\\.png" b\c.png']
    (tmp_path / "s.txt").write_text("\n".join(lines) + "\n")
    pairs = read_split(tmp_path / "s.txt", must_exist=False)
    assert [(pair.image, pair.label) for pair in pairs] == [
        ("a b.png", "l/1.png"), ("it's.png", "l'2.png"), ('5".png', 'a"b.png'), ('#"\\.png', r"b\c.png")]
    assert pairs[0].group == "g h"
    (tmp_path / "s.txt").write_text('"c".png"d.png')
    with pytest.raises(UserError, match="line 1: a name that begins with a double quote must end with one"):
        read_split(tmp_path / "s.txt", must_exist=False)


def test_split_file_with_comments_and_prefix(tmp_path):
    (tmp_path / "s.txt").write_text("# head\n\n/pre/data/1.png /pre/label/1.png # tail\n")
    (pair,) = read_split(tmp_path / "s.txt", tmp_path, strip_prefix="/pre/", must_exist=False)
    assert (pair.image, pair.label, pair.name) == ("data/1.png", "label/1.png", "data/1")


def test_folder_of_split_files_is_read_as_one_split(tmp_path):
    pairs = [Pair(f"a/{i}.png", f"b/{i}.png", f"block{i // 2}") for i in range(5)]
    for shard, part in (("s/10", pairs[3:]), ("s/02", pairs[:3]), ("twice/1", pairs), ("twice/2", pairs)):
        write_split(tmp_path / f"{shard}.txt", part)
    assert read_split(tmp_path / "s", must_exist=False) == pairs
    with pytest.raises(UserError, match=r"lists a/0\.png twice"):
        read_split(tmp_path / "twice", must_exist=False)
    with pytest.raises(UserError, match="no such split file"):
        read_split(tmp_path, must_exist=False)


@pytest.mark.parametrize("text, message", [("# nothing\n", "lists no image"), ("a.png\n", "found 1 fields"),
                                           ("a b\na b\n", "twice"), ("a b\n", "is not there"), ("a b c d\n", "line 1")])
def test_bad_split_files(tmp_path, text, message):
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_split(tmp_path / "s.txt")


@pytest.mark.skipif(not AUTHORS.is_dir(), reason="needs the split lists of the authors")
@pytest.mark.parametrize("name, count", [
    ("dependent/cityscapes_membership_victim", 1488), ("dependent/cityscapes_non_membership_victim", 912),
    ("dependent/cityscapes_membership_shadow", 555), ("dependent/cityscapes_non_membership_shadow", 520),
    ("independent/bdd100k_membership_shadow", 4000), ("independent/bdd100k_non_membership_shadow", 4000),
    ("independent/mapillary_membership_shadow", 10000), ("independent/mapillary_non_membership_shadow", 10000)])
def test_lists_of_the_authors_are_read_without_changes(tmp_path, name, count):
    path = tmp_path / "list.txt"
    path.write_bytes(gzip.decompress((AUTHORS / f"{name}.txt.gz").read_bytes()))
    pairs = read_split(path, tmp_path, strip_prefix="/BS/", must_exist=False)
    assert len(pairs) == count and not pairs[0].image.startswith(("/", "BS"))


def test_deal_keeps_groups_together_and_divides_each_stratum():
    groups = [f"{stratum}{i // 5}" for stratum in "ab" for i in range(50)]
    part = deal(groups, (1, 1), 0, [group[0] for group in groups])
    assert all(len({p for p, group in zip(part, groups, strict=True) if group == name}) == 1 for name in groups)
    assert [np.sum(part[:50] == 0), np.sum(part[50:] == 0)] == [25, 25]
    assert deal(groups, (3, 1), 1).mean() == pytest.approx(0.25, abs=0.05)


def test_every_data_set_has_classes_decode_and_splits():
    names = [name for name in DATASETS if name not in ("folder", *WITHOUT_LABELS)]
    for name in (*names, f"folder:{folder.settings(11, None, None)}"):
        module = find_dataset(name)
        assert len(module.CLASSES) in (11, 19) and callable(module.decode) and callable(module.splits)


def test_label_ids_become_train_ids():
    raw = np.array([[7, 33, 0, 255]], np.uint8)
    assert cityscapes.decode(raw, Path("x_gtFine_labelIds.png")).tolist() == [[0, 18, 255, 255]]
    assert cityscapes.decode(raw, Path("x_train_id.png")).tolist() == raw.tolist()
    assert mapillary.decode(np.array([[13, 41, 24, 22, 52, 0]], np.uint8), Path("labels/x.png")).tolist() \
        == [[0, 0, 0, 12, 18, 255]]
    assert camvid.decode(np.array([[0, 10, 11]], np.uint8), Path("x.png")).tolist() == [[0, 10, 255]]
    colours = np.array([[(128, 0, 0), (0, 0, 128), (0, 128, 128), (0, 0, 0), (0, 0, 0)]], np.uint8)
    assert labelmefacade.decode(colours, Path("x.png")).tolist() == [[1, 1, 0, 255, 255]]


def test_cityscapes_splits_have_the_sizes_of_the_paper(tmp_path):
    for side, count in (("train", 2975), ("val", 500)):
        for city in "ab":
            folder = tmp_path / "leftImg8bit" / side / city
            folder.mkdir(parents=True)
            for index in range(count // 2 + (city == "a") * (count % 2)):
                (folder / f"{city}_{index:06d}_leftImg8bit.png").touch()
    sizes = {name: len(pairs) for name, pairs in cityscapes.splits(tmp_path).items()}
    assert sizes == {"dependent/victim_in": 1488, "dependent/victim_out": 912, "dependent/shadow": 1075,
                     "independent/victim_in": 2975, "independent/victim_out": 500}


def test_camvid_parts_are_disjoint_blocks(tmp_path):
    for drive, count in (("0001TP", 124), ("0006R0", 101)):
        for index in range(count):
            side = "train" if index % 2 else "test"
            (tmp_path / side).mkdir(exist_ok=True)
            (tmp_path / side / f"{drive}_{index * 30:06d}.jpg").touch()
    parts = camvid.splits(tmp_path)
    for name in ("block", "random"):
        images = [p.image for part in camvid.PARTS for p in parts[f"{name}/{part}"]]
        assert len(images) == len(set(images))
    blocks = [{p.group for p in parts[f"block/{part}"]} for part in camvid.PARTS]
    assert sum(map(len, blocks)) == len(set.union(*blocks)), "no block is in two parts"
    frames = sorted(int(p.image[-10:-4]) // 30 for p in parts["block/shadow"] if p.image.split("/")[1][:4] == "0001")
    assert not {i for i in frames if i % 15 in (0, 14)}, "border frames are dropped"


def test_resized_copy(tmp_path):
    from conftest import must, script

    for side in ("train", "trainannot"):
        (tmp_path / "in" / side).mkdir(parents=True)
    for index in range(40):
        Image.fromarray(np.full((36, 48, 3), index, np.uint8)).save(tmp_path / f"in/train/d_{index:03d}.png")
        Image.fromarray(np.full((36, 48), index % 12, np.uint8)).save(tmp_path / f"in/trainannot/d_{index:03d}.png")
    must(script("datasets/__main__.py", "camvid", "--root", tmp_path / "in", "--short-side", 18, "--copy",
                tmp_path / "out", "--splits", tmp_path / "splits"))
    for pair in read_split(tmp_path / "splits/random/victim_in.txt", tmp_path / "out"):
        image, label = load_pair(pair, "camvid")
        index = int(pair.name[-3:])
        assert label.shape == (18, 24) and np.unique(image) == [index]
        assert np.unique(label) == [255 if index % 12 == 11 else index % 12]


def test_a_copy_that_is_not_one_of_its_source(tmp_path):
    from conftest import must, script
    from test_seams import assert_refused

    for index in range(60):
        ids = (np.eye(36, 48) + index % 9).astype(np.uint8)
        for side, array in (("train", np.stack([ids * 20, ids, ids], 2)), ("trainannot", ids)):
            (tmp_path / "in" / side).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "in" / side / f"d_{index:03d}.png")
    copy = ["datasets/__main__.py", "camvid", "--root", tmp_path / "in", "--splits", tmp_path / "splits", "--copy",
            tmp_path / "out"]
    must(script(*copy, "--short-side", 18))
    must(script(*copy, "--short-side", 18))
    assert_refused(script(*copy, "--short-side", 20), "at this size", "give --copy another one")
    for side in ("train", "trainannot"):
        path = tmp_path / "in" / side / "d_020.png"
        content = path.read_bytes()
        Image.fromarray(np.array(Image.open(path))[:, ::-1] // 2).save(path)
        assert_refused(script(*copy, "--short-side", 18), f"out/{side}/d_020.png is not", "has changed since")
        path.write_bytes(content)
    (tmp_path / "out" / "train" / "d_020.png").unlink()
    must(script(*copy, "--short-side", 18))


def test_parts_without_images_are_reported(tmp_path, capsys):
    from datasets.__main__ import check_parts

    check_parts(tmp_path, {"a": [1], "b": []}, must_have_images=False)
    assert "b would be empty" in capsys.readouterr().err
    with pytest.raises(UserError, match="b would be empty"):
        check_parts(tmp_path, {"a": [1], "b": []}, must_have_images=True)


def test_streets_depend_on_domain_index_and_seed():
    (image, label), (same_image, same_label) = streets.draw(3), streets.draw(3)
    np.testing.assert_array_equal(image, same_image)
    np.testing.assert_array_equal(label, same_label)
    assert not np.array_equal(image, streets.draw(3, seed=1)[0]) and not np.array_equal(image, streets.draw(4)[0])


def test_streets_with_exact_and_careless_labels_have_the_same_images():
    shares = []
    for index in range(8):
        (image, label), *others = (streets.draw(index, domain) for domain in ("exact", "clear", "careless"))
        for other, _ in others:
            np.testing.assert_array_equal(image, other)
        shares.append([(label != other).mean() for _, other in others])
    usual, careless = np.mean(shares, axis=0)
    assert 0 < 1.5 * usual < careless


@pytest.mark.slow
def test_streets_have_all_classes_and_three_domains():
    drawn = {domain: [streets.draw(i, domain) for i in range(60)] for domain in streets.DOMAINS}
    for scenes in drawn.values():
        ids = set(np.unique(np.concatenate([label.ravel() for _, label in scenes])).tolist())
        assert ids >= set(range(19)) - {16} and ids <= {*range(19), 255}
    light = {domain: np.mean([image.mean() for image, _ in scenes]) for domain, scenes in drawn.items()}
    assert light["rain"] < 0.6 * light["clear"]
    assert len({image.shape for image, _ in drawn["wide"]}) == 3


@pytest.mark.slow
def test_members_of_streets_cannot_be_recognised_without_a_model():
    """A random forest on colours, textures, class frequencies and label edges has an AUC close to 0.5."""
    def describe(index):
        image, label = streets.draw(index)
        colours = np.concatenate([np.histogram(image[..., c], 8, (0, 256))[0] for c in range(3)])
        edges = [np.abs(np.diff(label.astype(int), axis=a)).astype(bool).mean() for a in (0, 1)]
        texture = [np.abs(np.diff(image.astype(float), axis=a)).mean() for a in (0, 1)]
        return [*colours, *np.bincount(label.ravel(), minlength=256)[[*range(19), 255]], *edges, *texture]

    (_, first_in, _), (_, first_out, _) = streets.PARTS["victim_in"], streets.PARTS["victim_out"]
    features = np.array([describe(first + i) for i in range(120) for first in (first_in, first_out)])
    member = np.tile([True, False], 120)
    half = len(member) // 2
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0).fit(features[:half], member[:half])
    auc = roc_auc_score(member[half:], forest.predict_proba(features[half:])[:, 1])
    assert abs(auc - 0.5) < 0.14  # 2.6 standard errors for 60 members and 60 non-members


def test_stored_split_files_list_the_parts_of_streets():
    for part, (domain, first, count) in streets.PARTS.items():
        path = Path(__file__).parents[1] / "splits" / "streets" / f"{part}.txt"
        pairs = read_split(path, must_exist=False)
        assert [p.image for p in pairs] == [f"{domain}/img/{i:05d}.png" for i in range(first, first + count)]


def write_pair(tmp_path, label=None, size=(20, 30)):
    """Write a random image i.png and a label l.png, and return them as a pair."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*size, 3), np.uint8)
    label = rng.integers(0, 19, size, np.uint8) if label is None else label
    Image.fromarray(image).save(tmp_path / "i.png")
    Image.fromarray(label).save(tmp_path / "l.png")
    return Pair("i.png", "l.png", "i.png", tmp_path)


def test_pair_of_different_sizes(tmp_path):
    with pytest.raises(UserError, match="is 8 x 9, its image 30 x 20"):
        load_pair(write_pair(tmp_path, np.zeros((9, 8), np.uint8)), "streets")


def test_label_outside_the_classes(tmp_path):
    write_pair(tmp_path, np.full((20, 30), 19, np.uint8))
    with pytest.raises(UserError, match="holds id 19"):
        load_label(tmp_path / "l.png", "streets")


@pytest.mark.parametrize("percent", [10, 60])
def test_truncated_image(tmp_path, percent):
    pair = write_pair(tmp_path)
    content = (tmp_path / "i.png").read_bytes()
    (tmp_path / "i.png").write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(UserError, match=r"i\.png cannot be read"):
        load_pair(pair, "streets")


def test_augment_transforms_image_and_label_together():
    label = np.zeros((120, 180), np.uint8)
    label[30:90, 60:150] = 7
    image = np.repeat(label[..., None] * 30, 3, axis=2)
    for index in range(30):
        new_image, new_label = augment(image, label, stream(index), (130, 150), (210, 210, 210), (0.7, 1.5), 10)
        assert new_image.shape == (130, 150, 3) and new_label.shape == (130, 150)
        assert set(np.unique(new_label)) <= {0, 7, 255}
        inside, outside = new_image[new_label == 7], new_image[new_label == 0]
        assert inside.size == 0 or np.mean(np.abs(inside.astype(int) - 210) < 40) > 0.8
        assert outside.size == 0 or np.mean(outside < 40) > 0.8


def test_augmentation_depends_only_on_seed_epoch_and_image(tmp_path):
    pair = write_pair(tmp_path)
    other = Pair("i.png", "l.png", "g", tmp_path)
    settings = ((16, 16), (0, 0, 0), (0.5, 2.0), 10.0)
    alone, second = Augmented([pair], "streets", 0, *settings), Augmented([other, pair], "streets", 0, *settings)
    assert alone[0, 0][0].equal(second[0, 1][0])
    assert not alone[0, 0][0].equal(second[1, 1][0])


def test_plain_grey_files_of_8_bits_are_labels(tmp_path):
    (tmp_path / "a.pgm").write_text("P2 2 2 255 0 1 255 7")
    assert load_ids(tmp_path / "a.pgm").tolist() == [[0, 1], [255, 7]]
    (tmp_path / "b.pgm").write_text("P2 2 2 15 0 1 15 7")
    with pytest.raises(UserError, match="not stored as 8 bits"):
        load_ids(tmp_path / "b.pgm")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_a_channel_are_recognised(tmp_path, suffix):
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), np.full((4, 4, 3), 4000, np.uint16))
    cv2.imwrite(str(tmp_path / f"b.{suffix}"), np.full((4, 4, 3), 40, np.uint8))
    assert [describe_file(tmp_path / f"{name}.{suffix}")[2] for name in "ab"] == [True, False]
