"""What a run of an attack reads and writes beside its attack and its samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attacks.sample import Attack
from evaluation import exposure
from predictors.base import Record
from utils.device import Compute
from utils.files import commit, fingerprint


@dataclass(frozen=True)
class AttackRun:
    """How a run of an attack is named and stored.

    `name`: name of the attack in the report; `arguments`: the arguments of the call, which are written to args.json;
    `files`: files whose contents, with `arguments`, identify the call; `victim`: place of a target model that is
    queried; `control`: predictor of a model that saw neither side; `keep`: folder for the posteriors of the target;
    `keep_references`: folder for those of the references; `pseudo_labels`: whether the argmax of each output stands for
    its ground truth; `defend_references`: whether the defense also changes the outputs of the references; `allow`: what
    is not refused, as `evaluation.roles.Roles` has it; `out`: output folder (None: the next free runs/attack-N);
    `hash_names`: key file for names; `cam`: folder for activation maps; `cam_images`: number of members and of
    non-members that are drawn; `exposure`: whether regions of the images are measured; `exposure_maps`: folder for
    evidence maps of the most exposed images; `features`: feature extractor of the predictability error;
    `blind`: whether the control without a model is computed; `permuted`: whether membership is dealt to the groups at
    random, a control that must find nothing; `save_every`: seconds between saves; `started`: start of
    the call by `time.monotonic`.
    """

    name: str
    arguments: dict
    files: Sequence[Path] = ()
    victim: str | None = None
    control: str | None = None
    keep: str | None = None
    keep_references: str | None = None
    pseudo_labels: bool = False
    defend_references: bool = False
    allow: Sequence[str] = ()
    out: str | None = None
    seed: int = 0
    hash_names: str | None = None
    cam: str | None = None
    cam_images: int = 4
    exposure: bool = False
    exposure_maps: str | None = None
    features: str = "efficientnet_lite0"
    blind: bool = True
    permuted: bool = False
    save_every: float = 10.0
    started: float | None = None

    def stamp(self, compute: Compute, queries: str | None, records: Sequence[Record], code: Sequence[Path] = ()) -> str:
        """A hash of the call. A later call with the same stamp resumes it.

        `compute`: of the attack; `queries`: precision of the queries; `code`: source files that it depends on.
        """
        free = ("out", "gpu", "save_every", "query_budget")
        same = {key: value for key, value in self.arguments.items() if key not in free}
        return fingerprint([*self.files, *code], same, commit(), torch.__version__,
                           compute.device.type, compute.precision, queries,
                           [(r.name, r.member, r.group, r.dataset) for r in records])

    def needs(self, attack: Attack) -> frozenset[str]:
        """What the samples of the target model must have, in the words of `Attack.needs`."""
        return attack.needs | (exposure.NEEDS if self.exposure else frozenset())
