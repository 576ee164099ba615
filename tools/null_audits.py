"""Measure each attack where there is nothing to find: simulated victims that saw neither side.

    python -m tools.null_audits                    # the table of docs/validity.md; some hours on one core
    python -m tools.null_audits --attacks loss lira --victims 50

An audit of a victim has images in groups that are dealt to the two sides at random. Images differ in difficulty, and
those of a group are alike. The references saw half of the images each, and the population is that of a model that gives
its training images away. A learned attacker is trained on such shadows, and named by its representation, e.g.
learned/loss. For each attack: in how many audits the 95 % interval of the AUC contains 0.5, or lies above it, and the
mean AUC.
"""

import argparse

from attacks import ATTACKS, REPRESENTATIONS
from utils.cli import natural, new_parser, positive, run

CASES = [*(f"learned/{name}" for name in REPRESENTATIONS), *(name for name in ATTACKS if name != "learned")]
CLASSES, SIDE = 4, 8
GROUPS, IMAGES = 40, 3  # of an audit, and of a group
SHADOWS, STEPS = 10, 500  # of a learned attacker, and of its training
REFERENCES = 4
LEAK = 0.5  # what a model gains on its training images, in logits
ALIKE = 0.6  # share of the variance of the difficulty that the images of a group have in common


def parser() -> argparse.ArgumentParser:
    flags = new_parser(__doc__, "tools.null_audits")
    flags.add_argument("--victims", type=positive, default=200, help="simulated victims (default: 200)")
    flags.add_argument("--attacks", nargs="+", metavar="NAME", choices=CASES, default=CASES,
                       help="attacks (default: all)")
    flags.add_argument("--seed", type=natural, default=0, help="seed of the simulation (default: 0)")
    flags.add_argument("--json", metavar="FILE", help="write the counts of each attack here, too")
    return flags


def main(args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from tqdm import tqdm

    from attacks import build_attack
    from attacks.calibrated import draw_references
    from attacks.patches import Selection
    from attacks.representation import add_context, represent
    from attacks.sample import AttackSettings, Sample
    from evaluation.report import summarise
    from models import LoadedAttacker
    from models.attacker import InputSpec, build_attacker
    from predictors.stored import TINY
    from training.attacker import learn, make_optimizer
    from training.options import AttackerTraining
    from utils.device import CPU, Compute
    from utils.files import write_json
    from utils.randomness import stream

    def posterior(rng, label, confidence):
        """A posterior (C, h, w) of a model that prefers the label (h, w) by `confidence`."""
        logits = rng.normal(0, 1, (CLASSES, *label.shape))
        logits += confidence * (np.arange(CLASSES)[:, None, None] == label)
        return torch.from_numpy(logits).softmax(0).float()

    def draw(rng, leak):
        """The samples of one audit; a model gains `leak` on its training images, the references always `LEAK`."""
        members = np.repeat(rng.permutation(GROUPS) < GROUPS // 2, IMAGES)
        alike = np.repeat(rng.normal(0, np.sqrt(ALIKE), GROUPS), IMAGES)
        difficulty = 1 + alike + rng.normal(0, np.sqrt(1 - ALIKE), len(alike))
        return [image(rng, number, bool(member), confidence, leak)
                for number, (member, confidence) in enumerate(zip(members, difficulty, strict=True))]

    def image(rng, number, member, confidence, leak):
        """The sample of one image."""
        label = rng.integers(0, CLASSES, (SIDE, SIDE)).astype(np.uint8)
        truth = np.where(rng.random(label.shape) < 0.1, 255, label).astype(np.uint8)
        truth[0, 0] = label[0, 0]
        seen = rng.permutation(REFERENCES) < REFERENCES // 2
        gains = [confidence + leak * member, *(confidence + LEAK * seen)]
        pixels = np.clip(128 + 30 * confidence + rng.normal(0, 20, (3, SIDE, SIDE)), 0, 255).astype(np.uint8)

        def ask(pixels, count):
            there = np.resize(label, pixels.shape[:2])
            yield from (posterior(rng, there, gain) for gain in gains)

        def gradients():
            yield from (float(np.exp(rng.normal(-gain, 0.5))) for gain in gains)

        outputs = [posterior(rng, label, gain) for gain in gains]
        return Sample(f"{number:04}", f"{number}", f"g{number // IMAGES}", member, outputs[0], torch.from_numpy(truth),
                      torch.from_numpy(pixels), tuple(outputs[1:]), tuple(seen.tolist()),
                      predictability=float(np.exp(rng.normal(-confidence, 0.5))), label=torch.from_numpy(label),
                      stride=1, ask=ask, gradients=gradients)

    def trained(kind):
        """An attacker on complete maps of the representation `kind`, trained on the images of `SHADOWS` shadows."""
        options = AttackerTraining(input=kind, patch_size=SIDE, batch=64)
        count = REFERENCES // 2 if "references" in REPRESENTATIONS.load(kind).needs else 0
        known = [add_context(draw_references(one, count, 0) if count else one, kind, TINY)
                 for number in range(SHADOWS) for one in draw(stream(args.seed, "shadow", number), LEAK)]
        maps = torch.stack([represent(kind, one.output, one.truth, TINY, context=one.context) for one in known])
        member = torch.tensor([int(one.member) for one in known])
        torch.manual_seed(args.seed)
        model = build_attacker(**options.spec(CLASSES)["arguments"]).train()
        optimizer = make_optimizer(model, options)
        for step in range(STEPS):
            batch = torch.from_numpy(stream(args.seed, "batch", step).permutation(len(known))[: options.batch])
            learn(model, optimizer, maps[batch], member[batch], len(batch), Compute(CPU, "fp32"))
        return LoadedAttacker(model.eval(), InputSpec(kind, SIDE, TINY, references=count), CLASSES, "")

    def audit(name, settings, victim):
        """AUC of one attack on one victim, and its interval."""
        attack = build_attack(name, settings)
        samples, population = (draw(stream(args.seed, kind, victim), leak)
                               for kind, leak in (("victim", 0.0), ("population", LEAK)))
        if attack.needs & {"population", "non-members", "own"}:
            attack.fit(samples if "own" in attack.needs else
                       [one for one in population if "population" in attack.needs or not one.member])
        found = summarise(attack.finish(list(attack.score(samples))), attack.widened)["image"]
        return found["auc"], found["auc_interval"]

    table = {}
    print(f"{'attack':28}{'0.5 in the interval':>20}{'interval above 0.5':>20}{'mean AUC':>10}")
    for name in args.attacks:
        attack, _, kind = name.partition("/")
        settings = AttackSettings(Selection("full"), attacker=trained(kind)) if kind else AttackSettings()
        aucs, bounds = zip(*(audit(attack, settings, victim) for victim in tqdm(range(args.victims), name, leave=False,
                                                                    disable=None)), strict=True)
        table[name] = {"victims": args.victims, "inside": sum(low <= 0.5 <= high for low, high in bounds),
                       "above": sum(low > 0.5 for low, _ in bounds), "mean_auc": round(float(np.mean(aucs)), 4)}
        shares = "".join(f"{100 * table[name][key] / args.victims:18.1f} %" for key in ("inside", "above"))
        print(f"{name:28}{shares}{table[name]['mean_auc']:10.3f}", flush=True)
        if args.json:
            write_json(args.json, table)


if __name__ == "__main__":
    run(main, parser())
