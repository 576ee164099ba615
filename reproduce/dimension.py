"""How much the reconstruction error finds when the same model answers with less: fewer positions, classes or channels.

    python -m reproduce.dimension TREE --into JSON

TREE: outputs that `attack.py --keep` stored, posteriors or translated images. Prints the AUC for each size of the
output and its paired difference to the full output, and writes them with the scores of every image. Shafran et al.
claim that models with large outputs leak most.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import new_parser, run

if TYPE_CHECKING:
    import torch

    from attacks.sample import Sample
    from predictors.samples import Source

FACTORS = (2, 4, 8, 16, 32)  # by which rows and columns are reduced
CLASSES = (8, 4, 2)  # numbers of classes that remain


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "reproduce.dimension")
    flags.add_argument("tree", metavar="TREE", help="folder that `attack.py --keep` wrote, or of `--triples`")
    flags.add_argument("--into", metavar="JSON", required=True, help="file for the results")
    return flags


def main(args: argparse.Namespace) -> None:
    from utils.files import commit, write_json

    sizes = measure(open_tree(Path(args.tree)))
    for name, found in sizes.items():
        print("{:18} {values:7} values: AUC {auc:.3f}, minus full {minus_full:+.3f} {minus_full_interval}".format(
            name, **found))
    write_json(args.into, {"commit": commit(), "sizes": sizes})


def open_tree(tree: Path) -> "Source":
    """The source of a tree of translated images or of posteriors."""
    from predictors.samples import Source, tree_source
    from predictors.triples import TriplePredictor, list_triples

    if not (tree / "train" / "output").is_dir():
        return tree_source(tree)
    records, outputs = list_triples(tree)
    return Source(records, TriplePredictor(tree, outputs))


def measure(source: "Source") -> dict[str, dict]:
    """AUC of the reconstruction error for each size of the output: name -> metrics and scores.

    Images whose labels are void at all positions of the smallest output are left out of all sizes.
    """
    import numpy as np

    from attacks.membership_error import ReconstructionError
    from attacks.sample import AttackSettings
    from attacks.thresholds import mean_known
    from evaluation.intervals import intervals, paired_difference
    from evaluation.metrics import compute_metrics
    from reproduce.cells import pack

    attack, rows, sides, values = ReconstructionError(AttackSettings()), [], [], {}
    for sample in source.samples(attack.needs):
        smaller = dict(reductions(sample))
        if all(one.known.any() for one in smaller.values()):
            rows.append({name: mean_known(attack.evidence(one), one.known) for name, one in smaller.items()})
            sides.append((sample.member, sample.group))
            values |= {name: one.output.numel() for name, one in smaller.items()}
    member, group = np.array([side for side, _ in sides]), [name for _, name in sides]
    columns = {name: np.array([row[name] for row in rows]) for name in values}
    found = {}
    for name, score in columns.items():
        paired = paired_difference([score], [columns["full"]], member, group)
        found[name] = {"values": values[name], "auc": compute_metrics(score, member)["auc"],
                       "auc_interval": intervals(score, member, group)["auc"], "minus_full": paired["difference"],
                       "minus_full_interval": paired["interval"], "scores": pack(score)}
    return found


def reductions(sample: "Sample") -> "Iterator[tuple[str, Sample]]":
    """Yield the sample with its full output, and with smaller ones, each with its name.

    "1/k": every k-th row and column. "averages of k x k" and "grey", of images: means of pixels, or of channels. "K
    classes", of posteriors: the classes i with equal floor(i K / C) become one.
    """
    import torch.nn.functional as F

    def change(function: "Callable[[torch.Tensor], torch.Tensor]") -> "Sample":
        return replace(sample, output=function(sample.output), truth=function(sample.truth))

    factors = [factor for factor in FACTORS if factor <= min(sample.output.shape[-2:])]
    yield "full", sample
    yield from ((f"1/{k}", change(lambda values, k=k: values[..., ::k, ::k])) for k in factors)
    if sample.truth.ndim == sample.output.ndim:
        yield from ((f"averages of {k} x {k}", change(lambda image, k=k: F.avg_pool2d(image, k))) for k in factors)
        yield "grey", change(lambda image: image.mean(0, keepdim=True))
        return
    for count in CLASSES:
        if count < sample.output.shape[0]:
            yield f"{count} classes", merge_classes(sample, count)


def merge_classes(sample: "Sample", count: int) -> "Sample":
    """The sample of a model that knows `count` classes, in each of which neighbouring classes are merged."""
    import torch

    from utils import VOID

    classes = sample.output.shape[0]
    merged = torch.arange(VOID + 1) * count // classes
    merged[VOID] = VOID
    output = sample.output.new_zeros(count, *sample.output.shape[1:]).index_add_(0, merged[:classes], sample.output)
    return replace(sample, output=output, truth=merged[sample.truth.long()].to(sample.truth.dtype))


if __name__ == "__main__":
    run(main, parser())
