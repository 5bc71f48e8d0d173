"""What a step minimises, against its equations, and what mixing makes of a batch."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from fe_adapter import VideoClassifier, load_classifier
from fe_adapter.data import EvalTransform, FrameSampler, VideoFolder
from fe_adapter.demo.dataset import write_videos
from fe_adapter.errors import InputError
from fe_adapter.evaluate import evaluate
from fe_adapter.models.inference import classify
from fe_adapter.train import TrainConfig, fit
from fe_adapter.train.losses import Criterion, balanced_weights

pytest.importorskip("timm")
LABELS = [0] * 6 + [1] * 3 + [2]
ARGS = {"img_size": 48, "patch_size": 24, "embed_dim": 24, "depth": 2, "num_heads": 2}


def criterion(**options) -> Criterion:
    data = SimpleNamespace(class_names=("a", "b", "c"), labels=LABELS)
    return Criterion(TrainConfig(label_smoothing=0.1, **options), data)


@pytest.fixture
def logits():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()


def by_hand(logits, shares, weight):
    """The mean over clips of −Σ_c weight_c t_c log p_c, term by term in float64."""
    p = logits.detach().double().softmax(-1)
    t = shares.double() * 0.9 + 0.1 / 3
    return -sum(weight(p[i, c], c) * t[i, c] * p[i, c].log() for i in range(4) for c in range(3)) / 4


TARGETS = {
    "labels": torch.tensor([0, 2, 1, 1]),
    "shares": torch.tensor([[0.5, 0.5, 0], [0.2, 0.3, 0.5], [0, 1, 0], [0.1, 0.1, 0.8]]),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("loss", ["cross_entropy", "class_balanced", "focal"])
def test_losses_are_their_equations(logits, kind, loss):
    target = TARGETS[kind]
    shares = F.one_hot(target, 3) if kind == "labels" else target
    effective = [(1 - 0.9) / (1 - 0.9**n) for n in (6, 3, 1)]
    scale = 10 / sum(n * w for n, w in zip((6, 3, 1), effective, strict=True))
    weight = {
        "cross_entropy": lambda p, c: 1.0,
        "class_balanced": lambda p, c: effective[c] * scale,
        "focal": lambda p, c: (1 - p) ** 1.5,
    }[loss]
    options = {"class_balanced": {"class_balance_beta": 0.9}, "focal": {"focal_gamma": 1.5}}.get(loss, {})
    found = criterion(loss=loss, **options)(logits, target)
    # sums of a dozen float32 terms of the size of one
    assert found.item() == pytest.approx(by_hand(logits, shares, weight).item(), rel=1e-5)
    found.backward()
    assert logits.grad.isfinite().all()


def test_focal_without_gamma_and_balance_without_beta_are_cross_entropy(logits):
    target = TARGETS["labels"]
    expected = criterion()(logits, target)
    torch.testing.assert_close(criterion(loss="focal", focal_gamma=0)(logits, target), expected)
    torch.testing.assert_close(criterion(loss="class_balanced", class_balance_beta=0)(logits, target), expected)


def test_rare_classes_weigh_more_and_absent_ones_nothing():
    weights = balanced_weights(torch.tensor([600.0, 30, 0, 1]), 0.999)
    assert weights[2] == 0
    assert weights[0] < weights[1] < weights[3]
    assert (weights * torch.tensor([600, 30, 0, 1])).sum() / 631 == pytest.approx(1)


def batch(B=4, T=3):
    video = torch.arange(B).view(B, 1, 1, 1, 1).expand(B, T, 3, 8, 8).to(torch.uint8) * 60
    return {"video": video, "label": torch.tensor([0, 1, 2, 0])}


def test_mixup_blends_clips_and_targets_alike():
    torch.manual_seed(0)
    video, target = criterion(mixup=0.8).prepare(batch())
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    share = target[1, 1]  # of its own class; the rest is that of the clip before it, which is of class 0
    assert 0 < share < 1
    assert target[1, 0] == pytest.approx(1 - share.item())
    # blended in float32, of values in [0, 1]
    torch.testing.assert_close(video[1], (share * 60 / 255).expand_as(video[1]), atol=1e-6, rtol=0)
    assert type(video) is torch.Tensor


def test_cutmix_puts_the_same_part_into_every_frame():
    torch.manual_seed(1)
    video, target = criterion(cutmix=1.0).prepare(batch())
    is_other = video[1] < 30 / 255
    assert 0 < is_other.float().mean() < 1
    assert (is_other == is_other[:1]).all()
    assert target[1, 0] == pytest.approx(is_other.float().mean().item(), abs=1e-6)


def test_mixing_is_a_function_of_the_seed_and_leaves_single_clips_alone():
    both = criterion(mixup=0.8, cutmix=1.0)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(both.prepare(batch()))
    assert torch.equal(results[0][0], results[1][0])
    one = {name: value[:1] for name, value in batch().items()}
    assert both.prepare(one)[0] is one["video"]
    with pytest.raises(InputError, match="mix frames, and cached features are none"):
        both.prepare({"video": torch.zeros(2, 4, 5, 6), "label": torch.zeros(2, dtype=torch.long)})


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, num_pairs=10, seed=0)
    return VideoFolder(folder, sampler=FrameSampler(4), transform=EvalTransform((48, 48)), in_memory=True)


def model() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier.from_name(
        "timm:vit_tiny_patch16_224", weights="none", backbone_args=ARGS, class_names=["offset", "onset"], num_frames=4
    )


RECIPE = TrainConfig(max_epochs=2, batch_size=5, lr=1e-2, warmup_epochs=0, tracker=None)


@pytest.mark.parametrize("options", [{"loss": "focal"}, {"loss": "class_balanced"}, {"mixup": 0.8, "cutmix": 1.0}])
def test_a_run_with_each_resumes_to_the_same_bits(videos, tmp_path, options):
    config = dataclasses.replace(RECIPE, **options)
    whole = fit(model(), videos, videos, config, out=tmp_path / "whole", progress=False)
    half = dataclasses.replace(config, max_epochs=2)
    interrupted = _Interrupted(videos)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), interrupted, videos, half, out=tmp_path / "half", progress=False)
    resumed = fit(model(), videos, videos, half, out=tmp_path / "half", resume=True, progress=False)
    assert resumed.history == whole.history


class _Interrupted(VideoFolder):
    """Stops in the second epoch."""

    def __init__(self, source: VideoFolder) -> None:
        self.__dict__ = dict(source.__dict__)

    def set_epoch(self, epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def test_the_temperature_is_fitted_kept_and_used(videos, tmp_path):
    result = fit(model(), videos, videos, RECIPE, out=tmp_path, progress=False)
    fitted = [entry["temperature"] for entry in result.history]
    assert all(value > 0 and value != 1 for value in fitted)
    last = load_classifier(tmp_path / "last")
    assert last.temperature == fitted[-1]
    clip = torch.stack([videos[0]["video"]])
    with torch.no_grad():
        expected = (last(clip) / fitted[-1]).softmax(-1)
    ((_, found),) = classify(last.eval(), [(0, clip)])
    torch.testing.assert_close(found, expected)
    calibrated = evaluate(last, videos, description="")
    last.temperature = 1.0
    plain = evaluate(last, videos, description="")
    assert torch.equal(plain.metrics.confusion, calibrated.metrics.confusion)
    nll = [-e.probabilities.gather(1, e.labels[:, None]).log().mean() for e in (plain, calibrated)]
    assert nll[1] < nll[0]

    before = (tmp_path / "last/adapter_config.json").read_text()
    fit(model(), videos, videos, RECIPE, out=tmp_path, resume=True, progress=False)  # there is nothing left to do
    assert (tmp_path / "last/adapter_config.json").read_text() == before
    content = json.loads(before)
    del content["classifier"]["temperature"]  # of folders from before it
    (tmp_path / "last/adapter_config.json").write_text(json.dumps(content))
    assert load_classifier(tmp_path / "last").temperature == 1.0


def test_bad_settings_are_refused():
    for options, message in (
        ({"loss": "hinge"}, "loss='hinge' is not one of"),
        ({"focal_gamma": -1}, "focal_gamma=-1 is not a number of at least 0"),
        ({"class_balance_beta": 1.0}, r"class_balance_beta=1.0 is outside \[0, 1\)"),
        ({"focal_gamma": 1.0}, "focal_gamma is of loss='focal', and the loss is 'cross_entropy'; leave it out"),
        ({"loss": "focal", "class_balance_beta": 0.9}, "class_balance_beta is of loss='class_balanced'"),
        ({"mixup": float("inf")}, "mixup=inf"),
        ({"cutmix": -0.1}, "cutmix=-0.1"),
    ):
        with pytest.raises(InputError, match=message):
            TrainConfig(**options)
