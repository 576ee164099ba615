"""pix2pixHD and SPADE: published numbers of parameters, losses against slow versions, and one step of training.

A step at full width takes 8 seconds on one thread and up to 4 GB: `pytest -m huge tests/test_generators.py`.
"""

import time
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_translation import count

from models import TRANSLATORS
from models.translation import patch_losses
from models.translation.patch_losses import MultiScaleDiscriminator, feature_matching, halve
from models.translation.pix2pixhd import GlobalGenerator, LocalEnhancer, Pix2PixHD, ResidualBlock
from models.translation.spade import Spade, SpadeBlock, SpadeGenerator, SpadeNorm
from utils.cli import UserError

LABELS = 36  # channels of Cityscapes in the papers: 35 one-hot and the edges of instances
SMALL = {
    "pix2pix": {"width": 2, "size": 64},
    "pix2pixhd": {"width": 2, "size": 32},
    "pix2pixhd with the local enhancer": {"width": 4, "size": 64, "local": True},
    "spade": {"width": 2, "size": 64},
}
TWO_SCALES = [name for name in SMALL if name != "pix2pix"]


def small(name):
    """A small translator of this name."""
    torch.manual_seed(0)
    return TRANSLATORS.load(name.split()[0])(**SMALL[name])


def batch(size, count=1):
    """Inputs and ground truth (N, 3, size, size) in -1..1."""
    stream = torch.Generator().manual_seed(1)
    return [torch.rand(count, 3, size, size, generator=stream) * 2 - 1 for _ in range(2)]


@pytest.fixture(scope="module")
def random_vgg():
    torch.manual_seed(0)
    return torchvision.models.vgg19(weights=None)


@pytest.fixture
def vgg(monkeypatch, random_vgg):
    """VGG19 with random weights in place of those of ImageNet."""
    monkeypatch.setattr(torchvision.models, "vgg19", lambda weights: random_vgg)
    patch_losses.vgg19.cache_clear()
    yield patch_losses.vgg19()
    patch_losses.vgg19.cache_clear()


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("parameters, build, arguments", [
    (182_546_755, GlobalGenerator, {"inputs": LABELS}),
    (182_857_059, LocalEnhancer, {"inputs": LABELS}),
    (5_603_202, MultiScaleDiscriminator, {"inputs": LABELS + 3}),
    (93_048_003, SpadeGenerator, {"inputs": LABELS, "ups": 6}),
    (96_492_483, SpadeGenerator, {"inputs": 151, "ups": 5}),
    (5_601_410, MultiScaleDiscriminator, {"inputs": LABELS + 3, "spectral": True}),
])
def test_published_numbers_of_parameters(parameters, build, arguments):
    with torch.device("meta"):
        assert count(build(**arguments)) == parameters


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_range(name):
    net = small(name)
    inputs = batch(SMALL[name]["size"], 2)[0]
    assert (inputs.shape[-1] % net.multiple) == 0
    out = net(inputs)
    assert out.shape == inputs.shape and out.abs().max() <= 1


@pytest.mark.parametrize("name", TWO_SCALES)
def test_other_sides_that_are_multiples(name):
    net = small(name).eval()
    images = torch.rand(1, 3, 2 * net.multiple, 3 * net.multiple)
    assert net(images).shape == images.shape


@pytest.mark.parametrize("build, size", [(Pix2PixHD, 40), (Pix2PixHD, 16), (Spade, 48), (Spade, 32), (Spade, 544)])
def test_sides_that_do_not_fit_are_refused(build, size):
    with pytest.raises(UserError, match=f"training images of {size} x {size} do not fit"):
        build(width=1, size=size)


def test_spade_doubles_the_size_once_more_from_512_on():
    assert [Spade(width=1, size=size).multiple for size in (64, 256, 512, 1024)] == [32, 32, 64, 64]


@pytest.mark.parametrize("ups", [5, 6])
def test_the_first_block_of_spade_sees_a_small_map(ups):
    net, seen = SpadeGenerator(width=1, ups=ups).eval(), []
    for block in net.blocks:
        block.register_forward_hook(lambda block, inputs, out: seen.append(out))
    images = net(torch.rand(1, 3, 128, 128))
    last = torch.where(seen[-1] > 0, seen[-1], 0.2 * seen[-1])
    torch.testing.assert_close(images, F.conv2d(last, net.last.weight, net.last.bias, padding=1).tanh())
    sizes = [out.shape[-1] for out in seen]
    assert sizes == ([4, 8, 8, 16, 32, 64, 128] if ups == 5 else [2, 4, 8, 16, 32, 64, 128])


def test_the_discriminator_returns_the_features_of_two_scales():
    net, pairs = MultiScaleDiscriminator(width=2), torch.rand(1, 6, 64, 64)
    features = net(pairs)
    assert [[tuple(layer.shape[1:]) for layer in layers] for layers in features] == [
        [(2, 33, 33), (4, 17, 17), (8, 9, 9), (16, 10, 10), (1, 11, 11)],
        [(2, 17, 17), (4, 9, 9), (8, 5, 5), (16, 6, 6), (1, 7, 7)]]
    assert torch.equal(features[0][-1], net.scales[0](pairs)[-1])
    assert torch.equal(features[1][-1], net.scales[1](halve(pairs))[-1])


def test_halve_takes_the_mean_of_3_x_3_pixels():
    images = torch.rand(1, 1, 6, 8)
    for y in range(3):
        for x in range(4):
            pixels = [images[0, 0, j, i].item() for j in range(6) for i in range(8)
                      if abs(j - 2 * y) <= 1 and abs(i - 2 * x) <= 1]
            assert halve(images)[0, 0, y, x].item() == pytest.approx(sum(pixels) / len(pixels), rel=1e-5)


def test_a_logit_of_the_first_scale_sees_70_pixels():
    network = MultiScaleDiscriminator(width=2).scales[0]
    for layer in network.layers[1:-1]:
        layer[1] = torch.nn.Identity()  # InstanceNorm has the statistics of all pixels
    images = torch.zeros(1, 6, 256, 256, requires_grad=True)
    network(images)[-1][0, 0, 16, 16].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_spectral_normalisation_makes_the_largest_singular_value_1():
    net = small("spade").train()
    normed = [convolution for block in net.generator.blocks for convolution in block.convolutions]
    normed += [layer[0] for scale in net.discriminator.scales for layer in scale.layers[1:-1]]
    assert len(normed) == 7 * 2 + 4 + 2 * 3
    for convolution in normed:
        for _ in range(200):
            weight = convolution.weight  # each access in training is one more step of the power iteration
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


def test_initial_weights():
    torch.manual_seed(0)
    hd, spade = GlobalGenerator(width=4), SpadeGenerator(width=4)
    assert hd.body[6].layers[0][0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    gamma = spade.blocks[0].norms[0].gamma.weight  # 64 outputs, 8 inputs
    assert gamma.std().item() == pytest.approx(0.02 * (2 / (9 * (64 + 8))) ** 0.5, rel=0.05)
    weight = spade.blocks[0].convolutions[0].parametrizations.weight.original
    assert weight.std().item() == pytest.approx(0.02 * (2 / (9 * (64 + 64))) ** 0.5, rel=0.05)
    biases = [bias for net in (hd, spade) for name, bias in net.named_parameters() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)
    for build, std in ((Pix2PixHD, 0.02), (Spade, 0.02 * (2 / (16 * (6 + 16))) ** 0.5)):
        weight = build(width=16, size=64).discriminator.scales[0].layers[0][0].weight  # 16 outputs, 6 inputs, 4 x 4
        assert weight.std().item() == pytest.approx(std, rel=0.1)


def instance_norm(features):
    """Each channel of each image minus its mean, divided by its standard deviation."""
    mean = features.mean(dim=(2, 3), keepdim=True)
    return (features - mean) / (features.var(dim=(2, 3), correction=0, keepdim=True) + 1e-5) ** 0.5


def reflected(convolution, features, pad):
    """A convolution of features (N, C, h, w) that repeat the inner pixels outside the border, in reverse order."""
    return F.conv2d(F.pad(features, (pad,) * 4, mode="reflect"), convolution.weight, convolution.bias)


def test_layers_of_pix2pixhd_against_a_slow_version():
    torch.manual_seed(0)
    block, features = ResidualBlock(4), torch.randn(2, 4, 5, 6)
    one, two = block.layers[0][0], block.layers[1]
    hidden = instance_norm(reflected(one, features, 1)).clamp(min=0)
    expected = features + instance_norm(reflected(two, hidden, 1))
    torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-5)
    net, images = GlobalGenerator(width=2), torch.rand(1, 3, 32, 32)
    expected = instance_norm(reflected(net.body[0][0], images, 3)).clamp(min=0)
    torch.testing.assert_close(net.body[0](images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(images), reflected(net.last[0], net.body(images), 3).tanh())


@pytest.mark.parametrize("outputs", [4, 2])
def test_the_residual_block_of_spade_against_a_slow_version(outputs):
    torch.manual_seed(0)
    block, features, maps = SpadeBlock(4, outputs, 3, 4), torch.randn(2, 4, 4, 4), torch.rand(2, 3, 8, 8)
    (one, two), shortcut = block.convolutions[:2], features
    hidden = block.norms[0](features, maps)
    hidden = F.conv2d(torch.where(hidden > 0, hidden, 0.2 * hidden), one.weight, one.bias, padding=1)
    hidden = block.norms[1](hidden, maps)
    hidden = F.conv2d(torch.where(hidden > 0, hidden, 0.2 * hidden), two.weight, two.bias, padding=1)
    if outputs != 4:
        shortcut = F.conv2d(block.norms[2](features, maps), block.convolutions[2].weight)
    torch.testing.assert_close(block(features, maps), shortcut + hidden)


def test_spade_norm_against_a_slow_version():
    torch.manual_seed(0)
    norm, features, maps = SpadeNorm(2, 3, 4), torch.randn(2, 2, 4, 4), torch.rand(2, 3, 8, 8)
    out = norm(features, maps)
    small_maps = maps[:, :, ::2, ::2]  # nearest neighbour
    hidden = F.conv2d(small_maps, norm.shared[0].weight, norm.shared[0].bias, padding=1).clamp(min=0)
    gamma, beta = (F.conv2d(hidden, part.weight, part.bias, padding=1) for part in (norm.gamma, norm.beta))
    for channel in range(2):
        values = features[:, channel].flatten().tolist()
        mean = sum(values) / len(values)
        std = (sum((value - mean) ** 2 for value in values) / len(values) + 1e-5) ** 0.5
        for n, y, x in ((0, 0, 0), (0, 3, 1), (1, 2, 2)):
            where = (n, channel, y, x)
            expected = (1 + gamma[where].item()) * (features[where].item() - mean) / std + beta[where].item()
            assert out[where].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------

def slow_mean(values):
    total, number = 0.0, 0
    for value in values.flatten().tolist():
        total, number = total + value, number + 1
    return total / number


def slow_matching(true, made):
    """Equation 4 of pix2pixHD: sum over the layers T of 1 / N |D(s, x) - D(s, G(s))|, and the mean over two scales."""
    total = 0.0
    for scale in range(2):
        for layer in range(4):
            total += slow_mean((true[scale][layer] - made[scale][layer]).abs())
    return total / 2


def adversarial(name, true, made):
    """Losses (generator, discriminator) from the logits of one scale, element by element."""
    true, made = true.flatten().tolist(), made.flatten().tolist()
    if name == "spade":
        return (sum(-m for m in made) / len(made),
                sum(max(0, 1 - t) for t in true) / len(true) + sum(max(0, 1 + m) for m in made) / len(made))
    return (sum((m - 1) ** 2 for m in made) / len(made),
            sum((t - 1) ** 2 for t in true) / len(true) / 2 + sum(m**2 for m in made) / len(made) / 2)


@pytest.fixture(params=["pix2pixhd", "spade"])
def case(request):
    """Name, translator, inputs, truth, outputs, and the features of truth and outputs at two scales."""
    net = small(request.param).eval()  # in eval mode spectral normalisation has no step of the power iteration
    for layers in net.discriminator.scales:
        torch.nn.init.normal_(layers.layers[-1].weight)  # logits on both sides of -1 and 1
    inputs, truth = batch(SMALL[request.param]["size"], 2)
    outputs = net(inputs).detach()
    with torch.no_grad():
        true, made = (net.discriminator(torch.cat([inputs, images], dim=1)) for images in (truth, outputs))
    assert min(layers[-1].min() for layers in made) < -1 and max(layers[-1].max() for layers in true) > 1
    return request.param, net, inputs, truth, outputs, true, made


def test_losses_against_slow_versions(case):
    name, net, inputs, truth, outputs, true, made = case
    generator, discriminator = (sum(losses) for losses in zip(*(
        adversarial(name, true[scale][-1], made[scale][-1]) for scale in range(2)), strict=True))
    if name == "spade":  # SPADE averages over the scales, and pix2pixHD sums
        generator, discriminator = generator / 2, discriminator / 2
    assert net.discriminator_loss(inputs, truth, outputs).item() == pytest.approx(discriminator, rel=1e-4)
    expected = generator + 10 * slow_matching(true, made)
    assert net.generator_loss(inputs, truth, outputs).item() == pytest.approx(expected, rel=1e-4)


def test_feature_matching_against_a_slow_version():
    true, made = ([[torch.randn(1, 2, 3, 3 + layer) for layer in range(5)] for _ in range(2)] for _ in range(2))
    assert feature_matching(true, made).item() == pytest.approx(slow_matching(true, made), rel=1e-5)


def test_perceptual_loss_against_a_slow_version(case, vgg):
    _, net, inputs, truth, outputs, *_ = case
    without = net.generator_loss(inputs, truth, outputs)
    expected, weights, first = 0.0, [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1], True
    two = [truth, outputs]
    with torch.no_grad():
        for layer in vgg:
            two = [layer(images) for images in two]
            if isinstance(layer, torch.nn.ReLU) and first:  # relu1_1 ... relu5_1: the first after each pooling
                expected += weights.pop(0) * slow_mean((two[0] - two[1]).abs())
            first = isinstance(layer, torch.nn.MaxPool2d) or (first and not isinstance(layer, torch.nn.ReLU))
    assert not weights
    assert patch_losses.perceptual(outputs, truth).item() == pytest.approx(expected, rel=1e-4)
    net.vgg = True
    assert net.generator_loss(inputs, truth, outputs).item() == pytest.approx(without.item() + 10 * expected, rel=1e-4)


def test_perceptual_loss_has_a_gradient_and_is_no_part_of_the_state(vgg):
    net = Spade(width=1, size=64, vgg=True)
    assert net.vgg and net.state_dict().keys() == Spade(width=1, size=64).state_dict().keys()
    truth, outputs = batch(32)
    patch_losses.perceptual(outputs.requires_grad_(), truth).backward()
    assert outputs.grad.abs().sum() > 0 and not any(weight.requires_grad for weight in vgg.parameters())


@pytest.mark.parametrize("build", [Pix2PixHD, Spade])
def test_without_the_weights_of_vgg_an_error_says_to_leave_it_out(build, monkeypatch):
    def fail(weights):
        raise URLError("no network")
    monkeypatch.setattr(torchvision.models, "vgg19", fail)
    patch_losses.vgg19.cache_clear()
    with pytest.raises(UserError, match=r"vgg19 could not be downloaded \(URLError\); leave vgg out") as error:
        build(width=1, size=64, vgg=True)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------

def step(net, inputs, truth):
    """One step of the discriminator and one of the generator. Returns the two losses."""
    made, judge = (torch.optim.Adam(part.parameters(), rate, net.betas) for part, rate in zip(
        (net.generator, net.discriminator), net.rates, strict=True))
    outputs = net(inputs)
    judge.zero_grad()
    discriminator_loss = net.discriminator_loss(inputs, truth, outputs.detach())
    discriminator_loss.backward()
    judge.step()
    made.zero_grad()
    generator_loss = net.generator_loss(inputs, truth, outputs)
    generator_loss.backward()
    made.step()
    return generator_loss.item(), discriminator_loss.item()


def test_rates_and_betas_of_the_papers():
    settings = [(build.rates, build.betas) for build in (Pix2PixHD, Spade)]
    assert settings == [((2e-4, 2e-4), (0.5, 0.999)), ((1e-4, 4e-4), (0.0, 0.9))]


def finite(net):
    return all(tensor.isfinite().all() for tensor in net.state_dict().values())


@pytest.mark.parametrize("name", SMALL)
def test_one_step_changes_every_weight(name):
    net = small(name).train()
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    losses = step(net, *batch(SMALL[name]["size"], 2))
    assert torch.tensor(losses).isfinite().all() and finite(net)
    for key, value in net.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), key
        if value.ndim > 1:  # a bias before a normalisation has a gradient of 0
            assert not torch.equal(before[key], value), key


@pytest.mark.parametrize("name", TWO_SCALES)
def test_steps_lower_the_loss(name):
    net = small(name).train()
    inputs, truth = batch(SMALL[name]["size"])
    net.rates = (2e-3, 0.0)  # against a fixed discriminator
    first, *_, last = [step(net, inputs, truth)[0] for _ in range(12)]
    assert last < first


@pytest.mark.parametrize("name", SMALL)
def test_the_state_can_be_loaded_and_outputs_repeat(name):
    net, other = small(name), small(name)
    inputs, truth = batch(SMALL[name]["size"])
    step(net.train(), inputs, truth)
    net.load_state_dict(net.state_dict())
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        first, second, third = net.eval()(inputs), net(inputs), other.eval()(inputs)
    assert first.isfinite().all() and torch.equal(first, second) and torch.equal(first, third)


@pytest.mark.parametrize("name", TWO_SCALES)
def test_both_losses_have_their_gradients_in_one_autocast_context(name):
    net = small(name).train()
    inputs, truth = batch(SMALL[name]["size"])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(inputs)
        losses = [net.generator_loss(inputs, truth, outputs), net.discriminator_loss(inputs, truth, outputs.detach())]
    for loss, part in zip(losses, (net.generator, net.discriminator), strict=True):
        net.zero_grad()
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(value.grad is not None and value.grad.isfinite().all() for value in part.parameters())


@pytest.mark.huge
@pytest.mark.parametrize("build", [Pix2PixHD, Spade])
def test_one_step_at_full_width(build):
    torch.manual_seed(0)
    net = build(size=64, inputs=LABELS).train()
    start = time.perf_counter()
    stream = torch.Generator().manual_seed(1)
    losses = step(net, torch.rand(1, LABELS, 64, 64, generator=stream), torch.rand(1, 3, 64, 64, generator=stream))
    print(f"{build.__name__}: losses {losses}, {time.perf_counter() - start:.1f} s")
    assert torch.tensor(losses).isfinite().all() and finite(net)
    with torch.no_grad():
        assert net.eval()(torch.rand(1, LABELS, 64, 64)).isfinite().all()
