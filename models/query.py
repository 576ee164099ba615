"""P = V(X): asking a segmentation model about a picture."""

import numpy as np
import torch

from utils.device import autocast


@torch.inference_mode()
def query(model: torch.nn.Module, image: np.ndarray, device: torch.device, stride: int = 1,
          precision: str = "auto") -> torch.Tensor:
    """Posterior float32 (C, ceil(H/s), ceil(W/s)) on the CPU of a picture uint8 RGB (H, W, 3).

    One forward pass of the whole picture; position (i, j) belongs to pixel (i s, j s), as label[::s, ::s] does.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)
    batch = (pixels.float() / 255)[None].contiguous(memory_format=torch.channels_last)
    with autocast(device, precision):
        logits = model(batch)
    return logits[0, :, ::stride, ::stride].float().softmax(dim=0).cpu()
