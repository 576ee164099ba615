"""Files from elsewhere: however one turns out to be broken or made to harm, the user reads one line."""

import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cli import UserError

ENTRIES = 100_000  # that an archive may have
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may ask for any memory before their first byte


@contextmanager
def reading(path: str | Path, what: str, missing: str = "", broken: str = "") -> Iterator[None]:
    """Whatever fails in the block is a `UserError`: `path` cannot be read as a `what`.

    So is a file that is not there, or a folder, pipe or device in its place. `missing` and `broken` say what to do.
    """
    try:
        if not Path(path).is_file():
            raise UserError(f"{path}: no such {what}{missing and '; '}{missing}")
        yield
    except UserError:
        raise
    except Exception as error:  # parsers raise nearly every kind on what was made to break them; each means the same
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        if not reason or isinstance(error, KeyError):
            reason = f"{type(error).__name__} {reason}"
        article = "an" if what[0] in "aeiou" else "a"
        raise UserError(f"{path} cannot be read as {article} {what}: {reason}{broken and '; '}{broken}") from None


def zip_entries(zipped: zipfile.ZipFile, limit: int, wanted: Collection[str] | None = None) -> list[zipfile.ZipInfo]:
    """The entries of an archive (None: all, else those named in `wanted`), of at most `limit` bytes by what they claim.

    Raises `ValueError` for more, for more than `ENTRIES` in the archive, and for an entry that is encrypted, occurs
    twice or is neither stored nor deflated. `ZipExtFile.read(n)` never reads past a claim.
    """
    found = zipped.infolist()
    if len(found) > ENTRIES:
        raise ValueError(f"it has {len(found)} entries, more than {ENTRIES}")
    entries = [entry for entry in found if wanted is None or entry.filename in wanted]
    if sum(entry.file_size for entry in entries) > limit:
        raise ValueError(f"it would unpack to more than {limit / 2**30:g} GiB")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("it has two entries of one name")
    if any(entry.flag_bits & 1 or entry.compress_type not in PACKINGS for entry in entries):
        raise ValueError("an entry is encrypted, or compressed by another method than deflate")
    return entries
