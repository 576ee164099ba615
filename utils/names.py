"""Write the names of images into results: as they are, or as keyed hashes."""

import hmac
from collections.abc import Callable
from pathlib import Path

from utils.cli import UserError

KEY_BYTES = 16  # smallest length of a key


def spreadsheet_safe(name: str) -> str:
    """Return `name` as a path that no spreadsheet reads as a formula: with `./` before `=`, `+`, `-` and `@`."""
    return f"./{name}" if name.startswith(("=", "+", "-", "@")) else name


def name_writer(key_file: str | None) -> Callable[[str], str]:
    """Return the function that writes the name of an image into results.

    With a key file it writes 32 hex digits of HMAC-SHA256 under the content of the file, so an image has the same hash
    in every run with this key. Without a key file it writes the name as it is. Raises `UserError` if the file cannot be
    read or has fewer than `KEY_BYTES` bytes.
    """
    if key_file is None:
        return spreadsheet_safe
    try:
        key = Path(key_file).read_bytes()
    except OSError as error:
        raise UserError(f"{key_file} cannot be read ({error.strerror}); make a key with: head -c 32 /dev/urandom > "
                        f"{key_file}") from None
    if len(key) < KEY_BYTES:
        raise UserError(f"{key_file} has {len(key)} bytes, but a key has {KEY_BYTES} or more; make one with: "
                        f"head -c 32 /dev/urandom > {key_file}")
    return lambda name: hmac.digest(key, name.encode(errors="surrogateescape"), "sha256").hex()[:32]
