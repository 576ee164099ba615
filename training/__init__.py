"""Training the models: one loop for victims and shadows, one for attackers."""

import argparse

from attacks import REPRESENTATIONS
from training.options import NOISE_VARIANCE, AttackerTraining, SegmenterTraining
from utils.cli import flag, positive


def add_plan_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags of `--plan`; returns their group."""
    plan = parser.add_argument_group("plan")
    plan.add_argument("--plan", action="store_true", help="print what the training will cost, and stop; needs no data")
    plan.add_argument("--images", "--pictures", type=positive, metavar="N",
                      help="number of training images (default: those of the split)")
    plan.add_argument("--devices", type=positive, default=1, help="devices that share a batch (default: 1)")
    plan.add_argument("--tflops", type=float, default=989.0, help="peak of a device (default: 989, an H100 in bf16)")
    plan.add_argument("--gb-per-s", type=float, default=3350.0, help="bandwidth of its memory (default: 3350)")
    plan.add_argument("--utilisation", type=float, default=0.4, help="share of both that is reached (default: 0.4)")
    return plan


def add_continue_flag(parser: argparse._ActionsContainer) -> None:
    """--continue DIR."""
    parser.add_argument("--continue", dest="continue_", metavar="DIR",
                        help="resume the run in DIR, with the arguments that it was started with")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the training of V and S; the defaults suit images of 128 x 256 on a CPU."""
    of = SegmenterTraining
    train = parser.add_argument_group("training")
    train.add_argument("--epochs", type=positive, default=of.epochs, help=f"(default: {of.epochs})")
    train.add_argument("--batch", type=positive, default=of.batch, help=f"images in a step (default: {of.batch})")
    train.add_argument("--lr", type=float, default=of.lr, help=f"learning rate of the backbone (default: {of.lr})")
    train.add_argument("--head-factor", type=float, default=of.head_factor, help="learning-rate multiplier of the "
                       "heads; 10 for PSPNet from ImageNet weights (default: 1)")
    train.add_argument("--weight-decay", type=float, default=of.weight_decay, help="(default: 1e-4)")
    train.add_argument("--aux-weight", type=float, default=of.aux_weight, help="weight of the auxiliary loss; 0: no "
                       f"auxiliary head (default: {of.aux_weight})")
    train.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), default=of.crop,
                       help="of a training image (default: 128 256)")
    train.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), default=of.scale,
                       help="random scaling; the paper's: 0.5 2 (default: 0.85 1.4)")
    train.add_argument("--rotate", type=float, default=of.rotate,
                       help="largest angle in degrees; the paper's: 10 (default: 0)")
    train.add_argument("--blur", type=float, default=of.blur, help="probability of a 5 x 5 Gaussian blur; lower it for "
                       "small images (default: 0.5, as in the paper)")
    train.add_argument("--freeze-norms", action="store_true", help="for tiny batches: BatchNorm with ImageNet weights "
                       "is frozen, and a part trained from scratch gets GroupNorm without scales")
    train.add_argument("--workers", type=int, metavar="N", help="processes that load images (default: 1, or those of "
                       "the run that is resumed); results do not depend on it")
    add_continue_flag(train)
    defense = parser.add_argument_group("DPSGD")
    flag(defense, "dpsgd", action="store_true", help="clip the gradient of each image layer by layer, add noise to "
         "their sum, and draw the images of a step by Poisson sampling; implies --freeze-norms")
    flag(defense, "noise-variance", metavar="V", type=float, help="square of the noise multiplier; 0: clipping alone "
         f"(default: {NOISE_VARIANCE:g})")
    add_plan_flags(parser)


def add_attacker_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the training of A_P; the defaults suit images of 128 x 256 on a CPU."""
    of = AttackerTraining
    flag(parser, "input", choices=REPRESENTATIONS, default=of.input, help=f"{REPRESENTATIONS.help()} (default: loss)")
    parser.add_argument("--patch-size", type=positive, default=of.patch_size,
                        help="side of a patch in positions (default: 24; the paper's 90)")
    parser.add_argument("--stride", type=positive, default=of.stride,
                        help="pixels per position (default: 4; the paper's 8)")
    parser.add_argument("--void", choices=("zero", "mask"), default=of.void,
                        help="void positions hold 0, or an extra channel marks them (default: zero)")
    parser.add_argument("-a", "-arch", "--arch", choices=("resnet18", "resnet50", "pixelwise"), default=of.arch,
                        help="architecture (default: resnet18; the paper's resnet50), or the learned 1x1 baseline of "
                        "Salem et al., which needs -input concate")
    parser.add_argument("--width", type=float, default=of.width,
                        help="multiplier of the channels (default: 0.25; the paper's 1)")
    parser.add_argument("--dropout", type=float, default=of.dropout, help="before the last layer (default: 0)")
    parser.add_argument("--epochs", type=positive, default=of.epochs, help=f"(default: {of.epochs})")
    parser.add_argument("--patches-per-epoch", type=positive, default=of.patches_per_epoch, metavar="N",
                        help=f"of each image (default: {of.patches_per_epoch})")
    parser.add_argument("--batch", type=positive, default=of.batch, help=f"patches in a step (default: {of.batch})")
    parser.add_argument("--lr", type=float, default=of.lr, help="of AdamW, cosine schedule (default: 1e-3)")
    parser.add_argument("--weight-decay", type=float, default=of.weight_decay, help="(default: 1e-2)")
    add_continue_flag(parser)
    plan = add_plan_flags(parser)
    plan.add_argument("--classes", type=positive, default=19, metavar="C", help="of the data (default: 19)")
