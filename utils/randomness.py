"""Derive many independent random streams from one seed."""

import hashlib

import numpy as np


def stream(seed: int, *keys: object) -> np.random.Generator:
    """Return the random generator of (seed, keys), e.g. `stream(0, "patches", "frankfurt_000000_000294")`.

    The keys are the purpose and, for example, the name of an image. Therefore the random numbers of an image do not
    depend on the order of the images, the batch, the number of workers or the rank of the process.
    """
    digest = hashlib.sha256(repr((seed, *map(str, keys))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))
