"""DPSGD against the obvious way of it, and its controls."""

import importlib
import json
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, must, script
from test_distributed import losses, torchrun

from defenses import dpsgd
from models import build_segmenter
from training.segmentation import image_losses, learn_privately
from training.step import freeze_norms
from utils.checkpoints import save_checkpoint
from utils.device import CPU, CPU_FP32, Compute

SPEC = {"name": "pspnet", "backbone": "resnet10t", "classes": 5, "output_stride": 8, "stages": 2, "width": 16,
        "dropout": 0.0, "auxiliary": True, "group_norms": ["head", "auxiliary"]}
VARIANCE, BATCH = 0.25, 3


def make(spec=SPEC):
    """A model whose backbone has BatchNorm with statistics of its own, frozen, ready to train."""
    torch.manual_seed(0)
    model = build_segmenter(spec).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            torch.nn.init.constant_(module.weight, 0.5)  # timm starts some at 0, which lets nothing through
    freeze_norms(model)
    return model.to(memory_format=torch.channels_last)


def random_batch(count, seed=0):
    """Noise, with half of each image's label void in another way."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count, 48, 64), generator=rng)
    for index, label in enumerate(labels):
        label[: 8 * (index % 4)] = 255
    return torch.rand(count, 3, 48, 64, generator=rng), labels


def private(model, bounds, variance=0.0, lr=1.0, batch=BATCH):
    groups = [{"params": list(model.backbone.parameters()), "lr": lr},
              {"params": [*model.head.parameters(), *model.auxiliary.parameters()], "lr": lr}]
    optimizer = torch.optim.SGD(groups, lr=lr)
    return dpsgd.privatise(model, optimizer, bounds, variance, batch)


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def one_at_a_time(model, images, labels):
    """The gradient of each image alone, by autograd: a dict by name for each."""
    out = []
    for image, label in zip(images, labels, strict=True):
        main, auxiliary = model(image[None])
        mean = sum(weight * F.cross_entropy(logits, label[None], ignore_index=255)
                   for logits, weight in ((main, 1), (auxiliary, 0.4)))
        parameters = trained(model)
        out.append(dict(zip(parameters, torch.autograd.grad(mean, list(parameters.values())), strict=True)))
    return out


def bounds_of(gradients, share=1.0):
    return {name: share * sorted(g[name].norm().item() for g in gradients)[len(gradients) // 2]
            for name in gradients[0]}


ALL = ["backbone", "head", "auxiliary"]


@pytest.mark.parametrize("head", [{}, {"name": "upernet", "output_stride": 32, "stages": 3},
                                  {"name": "deeplabv3plus", "stages": 3, "group_norms": ALL}])
def test_each_gradient_is_that_of_the_image_alone(head):
    model = make(SPEC | head)
    images, labels = random_batch(3)
    alone = one_at_a_time(model, images, labels)
    private(model, dict.fromkeys(trained(model), 1.0))
    image_losses(model(images), labels, 0.4).sum().backward()
    for name, parameter in trained(model).items():
        for index, gradient in enumerate(alone):
            torch.testing.assert_close(parameter.grad_sample[index], gradient[name], rtol=1e-3,
                                       atol=1e-4 * gradient[name].abs().max().item() + 1e-7, msg=name)


def test_the_rest_of_the_batch_changes_nothing():
    found = []
    for others in (1, 2):
        model = make()
        private(model, dict.fromkeys(trained(model), 1.0))
        (images, labels), (more, their) = random_batch(3), random_batch(3, others)
        images, labels = torch.cat([images[:1], more[1:]]), torch.cat([labels[:1], their[1:]])
        labels[2] = 255 if others == 2 else labels[2]
        image_losses(model(images), labels, 0.4).sum().backward()
        found.append({name: parameter.grad_sample for name, parameter in trained(model).items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient[0], found[1][name][0], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(gradient[1], found[1][name][1], rtol=1e-2), name
        assert not found[1][name][2].any(), "all of it is void"


def test_a_step_clips_each_layer_of_each_image():
    model = make()
    images, labels = random_batch(3)
    alone = one_at_a_time(model, images, labels)
    bounds = bounds_of(alone, 0.7)
    before = {name: p.detach().clone() for name, p in trained(model).items()}
    net, optimizer = private(model, bounds)
    learn_privately(net, optimizer, images, labels, 0.4, CPU_FP32)
    clipped = 0
    for name, parameter in trained(model).items():
        expected = torch.zeros_like(parameter)
        for gradient in alone:
            factor = min(1, bounds[name] / gradient[name].norm().item())
            expected -= factor * gradient[name] / BATCH
            clipped += factor < 1
        moved = parameter.detach() - before[name]
        assert moved.norm() <= bounds[name] * len(images) / BATCH * (1 + 1e-4)
        torch.testing.assert_close(moved, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item(), msg=name)
    assert clipped > len(bounds)


def test_frozen_statistics_do_not_move():
    model = make()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    scales = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    net, optimizer = private(model, dict.fromkeys(trained(model), 1.0), VARIANCE, lr=1e-3)
    images, labels = random_batch(3)
    for _ in range(2):
        learn_privately(net, optimizer, images, labels, 0.4, CPU_FP32)
    assert any("running_mean" in name for name in before) and len(scales) > 4
    after = dict(model.named_buffers()) | dict(model.named_parameters())
    for name, value in {**before, **scales}.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("drawn", [0, 2])
def test_noise_has_the_deviation_that_is_printed(drawn):
    model, images, labels = make(), *random_batch(drawn or 1)
    bounds = {name: 0.01 * (1 + index) for index, name in enumerate(trained(model))}
    printed = dpsgd.account(bounds, VARIANCE, BATCH, 100, 10)["noise_std"]
    after = []
    for variance in (0.0, VARIANCE):
        model = make()
        net, optimizer = private(model, bounds, variance)
        dpsgd.reseed(optimizer, 0, 0, 0)
        learn_privately(net, optimizer, images[:drawn], labels[:drawn], 0.4, CPU_FP32)
        after.append({name: p.detach().flatten() for name, p in trained(model).items()})
    noise = {name: after[1][name] - after[0][name] for name in after[0]}
    assert torch.cat(list(noise.values())).std().item() == pytest.approx(printed, rel=0.01)
    for name, values in noise.items():
        if len(values) > 1000:
            assert values.std().item() == pytest.approx(printed, rel=0.1), name
    assert printed == pytest.approx(0.5 * math.hypot(*bounds.values()) / BATCH)


def test_bf16_gives_float32_gradients_that_are_close():
    images, labels = random_batch(2)
    moved = []
    for precision in ("fp32", "bf16"):
        model = make()
        before = torch.cat([p.detach().flatten() for p in trained(model).values()])
        net, optimizer = private(model, bounds_of(one_at_a_time(model, images, labels)))
        learn_privately(net, optimizer, images, labels, 0.4, Compute(CPU, precision))
        assert all(p.grad.dtype == torch.float32 for p in trained(model).values())
        moved.append(torch.cat([p.detach().flatten() for p in trained(model).values()]) - before)
    assert F.cosine_similarity(*moved, dim=0) > 0.95


def test_bounds_are_medians():
    model = make()
    images, labels = random_batch(3)
    alone = one_at_a_time(model, images, labels)
    found = dpsgd.gradient_bounds(model, (image_losses(model(i[None]), y[None], 0.4).sum()
                                          for i, y in zip(images, labels, strict=True)))
    assert found == pytest.approx(bounds_of(alone), rel=1e-3) and len(set(found.values())) > 5


def test_epsilon():
    bounds = {"a": 3.0, "b": 4.0}
    more, less = (dpsgd.account(bounds, v, 8, 100, 1000)["epsilon"] for v in (1e-3, 1.0))
    assert 1e5 < more < 1e6 and 0 < less < 50  # 5e5: the order that was found for the paper's 1e-3
    assert dpsgd.account(bounds, 1.0, 8, 100, 10)["epsilon"] < less
    none = dpsgd.account(bounds, 0.0, 8, 100, 1000)
    assert none["epsilon"] is None and none["noise_std"] == 0 and none["bounds"]["norm"] == 5
    assert json.loads(json.dumps(none, allow_nan=False)) == none


@pytest.fixture(scope="module")
def victim(world):
    """Flags of a small DPSGD victim."""
    return ["train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
            world / "victim_out.txt", *SMALL, "--lr", 0.001, "-dpsgd"]


def test_victim_continues_to_the_same_weights(victim, tmp_path, monkeypatch):
    printed = must(script(*victim, "-noise-variance", 0.01, "--out", tmp_path / "whole")).stdout
    found = json.loads((tmp_path / "whole" / "results.json").read_text())["dpsgd"]
    assert f"epsilon {found['epsilon']:.3g}" in printed and "guarantees nothing" in printed
    assert found["noise_variance"] == 0.01 and found["delta"] == 1e-5 and found["steps"] == 4
    module = importlib.import_module("training.run")

    def stop(path, *rest, **more):
        save_checkpoint(path, *rest, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", stop)
        assert script(*victim, "--noise-variance", 0.01, "--out", tmp_path / "cut").returncode == 130
    must(script("train_victim.py", "--continue", tmp_path / "cut"))
    one, two = (torch.load(tmp_path / run / "last.pth.tar", weights_only=True) for run in ("whole", "cut"))
    assert one["bounds"] == two["bounds"] and one["epoch"] == two["epoch"] == 2
    assert not any("module" in key for key in one["state_dict"])
    for key, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][key]), key
    must(script(*victim, "-noise-variance", 0, "--out", tmp_path / "clipped"))
    clipped = torch.load(tmp_path / "clipped" / "last.pth.tar", weights_only=True)
    assert json.loads((tmp_path / "clipped" / "results.json").read_text())["dpsgd"]["epsilon"] is None
    assert one["bounds"] == clipped["bounds"]
    assert not torch.equal(one["state_dict"]["head.classify.2.bias"], clipped["state_dict"]["head.classify.2.bias"])


@pytest.mark.parametrize("variance", [0, 5.0])
def test_two_processes_give_the_losses_of_one(victim, tmp_path, variance):
    """Noise is drawn once for both, as much as for one and from the same stream."""
    args = [*victim, "--batch", 4, "--epochs", 3, "--dropout", 0, "-noise-variance"]
    must(script(*args, variance, "--out", tmp_path / "one"))
    must(torchrun(*args, variance, "--out", tmp_path / "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    if variance:
        must(script(*args, 0, "--out", tmp_path / "none"))
        assert losses(tmp_path / "none")[-1] != pytest.approx(losses(tmp_path / "one")[-1], rel=2e-3)


@pytest.mark.parametrize(("flags", "text"), [(["-noise-variance", 1], "goes with -dpsgd"),
                                             (["-dpsgd", "-noise-variance", -1], "0 or more"),
                                             (["-dpsgd", "--plan"], "leave -dpsgd out")])
def test_flags_that_cannot_be(flags, text):
    result = script("train_victim.py", *flags)
    assert result.returncode == 2 and text in result.stderr


def test_dpsgd_victim_is_attacked_as_any_other(world, live, victim, tmp_path):
    must(script(*victim, "--epochs", 1, "--out", tmp_path / "victim"))
    must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--victim",
                tmp_path / "victim" / "last.pth.tar", "--out", tmp_path / "attack"))
    shadow = ["--root", world / "data", "--train", world / "shadow" / "in.txt", "--test", world / "shadow" / "out.txt"]
    must(script("train_shadow.py", *shadow, *victim[7:], "--epochs", 1, "--out", tmp_path / "shadow"))
    assert json.loads((tmp_path / "shadow" / "results.json").read_text())["dpsgd"]["epsilon"] > 0
