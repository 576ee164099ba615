"""The training steps of two other projects, written plainly: what one iteration of each of their loops computes.

- semseg (Zhao et al.): `tool/train.py` of github.com/hszhao/semseg, commit 4f274c3, on one device.
- seg-mia (Chobola, Usynin, Kaissis, AISec 2023): `mia-cityscapes/seg_train.py` of github.com/ctom2/seg-mia, commit
  a21bc53.

Both compute in float32 and in the default memory layout. Their loading of images and their log files are left out.
"""

import numpy as np
import torch
import torch.nn.functional as F

from utils import VOID


def semseg_optimizer(model, lr=0.01):
    """SGD; the heads have 10 times the learning rate of the backbone."""
    groups = [{"params": model.backbone.parameters(), "lr": lr},
              *({"params": part.parameters(), "lr": 10 * lr} for part in (model.head, model.auxiliary))]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=1e-4)


def semseg_step(model, optimizer, images, labels, totals, iteration=1, iterations=1000, lr=0.01):
    """Iteration number `iteration` of `iterations` (the first is 1); returns the loss before the step.

    Images float32 (N, 3, H, W), labels int64 (N, H, W). `totals`, int64 (3, C), gets the areas of `class_areas` added.
    """
    logits, auxiliary = model(images)
    predicted = logits.max(dim=1)[1]
    main_loss = F.cross_entropy(logits, labels, ignore_index=VOID)
    auxiliary_loss = F.cross_entropy(auxiliary, labels, ignore_index=VOID)
    loss = main_loss + 0.4 * auxiliary_loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    totals += class_areas(predicted.numpy(), labels.numpy(), totals.shape[1])
    rate = lr * (1 - iteration / iterations) ** 0.9
    for group, factor in zip(optimizer.param_groups, (1, 10, 10), strict=True):
        group["lr"] = factor * rate
    return loss.item()


def class_areas(predicted, label, classes):
    """Numbers of positions of each class (3, C): where both agree, in the union of both, in the label.

    Predicted classes and labels are int64 (N, H, W). Void is left out.
    """
    edges = np.arange(classes + 1)
    predicted = np.where(label == VOID, VOID, predicted)
    agreed, found, true = (np.histogram(a, edges)[0] for a in (predicted[predicted == label], predicted, label))
    return np.stack([agreed, found + true - agreed, true])


def seg_mia_optimizer(model):
    """NAdam, with the learning rate of their experiments on Cityscapes."""
    return torch.optim.NAdam(model.parameters(), lr=1e-4)


def seg_mia_step(model, optimizer, images, labels):
    """One iteration for a model without an auxiliary head; returns the loss before the step.

    Images float32 (N, 3, H, W), labels int64 (N, H, W) without void.
    """
    optimizer.zero_grad()
    loss = dice_loss(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def dice_loss(logits, labels):
    """Dice loss of a batch, the mean over all classes; a class that is in no label counts as 0.

    Logits float32 (N, C, H, W), labels int64 (N, H, W) without void. They take it from segmentation-models-pytorch
    (`DiceLoss("multiclass")`).
    """
    posterior = logits.log_softmax(dim=1).exp()
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(posterior.dtype)
    overlap = (posterior * truth).sum(dim=(0, 2, 3))
    size = (posterior + truth).sum(dim=(0, 2, 3))
    loss = 1 - 2 * overlap / size.clamp_min(1e-7)
    return (loss * (truth.sum(dim=(0, 2, 3)) > 0)).mean()
