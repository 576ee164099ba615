"""Attacks that query the target model several times about one image.

`augmented` and `agreement` query it about transformed versions of the image, as Choquette-Choo et al. ("Label-Only
Membership Inference Attacks", ICML 2021, arXiv 2007.14321) and, with 18 queries, the code of RMIA (Zarifzadeh et al.,
ICML 2024). `repeated` queries it about the same image, to average the noise that a defense draws. An output belongs to
the positions of the transformed image, so it is warped back before it is compared with the ground truth.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from attacks.calibrated import CalibratedScore, check_unseen, unseen_outputs
from attacks.sample import AttackSettings, Sample, Scored
from attacks.thresholds import LossThreshold, MapAttack, mean_known
from defenses.argmax import argmax
from utils.cli import UserError


@dataclass(frozen=True)
class View:
    """A transformation: scale an image, move it by whole positions (down, right) of the output, and mirror it.

    Position (i, j) of an output at stride s belongs to pixel (i s, j s). The pixels of a mirrored image are moved by
    less than s, so that its positions are those of the image in reverse order. Pixels that are missing at an edge are
    copies of those at the edge.
    """

    scale: float = 1.0
    shift: tuple[int, int] = (0, 0)
    mirror: bool = False

    def size(self, shape: Sequence[int]) -> list[int]:
        """Height and width of the transformed version of an image of height and width `shape`."""
        return [max(1, round(side * self.scale)) for side in shape]

    def transform(self, image: np.ndarray, stride: int) -> np.ndarray:
        """Image uint8 (H, W, 3) -> transformed image uint8 (H', W', 3), of which (H', W') is `size`."""
        height, width = self.size(image.shape[:2])
        scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        down, right = (stride * positions for positions in self.shift)
        columns = (width - 1) // stride * stride - np.arange(width) if self.mirror else np.arange(width)
        rows, columns = (np.arange(height) - down).clip(0, height - 1), (columns - right).clip(0, width - 1)
        return np.ascontiguousarray(scaled[rows][:, columns])

    def places(self, shape: Sequence[int], stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the positions of an image lie in the output for its transformed version: rows (h,), columns (w,).

        They are float64, in positions of that output. `shape`: height and width of the image.
        """
        rows, columns = (((np.arange(0, side, stride) + 0.5) * new / side - 0.5) / stride + positions
                         for side, new, positions in zip(shape, self.size(shape), self.shift, strict=True))
        return rows, (self.size(shape)[1] - 1) // stride - columns if self.mirror else columns

    def restore(self, output: torch.Tensor, shape: Sequence[int], stride: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Warp an output (C, h', w') for a transformed image to the positions (C, h, w) of the image.

        It is interpolated linearly where positions do not coincide. The second result, bool (h, w), is false at the
        positions that are not in the transformed image. `shape`: height and width of the image.
        """
        places = self.places(shape, stride)
        rows, columns = (torch.from_numpy((at >= -0.5) & (at <= size - 0.5))
                         for at, size in zip(places, output.shape[1:], strict=True))
        for axis, at in enumerate(places, start=1):
            output = interpolate(output, at, axis)
        return output, rows[:, None] & columns


def interpolate(output: torch.Tensor, places: np.ndarray, axis: int) -> torch.Tensor:
    """Values of `output` at real `places` along an axis; exact at whole places. Places outside it are moved to its end.

    The weights of torch.nn.functional.grid_sample are not exact at whole places. A neighbour with a posterior of 1
    would then change one of 1e-20.
    """
    last = output.shape[axis] - 1
    at = torch.from_numpy(places.clip(0, last))
    low = at.long()
    shape = [-1 if number == axis else 1 for number in range(output.ndim)]
    return torch.lerp(output.index_select(axis, low), output.index_select(axis, (low + 1).clamp_max(last)),
                      (at - low).to(output.dtype).view(shape))


VIEWS = tuple(View(scale, shift, mirror) for scale, shift in (
    (1, (0, 0)), (1.25, (0, 0)), (1 / 1.25, (0, 0)), (1.5, (0, 0)), (1 / 1.5, (0, 0)),
    (1, (0, 1)), (1, (0, -1)), (1, (1, 0)), (1, (-1, 0))) for mirror in (False, True))  # in the order of the queries


class QueryAttack(MapAttack):
    """The base class of these attacks. The first query is the plain one. A subclass defines `maps`.

    The evidence of an output is that of the calibrated score, if there are references, or else minus the loss.
    """

    needs = frozenset({"truth", "image", "queries"})
    optional = frozenset({"references"})
    reads = frozenset({"floor", "c", "queries"})

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        self.loss, self.calibrated = LossThreshold(settings), CalibratedScore(settings)

    def check_references(self, names: Sequence[str], seen: np.ndarray) -> None:
        check_unseen(names, seen)

    def evidence(self, sample: Sample) -> torch.Tensor:
        return (self.calibrated if sample.references else self.loss).evidence(sample)

    def maps(self, sample: Sample) -> Iterator[torch.Tensor]:
        """Yield the map (h, w) of evidence by the first query, by the first two, and so on."""
        raise NotImplementedError

    def score(self, samples: Iterable[Sample], predictor: object = None) -> Iterator[Scored]:
        for sample in samples:
            scores = []
            for values in self.maps(sample):
                scores.append(mean_known(values, sample.known))
            yield replace(self.score_map(sample, values), statistics={"queries": scores})


class Augmented(QueryAttack):
    """Mean over the first `queries` of `VIEWS` of the evidence at each position, where a view has the position.

    References are queried about the same views. Raises `UserError` for more queries than there are views.
    """

    def __init__(self, settings: AttackSettings):
        super().__init__(settings)
        if settings.queries > len(VIEWS):
            raise UserError(f"--queries {settings.queries}: there are {len(VIEWS)} transformations of an image; give "
                            f"--queries {len(VIEWS)} or less")

    def read(self, output: torch.Tensor) -> torch.Tensor:
        """What the attack reads of an output (C, h, w), in the same shape."""
        return output

    def maps(self, sample: Sample) -> Iterator[torch.Tensor]:
        total, count = 0.0, 0
        for number, view in enumerate(VIEWS[: self.settings.queries]):
            seen, valid = self.see(sample, view, number)
            total = total + self.evidence(seen).double().masked_fill(~valid, 0)
            count = count + valid
            yield total / count

    def see(self, sample: Sample, view: View, number: int) -> tuple[Sample, torch.Tensor]:
        """The sample with the outputs of a query, at the positions of the image; and which are valid, bool (h, w)."""
        image = sample.image.permute(1, 2, 0).numpy()
        answers = (sample.ask(view.transform(image, sample.stride), number) if number
                   else (sample.output, *sample.references))
        restored = [view.restore(self.read(output), image.shape[:2], sample.stride) for output in answers]
        outputs, valid = [output for output, _ in restored], restored[0][1]
        return replace(sample, output=outputs[0], references=tuple(outputs[1:])), valid


class Agreement(Augmented):
    """Share of the queries and positions in which the predicted class is that of the ground truth (label only).

    It reads predicted classes only. Choquette-Choo et al. compare the predicted labels of augmented images with the
    true label, too, and train an attacker on the comparisons; here each counts equally. Li and Zhang ("Membership
    Leakage in Label-Only Exposures", CCS 2021) search the smallest perturbation that changes the predicted label, which
    takes thousands of queries. With references, their mean share at each position is subtracted.
    """

    reads = frozenset({"queries"})
    label_only = True

    def read(self, output: torch.Tensor) -> torch.Tensor:
        return argmax(output)

    def evidence(self, sample: Sample) -> torch.Tensor:
        hits = correct(sample.output, sample.truth)
        return hits - correct(unseen_outputs(sample), sample.truth).mean(dim=0) if sample.references else hits


def correct(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """1 where the largest of the classes is that of the truth, else 0: (..., C, h, w) and (h, w) -> (..., h, w)."""
    return (output.argmax(dim=-3) == truth).float()


class Repeated(QueryAttack):
    """The evidence of the mean posterior of `queries` equal queries, under a defense that draws noise for each.

    It is the attack that knows of such a defense. References, which have no defense, are queried once.
    """

    needs = QueryAttack.needs | {"noise"}

    def maps(self, sample: Sample) -> Iterator[torch.Tensor]:
        for output in mean_answers(sample, self.settings.queries):
            yield self.evidence(replace(sample, output=output))


def mean_answers(sample: Sample, queries: int) -> Iterator[torch.Tensor]:
    """Yield the output (C, h, w) of one query, the mean of two equal queries, and so on."""
    image, total = sample.image.permute(1, 2, 0).numpy(), sample.output.double()
    for number in range(queries):
        if number:
            total += next(sample.ask(image, number))
        yield (total / (number + 1)).to(sample.output)
