"""The settings of a training: of victims and shadows, and of attackers. The defaults are those of the flags."""

from dataclasses import dataclass

from attacks import REPRESENTATIONS
from models import MODELS
from utils.cli import UserError

STRIDE = 4  # default of --stride in train_attacker.py
NOISE_VARIANCE = 1e-3  # default of -noise-variance, in the range of the paper


@dataclass(frozen=True)
class SegmenterTraining:
    """The settings of the training of a victim or a shadow. Each field has the name of a flag that --help explains."""

    dataset: str = "streets"
    model: str = "pspnet"
    backbone: str = "resnet10t"
    output_stride: int = 8
    stages: int = 3
    width: int = 128
    dropout: float = 0.1
    pretrained: bool = False
    epochs: int = 50
    batch: int = 4
    lr: float = 0.01
    head_factor: float = 1.0
    weight_decay: float = 1e-4
    aux_weight: float = 0.4
    label_smoothing: float = 0.0
    crop: tuple[int, int] = (128, 256)
    scale: tuple[float, float] = (0.85, 1.4)
    rotate: float = 0.0
    blur: float = 0.5
    freeze_norms: bool = False
    workers: int | None = None
    dpsgd: bool = False
    noise_variance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.noise_variance is not None and not self.dpsgd:
            raise UserError("-noise-variance needs -dpsgd; give both, or leave it out")
        if not 0 <= self.variance < float("inf"):
            raise UserError(f"-noise-variance {self.noise_variance}: a variance must be 0 or more, and finite")
        if self.scale[0] > self.scale[1]:
            raise UserError(f"--scale {self.scale[0]:g} {self.scale[1]:g}: give the smaller factor first")

    @property
    def variance(self) -> float:
        """The square of the noise multiplier of DPSGD."""
        return NOISE_VARIANCE if self.noise_variance is None else self.noise_variance

    @property
    def norms_frozen(self) -> bool:
        """Whether BatchNorm is frozen. It always is under DPSGD, which cannot train BatchNorm."""
        return self.freeze_norms or self.dpsgd

    def describe(self) -> str:
        """The model, with its backbone if it has one, for messages."""
        return self.model if "backbone" in MODELS[self.model].unused else f"{self.model} ({self.backbone})"

    def spec(self, classes: int) -> dict:
        """The dict from which `models.build_segmenter` builds the model.

        With frozen norms, parts that are trained from scratch get GroupNorm: a new BatchNorm would be frozen at mean 0
        and variance 1, and would normalise nothing.
        """
        unused = MODELS[self.model].unused
        arguments = {name: getattr(self, name) for name in ("backbone", "output_stride", "stages", "width", "dropout")
                     if name not in unused}
        if "aux_weight" not in unused:
            arguments["auxiliary"] = self.aux_weight > 0
        parts = {"head": True, "auxiliary": arguments.get("auxiliary", False), "backbone": not self.pretrained}
        return {"name": self.model, "classes": classes, **arguments,
                "group_norms": [part for part, fresh in parts.items() if fresh and self.norms_frozen]}


@dataclass(frozen=True)
class TranslatorTraining:
    """The settings of the training of a translator. Each field has the name of a flag that --help explains."""

    model: str = "pix2pix"
    width: int = 16
    epochs: int = 200
    batch: int = 1
    vgg: bool = False
    workers: int | None = None
    seed: int = 0

    def spec(self, size: int) -> dict:
        """The dict from which `models.build_translator` builds the model, for images of `size` x `size` pixels."""
        arguments = {"width": self.width, "size": size} | ({"vgg": True} if self.vgg else {})
        return {"name": self.model, "arguments": arguments}


@dataclass(frozen=True)
class AttackerTraining:
    """The settings of the training of an attacker. Each field has the name of a flag that --help explains.

    `stride`: None for `STRIDE` or, with posteriors on disk, for that of these. `steps`: None for `epochs` epochs.
    """

    input: str = "loss"
    patch_size: int = 24
    stride: int | None = None
    void: str = "zero"
    arch: str = "resnet18"
    width: float = 0.25
    dropout: float = 0.0
    epochs: int = 40
    steps: int | None = None
    patches_per_epoch: int = 4
    mixed_sizes: float = 0.0
    augment: str = "mirror"
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arch == "pixelwise" and not REPRESENTATIONS.load(self.input).labelled:
            fit = [name for name in REPRESENTATIONS if REPRESENTATIONS.load(name).labelled]
            raise UserError(f"--arch pixelwise cannot tell which positions of -input {self.input} have a label; give "
                            f"-input {' or '.join(fit)}")

    def schedule(self, patches: int) -> tuple[int, int]:
        """Number of steps of an epoch of `patches` patches, and of the training. The last epoch may be incomplete."""
        per_epoch = max(1, patches // self.batch)
        return per_epoch, self.steps or self.epochs * per_epoch

    def spec(self, classes: int) -> dict:
        """The dict from which the attacker is built, for posteriors of `classes` classes."""
        from attacks.representation import channels
        from models.attacker import halvings_for

        arguments = {"arch": self.arch, "channels": channels(self.input, classes, self.void), "width": self.width,
                     "dropout": self.dropout}
        if self.arch == "pixelwise":
            arguments["labelled"] = list(REPRESENTATIONS.load(self.input).labelled(classes))
        else:
            arguments["halvings"] = halvings_for(self.patch_size)
        return {"name": "attacker", "classes": classes, "arguments": arguments}
