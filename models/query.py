"""P = V(X): asking a segmentation model about an image, or once about many."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import torch

from datasets.pairs import Pair, load_pair
from datasets.posteriors import write_groups, write_posterior
from utils.cli import UserError
from utils.device import autocast
from utils.distributed import barrier, own_share, run_on_main
from utils.files import atomic_open, fingerprint
from utils.log import progress


class Drawn(Protocol):
    """What a model drops when it is asked: `draw` gives the seed for an image's key; `repr` says all of it."""

    def draw(self, key: str) -> int: ...


@torch.inference_mode()
def query(model: torch.nn.Module, image: np.ndarray, device: torch.device, stride: int = 1,
          precision: str = "auto", seed: int | None = None) -> torch.Tensor:
    """Posterior float32 (C, ceil(H/s), ceil(W/s)) on the CPU of an image uint8 RGB (H, W, 3).

    One forward pass of the whole image; position (i, j) belongs to pixel (i s, j s), as label[::s, ::s] does.
    `seed` fixes what a model drops that drops something when it is asked.
    """
    if seed is not None:
        torch.manual_seed(seed)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)
    batch = (pixels.float() / 255)[None].contiguous(memory_format=torch.channels_last)
    with autocast(device, precision):
        logits = model(batch)
    return logits[0, :, ::stride, ::stride].float().softmax(dim=0).cpu()


def query_tree(tree: Path, model: Callable[[], torch.nn.Module], sides: Mapping[str, Sequence[Pair]],
               dataset: ModuleType, device: torch.device, stride: int, precision: str,
               made_from: Sequence[Path], dropout: Drawn | None = None) -> Path:
    """Keep the posteriors of a model in `tree` (layout of `datasets.posteriors`); images already there stay.

    model: gives the model (the same each time), once it has to be asked. sides: {"train": members, "val":
    non-members}. `made_from` are the files that the posteriors come from, checkpoint and splits: a tree made from
    others, or of other images, at another stride or under other dropout, is made anew. Returns `tree`; `UserError`
    when it holds something else.
    """
    wanted = [(side, pair) for side, pairs in sides.items() for pair in pairs]

    def prepare() -> None:
        asked = [(side, str(pair.root.resolve()), pair.image, pair.label) for side, pair in wanted]
        stamp = fingerprint(list(made_from), precision, stride, dataset.__name__, asked, dropout)
        marker = tree / "made-from"
        full = tree.exists() and any(path.suffix != ".partial" for path in tree.iterdir())
        if full and not marker.is_file():
            raise UserError(f"{tree} holds something else than kept posteriors; name a new folder")
        if marker.is_file() and marker.read_text() != stamp:
            for stale in (tree / side / kind for side in sides for kind in ("label", "pred_sgd")):
                if stale.exists():
                    shutil.rmtree(stale)
        with atomic_open(marker, "w") as file:
            file.write(stamp)
        write_groups(tree, [(f"{side}/{pair.name}", pair.group) for side, pair in wanted])

    run_on_main(prepare)
    for side, pair in progress(own_share(wanted), "asking for posteriors"):
        if not (tree / side / "pred_sgd" / f"{pair.name}.npy").exists():
            image, label = load_pair(pair, dataset)
            seed = dropout and dropout.draw(pair.key)
            posterior = query(model(), image, device, stride, precision, seed)
            write_posterior(tree, side, pair.name, posterior.numpy(), label)
    barrier()
    return tree
