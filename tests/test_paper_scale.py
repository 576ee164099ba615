"""One step of each model of the paper at its crop. Takes minutes: `pytest -m huge tests/test_paper_scale.py`."""

import pytest
import torch
from test_workflow import parse

from datasets import find_dataset
from models import build_segmenter
from reproduce.plan import read_scale
from training.options import SegmenterTraining
from training.segmentation import learn, make_optimizer
from utils.cli import pick
from utils.device import choose_compute

PARAMETERS = {"victim-psp": 68_072_166, "victim-uper": 83_147_219, "shadow-dlv3": 43_500_000, "shadow-dpc": 41_600_000}


@pytest.mark.huge
@pytest.mark.parametrize("name", PARAMETERS)
def test_one_step_at_the_crop_of_the_paper(name):
    script, *flags = read_scale("paper").model_command(name)
    options = pick(parse(script, flags), SegmenterTraining)
    spec = options.spec(len(find_dataset(options.dataset).CLASSES))
    torch.manual_seed(0)
    model = build_segmenter(spec).to(memory_format=torch.channels_last).train()
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(PARAMETERS[name], rel=2e-3) and options.crop[0] in (713, 769)
    optimizer = make_optimizer(model, options)
    for group in optimizer.param_groups:
        group["lr"] = options.lr * group["factor"]
    before = [p.detach().clone() for p in model.parameters()]
    images, labels = torch.rand(2, 3, *options.crop), torch.randint(0, spec["classes"], (2, *options.crop))
    loss = learn(model, optimizer, images, labels, options.aux_weight, choose_compute(None))
    assert 1 < loss < 10
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    # timm initialises the last scale of some branches with 0; the other weights of a branch change from step 2 on
    assert sum(changed) > 0.75 * len(changed)
