"""One step of each model of the paper at its crop, which takes minutes: `pytest -m slow tests/test_paper_scale.py`."""

import pytest
import torch
from test_workflow import parser_of

from datasets import find_dataset
from models import build_segmenter
from reproduce.plan import read_scale
from training.segmentation import learn, optimizer_of, spec_of

PARAMETERS = {"victim-psp": 68_072_166, "victim-uper": 83_147_219, "shadow-dlv3": 43_500_000, "shadow-dpc": 41_600_000}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_one_step_at_full_crop(name):
    script, *flags = read_scale("paper").model_command(name)
    args = parser_of(script).parse_args(flags)
    spec = spec_of(args, len(find_dataset(args.dataset).CLASSES))
    torch.manual_seed(0)
    model = build_segmenter(spec).to(memory_format=torch.channels_last).train()
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(PARAMETERS[name], rel=2e-3) and args.crop[0] in (713, 769)
    optimizer = optimizer_of(model, args)
    for group in optimizer.param_groups:
        group["lr"] = args.lr * group["factor"]
    before = [p.detach().clone() for p in model.parameters()]
    images, labels = torch.rand(2, 3, *args.crop), torch.randint(0, spec["classes"], (2, *args.crop))
    loss = learn(model, optimizer, images, labels, args.aux_weight, torch.device("cpu"), "auto")
    assert 1 < loss < 10
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.75 * len(moved)  # a branch whose last scale timm starts at 0 moves from the second step on
