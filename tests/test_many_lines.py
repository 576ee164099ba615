"""Split files of many lines: the fast way gives the pairs and the errors of the slow way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import pairs
from datasets.pairs import Pair, find_missing, read_split
from utils.cli import UserError

PIECES = st.sampled_from(["a", "b", "/", ".", "..", "./", "//", "#", " ", "\t", ".png", "1", '"', "\\", "' "])


def outcome(path):
    try:
        return read_split(path, path.parent, must_exist=False)
    except UserError as error:
        return str(error)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=9).map("".join), min_size=1, max_size=6))
def test_lines_that_look_usual_are_read_as_all_others(tmp_path_factory, lines):
    """With the empty mark, which every text contains, each line is checked."""
    path = tmp_path_factory.mktemp("split") / "split.txt"
    path.write_text("\n".join(lines))
    fast = outcome(path)
    usual, pairs.UNUSUAL = pairs.UNUSUAL, ("",)
    try:
        assert fast == outcome(path)
    finally:
        pairs.UNUSUAL = usual


@pytest.mark.parametrize("image, name", [
    ("img/a.png", "img/a"), ("a", "a"), ("v1.2/a", "v1.2/a"), ("x/.hidden", "x/.hidden"), ("a.b.png", "a.b")])
def test_name_of_a_pair(image, name):
    assert Pair(image, "l.png", image).name == name


@pytest.mark.parametrize("limit", [0, 10_000])
def test_missing_files_are_found_with_and_without_listing_folders(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(pairs, "LISTED", limit)
    (tmp_path / "d").mkdir()
    for name in ("d/1", "d/2", "top"):
        (tmp_path / name).write_text("")
    (tmp_path / "d/link").symlink_to(tmp_path / "top")
    (tmp_path / "d/folder").mkdir()
    assert find_missing(tmp_path, ["d/1", "d/link", "top", "d/2"]) is None
    assert find_missing(tmp_path, ["d/1", "d/3", "e/1"]) == "d/3"
    assert find_missing(tmp_path, ["d/folder"]) == "d/folder" and find_missing(tmp_path, ["none/1"]) == "none/1"
    assert find_missing(tmp_path, ["d/" + "x" * 5000]) == "d/" + "x" * 5000
