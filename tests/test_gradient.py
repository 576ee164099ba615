"""The white-box attack: the norm of the gradient of the loss in the weights."""

import math

import numpy as np
import pytest
import torch
from conftest import must, results, scores, script
from test_queries import Mirrored, references_of, source_of
from test_seams import assert_refused, write_other_model

from attacks import build_attack
from attacks.sample import AttackSettings
from predictors.base import PredictorOptions, Query
from predictors.samples import live_records
from predictors.torchvision import TorchvisionPredictor
from utils import VOID
from utils.cli import UserError


@pytest.fixture(scope="module")
def records(world):
    return live_records(world / "victim_in.txt", world / "victim_out.txt", world / "data", "", "streets")[:3]


def slow_norm(model, sample, step=1e-3):
    """By central differences of the mean loss, one weight after another."""
    model, weights = model.double(), list(model.parameters())

    def loss():
        with torch.no_grad():
            posterior = model(sample.image[None].double() / 255)[0, :, ::4, ::4].softmax(dim=0)
        losses = [-math.log(posterior[int(label), row, column])
                  for (row, column), label in np.ndenumerate(sample.truth.numpy()) if label != VOID]
        return sum(losses) / len(losses)

    total = 0.0
    for weight in weights:
        flat = weight.data.flatten()
        for index in range(len(flat)):
            ends = []
            for sign in (1, -1):
                flat[index] += sign * step
                weight.data = flat.reshape(weight.shape)
                ends.append(loss())
                flat[index] -= sign * step
            weight.data = flat.reshape(weight.shape)
            total += ((ends[0] - ends[1]) / (2 * step)) ** 2
    return math.sqrt(total)


def test_norms_agree_with_differences(records):
    """For the target model and for three references, of which the second saw the first image."""
    source = source_of(records[:1], Mirrored(1), 4, references=references_of(records))
    attack = build_attack("gradient", AttackSettings())
    [sample] = source.samples(attack.needs)
    norms = list(sample.gradients())
    assert len(norms) == 4 and norms[0] == pytest.approx(slow_norm(Mirrored(1), sample), rel=1e-3)
    [scored] = attack.score([sample])
    expected = np.mean(np.log([norms[1], norms[3]])) - math.log(norms[0])
    assert sample.in_reference == (False, True, False) and scored.score == pytest.approx(expected)


def test_without_references(records):
    attack = build_attack("gradient", AttackSettings())
    for sample in source_of(records, Mirrored(3), 4).samples(attack.needs):
        [scored], [norm] = attack.score([sample]), sample.gradients()
        assert scored.score == pytest.approx(-math.log(norm))


def test_an_image_that_every_reference_saw(records):
    references = references_of(records)[1:2]
    attack = build_attack("gradient", AttackSettings())
    with pytest.raises(UserError, match="every reference"):
        list(attack.score(source_of(records[:1], Mirrored(1), 4, references=references).samples(attack.needs)))


def test_models_of_other_libraries(records, tmp_path):
    """The gradient passes through the preprocessing and the resizing of the output."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None,
                                                                        num_classes=19).eval()
    torch.save(network.state_dict(), tmp_path / "model.pth")
    predictor = TorchvisionPredictor(f"lraspp_mobilenet_v3_large={tmp_path / 'model.pth'}", PredictorOptions(stride=4))
    image, truth = records[0].load_image(), torch.from_numpy(records[0].load_label()[::4, ::4].copy())
    query = Query(records[0], image)
    assert predictor.predict([query])[0].shape[1:] == truth.shape  # in inference mode, before the gradient
    found = predictor.gradient_norm(query, truth)
    logits = network(predictor.preprocess.prepare(image)[None])["out"][0, :, ::4, ::4]
    known = truth != VOID
    loss = torch.nn.functional.cross_entropy(logits.permute(1, 2, 0)[known], truth[known].long())
    loss.backward()
    expected = math.sqrt(sum(float(one.grad.double().square().sum()) for one in network.parameters()))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_through_the_script(world, live, tmp_path):
    other = write_other_model(world / "victim" / "last.pth.tar", tmp_path / "other.pth.tar")
    flags = ["--references", world / "shadow", "--control", other]
    found = {}
    for name, more in (("plain", []), ("references", flags), ("dropout", ["-test-dropout", 0.5])):
        must(script("attack.py", "--attack", "gradient", *live, *more, "--out", tmp_path / name))
        found[name] = scores(tmp_path / name)
    assert len({tuple(one.values()) for one in found.values()}) == 3
    result = results(tmp_path / "references")
    assert result["attack"] == "gradient" and "model" in result["controls"]


@pytest.mark.parametrize("flags, message", [
    (["-argmax"], "reads weights, and -argmax changes outputs only"),
    (["--keep", "TREE"], "--keep stores one output"), (["--references", "stored:TREE"], "are stored"),
    (["--c", 0.5], "--c has no effect"), (["-num-patch", 3], "-num-patch has no effect")])
def test_flags_of_this_attack(live, stored_tree, tmp_path, flags, message):
    flags = [str(one).replace("TREE", str(stored_tree)) for one in flags]
    assert_refused(script("attack.py", "--attack", "gradient", *live, *flags, "--out", tmp_path / "run"), message)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def stored_tree(live, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    must(script("attack.py", "--attack", "loss", *live, "--patch-size", 6, "--keep", folder / "tree", "--out",
                folder / "run"))
    return folder / "tree"


def test_stored_posteriors_have_no_weights(stored_tree, tmp_path):
    result = script("attack.py", "--attack", "gradient", "--examples", stored_tree, "--out", tmp_path / "run")
    assert_refused(result, "give --victim")
