"""Read files that may be broken or hostile, and report every error in one line."""

import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cli import UserError

MAX_ENTRIES = 100_000  # entries of an archive
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # other methods can allocate any amount of memory at the start


@contextmanager
def reading(path: str | Path, kind: str, missing: str = "", broken: str = "") -> Iterator[None]:
    """Turn every exception in the block into a `UserError` which says that `path` cannot be read as a `kind`.

    Also raises `UserError` if `path` is not a regular file. `missing` and `broken`: advice for the user if the file
    is missing, or cannot be read.
    """
    try:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such {kind}{missing and '; '}{missing}")
        yield
    except UserError:
        raise
    except Exception as error:  # on a hostile file a parser can raise nearly any exception
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        if not reason or isinstance(error, KeyError):
            reason = f"{type(error).__name__} {reason}"
        article = "an" if kind[0].lower() in "aeiou" else "a"
        raise UserError(f"{path} cannot be read as {article} {kind}: {reason}{broken and '; '}{broken}") from None


def zip_entries(archive: zipfile.ZipFile, limit: int, wanted: Collection[str] | None = None) -> list[zipfile.ZipInfo]:
    """List the entries of an archive (`wanted`: only those with these names), after checking what they claim.

    Raises `ValueError` if the entries claim more than `limit` bytes, if the archive has more than `MAX_ENTRIES`
    entries, or if an entry is encrypted, occurs twice or uses a method outside `METHODS`. `ZipExtFile.read(n)` never
    returns more than an entry claims.
    """
    listed = archive.infolist()
    if len(listed) > MAX_ENTRIES:
        raise ValueError(f"it has {len(listed)} entries, more than {MAX_ENTRIES}")
    entries = [entry for entry in listed if wanted is None or entry.filename in wanted]
    if sum(entry.file_size for entry in entries) > limit:
        raise ValueError(f"it would unpack to more than {limit / 2**30:g} GiB")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("it has two entries with the same name")
    if any(entry.flag_bits & 1 or entry.compress_type not in METHODS for entry in entries):
        raise ValueError("an entry is encrypted, or compressed by another method than deflate")
    return entries
