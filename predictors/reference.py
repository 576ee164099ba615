"""Reference models: models like the target model whose training images are known, for example shadows.

A folder that train_shadow.py wrote holds the model (last.pth.tar), its training images (in.txt) and other images
(out.txt).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.pairs import Pair, read_split
from datasets.provenance import IN, OUT, Images, read_provenance, read_training_images
from models import read_segmenter
from predictors import file_of, open_predictor
from predictors.base import Predictor, PredictorOptions, Record, identify
from predictors.cache import cache_outputs
from predictors.classes import ClassView
from utils.checkpoints import require
from utils.cli import UserError


@dataclass(frozen=True)
class ShadowRun:
    """A finished run of train_shadow.py: its data set, D_in^S and D_out^S."""

    folder: Path
    dataset: str
    inside: list[Pair]
    outside: list[Pair]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pth.tar"

    def records(self) -> list[Record]:
        """The records of D^S, those of D_in^S first."""
        return [Record.of_pair(pair, self.dataset, member) for pairs, member in
                ((self.inside, True), (self.outside, False)) for pair in pairs]

    def images(self) -> dict[str, Images]:
        """The images of D_in^S and D_out^S: those of provenance.json or, without it, those that are listed now."""
        return read_provenance(self.folder) or {
            role: Images(identify([record for record in self.records() if record.member == (role == IN)]))
            for role in (IN, OUT)}

    def weights(self) -> str:
        """A hash of the weights of the model."""
        digest = hashlib.sha256()
        for name, value in read_segmenter(self.checkpoint)["state_dict"].items():
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def cache(self, options: PredictorOptions) -> Path:
        """Return the tree `posteriors-sN` (stride N): the shadow's posteriors on D^S. Missing ones are computed."""
        spec = options.defense.spec
        under = f"-{spec.describe()}-{spec.seed}".replace(" ", "-") if spec.stage == "query" else ""
        size = "" if isinstance(options.windows, bool) else "-{}-{}".format(*options.windows)
        windows = f"-windows{size}" if options.windows else ""
        tree = self.folder / f"posteriors-s{options.stride}{windows}{under}"
        predictor = open_predictor(f"checkpoint:{self.checkpoint}", options)
        cache_outputs(tree, predictor, self.records(), [self.checkpoint])
        return tree


@dataclass(frozen=True)
class Reference:
    """A reference model, the images that it was trained on, and its view on shared classes (None: as the target).

    `own`: names of the records whose target model it is itself, so that it cannot serve for them.
    """

    predictor: Predictor
    trained_on: Images = field(default_factory=lambda: Images([]))
    view: ClassView | None = None
    own: frozenset[str] = frozenset()

    def saw(self, record: Record) -> bool:
        """Whether the model was trained on this image, whatever the name of its file, or is its target model."""
        return record.name in self.own or self.trained_on.find(record.identity) is not None


def read_shadow(folder: str | Path) -> ShadowRun:
    """Read the run of a shadow. Raises `UserError` if it is not finished, or is not a run of train_shadow.py."""
    folder = Path(folder)
    check_shadow(folder)
    checkpoint = read_segmenter(folder / "last.pth.tar")
    root = require(require(checkpoint, "args", dict, folder), "root", str, folder)
    inside, outside = (read_split(folder / f"{name}.txt", root) for name in ("in", "out"))
    return ShadowRun(folder, checkpoint.get("dataset"), inside, outside)


def check_shadow(folder: Path) -> None:
    """Raise `UserError` if a folder is not a finished run of train_shadow.py. Its images need not be there."""
    if not (folder / "in.txt").is_file():
        raise UserError(f"{folder} is no run of train_shadow.py: it has no in.txt; give a folder that "
                        "train_shadow.py wrote")
    if not (folder / "results.json").is_file():
        raise UserError(f"the training of {folder} is not finished; resume it with train_shadow.py --continue {folder}")


def open_references(places: Sequence[str], options: PredictorOptions) -> tuple[Reference, ...]:
    """Open reference models: folders that train_shadow.py wrote, or arguments of `open_predictor`.

    The training images of a model of the second kind are known if its provenance.json is beside it. If not, a warning
    says that it is assumed that it was trained on none of the attacked images.
    """
    known = [_trained_on(place) for place in places]
    return tuple(Reference(open_predictor(place, options), images) for place, images in zip(places, known, strict=True))


def _trained_on(place: str) -> Images:
    if Path(place).is_dir():
        check_shadow(Path(place))
        return (read_provenance(Path(place)) or read_shadow(place).images())[IN]
    return read_training_images(file_of(place), f"the reference {place}", "none of the attacked images") or Images([])
