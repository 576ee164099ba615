"""What a training is: the settings of victims and shadows, and those of attackers. Their defaults are those of the
flags."""

from dataclasses import dataclass

from utils.cli import UserError

NOISE_VARIANCE = 1e-3  # of DPSGD, in the paper's range


@dataclass(frozen=True)
class SegmenterTraining:
    """The training of a victim or a shadow; each field has the name of its flag, whose --help explains it."""

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
            raise UserError("-noise-variance goes with -dpsgd")
        if not 0 <= self.variance < float("inf"):
            raise UserError(f"-noise-variance {self.noise_variance}: a variance is 0 or more")

    @property
    def variance(self) -> float:
        """The square of the noise multiplier of DPSGD."""
        return NOISE_VARIANCE if self.noise_variance is None else self.noise_variance

    @property
    def norms_frozen(self) -> bool:
        """Whether BatchNorm is frozen; DPSGD cannot train it."""
        return self.freeze_norms or self.dpsgd

    def spec(self, classes: int) -> dict:
        """The dict that rebuilds the model. With frozen norms, parts that are trained from scratch get GroupNorm.

        A fresh BatchNorm would be frozen at mean 0 and variance 1, which normalises nothing.
        """
        parts = {"head": True, "auxiliary": self.aux_weight > 0, "backbone": not self.pretrained}
        return {"name": self.model, "backbone": self.backbone, "classes": classes, "output_stride": self.output_stride,
                "stages": self.stages, "width": self.width, "dropout": self.dropout, "auxiliary": self.aux_weight > 0,
                "group_norms": [part for part, fresh in parts.items() if fresh and self.norms_frozen]}


@dataclass(frozen=True)
class AttackerTraining:
    """The training of an attacker; each field has the name of its flag, whose --help explains it."""

    input: str = "loss"
    patch_size: int = 24
    stride: int = 4
    void: str = "zero"
    arch: str = "resnet18"
    width: float = 0.25
    dropout: float = 0.0
    epochs: int = 40
    patches_per_epoch: int = 4
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arch == "pixelwise" and self.input != "concate":
            raise UserError("--arch pixelwise reads posterior and label; give it -input concate")

    def spec(self, classes: int) -> dict:
        """The dict that rebuilds the attacker, for posteriors of `classes` classes."""
        from attacks.representation import channels
        from models.attacker import halvings_for

        arguments = {"arch": self.arch, "channels": channels(self.input, classes, self.void), "width": self.width,
                     "dropout": self.dropout}
        if self.arch != "pixelwise":
            arguments["halvings"] = halvings_for(self.patch_size)
        return {"name": "attacker", "classes": classes, "arguments": arguments}
