"""Downloaded archives: they may be hostile, so they are checked, and unpacked completely or not at all."""

import io
import os
import stat
import zipfile
from argparse import Namespace

import pytest
import requests
from urllib3 import HTTPResponse

from utils import download
from utils.cli import UserError


def archive(path, entries):
    """Write a zip file with entries (name, content, mode)."""
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, content)
    return path


PLAIN = stat.S_IFREG | 0o644


def write_archives(folder, content=b"x"):
    """Write small versions of both archives of the authors."""
    archive(folder / "examples.zip", [("examples/train/img/a.png", content, PLAIN), ("examples/", b"", 0)])
    archive(folder / "weights.zip", [("weights/loss.pth.tar", b"y", 0)])


def test_archives_that_exist_are_unpacked_and_recorded(tmp_path):
    write_archives(tmp_path)
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
def test_entry_outside_the_folder_is_refused(tmp_path, name, mode):
    inside = tmp_path / "in"
    inside.mkdir()
    archive(inside / "x.zip", [("good", b"x", PLAIN), (name, b"/etc", mode)])
    with pytest.raises(UserError, match="was not unpacked"):
        download.unpack(inside / "x.zip", inside)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "x.zip"]


def test_archive_that_is_too_large_or_broken(tmp_path, monkeypatch):
    archive(tmp_path / "x.zip", [("good", b"x" * 100, PLAIN)])
    monkeypatch.setattr(download, "LIMIT", 50)
    with pytest.raises(UserError, match="would unpack to more"):
        download.unpack(tmp_path / "x.zip", tmp_path)
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:60])
    with pytest.raises(UserError, match=r"cannot be read as a zip archive.*delete it"):
        download.unpack(tmp_path / "x.zip", tmp_path)


def test_message_without_a_network(tmp_path, monkeypatch):
    import gdown

    def refuse(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(gdown, "download_folder", refuse)
    with pytest.raises(UserError, match=r"with a browser, put .* into"):
        download.main(Namespace(to=str(tmp_path)))


@pytest.mark.parametrize("name", ["SHA256SUMS", "sha256sums", "weights.zip", ".unpacking/a", ".", "", "a\x1b"])
def test_entry_with_a_reserved_name_is_refused(tmp_path, name):
    archive(tmp_path / "x.zip", [("good", b"x", PLAIN), (name, b"y", PLAIN)])
    with pytest.raises(UserError, match=r"x\.zip"):
        download.unpack(tmp_path / "x.zip", tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["x.zip"]


@pytest.mark.parametrize("entries", [
    [("a", b"x", PLAIN), ("a/b", b"y", PLAIN)], [("a", b"x", PLAIN), ("./a", b"y", PLAIN)],
    [("a/b", b"x", PLAIN), ("a\\b", b"y", PLAIN)], [("good", b"x", PLAIN), ("n" * 300, b"y", PLAIN)]])
def test_entries_with_conflicting_paths(tmp_path, entries):
    archive(tmp_path / "x.zip", entries)
    with pytest.raises(UserError, match=r"x\.zip"):
        download.unpack(tmp_path / "x.zip", tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["x.zip"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entry_and_too_many_entries(tmp_path, monkeypatch):
    archive(tmp_path / "x.zip", [("a", b"x", PLAIN), ("a", b"y", PLAIN)])
    with pytest.raises(UserError, match="two entries with the same name"):
        download.unpack(tmp_path / "x.zip", tmp_path)
    monkeypatch.setattr("utils.untrusted.MAX_ENTRIES", 1)
    with pytest.raises(UserError, match="has 2 entries"):
        download.unpack(tmp_path / "x.zip", tmp_path)


@pytest.mark.parametrize("kind", ["linked folder", "link", "folder instead of file", "file instead of folder"])
def test_existing_link_or_path_blocks_an_entry(tmp_path, kind):
    """An existing link would let an archive write outside the folder."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    outside.mkdir()
    inside.mkdir()
    {"linked folder": lambda: (inside / "a").symlink_to(outside),
     "folder instead of file": lambda: (inside / "a/b").mkdir(parents=True),
     "file instead of folder": lambda: (inside / "a").write_text("mine"),
     "link": lambda: ((inside / "a").mkdir(), (inside / "a/b").symlink_to(outside / "b"))}[kind]()
    before = sorted(inside.rglob("*"))
    archive(inside / "x.zip", [("first", b"x", PLAIN), ("a/b", b"y", PLAIN)])
    with pytest.raises(UserError, match="blocks the path"):
        download.unpack(inside / "x.zip", inside)
    assert sorted(inside.rglob("*")) == sorted([*before, inside / "x.zip"]) and not list(outside.iterdir())


def test_killed_unpacking_leaves_only_complete_files(tmp_path):
    """A call is killed at each of its renames in turn. No incomplete file appears, and the next call continues."""
    archive(tmp_path / "x.zip", [(f"x/{i}", bytes([i]) * 3000, PLAIN) for i in range(3)])
    code, step, counts = 9, 0, []
    while code:
        step += 1
        pid = os.fork()
        if not pid:
            exit_at_rename(step)
            download.unpack(tmp_path / "x.zip", tmp_path)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 9)
        files = list((tmp_path / "x").glob("*"))
        counts.append(len(files))
        assert all(path.stat().st_size == 3000 for path in files)
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3} and not (tmp_path / ".unpacking").exists()


def exit_at_rename(step):
    """Make this process exit when it renames a file for the `step`-th time."""
    import itertools

    count, rename = itertools.count(1), os.replace

    def replace(*paths):
        if next(count) == step:
            os._exit(9)
        rename(*paths)

    os.replace = replace


def test_temporary_folder_that_is_a_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / ".unpacking").symlink_to(tmp_path / "out")
    archive(inside / "x.zip", [("a", b"x", PLAIN)])
    with pytest.raises(UserError, match=r"x\.zip"):
        download.unpack(inside / "x.zip", inside)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_broken_list_of_sums(tmp_path):
    write_archives(tmp_path)
    for content in (b"x\n", b"a b c\n", b"\xff\xfe"):
        (tmp_path / "SHA256SUMS").write_bytes(content)
        with pytest.raises(UserError, match="SHA256SUMS cannot be read"):
            download.main(Namespace(to=str(tmp_path)))


class Drive:
    """Answers the requests to Google Drive, at the point where `requests` would open a connection.

    redirect: the address that downloads are redirected to. interruptions: how many downloads end after half the bytes.
    """

    def __init__(self, monkeypatch, contents, redirect=None, interruptions=0):
        self.requests, self.contents, self.redirect, self.interruptions = [], contents, redirect, interruptions
        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", lambda adapter, request, **_: self.answer(request))

    def answer(self, request):
        self.requests.append((request.url, request.headers.get("Range")))
        if "embeddedfolderview" in request.url:
            page = "<title>x</title>" + "".join(
                f'<a href="https://drive.google.com/file/d/{name:_<30}/view">{name}.zip</a>' for name in self.contents)
            return self.response(request, 200, page.encode(), {"Content-Type": "text/html"})
        if self.redirect and self.redirect not in request.url:
            return self.response(request, 302, b"", {"Location": f"{self.redirect}?{request.url.partition('?')[2]}"})
        name = request.url.partition("id=")[2].strip("_")
        content, start = self.contents[name], int((request.headers.get("Range") or "bytes=0-")[6:-1])
        headers = {"Content-Type": "application/zip", "Content-Length": str(len(content) - start), "ETag": '"1"',
                   "Content-Disposition": f'attachment; filename="{name}.zip"',
                   "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        end = len(content) // 2 if self.interruptions else len(content)
        self.interruptions = max(0, self.interruptions - 1)
        return self.response(request, 206 if start else 200, content[start:end], headers)

    @staticmethod
    def response(request, status, body, headers):
        response = HTTPResponse(io.BytesIO(body), headers, status, preload_content=False, enforce_content_length=True)
        return requests.adapters.HTTPAdapter().build_response(request, response)


@pytest.fixture
def contents(tmp_path):
    """The bytes of both archives on the drive."""
    (tmp_path / "drive").mkdir()
    write_archives(tmp_path / "drive", bytes(2**21))  # large, because gdown writes half a MiB at a time
    return {name: (tmp_path / "drive" / f"{name}.zip").read_bytes() for name in ("examples", "weights")}


def test_interrupted_download_is_resumed(tmp_path, monkeypatch, contents):
    drive, to = Drive(monkeypatch, contents, interruptions=1), tmp_path / "to"
    with pytest.raises(UserError, match="run this command again"):
        download.main(Namespace(to=str(to)))
    assert not (to / "examples.zip").exists() and not (to / "SHA256SUMS").exists()
    download.main(Namespace(to=str(to)))
    assert (to / "examples.zip").read_bytes() == contents["examples"]
    assert f"bytes={2**20}-" in [part for _, part in drive.requests]
    assert (to / "examples/train/img/a.png").read_bytes() == bytes(2**21) and len(download.recorded(to)) == 2


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/uc", "HTTP://drive.google.com/plain", "ftp://127.0.0.1/uc"])
def test_redirect_to_an_address_without_https_is_refused(tmp_path, monkeypatch, contents, address):
    drive = Drive(monkeypatch, contents, redirect=address)
    with pytest.raises(UserError, match="not https"):
        download.main(Namespace(to=str(tmp_path / "to")))
    assert all(url.startswith("https://") for url, _ in drive.requests) and len(drive.requests) == 2
    assert not list((tmp_path / "to").glob("*.zip"))


def test_redirect_to_another_https_address_is_followed(tmp_path, monkeypatch, contents):
    Drive(monkeypatch, contents, redirect="https://usercontent.google.com/download")
    download.main(Namespace(to=str(tmp_path / "to")))
    assert (tmp_path / "to/weights/loss.pth.tar").read_bytes() == b"y"
    requests.Session().get_adapter("http://127.0.0.1")  # the restriction has ended
