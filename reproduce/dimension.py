"""How much the reconstruction error finds when the same model answers with less: fewer positions, classes or channels.

    python -m reproduce.dimension TREE --into JSON

TREE: outputs that `attack.py --keep` stored, posteriors or translated images. Prints the AUC for each size of the
output and its paired difference to the full output, and writes them with the scores of every image. Shafran et al.
claim that models with large outputs leak most.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import new_parser, run

if TYPE_CHECKING:
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
        print("{:10} {values:7} values: AUC {auc:.3f}, minus full {minus_full:+.3f} {minus_full_interval}".format(
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

    Posteriors are read at fewer positions, or the classes i with equal floor(i K / C) become one of K classes. Images
    and their ground truth become smaller by averaging, or grey.
    """
    import torch.nn.functional as F

    translated = sample.truth.ndim == sample.output.ndim
    yield "full", sample
    for factor in (factor for factor in FACTORS if factor <= min(sample.output.shape[-2:])):
        pairs = (sample.output, sample.truth)
        one, other = ((F.avg_pool2d(image[None], factor)[0] for image in pairs) if translated else
                      (values[..., ::factor, ::factor] for values in pairs))
        yield f"1/{factor}", replace(sample, output=one, truth=other)
    if translated:
        yield "grey", replace(sample, output=sample.output.mean(0, True), truth=sample.truth.mean(0, True))
    for count in CLASSES if not translated else ():
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
