"""Transforms in two steps: what is cut out on a CPU, and what is done to it anywhere; RandAugment as torchvision's."""

from __future__ import annotations

import pytest
import torch

from fe_adapter.data import EvalTransform, TrainTransform, randaugment
from fe_adapter.data.transforms import _resized_in_float, compact, finish


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def torchvisions(clip: torch.Tensor, seed: int) -> torch.Tensor:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator
        torch.manual_seed(seed)
        return v2.RandAugment(num_ops=4, magnitude=21, num_magnitude_bins=31)(clip)


def test_randaugment_is_torchvisions():
    """Chance, operations and magnitudes. Turned and sheared pixels may come from a neighbour where theirs, by places in
    float32, which are off by some 1e-5 of a pixel, falls on the other side of the middle between two."""
    clip = noise(2, 3, 50, 61)
    clip[1] //= 4  # of another brightness, which what is computed for each frame has to see
    used, off = set(), []
    for seed in range(60):
        operations = randaugment.draw((50, 61), torch.Generator().manual_seed(seed))
        used |= {operation.name for operation in operations}
        off.append((randaugment.augment(clip, operations) != torchvisions(clip, seed)).float().mean().item())
    assert len(used) == 14
    assert max(off) < 0.01
    assert sum(share > 0 for share in off) < 6


def test_randaugment_of_flat_and_tiny_frames():
    """What has no range to stretch, no levels to equalize and no neighbours stays."""
    names = ("AutoContrast", "Equalize", "Sharpness")
    flat = torch.full((2, 3, 5, 4), 70, dtype=torch.uint8)
    for clip in (flat, noise(1, 3, 2, 2), noise(1, 3, 1, 7)):
        before = clip.clone()
        for name in names if clip is flat else ("Sharpness",):
            assert torch.equal(randaugment.augment(clip, (randaugment.Operation(name, 0.63),)), before)
        for seed in range(20):
            operations = randaugment.draw((clip.shape[-2], clip.shape[-1]), torch.Generator().manual_seed(seed))
            assert randaugment.augment(clip, operations).shape == clip.shape
        assert torch.equal(clip, before)  # which others may hold, too


TRANSFORMS = [
    EvalTransform((24, 32)),
    EvalTransform((24, 32), "bicubic", 0.9),
    EvalTransform((24, 32), "nearest"),
    TrainTransform((24, 32)),
    TrainTransform((24, 32), interpolation="bicubic"),
    TrainTransform((40, 50), scale=(1, 1), ratio=(1.25, 1.25)),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("side", [30, 200])
def test_cutting_and_finishing_is_the_transform(transform, side):
    """A small part is sent as it is, a large one scaled: the same clip in the end."""
    clip = noise(3, 3, side, side + 20)
    for seed in range(6):
        part, edit = transform.cut(clip, seed)
        sent = compact(part, edit)
        assert sent.is_contiguous() or sent.is_contiguous(memory_format=torch.channels_last)
        assert sent[0, 0].numel() <= 4 * 24 * 32 or sent.shape == part.shape
        assert torch.equal(finish(sent, edit), transform(clip, seed))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_the_order_in_memory_changes_nothing(transform):
    clip = noise(3, 3, 60, 80)
    as_decoded = clip.contiguous(memory_format=torch.channels_last)
    for seed in range(4):
        result = transform(as_decoded, seed)
        assert result.is_contiguous()
        assert torch.equal(result, transform(clip, seed))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 32), (70, 64)])
def test_scaling_in_float_is_as_in_integers(interpolation, size):
    """A CPU's weights have 16 bits: with them, one sum in some hundred is rounded the other way. Such a level comes
    through the second pass as one or, by bicubic's weights of up to 1.25 in all, seldom as two."""
    clip = noise(2, 3, 50, 61)
    options = {"mode": interpolation, "antialias": True, "align_corners": False}
    expected = torch.nn.functional.interpolate(clip, size, **options).int()
    off = (_resized_in_float(clip, size, interpolation).int() - expected).abs()
    assert off.max() <= 2
    assert (off > 0).float().mean() < 0.03
