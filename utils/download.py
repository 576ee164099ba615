"""Download the example data and attacker weights of the paper's authors from their Google Drive folder.

    python -m utils.download                # into authors/
    python attack.py -resume authors/weights/loss.pth.tar --examples authors/examples

An interrupted download is resumed. All requests use https, and your cookies are not sent. The archives are checked
before they are unpacked. The first call writes their SHA-256 to DIR/SHA256SUMS, and later calls compare with it.
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

from utils.cli import UserError, new_parser, run
from utils.files import atomic_open
from utils.untrusted import reading, zip_entries

FOLDER = "1A4WBp5qxS8rn_EnbCY7H5VArtsErS8pv"
ARCHIVES = ("examples.zip", "weights.zip")
LIMIT = 8 * 2**30  # bytes that an archive may unpack to
NAME_LIMIT = 200  # bytes of a file name; the suffix of an incomplete file must still fit
SUMS, TEMPORARY = "SHA256SUMS", ".unpacking"  # file and folder that this script writes beside the archives
RESERVED = {name.casefold() for name in (SUMS, TEMPORARY, *ARCHIVES)}  # names that an archive may not replace


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "utils.download")
    flags.add_argument("--to", metavar="DIR", default="authors", help="output folder (default: authors)")
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
    """Download the archives `names` with gdown, and resume interrupted downloads. Raises `UserError` on any failure."""
    import gdown

    try:
        with https_only():
            listed = gdown.download_folder(id=FOLDER, output=str(folder), use_cookies=False, skip_download=True)
            ids = {Path(item.path).name: item.id for item in listed or []}
            for name in names:
                if name not in ids:
                    raise UserError(f"the authors' folder does not contain {name} any more; see "
                                    f"https://drive.google.com/drive/folders/{FOLDER}")
                gdown.download(id=ids[name], output=str(folder / name), quiet=False, use_cookies=False, resume=True)
    except UserError:
        raise
    except Exception as error:  # gdown and requests raise many exceptions; each means that the download failed
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"the download from Google Drive failed ({reason}); with a browser, put "
                        f"{' and '.join(names)} of https://drive.google.com/drive/folders/{FOLDER} into {folder} "
                        "and run this command again") from None


@contextmanager
def https_only() -> Iterator[None]:
    """Make `requests` refuse every address that is not https, also after a redirect."""
    from requests import Session
    from requests.exceptions import InvalidSchema

    def get_adapter(session: Session, url: str) -> object:
        if not url.lower().startswith("https://"):
            raise InvalidSchema(f"{url} is not https")
        return original(session, url)

    original, Session.get_adapter = Session.get_adapter, get_adapter
    try:
        yield
    finally:
        Session.get_adapter = original


def recorded(folder: Path) -> dict[str, str]:
    """Read SHA256SUMS of the folder: archive -> SHA-256."""
    sums = folder / SUMS
    if not sums.exists():
        return {}
    with reading(sums, "list of SHA-256", broken="delete it; this command writes a new one"):
        return {name: digest for digest, name in map(str.split, sums.read_text(encoding="utf-8").splitlines())}


def verify(archive: Path) -> str:
    """Return the SHA-256 of an archive. Raises `UserError` if SHA256SUMS has another one."""
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = recorded(archive.parent).get(archive.name, digest)
    if expected != digest:
        raise UserError(f"{archive} is not the file that was first downloaded (SHA-256 {digest[:12]}..., but "
                        f"recorded {expected[:12]}...); delete it to download it again, or delete SHA256SUMS beside it "
                        "if you replaced the archive yourself")
    return digest


def record(archive: Path, digest: str) -> None:
    """Write the SHA-256 of an archive to SHA256SUMS."""
    sums = recorded(archive.parent) | {archive.name: digest}
    with atomic_open(archive.parent / SUMS, "w") as file:
        file.writelines(f"{value} {name}\n" for name, value in sorted(sums.items()))


def unpack(archive: Path, folder: Path) -> None:
    """Check all entries of a zip file, then unpack it below `folder`.

    The files are first written to a temporary folder and then moved, so no incomplete file appears even if the process
    is killed. Raises `UserError` if the archive is broken, has too many entries or bytes, or has an entry that is a
    link or would be written outside the folder.
    """
    temporary = folder / TEMPORARY
    with reading(archive, "zip archive", broken="if it is broken, delete it and run this command again"), \
            zipfile.ZipFile(archive) as zipped:
        entries = [entry for entry in zip_entries(zipped, LIMIT) if not entry.is_dir()]
        files = {check_entry(entry, archive): entry for entry in entries}
        if len(files) < len(entries) or any(parent in files for path in files for parent in path.parents):
            raise ValueError("two of its entries have the same path, or one path is both a file and a folder")
        for path in files:
            check_target(folder, path, archive)
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
        temporary.mkdir()
        try:
            for path, entry in files.items():
                with zipped.open(entry) as source, atomic_open(temporary / path) as target:
                    shutil.copyfileobj(source, target)
            for path in files:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / path, folder / path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    print(f"{archive}: {len(files)} files")


def check_entry(entry: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """Return the path of an entry below the folder. Raises `UserError` if it is not a plain file, or not below it."""
    path, kind = PurePosixPath(entry.filename.replace("\\", "/")), stat.S_IFMT(entry.external_attr >> 16)
    if (path.is_absolute() or not path.parts or ".." in path.parts or ":" in entry.filename
            or any(len(os.fsencode(part)) > NAME_LIMIT for part in path.parts)
            or not entry.filename.isprintable() or kind not in (0, stat.S_IFREG)
            or path.parts[0].casefold() in RESERVED):
        raise UserError(f"{archive} contains the entry {entry.filename[:80]!r}, which is a link, leaves the folder or "
                        "has a name that is not allowed; the archive was not unpacked")
    return path


def check_target(folder: Path, path: PurePosixPath, archive: Path) -> None:
    """Raise `UserError` if `folder / path` cannot be written, or only through a symbolic link."""
    parents = [folder / parent for parent in path.parents[:-1]]
    wrong = [parent for parent in parents if parent.is_symlink() or (parent.exists() and not parent.is_dir())]
    target = folder / path
    if wrong or target.is_symlink() or (target.exists() and not target.is_file()):
        raise UserError(f"{archive} was not unpacked: {(wrong or [target])[0]} is a link, or blocks the path of an "
                        "entry; move it elsewhere")


if __name__ == "__main__":
    run(main, parser())
