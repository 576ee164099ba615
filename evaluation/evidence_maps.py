"""Draw the most exposed images, with their loss maps and the evidence that an attack finds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from attacks.representation import loss_map
from attacks.sample import Sample
from attacks.thresholds import MapAttack
from predictors.samples import Source
from utils.files import atomic_open

DRAWN = 8  # images


def write_evidence_maps(folder: Path, attack: MapAttack, source: Source, ranking: Sequence[str],
                        write_name: Callable[[str], str]) -> None:
    """Draw the first `DRAWN` images of `ranking`, names of records, into 1.png, 2.png, ... in `folder`.

    The models are queried about these images once more. If image files are missing, only maps are drawn.
    """
    records = {record.name: record for record in source.records}
    shown = [records[name] for name in ranking[:DRAWN]]
    images = {"image"} if all(record.image.is_file() for record in shown) else set()
    samples = replace(source, records=shown).samples(attack.needs | {"truth"} | images)
    for number, sample in enumerate(samples, 1):
        draw(folder / f"{number}.png", write_name(sample.name), sample, attack)


def draw(path: Path, name: str, sample: Sample, attack: MapAttack) -> None:
    """Draw one image, if it is given, its loss map, and its map of evidence, one below the other.

    The colours of each map end at its quantiles of 1 and 99 %. Void is white.
    """
    known = sample.known.numpy()
    maps = {"loss (nats)": loss_map(sample.output, sample.truth, attack.settings.floor)[0],
            "evidence for a member": attack.evidence(sample)}
    height, width = known.shape
    with rc_context({"font.size": 8, "axes.titlesize": 8, "image.cmap": "cividis"}):
        count = len(maps) + (sample.image is not None)
        figure = Figure(figsize=(4.5, (3.5 * height / width + 0.1) * count + 0.4), layout="constrained")
        figure.suptitle(f"{name}, {'member' if sample.member else 'non-member'}", fontsize=9, parse_math=False)
        rows = figure.subplots(count, squeeze=False)[:, 0]
        if sample.image is not None:
            rows[0].imshow(sample.image.permute(1, 2, 0).numpy())
        for axes, (title, values) in zip(rows[-len(maps):], maps.items(), strict=True):
            values = np.where(known, values.double().numpy(), np.nan)
            low, high = np.nanquantile(values, (0.01, 0.99))
            shown = axes.imshow(values, vmin=low, vmax=high, interpolation="nearest")
            figure.colorbar(shown, ax=axes, extend="both", extendfrac=0.04, label=title)
        for axes in rows:
            axes.set(xticks=[], yticks=[])
        with atomic_open(path) as file:
            figure.savefig(file, dpi=200, format="png")
