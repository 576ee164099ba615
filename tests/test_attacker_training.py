"""The training of an attacker: its number of steps, the sizes of its crops, and their augmentation."""

import json

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script, write_tree
from hypothesis import given, settings
from hypothesis import strategies as st
from test_seams import assert_refused
from test_stopping import equal, interrupt

from attacks.sample import Sample
from training.options import AttackerTraining
from training.patches import CUT_OUT, NOISE, ZOOM, Patches, draw_batches, draw_window, perturb, zoom
from utils.randomness import stream

SHAPES = ((20, 31), (20, 31), (12, 40), (33, 12), (20, 31), (14, 14))


def random_samples(shapes=SHAPES, classes=4, one_hot=False):
    """Samples with random posteriors as float16, or with the one-hot vectors of their labels, and no void."""
    rng, samples = np.random.default_rng(0), []
    for number, shape in enumerate(shapes):
        label = torch.from_numpy(rng.integers(0, classes, shape, np.uint8))
        posterior = (torch.nn.functional.one_hot(label.long(), classes).movedim(-1, 0).float() if one_hot else
                     torch.from_numpy(rng.normal(0, 2, (classes, *shape)).astype(np.float32)).softmax(0))
        samples.append(Sample(f"{number}", f"{number}", "", number % 2 == 0, posterior.half(), label))
    return samples


def train(world, out, *flags):
    """Train a small attacker on the shadow of `world`. D^S has 24 images, and an epoch 4 or 5 steps."""
    return script("train_attacker.py", "--shadow", world / "shadow", "--patch-size", 8, "--width", 0.125, "--batch", 16,
                  "--precision", "fp32", *flags, "--out", out)


def stored(run, file="last"):
    return torch.load(run / f"{file}.pth.tar", weights_only=True)


# Number of steps


def test_epochs_in_steps_give_the_same_weights(world, tmp_path):
    must(train(world, tmp_path / "epochs", "--epochs", 2))
    steps = results(tmp_path / "epochs")["steps"]
    assert steps % 2 == 0 and steps >= 6
    must(train(world, tmp_path / "steps", "--steps", steps))
    one, two = stored(tmp_path / "epochs"), stored(tmp_path / "steps")
    for key in ("epoch", "step", "state_dict", "average", "averaged", "optimizer"):
        assert equal(one[key], two[key]), key
    assert results(tmp_path / "epochs") == results(tmp_path / "steps")


@pytest.mark.parametrize("steps, epochs", [(1, 1), (7, 2)])
def test_training_ends_after_exactly_so_many_steps(world, tmp_path, monkeypatch, steps, epochs):
    rates = []
    original = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    must(train(world, tmp_path / "run", "--steps", steps, "--lr", 0.01))
    assert rates == pytest.approx([0.01 * (1 + np.cos(np.pi * done / steps)) / 2 for done in range(steps)])
    assert results(tmp_path / "run")["steps"] == stored(tmp_path / "run")["averaged"] == steps
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(log) == results(tmp_path / "run")["epoch"] == epochs
    assert all(0 < row["loss"] < 3 and 0 <= row["validation_auc"] <= 1 for row in log)  # a mean over the steps done


@pytest.mark.parametrize("call", [2, 7])  # in the first epoch, and in the incomplete second one
def test_training_in_steps_resumes_to_the_same_weights(world, tmp_path, monkeypatch, call):
    flags = ["--steps", 8, "--mixed-sizes", 0.5, "--augment", "strong", "--dropout", 0.5, "-input", "log-concate"]
    must(train(world, tmp_path / "complete", *flags))
    with monkeypatch.context() as patch:
        interrupt(patch, "training.attacker", "learn", call)
        assert train(world, tmp_path / "stopped", *flags).returncode == 143
    assert stored(tmp_path / "stopped")["averaged"] == call and stored(tmp_path / "stopped")["step"] > 0
    resumed = ["train_attacker.py", "--continue", tmp_path / "stopped"]
    assert_refused(script(*resumed, "--steps", 9), "steps 8, not 9", "falls to 0 at the last step")
    must(script(*resumed))
    for file in ("last", "best"):
        one, two = stored(tmp_path / "complete", file), stored(tmp_path / "stopped", file)
        for key in ("epoch", "step", "loss", "averaged", "average", "state_dict", "optimizer", "view"):
            assert (key in one) == (key in two) and equal(one.get(key), two.get(key)), key
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("complete", "stopped")]
    assert logs[0] == logs[1] and logs[0].count("\n") == 2


@pytest.mark.slow
def test_an_attacker_of_too_few_steps_is_said(world, live, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "training.attacker", "learn", 3)
        assert train(world, tmp_path / "run", "--steps", 7).returncode == 143
    attack = ["attack.py", "-resume", tmp_path / "run" / "last.pth.tar", *live, "--out"]
    assert "stopped after 3 of 7 steps" in must(script(*attack, tmp_path / "unfinished")).stderr
    must(script("train_attacker.py", "--continue", tmp_path / "run"))
    assert "stopped after" not in must(script(*attack, tmp_path / "finished")).stderr


def test_steps_and_epochs_exclude_each_other(world, tmp_path):
    assert_refused(train(world, tmp_path / "run", "--steps", 9, "--epochs", 3), "not allowed with argument")
    assert_refused(train(world, tmp_path / "run", "--steps", 0), "--steps")


@pytest.mark.parametrize("flags, message", [(["--steps", 9], "steps None, not 9"), (["--augment", "strong"], "augment"),
                                            (["--mixed-sizes", 0.5], "mixed-sizes 0.0, not 0.5")])
def test_run_of_an_earlier_version_keeps_its_training(world, tmp_path, flags, message):
    (tmp_path / "run").mkdir()
    checkpoint = stored(world / "loss")
    for name in ("steps", "augment", "mixed_sizes"):
        del checkpoint["args"][name]
    torch.save(checkpoint, tmp_path / "run" / "last.pth.tar")
    assert_refused(script("train_attacker.py", "--continue", tmp_path / "run", *flags), message)


@pytest.mark.parametrize("flags, message", [
    (["--steps", 70], "25 steps an epoch, 3 epochs: 70 steps"), (["--epochs", 3], "25 steps an epoch, 3 epochs: 75 ")])
def test_plan_counts_steps(flags, message):
    out = must(script("train_attacker.py", "--plan", "--images", 250, "--precision", "fp32", *flags)).stdout
    assert message in out


# Sizes of crops


def batches_of(options, samples=None, epoch=0):
    samples = samples or random_samples()
    return draw_batches(Patches(samples, options.patch_size, options.seed, options.patches_per_epoch), options, epoch)


def test_without_mixed_sizes_all_crops_have_the_size_of_a_patch():
    options = AttackerTraining(patch_size=6, batch=5, seed=3)
    order = stream(3, "order", 2).permutation(24)
    expected = [[(number, 6, 6) for number in chunk] for chunk in np.array_split(order, 4)]
    assert batches_of(options, epoch=2) == expected


@given(st.lists(st.tuples(st.integers(6, 40), st.integers(6, 40)), min_size=2, max_size=9), st.integers(1, 30),
       st.sampled_from([0.3, 1.0]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_mixed_sizes(shapes, batch, share, seed):
    options, samples = AttackerTraining(patch_size=6, batch=batch, seed=seed, mixed_sizes=share), random_samples(shapes)
    ordinary = batches_of(AttackerTraining(patch_size=6, batch=batch, seed=seed), samples)
    mixed = batches_of(options, samples)
    assert mixed == batches_of(options, samples) and len(mixed) == len(ordinary)
    for items, patches in zip(mixed, ordinary, strict=True):
        [(height, width)] = {item[1:] for item in items}
        numbers, allowed = [item[0] for item in items], [item[0] for item in patches]
        assert height >= 6 and width >= 6 and [n for n in allowed if n in numbers] == numbers
        assert all(height <= shapes[n % len(shapes)][0] and width <= shapes[n % len(shapes)][1] for n in numbers)
        assert len(items) == 1 or height * width * len(items) <= 36 * len(patches)
        assert numbers[0] == allowed[0]


def test_half_of_the_larger_crops_are_full_maps():
    options = AttackerTraining(patch_size=6, batch=12, patches_per_epoch=400, mixed_sizes=0.5)
    sizes = [items[0][1:] for items in batches_of(options, random_samples(((20, 31),) * 6))]
    share, full = (np.mean([size == wanted for size in sizes]) for wanted in ((6, 6), (20, 31)))
    assert 0.4 < share < 0.6 and 0.15 < full < 0.35
    assert len(set(sizes)) > 10 and len(sizes) == 200


def test_larger_crops_leave_no_process_without_one(monkeypatch):
    monkeypatch.setattr("training.patches.world_size", lambda: 3)
    options, samples = AttackerTraining(patch_size=6, batch=6, patches_per_epoch=50, mixed_sizes=1.0), random_samples()
    batches = batches_of(options, samples)
    assert all(len(items) >= 3 for items in batches) and any(items[0][1:] == (20, 31) for items in batches)
    assert any(items[0][1:] == (6, 6) for items in batches)  # of an image that is larger than most


def test_training_sees_full_maps_and_their_interiors(world, tmp_path, monkeypatch):
    def seen(*flags):
        with monkeypatch.context() as patch:
            calls = interrupt(patch, "training.attacker", "learn", 0)
            must(train(world, tmp_path / "-".join(map(str, ("run", *flags))), "--epochs", 3, *flags))
        assert all(len(maps) * maps[0, 0].numel() < 20 * 64 for _, _, maps, *_ in calls)  # positions of a step
        return {tuple(maps.shape[2:]) for _, _, maps, *_ in calls}

    assert seen() == {(8, 8)}
    mixed = seen("--mixed-sizes", 0.6)
    assert {(8, 8), (16, 32)} <= mixed and len(mixed) > 2
    assert all(height <= 16 and width <= 32 for height, width in mixed)


# Augmentation


def test_patches_of_the_default_are_crops_that_may_be_mirrored():
    samples = random_samples()
    patches = Patches(samples, 6, 5, 3)
    patches.epoch, mirrored = 2, 0
    for index in range(len(patches)):
        sample, turn = samples[index % 6], index // 6
        rng = stream(5, "attacker", 2, turn, sample.name)
        y, x = (int(draw * (length - 6 + 1)) for draw, length in zip(rng.random(2), sample.truth.shape, strict=True))
        posterior, label = sample.output[:, y : y + 6, x : x + 6].float(), sample.truth[y : y + 6, x : x + 6]
        flip = rng.random() < 0.5
        mirrored += flip
        found = patches[index]
        assert torch.equal(found[0], posterior.flip(-1) if flip else posterior) and found[2] == sample.member
        assert torch.equal(found[1], label.flip(-1) if flip else label)
    assert 0 < mirrored < len(patches)


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.tuples(st.integers(1, 12), st.integers(1, 12)))
@settings(max_examples=60, deadline=None)
def test_zoom_takes_the_nearest_position(source, size):
    array = torch.arange(2 * source[0] * source[1]).reshape(2, *source)
    expected = torch.empty(2, *size, dtype=array.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = (int(np.floor((k + 0.5) * whole / side + 1e-9))
                    for k, whole, side in zip((i, j), source, size, strict=True))
            expected[:, i, j] = array[:, y, x]
    assert torch.equal(zoom(array, size), expected)


@given(st.tuples(st.integers(6, 40), st.integers(6, 40)), st.data())
def test_windows_are_within_the_map(shape, data):
    size = tuple(data.draw(st.integers(1, length)) for length in shape)
    window = draw_window(shape, size, stream(data.draw(st.integers(0, 99)), "w"))
    for inner, side, whole in zip(window, size, shape, strict=True):
        assert 1 <= inner <= whole and side / ZOOM - 0.5 <= inner <= ZOOM * side + 0.5
    low, high = (window[0] - 0.5) / size[0], (window[0] + 0.5) / size[0]  # one factor for both sides
    assert low <= (window[1] + 0.5) / size[1] and (window[1] - 0.5) / size[1] <= high


def strong(samples, epoch=0, size=10):
    patches = Patches(samples, size, 1, 8, strong=True)
    patches.epoch = epoch
    return [patches[index] for index in range(len(patches))]


def test_strong_augmentation_keeps_each_posterior_with_its_label():
    """One-hot posteriors, as under Argmax, stay one-hot; what loses its label is one small rectangle."""
    samples, cut = random_samples(one_hot=True), 0
    before = [sample.truth.clone() for sample in samples]
    for posterior, label, _ in strong(samples):
        known = label != 255
        assert posterior.dtype == torch.float32 and posterior.shape == (4, 10, 10) and label.shape == (10, 10)
        assert ((posterior == 0) | (posterior == 1)).all() and (posterior.sum(0) == 1).all()
        assert torch.equal(posterior.argmax(0)[known], label[known].long())
        if not known.all():
            rows, columns = (~known).any(1), (~known).any(0)
            assert torch.equal(~known, rows[:, None] & columns) and max(rows.sum(), columns.sum()) <= 10 * CUT_OUT
            assert all("".join("01"[int(v)] for v in line).strip("0").count("0") == 0 for line in (rows, columns))
            cut += 1
    assert 12 < cut < 36 and all(torch.equal(s.truth, truth) for s, truth in zip(samples, before, strict=True))


def test_strong_augmentation_depends_on_seed_epoch_and_patch_only():
    samples = random_samples()
    one, two, other = strong(samples), strong(samples[::-1])[::-1], strong(samples, epoch=1)
    for turn in range(8):
        for index in range(6):
            found, again = one[turn * 6 + index], two[(7 - turn) * 6 + index]
            assert torch.equal(found[0], again[0]) and torch.equal(found[1], again[1])
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    assert torch.equal(Patches(samples, 10, 1, 8, strong=True)[(0, 12, 20)][1],
                       Patches(samples, 10, 1, 8, strong=True)[(0, 12, 20)][1])


def test_strong_augmentation_zooms_both_ways():
    """In a label that is its own column number, neighbours repeat where a patch is enlarged and skip where not."""
    label = torch.arange(40, dtype=torch.uint8).expand(40, 40).contiguous()
    sample = Sample("a", "a", "", True, torch.full((2, 40, 40), 0.5).half(), label)
    widths = [int(found[found != 255].max()) - int(found[found != 255].min()) + 1
              for _, found, _ in strong([sample], size=20) + strong([sample], 1, 20)]
    assert min(widths) < 19 and max(widths) > 21 and min(widths) >= 20 / ZOOM - 1 and max(widths) <= 20 * ZOOM + 1


def test_noise_of_the_log_posterior():
    posterior, label = torch.full((2, 300, 300), 0.5), torch.zeros(300, 300, dtype=torch.uint8)
    noisy, _ = perturb(posterior, label, stream(0, "x"))
    torch.testing.assert_close(noisy.sum(0), torch.ones(300, 300))
    ratio = (noisy[0] / noisy[1]).log()
    assert ratio.mean().abs() < 0.01 and ratio.std() == pytest.approx(NOISE * 2**0.5, rel=0.03)


def test_cut_outs_leave_the_label_that_is_given_unchanged():
    posterior, label = torch.full((2, 6, 6), 0.5), torch.zeros(6, 6, dtype=torch.uint8)
    cut = [(perturb(posterior, label, stream(seed, "x"))[1] == 255).any() for seed in range(100)]
    assert 30 < sum(cut) < 70 and not label.any() and (posterior == 0.5).all()


def test_strong_augmentation_changes_the_weights(world, tmp_path):
    for name in ("mirror", "strong"):
        must(train(world, tmp_path / name, "--steps", 2, "--augment", name))
    must(train(world, tmp_path / "default", "--steps", 2))
    mirror, other, default = (stored(tmp_path / name)["state_dict"] for name in ("mirror", "strong", "default"))
    assert equal(mirror, default) and not equal(mirror, other)


# C+GT with log-posteriors


@pytest.mark.slow
def test_attacker_on_log_posteriors(world, live, tmp_path):
    must(train(world, tmp_path / "log", "--steps", 3, "-input", "log-concate"))
    attack = ["attack.py", "-resume", tmp_path / "log" / "best.pth.tar", *live]
    assert_refused(script(*attack, "-input", "concate", "--out", tmp_path / "run"), "reads -input log-concate")
    found = {}
    for defense in ("", "-argmax", "-gauss 0.1"):
        must(script(*attack, "-input", "log-concate", *defense.split(), "--out", tmp_path / f"run{defense}"))
        found[defense] = scores(tmp_path / f"run{defense}")
        assert len(found[defense]) == 16
    assert found[""] != found["-argmax"] != found["-gauss 0.1"]
    assert stored(tmp_path / "log", "best")["view"]["input"] == "log-concate"


def test_attacker_on_log_posteriors_of_argmax_on_disk(tmp_path):
    tree = write_tree(tmp_path / "tree", names=tuple("abcdefgh"), size=(64, 128))
    must(script("train_attacker.py", "--posteriors", tree, "-input", "log-concate", "-argmax", "--patch-size", 8,
                "--width", 0.125, "--steps", 2, "--mixed-sizes", 1, "--augment", "strong", "--out", tmp_path / "run"))
    other = write_tree(tmp_path / "other", seed=1)
    must(script("attack.py", "-resume", tmp_path / "run" / "best.pth.tar", "--examples", other, "-argmax", "--select",
                "full", "--out", tmp_path / "attack"))
