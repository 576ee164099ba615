"""The colours of the classes of *streets* in the figures of README and docs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Groups of classes, in colours that colour-blind readers can tell apart (Okabe and Ito, with grey).
GROUPS = {
    "road": ("#4a4a4a", ("road",)),
    "sidewalk": ("#cc79a7", ("sidewalk",)),
    "building": ("#c4c4c4", ("building", "wall", "fence")),
    "sign, pole": ("#f0e442", ("pole", "traffic light", "traffic sign")),
    "plants": ("#009e73", ("vegetation", "terrain")),
    "sky": ("#a6dcf7", ("sky",)),
    "person": ("#d55e00", ("person", "rider")),
    "vehicle": ("#0072b2", ("car", "truck", "bus", "train", "motorcycle", "bicycle")),
    "void": ("#ffffff", ()),
}


def class_colours() -> "np.ndarray":
    """The colour of each train id, float (256, 3) in 0..1; void is white."""
    import numpy as np
    from matplotlib.colors import to_rgb

    from datasets import streets
    from utils import VOID

    colours = np.ones((VOID + 1, 3))
    for colour, classes in GROUPS.values():
        colours[[streets.ID[name] for name in classes]] = to_rgb(colour)
    return colours
