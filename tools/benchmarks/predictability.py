"""Measure the predictability error: seconds per image, beside scikit-learn, and memory on growing numbers of images.

    python -m tools.benchmarks.predictability
    python -m tools.benchmarks.predictability --rounds 5 --counts 1000 10000

Seconds of the first table are processor time of all threads together, which other programs change less than the elapsed
time: run it with OMP_NUM_THREADS=1. The features are computed for eight drawn scenes together. The regression is
measured on one of them, from its feature maps to its error; scikit-learn gets all channels of the same maps, and does
the same work in the same round. Each count of the second table runs in a separate process, on random images of 64 x 64,
with the default extractor or, with --pooled, with mean pooling in its place, which is faster.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import new_parser, positive, run

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from attacks.predictability import Method

SCENES = 8
SIDE = 64  # of the random images, in pixels


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.benchmarks.predictability")
    flags.add_argument("--rounds", type=positive, default=3, help="rounds of the first table (default: 3)")
    flags.add_argument("--counts", nargs="*", type=positive, default=[100, 1000],
                       help="numbers of images of the second table (default: 100 1000)")
    flags.add_argument("--pooled", action="store_true", help="second table: mean pooling in place of the extractor")
    flags.add_argument("--elapsed", action="store_true", help="first table: the elapsed time, on a machine that runs "
                       "nothing else")
    flags.add_argument("--out", default="runs/predictability-cost.json",
                       help="JSON file for the measurements (default: runs/predictability-cost.json)")
    return flags


def main(args: argparse.Namespace) -> None:
    from attacks.predictability import METHODS
    from models import FEATURES
    from tools.benchmarks.limits import in_new_process
    from tools.benchmarks.measure import describe_machine
    from utils.files import write_json

    clock, rows = time.perf_counter if args.elapsed else time.process_time, []
    for features in FEATURES:
        net, weights = load(features)
        for name, method in METHODS.items():
            about = {"features": features, "weights": weights, "method": name}
            rows.append(about | measure(net, method, args.rounds, clock))
    memory = [in_new_process(measure_memory, count, args.pooled) for count in args.counts]
    write_json(args.out, {"machine": describe_machine(), "cost": rows, "memory": memory})
    print("| extractor (weights) | version | features, s | regression, s | scikit-learn, s | ratio, median (range) | "
          "difference |\n|---|---|---|---|---|---|---|")
    for row in rows:
        own, other = row["seconds"], row["seconds_sklearn"]
        ratios = sorted(slow / fast for slow, fast in zip(other, own, strict=True))
        print(f"| {row['features']} ({row['weights']}) | {row['method']} | {median(row['seconds_features']):.3f} | "
              f"{median(own):.3f} | {median(other):.2f} | {median(ratios):.0f} ({ratios[0]:.0f}-{ratios[-1]:.0f}) | "
              f"{row['difference']:.0e} |")
    print("\n| images | ms per image | peak MiB |\n|---|---|---|")
    for row in memory:
        print(f"| {row['images']:,} | {1000 * row['seconds'] / row['images']:.1f} | {row['mib_peak']} |")
    print(f"measurements: {args.out}")


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def load(features: str) -> "tuple[nn.Module, str]":
    """The extractor, and whether its weights are those of ImageNet or, where they cannot be downloaded, random."""
    import torch
    from torchvision.models import wide_resnet50_2

    from models import feature_extractor
    from models.features import ResNetFeatures
    from utils.cli import UserError

    try:
        return feature_extractor(features), "ImageNet"
    except UserError:
        torch.manual_seed(0)
        return ResNetFeatures(wide_resnet50_2()).eval(), "random"


def measure(net: "nn.Module", method: "Method", rounds: int, clock: "Callable[[], float]" = time.process_time) -> dict:
    """Seconds of one image: features, regression, and that of scikit-learn; the relative difference of the errors."""
    import numpy as np
    import torch

    from attacks.predictability import predictability_error, prepare_image
    from datasets import streets
    from tools.benchmarks.simple import predictability_error as simple

    images = [torch.from_numpy(streets.draw(index)[0].transpose(2, 0, 1).copy()) for index in range(SCENES)]
    inputs, truth = torch.stack([prepare_image(image, method) for image in images]), images[0].float() / 255

    def describe() -> list:
        with torch.inference_mode():
            return [maps[0] for maps in net(inputs)]

    maps = describe()
    works = {"seconds_features": describe,
             "seconds": lambda: predictability_error(maps, truth, method, np.random.default_rng(0)),
             "seconds_sklearn": lambda: simple(maps, truth, method.folds, method.ridge, method.scaled, 0)}
    found = {name: [] for name in works}
    own, other = works["seconds"](), works["seconds_sklearn"]()
    for _ in range(rounds):
        for name, work in works.items():
            started = clock()
            work()
            found[name].append((clock() - started) / (SCENES if name == "seconds_features" else 1))
    return found | {"difference": abs(own - other) / other}


def measure_memory(count: int, pooled: bool = False) -> dict:
    """Describe `count` random images on disk: seconds, and the peak memory of this process in MiB."""
    import tempfile

    import numpy as np
    from PIL import Image
    from torch import nn

    from predictors import predictability
    from predictors.base import Record
    from tools.benchmarks.limits import peak_mib
    from utils.device import CPU_FP32

    class Pooled(nn.Module):
        def forward(self, images: "torch.Tensor") -> "list[torch.Tensor]":
            return [nn.functional.adaptive_avg_pool2d(images, side) for side in (56, 28, 14, 7)]

    if pooled:
        predictability.feature_extractor = lambda name: Pooled()
    with tempfile.TemporaryDirectory() as folder:
        rng, records = np.random.default_rng(0), []
        for index in range(count):
            image, label = (Path(folder) / f"{index}-{kind}.png" for kind in ("image", "label"))
            Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(image)
            Image.fromarray(rng.integers(0, 19, (SIDE, SIDE), np.uint8)).save(label)
            records.append(Record(f"{index}", f"{index}", None, image, label))
        started = time.perf_counter()
        predictability.predictability_errors(records, "efficientnet_lite0", "sound", CPU_FP32, Path(folder))
        return {"images": count, "seconds": time.perf_counter() - started, "mib_peak": peak_mib()}


if __name__ == "__main__":
    run(main, parser())
