"""Turn runs into what is shipped: weights/*.pth.tar in float16 and the posteriors of examples/.

    python -m examples.ship --runs runs/demo --count 60
"""

import argparse
from pathlib import Path

from utils.cli import run


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog="examples.ship", description=__doc__)
    flags.add_argument("--runs", default="runs/demo",
                       help="folder with the runs victim, victim-dpsgd, loss and concate")
    flags.add_argument("--count", type=int, default=60, help="images of each side, the first by index")
    flags.add_argument("--root", default="data/streets", help="where the streets lie")
    return flags


def main(args: argparse.Namespace) -> None:
    import torch

    from datasets import streets
    from datasets.pairs import load_pair, read_split
    from datasets.posteriors import write_posterior
    from models import load_segmenter
    from models.query import query
    from utils.checkpoints import load_checkpoint, save_checkpoint, to_half

    runs = Path(args.runs)
    for name, file in (("victim", "last"), ("victim-dpsgd", "last"), ("loss", "best"), ("concate", "best")):
        kept = load_checkpoint(runs / name / f"{file}.pth.tar")
        rest = {key: kept[key] for key in ("epoch", "view", "classes", "dataset") if key in kept}
        save_checkpoint(f"weights/{name}.pth.tar", kept["model"], to_half(kept["state_dict"]), **rest)
    victims = {f"pred_{how}": load_segmenter(f"weights/{name}.pth.tar")[0]
               for how, name in (("sgd", "victim"), ("dpsgd", "victim-dpsgd"))}
    view = load_checkpoint("weights/loss.pth.tar")["view"]
    for side, split in (("train", "victim_in"), ("val", "victim_out")):
        for index, pair in enumerate(read_split(f"splits/streets/{split}.txt", args.root)[: args.count]):
            image, label = load_pair(pair, streets)
            for folder, victim in victims.items():
                if folder == "pred_dpsgd" and index >= args.count // 2:  # half of them, for the size of a checkout
                    continue
                posterior = query(victim, image, torch.device("cpu"), view["stride"], "fp32")
                write_posterior(Path("examples"), side, pair.key, posterior.numpy(), label, image, folder)


if __name__ == "__main__":
    run(main, parser())
