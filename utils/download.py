"""Fetch the authors' example data and attacker weights from their Google Drive folder.

    python -m utils.download                # into authors/
    python attack.py -resume authors/weights/loss.pth.tar --examples authors/examples

Archives are checked before anything is unpacked. Their SHA-256 is written to DIR/SHA256SUMS at the first download and
compared with it ever after.
"""

import argparse
import hashlib
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from utils.cli import UserError, run
from utils.files import whole

FOLDER = "1A4WBp5qxS8rn_EnbCY7H5VArtsErS8pv"
ARCHIVES = ("examples.zip", "weights.zip")
LIMIT = 8 * 2**30  # bytes that an archive may unpack to


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
        listed = gdown.download_folder(id=FOLDER, output=str(folder), quiet=False, skip_download=True)
        found = {Path(item.path).name: item.id for item in listed or []}
        for name in names:
            if name not in found:
                raise UserError(f"the authors' folder does not list {name} any more; see "
                                f"https://drive.google.com/drive/folders/{FOLDER}")
            gdown.download(id=found[name], output=str(folder / name), quiet=False, resume=True)
    except UserError:
        raise
    except Exception as error:  # gdown and requests raise many kinds; each means that there is no file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"Google Drive could not be reached or refused ({reason}); with a browser, put "
                        f"{' and '.join(names)} of https://drive.google.com/drive/folders/{FOLDER} into {folder} "
                        "and call this again") from None


def recorded(folder: Path) -> dict[str, str]:
    """Archive -> SHA-256 in SHA256SUMS of the folder."""
    sums = folder / "SHA256SUMS"
    return dict(reversed(line.split()) for line in sums.read_text().splitlines()) if sums.exists() else {}


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
    with whole(archive.parent / "SHA256SUMS", "w") as file:
        file.writelines(f"{value} {name}\n" for name, value in sorted(known.items()))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip below `folder`, file by file, once all its entries are found harmless.

    Raises `UserError` for a broken archive, an entry that is a link or would leave the folder, or too many bytes.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            entries = [check_entry(entry, archive) for entry in zipped.infolist() if not entry.is_dir()]
            if sum(entry.file_size for entry in entries) > LIMIT:
                raise UserError(f"{archive} would unpack to more than {LIMIT >> 30} GiB; it was not opened")
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                for entry in entries:
                    zipped.extract(entry, aside)
                shutil.copytree(aside, folder, dirs_exist_ok=True, copy_function=shutil.move)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} is no whole zip archive ({error}); delete it and call this again") from None
    print(f"{archive}: {len(entries)} files")


def check_entry(entry: zipfile.ZipInfo, archive: Path) -> zipfile.ZipInfo:
    """Return `entry` if it is a plain file that stays below the folder, else raise `UserError`."""
    path, kind = PurePosixPath(entry.filename.replace("\\", "/")), stat.S_IFMT(entry.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in entry.filename or kind not in (0, stat.S_IFREG):
        raise UserError(f"{archive} holds the entry {entry.filename!r}, which is a link or leaves the folder; "
                        "it was not unpacked")
    return entry


if __name__ == "__main__":
    run(main, parser())
