"""The planned cost of a training, compared with a real step."""

import pytest
import torch
from conftest import SMALL, must, script, write_tree
from torch.utils.flop_counter import FlopCounterMode

from models import build_segmenter
from training.plan import Cost, cost_of_step

SPEC = {"name": "pspnet", "backbone": "resnet10t", "classes": 11, "output_stride": 8, "stages": 2, "width": 16,
        "dropout": 0.1, "auxiliary": True}


def loss(outputs):
    return sum(logits.float().mean() for logits in outputs)


@pytest.mark.parametrize("shape", [(2, 3, 64, 96), (3, 3, 65, 65)])
def test_planned_cost_is_that_of_a_real_step(shape):
    planned = cost_of_step(lambda: build_segmenter(SPEC), shape, loss, bf16=False)
    model, saved = build_segmenter(SPEC).train(), {}
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def record(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            value = loss(model(torch.rand(shape).contiguous(memory_format=torch.channels_last)))
        value.backward()
    assert planned.flops == counter.get_total_flops()
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    activations = sum(storage.nbytes() for pointer, storage in saved.items() if pointer not in weights)
    assert planned.activations == pytest.approx(activations, rel=0.05)
    assert planned.traffic > 2 * planned.activations
    assert planned.seconds(1, 1, 0.5) == 2 * planned.seconds(1, 1, 1)


def test_flops_of_grouped_convolutions():
    def build(groups):
        return torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), torch.nn.Conv2d(64, 64, 3, padding=1, groups=groups))

    one, many = (cost_of_step(lambda g=g: build(g), (2, 3, 16, 16), lambda out: out.mean(), False) for g in (1, 64))
    pointwise, full = (2 * 2 * 16 * 16 * 64 * inputs for inputs in (3, 64 * 9))
    assert one.flops == 2 * pointwise + 3 * full and many.flops == 2 * pointwise + 3 * full // 64


def test_flops_of_transposed_convolutions():
    def build():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ConvTranspose2d(4, 8, 2, stride=2))

    cost = cost_of_step(build, (2, 3, 16, 16), lambda out: out.mean(), False)
    assert cost.flops == 2 * (2 * 2 * 16 * 16 * 4 * 3) + 3 * (2 * 2 * 16 * 16 * 4 * 8 * 4)


def test_time_is_the_longer_of_arithmetic_and_memory_traffic():
    cost = Cost(0, 0, ((10**12, 10**6), (10**6, 10**9)))
    assert cost.seconds(1, 1, 1) == pytest.approx(2) and cost.seconds(2, 1, 0.5) == pytest.approx(3)
    assert cost.updated_by("SGD").traffic == cost.traffic and Cost(10, 0, ()).updated_by("AdamW").traffic == 280


def test_bf16_needs_less_memory_for_activations():
    fp32, bf16 = (cost_of_step(lambda: build_segmenter(SPEC), (2, 3, 64, 96), loss, bf16) for bf16 in (False, True))
    assert bf16.flops == fp32.flops and bf16.activations < 0.8 * fp32.activations


def test_plan_counts_stored_posteriors_and_refuses_continue(tmp_path):
    write_tree(tmp_path)
    command = ["train_attacker.py", "--plan", "--posteriors", tmp_path, "--precision", "fp32"]
    assert "6 images" in must(script(*command)).stdout
    result = script(*command, "--continue", tmp_path)
    assert result.returncode == 2 and "leave --continue out" in result.stderr


@pytest.mark.parametrize("name", ["train_victim.py", "train_shadow.py", "train_attacker.py"])
def test_every_training_script_plans_without_data(name):
    flags = SMALL if name != "train_attacker.py" else ["--precision", "fp32"]
    out = must(script(name, "--plan", "--images", 1000, "--devices", 2, *flags)).stdout
    assert "parameters" in out and "on each of 2 devices" in out and "1,000 images" in out and "GiB" in out
