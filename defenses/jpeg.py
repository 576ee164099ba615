"""JPEG compression of translated images, one of the defenses that Shafran et al. call ineffective (ICCV 2021)."""

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from defenses.base import Defense
from utils.cli import UserError

if TYPE_CHECKING:
    from defenses import DefenseSpec


class Jpeg(Defense):
    """Compress a translated image by JPEG with the quality QUALITY (1 to 95, as in Pillow)."""

    kinds = frozenset({"image"})

    def __init__(self, spec: "DefenseSpec"):
        super().__init__(spec)
        if spec.strength not in range(1, 96):
            raise UserError(f"--jpeg {spec.strength:g}: the quality must be a whole number from 1 to 95")

    def apply_to_image(self, image: torch.Tensor, key: str) -> torch.Tensor:
        pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "JPEG", quality=int(self.spec.strength))
            decoded = np.asarray(Image.open(file))
        return torch.from_numpy(decoded.transpose(2, 0, 1).copy()).to(image) / 255
