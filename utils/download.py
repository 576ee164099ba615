"""Fetch the authors' example data and attacker weights from their Google Drive folder.

    python -m utils.download                # into authors/
    python attack.py -resume authors/weights/loss.pth.tar --examples authors/examples

A download that broke off goes on where it was; nothing is fetched but by https, and no cookie of yours is sent.
Archives are checked before anything is unpacked. Their SHA-256 is written to DIR/SHA256SUMS at the first download and
compared with it ever after.
"""

import argparse
import hashlib
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from utils.cli import UserError, run
from utils.files import atomic_open
from utils.untrusted import reading, zip_entries

FOLDER = "1A4WBp5qxS8rn_EnbCY7H5VArtsErS8pv"
ARCHIVES = ("examples.zip", "weights.zip")
LIMIT = 8 * 2**30  # bytes that an archive may unpack to
NAME_LIMIT = 200  # bytes, which leaves room for what is added while it is written
SUMS, ASIDE = "SHA256SUMS", ".unpacking"  # ours beside the archives
OURS = {name.casefold() for name in (SUMS, ASIDE, *ARCHIVES)}  # what no archive may replace


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="utils.download", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--to", metavar="DIR", default="authors", help="where everything goes (default: authors)")
    return flags


def main(args: argparse.Namespace) -> None:
    folder = Path(args.to)
    folder.mkdir(parents=True, exist_ok=True)
    if missing := [name for name in ARCHIVES if not (folder / name).is_file()]:
        fetch(folder, missing)
    for name in ARCHIVES:
        digest = verify(folder / name)
        unpack(folder / name, folder)
        record(folder / name, digest)
    print(f"done; try: python attack.py -resume {folder}/weights/loss.pth.tar --examples {folder}/examples")


def fetch(folder: Path, names: list[str]) -> None:
    """Download the archives `names` with gdown, going on with a broken download; `UserError` says what went wrong."""
    import gdown

    try:
        with https_only():
            listed = gdown.download_folder(id=FOLDER, output=str(folder), use_cookies=False, skip_download=True)
            found = {Path(item.path).name: item.id for item in listed or []}
            for name in names:
                if name not in found:
                    raise UserError(f"the authors' folder does not list {name} any more; see "
                                    f"https://drive.google.com/drive/folders/{FOLDER}")
                gdown.download(id=found[name], output=str(folder / name), quiet=False, use_cookies=False, resume=True)
    except UserError:
        raise
    except Exception as error:  # gdown and requests raise many kinds; each means that there is no file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"Google Drive could not be reached or refused ({reason}); with a browser, put "
                        f"{' and '.join(names)} of https://drive.google.com/drive/folders/{FOLDER} into {folder} "
                        "and call this again") from None


@contextmanager
def https_only() -> Iterator[None]:
    """While this is open, `requests` opens no other address than https, at the first request and after a redirect."""
    from requests import Session
    from requests.exceptions import InvalidSchema

    def get_adapter(session: Session, url: str) -> object:
        if not url.lower().startswith("https://"):
            raise InvalidSchema(f"sent to {url}, which is not https")
        return before(session, url)

    before, Session.get_adapter = Session.get_adapter, get_adapter
    try:
        yield
    finally:
        Session.get_adapter = before


def recorded(folder: Path) -> dict[str, str]:
    """Archive -> SHA-256 in SHA256SUMS of the folder."""
    sums = folder / SUMS
    if not sums.exists():
        return {}
    with reading(sums, "list of SHA-256", broken="delete it to have it written anew"):
        return {name: digest for digest, name in map(str.split, sums.read_text(encoding="utf-8").splitlines())}


def verify(archive: Path) -> str:
    """The archive's SHA-256; `UserError` when another one was recorded."""
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    known = recorded(archive.parent).get(archive.name, digest)
    if known != digest:
        raise UserError(f"{archive} is not the file that was first downloaded (SHA-256 {digest[:12]}..., recorded "
                        f"{known[:12]}...); delete it to fetch it anew, or SHA256SUMS beside it if it was replaced")
    return digest


def record(archive: Path, digest: str) -> None:
    """Note the SHA-256 of an archive that was whole."""
    known = recorded(archive.parent) | {archive.name: digest}
    with atomic_open(archive.parent / SUMS, "w") as file:
        file.writelines(f"{value} {name}\n" for name, value in sorted(known.items()))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip below `folder`, once all its entries are found harmless.

    Everything is written aside first, so that a file that is there is whole, also when this is killed. Raises
    `UserError` for a broken archive, an entry that is a link or would leave the folder, too many entries or bytes.
    """
    aside = folder / ASIDE
    with reading(archive, "zip archive", broken="if it is broken, delete it and call this again"), \
            zipfile.ZipFile(archive) as zipped:
        entries = [entry for entry in zip_entries(zipped, LIMIT) if not entry.is_dir()]
        files = {check_entry(entry, archive): entry for entry in entries}
        if len(files) < len(entries) or any(above in files for path in files for above in path.parents):
            raise ValueError("it has two entries of one path, or one that is both file and folder")
        for path in files:
            check_place(folder, path, archive)
        shutil.rmtree(aside, ignore_errors=True)  # of a call that was killed
        aside.mkdir()
        try:
            for path, entry in files.items():
                with zipped.open(entry) as source, atomic_open(aside / path) as target:
                    shutil.copyfileobj(source, target)
            for path in files:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(aside / path, folder / path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    print(f"{archive}: {len(files)} files")


def check_entry(entry: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """Where `entry` goes, if it is a plain file that stays below the folder, else `UserError`."""
    path, kind = PurePosixPath(entry.filename.replace("\\", "/")), stat.S_IFMT(entry.external_attr >> 16)
    if (path.is_absolute() or not path.parts or ".." in path.parts or ":" in entry.filename
            or any(len(os.fsencode(part)) > NAME_LIMIT for part in path.parts)
            or not entry.filename.isprintable() or kind not in (0, stat.S_IFREG) or path.parts[0].casefold() in OURS):
        raise UserError(f"{archive} holds the entry {entry.filename[:80]!r}, which is a link, leaves the folder or is "
                        "no name; it was not unpacked")
    return path


def check_place(folder: Path, path: PurePosixPath, archive: Path) -> None:
    """Raise `UserError` where no file can go to `folder / path`, or only through a link that leads elsewhere."""
    above = [folder / parent for parent in path.parents[:-1]]
    wrong = [place for place in above if place.is_symlink() or (place.exists() and not place.is_dir())]
    target = folder / path
    if wrong or target.is_symlink() or (target.exists() and not target.is_file()):
        raise UserError(f"{archive} would write through {(wrong or [target])[0]}, which is a link or in its way; move "
                        "that elsewhere, nothing was unpacked")


if __name__ == "__main__":
    run(main, parser())
