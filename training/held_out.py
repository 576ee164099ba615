"""The held-out part of D^S: the AUC of an attacker is measured on it, and its tau is chosen on it."""

from collections.abc import Sequence

import numpy as np
import torch

from attacks.learned import LearnedAttack
from attacks.patches import Selection, patch_means, random_corners
from attacks.representation import true_class
from attacks.sample import AttackSettings, Sample
from datasets.pairs import deal
from evaluation.intervals import count_groups, intervals
from evaluation.metrics import compute_metrics
from models import LoadedAttacker
from models.attacker import InputSpec
from predictors.base import Record
from utils.cli import UserError
from utils.device import Compute
from utils.distributed import gather, own_share
from utils.randomness import stream

HELD_OUT = 0.2  # share of D^S
VALIDATION_PATCHES = 10  # patches per image of the held-out part
VALIDATION_BATCH = 64  # patches in memory
TAU_QUANTILES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # of patch confidence on the held-out part


def hold_out(records: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """Split D^S into a training part and a held-out part, with the same share of members in both.

    All images of a group go to the same part. Raises `UserError` if a part lacks members or non-members.
    """
    sides: dict[str, str] = {}
    for record in records:
        side = str(record.member)
        sides[record.group] = side if sides.get(record.group, side) == side else "mixed"
    rest, held = [], []
    for side in sorted(set(sides.values())):
        of_side = [record for record in records if sides[record.group] == side]
        parts = deal([record.group for record in of_side], (1 - HELD_OUT, HELD_OUT), seed)
        for record, part in zip(of_side, parts, strict=True):
            (held if part else rest).append(record)
    for name, chosen in (("training", rest), ("held-out", held)):
        if len({record.member for record in chosen}) < 2:
            raise UserError(f"the {name} part of D^S lacks members or non-members: {len(records)} images are too few")
    return rest, held


def folds(records: Sequence[Record], count: int, seed: int) -> list[int]:
    """Deal D^S into folds, with the same share of members in each. All images of a group go to the same fold."""
    groups = [record.group for record in records]
    sides = {group: {record.member for record in records if record.group == group} for group in set(groups)}
    return deal(groups, (1,) * count, seed, [str(sorted(sides[group])) for group in groups])


def candidate_taus(samples: Sequence[Sample], size: int, seed: int) -> list[float]:
    """Quantiles of the confidence of patches of the held-out part. Raises `UserError` if no patch has a label."""
    confidences = []
    for sample in samples:
        corners = random_corners(tuple(sample.truth.shape), size, 50, stream(seed, "tau", sample.id))
        means = patch_means(true_class(sample.output, sample.truth), sample.known, corners, size)
        confidences.append(means[np.isfinite(means)])
    found = np.concatenate(confidences)
    if not len(found):
        raise UserError("no patch of the held-out part of D^S has a labelled position, so tau cannot be chosen; give "
                        "images with more labelled pixels, or a larger --patch-size")
    return np.quantile(found, TAU_QUANTILES).tolist()


def score_held_out(samples: Sequence[Sample], model: torch.nn.Module, spec: InputSpec, selection: Selection,
                   compute: Compute) -> list[tuple]:
    """(score, member, group) of each sample. Each process scores its share of the samples."""
    attack = LearnedAttack(AttackSettings(selection, attacker=LoadedAttacker(model.eval(), spec, None, ""),
                                          batch=VALIDATION_BATCH, compute=compute))
    block = attack.images_per_batch
    return gather([(item.score, item.member, item.group) for item in attack.score(own_share(samples, block))], block)


def auc_of(scored: list[tuple]) -> float:
    """AUC of scored samples, `score_held_out`."""
    score, member, _ = zip(*scored, strict=True)
    return compute_metrics(score, member)["auc"]


def describe_held_out(scored: list[tuple]) -> dict:
    """AUC on the held-out part with its 95 % interval (None below 10 groups a side), and the numbers of images."""
    score, member, group = map(np.array, zip(*scored, strict=True))
    return {"validation_auc": auc_of(scored), "validation_auc_interval": intervals(score, member, group)["auc"],
            "held_out": len(member), "held_out_members": int(member.sum()),
            "held_out_groups": count_groups(group, member)}
