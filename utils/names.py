"""How the names of images are written into results."""

import hmac
from collections.abc import Callable
from pathlib import Path

from utils.cli import UserError

KEY_BYTES = 16  # at least


def spreadsheet_safe(name: str) -> str:
    """`name` as a path that no spreadsheet takes for a formula: one that begins like one gets `./` before it."""
    return f"./{name}" if name.startswith(("=", "+", "-", "@")) else name


def name_writer(key_file: str | None) -> Callable[[str], str]:
    """What writes names as HMAC-SHA256 under the content of `key_file`, 32 hex digits; without one, as they are.

    With the same key an image has the same hash in every run. Raises `UserError` for a file that is no key.
    """
    if key_file is None:
        return spreadsheet_safe
    try:
        key = Path(key_file).read_bytes()
    except OSError as error:
        raise UserError(f"{key_file} cannot be read ({error.strerror}); make a key with: head -c 32 /dev/urandom > "
                        f"{key_file}") from None
    if len(key) < KEY_BYTES:
        raise UserError(f"{key_file} has {len(key)} bytes; a key has {KEY_BYTES} or more")
    return lambda name: hmac.digest(key, name.encode(errors="surrogateescape"), "sha256").hex()[:32]
