"""Simple code for each stage: one image or patch at a time, in the default memory layout, with PIL and scikit-learn."""

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from utils import VOID


def loss_map(posterior, label, floor=1e-30):
    """Structured loss map, one class at a time: posterior (C, H, W) and label (H, W) -> (1, H, W)."""
    out = torch.zeros(label.shape)
    for c in range(posterior.shape[0]):
        one_hot = (label == c).float()
        out += -one_hot * torch.log(torch.clamp(posterior[c], min=floor))
    return out[None]


def concatenation(posterior, label):
    """Posterior and one-hot label, one class at a time: (C, H, W) and (H, W) -> (2C, H, W)."""
    return torch.cat([posterior, torch.stack([(label == c).float() for c in range(posterior.shape[0])])])


@torch.no_grad()
def attack(samples, model, kind, size, count):
    """Mean member probability of each image, one patch at a time; `samples` holds pairs (sample, corners)."""
    represent = {"loss": loss_map, "concate": concatenation}[kind]
    scores = []
    for sample, corners in samples:
        maps = represent(sample.output, sample.truth)
        total = 0.0
        for y, x in corners[:count]:
            logits, _ = model(maps[None, :, y : y + size, x : x + size].contiguous())
            total += F.softmax(logits, dim=1)[0, 1].item()
        scores.append(total / count)
    return scores


@torch.no_grad()
def query(model, image, stride):
    """Posterior (C, h, w) of an image uint8 (H, W, 3), at every stride-th pixel."""
    batch = torch.from_numpy(image).permute(2, 0, 1).float()[None].contiguous() / 255
    return F.softmax(model(batch), dim=1)[0, :, ::stride, ::stride]


def predictability_error(maps, image, folds, ridge, scaled, seed):
    """The predictability error of an image float (3, H, W) by scikit-learn, on all channels of its maps (C, h, w).

    `folds` 1: least squares on 70 % of the 56 x 56 positions; else ridge regression, fitted for each of the folds.
    """
    from scipy.ndimage import zoom
    from sklearn.linear_model import LinearRegression, Ridge

    side, columns, errors = 56, [], []
    for one in maps:
        factors = (1, side / one.shape[1], side / one.shape[2])
        large = zoom(one.double().numpy(), factors, order=1, mode="mirror", grid_mode=True).reshape(len(one), -1).T
        columns.append(large / np.sqrt((large**2).sum(1).mean()) if scaled else large)
    inputs = np.concatenate(columns, axis=1)
    small = F.interpolate(image[None], size=(side, side), mode="bilinear", antialias=True)[0]
    targets = small.reshape(3, -1).T.double().numpy()
    order = np.random.default_rng(seed).permutation(side * side)
    parts = [order[round(0.7 * len(order)) :]] if folds == 1 else np.array_split(order, folds)
    for held in parts:
        fitted = np.setdiff1d(order, held)
        spread = ((inputs[fitted] - inputs[fitted].mean(0)) ** 2).sum()
        model = LinearRegression() if folds == 1 else Ridge(ridge * spread)
        errors.append(np.abs(model.fit(inputs[fitted], targets[fitted]).predict(inputs[held]) - targets[held]))
    return np.concatenate(errors).mean()


def augmented(image_path, label_path, crop, fill, scale, blur=0.5):
    """Load an image and its label with PIL, then scale, blur, flip and crop them: (3, H, W) float32, (H, W) int64."""
    image, label = Image.open(image_path).convert("RGB"), Image.open(label_path)
    factor = math.exp(random.uniform(math.log(scale[0]), math.log(scale[1])))
    size = round(image.width * factor), round(image.height * factor)
    image, label = image.resize(size, Image.BILINEAR), label.resize(size, Image.NEAREST)
    if random.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(1.1))
    if random.random() < 0.5:
        image, label = image.transpose(Image.FLIP_LEFT_RIGHT), label.transpose(Image.FLIP_LEFT_RIGHT)
    out_image = Image.new("RGB", (crop[1], crop[0]), tuple(round(f) for f in fill))
    out_label = Image.new("L", (crop[1], crop[0]), VOID)
    offset = tuple(random.randint(min(0, c - s), max(0, c - s)) for c, s in zip((crop[1], crop[0]), size, strict=True))
    out_image.paste(image, offset)
    out_label.paste(label, offset)
    pixels = torch.from_numpy(np.array(out_image)).permute(2, 0, 1).float() / 255
    return pixels, torch.from_numpy(np.array(out_label)).long()


def attacker_step(model, optimizer, patches):
    """One training step on patches (posterior, label, member), whose loss maps are computed one by one."""
    maps = torch.stack([loss_map(posterior, label) for posterior, label, _ in patches])
    logits, _ = model(maps)
    return _step(optimizer, F.cross_entropy(logits, torch.tensor([member for _, _, member in patches])))


def private_step(model, optimizer, images, labels, bound, aux_weight=0.4):
    """One step of DPSGD without noise: one image at a time, the gradient of each tensor clipped to norm `bound`."""
    parameters = list(model.parameters())
    summed = [torch.zeros_like(p) for p in parameters]
    for i in range(len(images)):
        loss = segmentation_loss(model, images[i : i + 1], labels[i : i + 1], aux_weight)
        for total, gradient in zip(summed, torch.autograd.grad(loss, parameters), strict=True):
            total += gradient * min(1.0, bound / (gradient.norm().item() + 1e-6))
    for p, total in zip(parameters, summed, strict=True):
        p.grad = total / len(images)
    optimizer.step()


def train_step(model, optimizer, images, labels, aux_weight=0.4):
    """One training step of a segmentation model; returns the loss before the step."""
    return _step(optimizer, segmentation_loss(model, images, labels, aux_weight))


def segmentation_loss(model, images, labels, aux_weight):
    """Cross-entropy of both heads over the labelled positions."""
    main, auxiliary = model(images)
    return F.cross_entropy(main, labels, ignore_index=VOID) + aux_weight * F.cross_entropy(auxiliary, labels,
                                                                                          ignore_index=VOID)


def _step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
