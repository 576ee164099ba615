"""Would compressing stored posteriors pay? Deflate on each image's float16 posterior, plain and with bytes sorted.

    python -m benchmarks.compressed examples            # or any tree of posteriors

Sorted: all high bytes first, then all low ones, which is what chunked array formats do before they compress.
"""

import argparse
import time
import zlib
from pathlib import Path

from utils.cli import run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="benchmarks.compressed", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("tree", nargs="?", default="examples", help="posteriors on disk (default: examples)")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np

    from datasets.posteriors import list_tree

    arrays = [np.load(item.posterior).astype(np.float16) for item in list_tree(Path(args.tree))]
    size = sum(array.nbytes for array in arrays)
    for layout, order in (("plain", np.ravel), ("sorted", lambda a: a.reshape(-1).view(np.uint8).reshape(-1, 2).T)):
        texts = [order(array).tobytes() for array in arrays]
        for level in (1, 6):
            start = time.perf_counter()
            packed = [zlib.compress(text, level) for text in texts]
            middle = time.perf_counter()
            assert [zlib.decompress(text) for text in packed] == texts
            end = time.perf_counter()
            print(f"{layout}, level {level}: {size / sum(map(len, packed)):.2f} times smaller, written at "
                  f"{size / (middle - start) / 1e6:.0f} MB/s, read at {size / (end - middle) / 1e6:.0f} MB/s a core")


if __name__ == "__main__":
    run(main, parser())
