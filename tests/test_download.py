"""Archives from elsewhere: checked, unpacked whole or not at all."""

import stat
import zipfile
from argparse import Namespace

import pytest

from utils import download
from utils.cli import UserError


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, content)
    return path


PLAIN = stat.S_IFREG | 0o644


def both(folder):
    archive(folder / "examples.zip", [("examples/train/img/a.png", b"x", PLAIN), ("examples/", b"", 0)])
    archive(folder / "weights.zip", [("weights/loss.pth.tar", b"y", 0)])


def test_archives_in_place_are_unpacked_and_recorded(tmp_path):
    both(tmp_path)
    download.main(Namespace(to=str(tmp_path)))
    assert (tmp_path / "examples/train/img/a.png").read_bytes() == b"x"
    assert (tmp_path / "weights/loss.pth.tar").read_bytes() == b"y"
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 2
    download.main(Namespace(to=str(tmp_path)))
    archive(tmp_path / "weights.zip", [("weights/loss.pth.tar", b"z", PLAIN)])
    with pytest.raises(UserError, match="not the file that was first downloaded"):
        download.main(Namespace(to=str(tmp_path)))
    assert (tmp_path / "weights/loss.pth.tar").read_bytes() == b"y"


@pytest.mark.parametrize("name, mode", [
    ("../out", PLAIN), ("/out", PLAIN), ("a/../../out", PLAIN), ("a\\..\\..\\out", PLAIN), ("c:out", PLAIN),
    ("link", stat.S_IFLNK | 0o777), ("fifo", stat.S_IFIFO)])
def test_entries_that_leave_the_folder(tmp_path, name, mode):
    inside = tmp_path / "in"
    inside.mkdir()
    archive(inside / "x.zip", [("good", b"x", PLAIN), (name, b"/etc", mode)])
    with pytest.raises(UserError, match="was not unpacked"):
        download.unpack(inside / "x.zip", inside)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "x.zip"]


def test_too_large_or_broken(tmp_path, monkeypatch):
    archive(tmp_path / "x.zip", [("good", b"x" * 100, PLAIN)])
    monkeypatch.setattr(download, "LIMIT", 50)
    with pytest.raises(UserError, match="not opened"):
        download.unpack(tmp_path / "x.zip", tmp_path)
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:60])
    with pytest.raises(UserError, match="no whole zip"):
        download.unpack(tmp_path / "x.zip", tmp_path)


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    import gdown

    def refuse(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(gdown, "download_folder", refuse)
    with pytest.raises(UserError, match=r"with a browser, put .* into"):
        download.main(Namespace(to=str(tmp_path)))
