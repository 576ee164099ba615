"""A user's own images: lists and folders of members, names of any characters, and the classes of the model."""

import argparse
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import chosen, find_dataset
from datasets.folder import settings
from datasets.pairs import load_label, read_split
from datasets.sides import REFERENCES, write_sides
from predictors import samples
from predictors.base import Predictor, PredictorOptions
from predictors.cache import cache_outputs
from predictors.samples import live_records, open_victim
from predictors.stored import list_records
from utils.cli import UserError

NAMES = ("#1", "a b", 'say "no"', "it's", "back\\slash", "schön", "in/# d/1", "in/# d/2", "in/e/1", "in/e/2")


@pytest.fixture
def own(tmp_path):
    """A folder with my images/ and my masks/, of `NAMES`; the mask of image n is n mod 3 everywhere."""
    for number, name in enumerate(NAMES):
        for kind, array in (("my images", np.full((8, 16, 3), 20 * number, np.uint8)),
                            ("my masks", np.full((8, 16), number % 3, np.uint8))):
            file = tmp_path / kind / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    return tmp_path


def sides(own, members, non_members=None, references=None):
    """The names below my images/ of members, of non-members and, if any are given, of images for references."""
    paths = [one and str(one) for one in (members, non_members)]
    inside, outside, root = write_sides(str(own / "my images"), str(own / "my masks"), *paths, own / "audit",
                                        references and str(references))
    files = [inside, outside, *([own / "audit" / REFERENCES] if references else [])]
    return [[pair.name.removeprefix("my images/") for pair in read_split(file, root)] for file in files]


def write_list(own, *lines):
    (own / "list.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return own / "list.txt"


def copy(own, *names, place="copies", link=False):
    """A folder with copies of images, or with links to them."""
    for name in names:
        file, source = own / place / f"{name}.png", own / "my images" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if link:
            file.symlink_to(source)
        else:
            shutil.copy(source, file)
    return own / place


def test_names_of_any_characters_are_listed(own):
    inside, outside = sides(own, write_list(own, "# a comment", "#1", *(f"{name}.png" for name in NAMES[1:7])))
    assert inside == sorted(NAMES[:7]) and outside == sorted(NAMES[7:])


def test_a_folder_inside_the_images_is_a_list(own):
    images = own / "my images"
    inside, outside = sides(own, images / "in/# d")
    assert inside == ["in/# d/1", "in/# d/2"] and outside == sorted({*NAMES} - {*inside})
    assert sides(own, images / "in/../in/# d", images / "in/e") == [inside, ["in/e/1", "in/e/2"]]
    (own / "elsewhere").symlink_to(own / "my images/in/e")
    assert sides(own, own / "elsewhere")[0] == ["in/e/1", "in/e/2"]


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_of_copies_or_links_is_a_list(own, link):
    members = copy(own, "#1", "in/e/1", link=link)
    (members / "README.txt").write_text("These are no images.")
    references = copy(own, "in/e/2", place="others", link=link)
    inside, outside, apart = sides(own, members, references=references)
    assert inside == ["#1", "in/e/1"] and apart == ["in/e/2"]
    assert outside == sorted({*NAMES} - {*inside, *apart})


def test_folders_that_are_no_lists_are_refused(own):
    (own / "empty").mkdir()
    (own / "notes").mkdir()
    (own / "notes/notes.txt").write_text("a b.png")
    for name in ("empty", "notes"):
        with pytest.raises(UserError, match=f"{name} holds no image; give a folder with images, or a list"):
            sides(own, own / name)
    other = copy(own, "in/e/1") / "in/e"  # its files have not the paths of the images
    with pytest.raises(UserError, match=r"in/e names 1\.png, which is no image below .*; give a folder") as raised:
        sides(own, other)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(UserError, match="leaves no image as a non-member"):
        sides(own, own / "my images")


class Known(Predictor):
    """A model that answers with the same posterior everywhere."""

    def __init__(self, classes=None, names=None, dataset=None):
        super().__init__("own:model", PredictorOptions())
        self.classes, self.class_names, self.dataset = classes, names, dataset

    def predict(self, queries):
        return [torch.full((self.classes, *query.image.shape[:2]), 1 / self.classes) for query in queries]


def opened(monkeypatch, model, dataset="folder"):
    monkeypatch.setattr(samples, "open_predictor", lambda where, options: model)
    return open_victim("own:model", dataset, PredictorOptions())


def test_names_come_back_from_a_stored_tree(own):
    inside, outside, root = write_sides(str(own / "my images"), str(own / "my masks"), str(own / "my images/in"), None,
                                        own / "audit")
    records = [record.in_group(f'group "{record.member}" # 1')
               for record in live_records(inside, outside, str(root), "", f"folder:{settings(3, None, None)}")]
    cache_outputs(own / "tree", Known(3), records, [])
    stored = {(record.name.partition("/")[2], record.group) for record in list_records(own / "tree")}
    assert stored == {(record.name, record.group) for record in records} and len(stored) == len(NAMES)


def test_a_folder_without_classes_has_those_of_the_model(own, monkeypatch):
    model, dataset = opened(monkeypatch, Known(3))
    assert dataset == f"folder:{settings(3, None, None)}" and model.options.classes == 3
    label = load_label(own / "my masks/a b.png", dataset)
    assert (label == 1).all()
    assert opened(monkeypatch, Known(2, ["road", "other"]))[1] == opened(monkeypatch, Known(2, ("road", "other")))[1]
    assert find_dataset(opened(monkeypatch, Known(2, ["road", "other"]))[1]).CLASSES == ("road", "other")
    assert find_dataset(opened(monkeypatch, Known(3, ["road"]))[1]).CLASSES == ("class 0", "class 1", "class 2")
    trained = f"folder:{settings(4, None, None)}"
    assert opened(monkeypatch, Known(4, dataset=trained))[1] == trained


def test_labels_that_do_not_fit_the_classes_of_the_model_are_refused(own, monkeypatch):
    _, dataset = opened(monkeypatch, Known(2))
    with pytest.raises(UserError, match=r"\.png holds id 2; the data set has classes 0\.\.1.*; --label-map FILE says"):
        load_label(own / 'my masks/say "no".png', dataset)


def test_a_model_that_does_not_say_its_classes_needs_them(monkeypatch):
    message = "own:model does not say how many classes it has; give --dataset folder --classes N"
    with pytest.raises(UserError, match=message):
        opened(monkeypatch, Known())
    assert opened(monkeypatch, Known(), f"folder:{settings(5, None, None)}")[0].options.classes == 5
    with pytest.raises(UserError, match="2 to 254 classes"):
        opened(monkeypatch, Known(1))


@pytest.mark.parametrize("classes, dataset", [(None, None), (19, "streets")])
def test_other_data_sets_are_found_as_before(monkeypatch, classes, dataset):
    assert opened(monkeypatch, Known(classes), dataset)[1] == "streets"


def test_the_flag_folder_without_classes_is_for_models_that_say_them():
    flags = argparse.Namespace(dataset="folder", classes=None, class_names=None, label_map=None)
    assert chosen(flags, of_model=True) == "folder"
    for ask in (lambda: chosen(flags), lambda: find_dataset("folder")):
        with pytest.raises(UserError, match="--dataset folder needs --classes N, --class-names FILE or --label-map F"):
            ask()
    flags.classes = 3
    assert chosen(flags, of_model=True) == chosen(flags) == f"folder:{settings(3, None, None)}"
