"""DPSGD against a slow version that computes one gradient at a time, and its scripts."""

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


def make_model(spec=SPEC):
    """Build a model for training. The BatchNorms of its backbone are frozen and have random statistics."""
    torch.manual_seed(0)
    model = build_segmenter(spec).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            torch.nn.init.constant_(module.weight, 0.5)  # timm sets some to 0; no gradient would pass
    freeze_norms(model)
    return model.to(memory_format=torch.channels_last)


def random_batch(count, seed=0):
    """Return random images and labels. In image i the upper 8 (i mod 4) rows of the label are void."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count, 48, 64), generator=rng)
    for index, label in enumerate(labels):
        label[: 8 * (index % 4)] = 255
    return torch.rand(count, 3, 48, 64, generator=rng), labels


def privatise(model, bounds, variance=0.0, lr=1.0, batch=BATCH):
    """Return the model and an SGD optimizer for DPSGD."""
    groups = [{"params": list(model.backbone.parameters()), "lr": lr},
              {"params": [*model.head.parameters(), *model.auxiliary.parameters()], "lr": lr}]
    optimizer = torch.optim.SGD(groups, lr=lr)
    return dpsgd.privatise(model, optimizer, bounds, variance, batch)


def trainable(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def one_at_a_time(model, images, labels):
    """Return the gradient of each image, computed alone by autograd: a list of dicts by name."""
    gradients = []
    for image, label in zip(images, labels, strict=True):
        main, auxiliary = model(image[None])
        loss = sum(weight * F.cross_entropy(logits, label[None], ignore_index=255)
                   for logits, weight in ((main, 1), (auxiliary, 0.4)))
        parameters = trainable(model)
        gradients.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    return gradients


def median_norms(gradients, factor=1.0):
    return {name: factor * sorted(g[name].norm().item() for g in gradients)[len(gradients) // 2]
            for name in gradients[0]}


ALL = ["backbone", "head", "auxiliary"]


@pytest.mark.parametrize("head", [{}, {"name": "upernet", "output_stride": 32, "stages": 3},
                                  {"name": "deeplabv3plus", "stages": 3, "group_norms": ALL}])
def test_gradient_of_each_image_equals_that_of_the_image_alone(head):
    model = make_model(SPEC | head)
    images, labels = random_batch(3)
    alone = one_at_a_time(model, images, labels)
    privatise(model, dict.fromkeys(trainable(model), 1.0))
    image_losses(model(images), labels, 0.4).sum().backward()
    for name, parameter in trainable(model).items():
        for index, gradient in enumerate(alone):
            torch.testing.assert_close(parameter.grad_sample[index], gradient[name], rtol=1e-3,
                                       atol=1e-4 * gradient[name].abs().max().item() + 1e-7, msg=name)


def test_gradient_does_not_depend_on_the_other_images_of_the_batch():
    runs = []
    for seed in (1, 2):
        model = make_model()
        privatise(model, dict.fromkeys(trainable(model), 1.0))
        (images, labels), (other_images, other_labels) = random_batch(3), random_batch(3, seed)
        images, labels = torch.cat([images[:1], other_images[1:]]), torch.cat([labels[:1], other_labels[1:]])
        labels[2] = 255 if seed == 2 else labels[2]
        image_losses(model(images), labels, 0.4).sum().backward()
        runs.append({name: parameter.grad_sample for name, parameter in trainable(model).items()})
    for name, gradient in runs[0].items():
        torch.testing.assert_close(gradient[0], runs[1][name][0], rtol=1e-4, atol=1e-6)
        assert not torch.allclose(gradient[1], runs[1][name][1], rtol=1e-2), name
        assert not runs[1][name][2].any(), "an image whose label is void everywhere has no gradient"


def test_step_clips_each_tensor_of_each_image():
    model = make_model()
    images, labels = random_batch(3)
    alone = one_at_a_time(model, images, labels)
    bounds = median_norms(alone, 0.7)
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    net, optimizer = privatise(model, bounds)
    learn_privately(net, optimizer, images, labels, 0.4, CPU_FP32)
    clipped = 0
    for name, parameter in trainable(model).items():
        expected = torch.zeros_like(parameter)
        for gradient in alone:
            factor = min(1, bounds[name] / gradient[name].norm().item())
            expected -= factor * gradient[name] / BATCH
            clipped += factor < 1
        change = parameter.detach() - before[name]
        assert change.norm() <= bounds[name] * len(images) / BATCH * (1 + 1e-4)
        torch.testing.assert_close(change, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item(), msg=name)
    assert clipped > len(bounds)


def test_frozen_statistics_do_not_change():
    model = make_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    scales = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    net, optimizer = privatise(model, dict.fromkeys(trainable(model), 1.0), VARIANCE, lr=1e-3)
    images, labels = random_batch(3)
    for _ in range(2):
        learn_privately(net, optimizer, images, labels, 0.4, CPU_FP32)
    assert any("running_mean" in name for name in before) and len(scales) > 4
    after = dict(model.named_buffers()) | dict(model.named_parameters())
    for name, value in {**before, **scales}.items():
        assert torch.equal(after[name], value), name


@pytest.mark.parametrize("size", [0, 2])
def test_noise_has_the_reported_standard_deviation(size):
    model, images, labels = make_model(), *random_batch(size or 1)
    bounds = {name: 0.01 * (1 + index) for index, name in enumerate(trainable(model))}
    reported = dpsgd.account(bounds, VARIANCE, BATCH, 100, 10)["noise_std"]
    after = []
    for variance in (0.0, VARIANCE):
        model = make_model()
        net, optimizer = privatise(model, bounds, variance)
        dpsgd.reseed(optimizer, 0, 0, 0)
        learn_privately(net, optimizer, images[:size], labels[:size], 0.4, CPU_FP32)
        after.append({name: p.detach().flatten() for name, p in trainable(model).items()})
    noise = {name: after[1][name] - after[0][name] for name in after[0]}
    assert torch.cat(list(noise.values())).std().item() == pytest.approx(reported, rel=0.01)
    for name, values in noise.items():
        if len(values) > 1000:
            assert values.std().item() == pytest.approx(reported, rel=0.1), name
    assert reported == pytest.approx(0.5 * math.hypot(*bounds.values()) / BATCH)


def test_bf16_gives_similar_gradients_in_float32():
    images, labels = random_batch(2)
    changes = []
    for precision in ("fp32", "bf16"):
        model = make_model()
        before = torch.cat([p.detach().flatten() for p in trainable(model).values()])
        net, optimizer = privatise(model, median_norms(one_at_a_time(model, images, labels)))
        learn_privately(net, optimizer, images, labels, 0.4, Compute(CPU, precision))
        assert all(p.grad.dtype == torch.float32 for p in trainable(model).values())
        changes.append(torch.cat([p.detach().flatten() for p in trainable(model).values()]) - before)
    assert F.cosine_similarity(*changes, dim=0) > 0.95


def test_bounds_are_median_gradient_norms():
    model = make_model()
    images, labels = random_batch(3)
    alone = one_at_a_time(model, images, labels)
    bounds = dpsgd.gradient_bounds(model, (image_losses(model(image[None]), label[None], 0.4).sum()
                                           for image, label in zip(images, labels, strict=True)))
    assert bounds == pytest.approx(median_norms(alone), rel=1e-3) and len(set(bounds.values())) > 5


def test_epsilon():
    bounds = {"a": 3.0, "b": 4.0}
    little_noise, much_noise = (dpsgd.account(bounds, v, 8, 100, 1000)["epsilon"] for v in (1e-3, 1.0))
    assert 1e5 < little_noise < 1e6 and 0 < much_noise < 50  # we computed about 5e5 for 1e-3, the paper's variance
    assert dpsgd.account(bounds, 1.0, 8, 100, 10)["epsilon"] < much_noise
    no_noise = dpsgd.account(bounds, 0.0, 8, 100, 1000)
    assert no_noise["epsilon"] is None and no_noise["noise_std"] == 0 and no_noise["bounds"]["norm"] == 5
    assert json.loads(json.dumps(no_noise, allow_nan=False)) == no_noise


@pytest.fixture(scope="module")
def victim(world):
    """Script and flags that train a small DPSGD victim."""
    return ["train_victim.py", "--root", world / "data", "--train", world / "victim_in.txt", "--test",
            world / "victim_out.txt", *SMALL, "--lr", 0.001, "-dpsgd"]


def test_resumed_victim_has_the_same_weights(victim, tmp_path, monkeypatch):
    printed = must(script(*victim, "-noise-variance", 0.01, "--out", tmp_path / "complete")).stdout
    account = json.loads((tmp_path / "complete" / "results.json").read_text())["dpsgd"]
    assert f"epsilon {account['epsilon']:.3g}" in printed and "guarantees nothing" in printed
    assert account["noise_variance"] == 0.01 and account["delta"] == 1e-5 and account["steps"] == 4
    module = importlib.import_module("training.run")

    def save_and_stop(*args, **entries):
        save_checkpoint(*args, **entries)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", save_and_stop)
        assert script(*victim, "--noise-variance", 0.01, "--out", tmp_path / "resumed").returncode == 130
    must(script("train_victim.py", "--continue", tmp_path / "resumed"))
    complete, resumed = (torch.load(tmp_path / run / "last.pth.tar", weights_only=True)
                         for run in ("complete", "resumed"))
    assert complete["bounds"] == resumed["bounds"] and complete["epoch"] == resumed["epoch"] == 2
    assert not any("module" in key for key in complete["state_dict"])
    for key, value in complete["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    must(script(*victim, "-noise-variance", 0, "--out", tmp_path / "clipped"))
    clipped = torch.load(tmp_path / "clipped" / "last.pth.tar", weights_only=True)
    assert json.loads((tmp_path / "clipped" / "results.json").read_text())["dpsgd"]["epsilon"] is None
    assert complete["bounds"] == clipped["bounds"]
    bias = "head.classify.2.bias"
    assert not torch.equal(complete["state_dict"][bias], clipped["state_dict"][bias])


@pytest.mark.slow
@pytest.mark.parametrize("variance", [0, 5.0])
def test_two_processes_give_the_losses_of_one(victim, tmp_path, variance):
    """Two processes together add as much noise as one, from the same random stream."""
    args = [*victim, "--batch", 4, "--epochs", 3, "--dropout", 0, "-noise-variance"]
    must(script(*args, variance, "--out", tmp_path / "one"))
    must(torchrun(*args, variance, "--out", tmp_path / "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    if variance:
        must(script(*args, 0, "--out", tmp_path / "none"))
        assert losses(tmp_path / "none")[-1] != pytest.approx(losses(tmp_path / "one")[-1], rel=2e-3)


@pytest.mark.parametrize(("flags", "text"), [(["-noise-variance", 1], "needs -dpsgd"),
                                             (["-dpsgd", "-noise-variance", -1], "0 or more"),
                                             (["-dpsgd", "--plan"], "leave -dpsgd out")])
def test_flags_that_exclude_each_other(flags, text):
    result = script("train_victim.py", *flags)
    assert result.returncode == 2 and text in result.stderr


def test_attack_on_a_dpsgd_victim(world, live, victim, tmp_path):
    must(script(*victim, "--epochs", 1, "--out", tmp_path / "victim"))
    must(script("attack.py", "-resume", world / "loss" / "best.pth.tar", *live, "--victim",
                tmp_path / "victim" / "last.pth.tar", "--out", tmp_path / "attack"))
    shadow = ["--root", world / "data", "--train", world / "shadow" / "in.txt", "--test", world / "shadow" / "out.txt"]
    must(script("train_shadow.py", *shadow, *victim[7:], "--epochs", 1, "--out", tmp_path / "shadow"))
    assert json.loads((tmp_path / "shadow" / "results.json").read_text())["dpsgd"]["epsilon"] > 0
