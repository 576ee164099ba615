"""Fitting the models: one loop for victims and shadows, one for attackers."""

import argparse

from utils.cli import UserError, flag, positive

NOISE_VARIANCE = 1e-3  # of DPSGD, in the paper's range


def add_plan_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Flags of `--plan`; the group they are in."""
    plan = parser.add_argument_group("plan")
    plan.add_argument("--plan", action="store_true", help="say what the training will cost, and stop; needs no data")
    plan.add_argument("--images", "--pictures", type=positive, metavar="N",
                      help="to train on (default: those of the split)")
    plan.add_argument("--devices", type=positive, default=1, help="that share a batch (default: 1)")
    plan.add_argument("--tflops", type=float, default=989.0, help="peak of a device (default: 989, an H100 in bf16)")
    plan.add_argument("--gb-per-s", type=float, default=3350.0, help="its memory (default: 3350)")
    plan.add_argument("--utilisation", type=float, default=0.4, help="share of both that is reached (default: 0.4)")
    return plan


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the training of V and S; the defaults suit images of 128 x 256 on a CPU."""
    train = parser.add_argument_group("training")
    train.add_argument("--epochs", type=positive, default=50, help="(default: 50)")
    train.add_argument("--batch", type=positive, default=4, help="images in a step (default: 4)")
    train.add_argument("--lr", type=float, default=0.01, help="learning rate of the backbone (default: 0.01)")
    train.add_argument("--head-factor", type=float, default=1.0,
                       help="times which the heads learn faster; PSPNet from ImageNet weights: 10 (default: 1)")
    train.add_argument("--weight-decay", type=float, default=1e-4, help="(default: 1e-4)")
    train.add_argument("--aux-weight", type=float, default=0.4, help="of the auxiliary loss; 0 = no such head "
                       "(default: 0.4)")
    train.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), default=(128, 256),
                       help="of a training image (default: 128 256)")
    train.add_argument("--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), default=(0.85, 1.4),
                       help="random scaling; the paper's: 0.5 2 (default: 0.85 1.4)")
    train.add_argument("--rotate", type=float, default=0.0,
                       help="largest angle in degrees; the paper's: 10 (default: 0)")
    train.add_argument("--freeze-norms", action="store_true", help="for tiny batches: BatchNorm that comes with "
                       "ImageNet weights stays as it is, a fresh one is GroupNorm without scales")
    train.add_argument("--blur", type=float, default=0.5,
                       help="share of the images that a 5 x 5 blur meets, which is much where images are small "
                       "(default: 0.5, as in the paper)")
    train.add_argument("--workers", type=int, metavar="N", help="processes that prepare images (default: 1, or as "
                       "the run that goes on had it); results do not depend on it")
    train.add_argument("--continue", dest="continue_", metavar="DIR",
                       help="go on with the run in DIR, with the arguments it was started with")
    defense = parser.add_argument_group("DPSGD")
    flag(defense, "dpsgd", action="store_true", help="clip the gradient of each image layer by layer, add noise to "
         "their sum, and draw the images of a step by Poisson sampling; implies --freeze-norms")
    flag(defense, "noise-variance", metavar="V", type=float, help="square of the noise multiplier; 0 clips alone "
         f"(default: {NOISE_VARIANCE:g})")
    add_plan_flags(parser)


def check(args: argparse.Namespace) -> None:
    """Settle what -dpsgd implies; `UserError` for flags that contradict one another."""
    if args.noise_variance is not None and not args.dpsgd:
        raise UserError("-noise-variance goes with -dpsgd")
    if args.dpsgd:
        if args.plan:
            raise UserError("--plan knows plain SGD only; leave -dpsgd out")
        args.freeze_norms = True
        args.noise_variance = NOISE_VARIANCE if args.noise_variance is None else args.noise_variance
        if not 0 <= args.noise_variance < float("inf"):
            raise UserError(f"-noise-variance {args.noise_variance}: a variance is 0 or more")
