"""The training of the models: one loop for victims and shadows, and one for attackers."""

import argparse

from attacks import REPRESENTATIONS
from training.options import NOISE_VARIANCE, STRIDE, AttackerTraining, SegmenterTraining
from utils.cli import flag, number, positive, thousands

PLAN_FLAGS = ("--images", "--devices", "--tflops", "--gb-per-s", "--utilisation")  # without --plan they have no effect


def add_plan_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of `--plan`. Returns their group."""
    plan = parser.add_argument_group("plan")
    plan.add_argument("--plan", action="store_true", help="print the predicted cost of the training and exit; "
                      "needs no data")
    plan.add_argument("--images", "--pictures", type=number(1, 10**9, int), metavar="N",
                      help="number of training images (default: that of the split file)")
    plan.add_argument("--devices", type=positive, default=1, help="number of devices that share a batch "
                      "(default: 1)")
    plan.add_argument("--tflops", type=number(0.001), default=989.0, help="peak rate of a device in TFLOP/s (default: "
                      "989, an H100 in bf16)")
    plan.add_argument("--gb-per-s", type=number(0.001), default=3350.0, help="memory bandwidth of a device in GB/s "
                      "(default: 3350)")
    plan.add_argument("--utilisation", type=number(0.001, 1), default=0.4, help="share of these two rates that is "
                      "reached (default: 0.4)")
    return plan


def add_workers_flag(parser: argparse._ActionsContainer) -> None:
    """Add the flag --workers N."""
    parser.add_argument("--workers", type=number(0, 1024, int), metavar="N", help="number of processes that load "
                        "images (default: 1, or that of the run that is resumed); results do not depend on it")


def add_continue_flag(parser: argparse._ActionsContainer) -> None:
    """Add the flag --continue DIR."""
    parser.add_argument("--continue", dest="continue_", metavar="DIR",
                        help="resume the run in DIR, with the arguments that it was started with")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training of V and S. The defaults suit images of 128 x 256 pixels on a CPU."""
    of = SegmenterTraining
    train = parser.add_argument_group("training")
    train.add_argument("--epochs", type=positive, default=of.epochs, help=f"number of epochs (default: {of.epochs})")
    train.add_argument("--batch", type=positive, default=of.batch, help=f"images per step (default: {of.batch})")
    train.add_argument("--lr", type=number(1e-12), default=of.lr,
                       help=f"learning rate of the backbone (default: {of.lr})")
    train.add_argument("--head-factor", type=number(0), default=of.head_factor, help="learning-rate multiplier of the "
                       "heads; 10 for PSPNet from ImageNet weights (default: 1)")
    train.add_argument("--weight-decay", type=number(0), default=of.weight_decay, help="weight decay (default: 1e-4)")
    train.add_argument("--aux-weight", type=number(0), default=of.aux_weight, help="weight of the auxiliary loss; with "
                       f"0 there is no auxiliary head (default: {of.aux_weight})")
    train.add_argument("--label-smoothing", type=number(0, 1), default=of.label_smoothing, metavar="E", help="share of "
                       "the label that is spread evenly over all classes (default: 0)")
    train.add_argument("--crop", type=thousands, nargs=2, metavar=("H", "W"), default=of.crop,
                       help="size of the crops of training images, in pixels (default: 128 256)")
    train.add_argument("--scale", type=number(0.01, 100), nargs=2, metavar=("LOW", "HIGH"), default=of.scale,
                       help="range of the random scaling; the paper has 0.5 2 (default: 0.85 1.4)")
    train.add_argument("--rotate", type=number(0, 180), default=of.rotate,
                       help="largest angle of the random rotation, in degrees; the paper has 10 (default: 0)")
    train.add_argument("--blur", type=number(0, 1), default=of.blur, help="probability of a 5 x 5 Gaussian blur; lower "
                       "it for small images (default: 0.5, as in the paper)")
    train.add_argument("--freeze-norms", action="store_true", help="for tiny batches: freeze BatchNorm that has "
                       "ImageNet weights, and use GroupNorm without scales in parts that are trained from scratch")
    add_workers_flag(train)
    add_continue_flag(train)
    defense = parser.add_argument_group("DPSGD")
    flag(defense, "dpsgd", action="store_true", help="clip the gradient of each image, one tensor after another, add "
         "noise to the sum of the gradients, and draw the images of a step by Poisson sampling; implies --freeze-norms")
    flag(defense, "noise-variance", metavar="V", type=float, help="square of the noise multiplier; with 0 gradients "
         f"are clipped and get no noise (default: {NOISE_VARIANCE:g})")
    add_plan_flags(parser)


def add_attacker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the training of A_P. The defaults suit images of 128 x 256 pixels on a CPU."""
    of = AttackerTraining
    flag(parser, "input", choices=REPRESENTATIONS, default=of.input, help=f"{REPRESENTATIONS.help()} (default: loss)")
    parser.add_argument("--patch-size", type=thousands, default=of.patch_size,
                        help="side of a patch in positions (default: 24; the paper has 90)")
    parser.add_argument("--stride", type=positive, help="with --shadow: pixels per position of the posteriors "
                        f"(default: {STRIDE}; the paper has 8)")
    parser.add_argument("--void", choices=("zero", "mask"), default=of.void,
                        help="zero: void positions get 0; mask: an extra channel also marks them (default: zero)")
    parser.add_argument("-a", "-arch", "--arch", choices=("resnet18", "resnet50", "pixelwise"), default=of.arch,
                        help="architecture (default: resnet18; the paper has resnet50); pixelwise is the learned 1x1 "
                        "baseline of Salem et al., which needs -input concate, log-concate or calibrated")
    parser.add_argument("--width", type=number(0.001, 16), default=of.width,
                        help="multiplier of the numbers of channels (default: 0.25; the paper has 1)")
    parser.add_argument("--dropout", type=number(0, 0.99), default=of.dropout,
                        help="dropout ratio before the last layer (default: 0)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, default=of.epochs, help=f"number of epochs (default: {of.epochs})")
    length.add_argument("--steps", type=positive, metavar="N", help="number of steps, in the place of --epochs; the "
                        "training ends after exactly N, perhaps within an epoch")
    parser.add_argument("--patches-per-epoch", type=thousands, default=of.patches_per_epoch, metavar="N",
                        help=f"patches of each image per epoch (default: {of.patches_per_epoch})")
    parser.add_argument("--mixed-sizes", type=number(0, 1), default=of.mixed_sizes, metavar="SHARE",
                        help="share of the steps that read fewer and larger crops, up to the full map (default: 0)")
    parser.add_argument("--augment", choices=("mirror", "strong"), default=of.augment,
                        help="mirror: half of the patches are mirrored; strong: patches are also zoomed, get noise on "
                        "the log-posteriors, and lose the labels of a rectangle (default: mirror)")
    parser.add_argument("--batch", type=positive, default=of.batch, help=f"patches per step (default: {of.batch})")
    parser.add_argument("--lr", type=number(1e-12), default=of.lr, help="first learning rate of AdamW; it falls by a "
                        "cosine schedule (default: 1e-3)")
    parser.add_argument("--weight-decay", type=number(0), default=of.weight_decay, help="weight decay (default: 1e-2)")
    add_continue_flag(parser)
    plan = add_plan_flags(parser)
    plan.add_argument("--classes", type=number(1, 254, int), default=19, metavar="C",
                      help="number of classes of the data (default: 19)")
