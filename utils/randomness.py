"""One seed, many independent streams."""

import hashlib

import numpy as np


def stream(seed: int, *keys: object) -> np.random.Generator:
    """Random stream of (seed, keys), e.g. `stream(0, "patches", "frankfurt_000000_000294")`.

    The keys name the purpose and the image, so what an image gets does not depend on the order, the
    batch, the number of workers or the rank that handles it.
    """
    digest = hashlib.sha256(repr((seed, *map(str, keys))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))
