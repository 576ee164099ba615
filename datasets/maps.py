"""The maps of pix2pix: aerial/NAME.jpg and map/NAME.jpg of equal names, which are both images.

The original has two sides of different latitudes. `splits` deals the images of one side at random, so all parts are of
one area.
"""

from pathlib import Path

from datasets.pairs import Pair, deal, describe_folder
from utils.cli import UserError
from utils.files import files_by_name

PARTS = ("victim_in", "victim_out", "shadow_in", "shadow_out")
CLASSES = ()  # the ground truth of an aerial image is an image


def splits(root: Path, seed: int = 0) -> dict[str, list[Pair]]:
    """Return four random parts of equal size. A pair is an aerial image and, in the place of the label, its map."""
    files = [files_by_name(root / folder) if (root / folder).is_dir() else {} for folder in ("aerial", "map")]
    if not files[0] or files[0].keys() != files[1].keys():
        raise UserError(f"{root} needs the folders aerial/ and map/ with images of equal names "
                        f"({describe_folder(root)}); cut the two halves of the images of pix2pix apart")
    pairs = [Pair(*(str(paths[name].relative_to(root)) for paths in files), name, root) for name in sorted(files[0])]
    part = deal([pair.image for pair in pairs], (1, 1, 1, 1), seed)
    return {name: [pair for pair, p in zip(pairs, part, strict=True) if p == index]
            for index, name in enumerate(PARTS)}
