"""An epoch of clips from video files to the device, cropped, mirrored and augmented; and what training makes of them.

Of H.264 videos of 64 frames, T are used. The baseline is one process and torchvision's RandAugment. Packs are of the
same videos, decoded once (`fe-adapter data pack`): "packed" by default, as JPEG of 256 pixels; "packed raw" whole. On a
GPU, ours scale and augment there; where there is none, "for a GPU" is what is left to a core. "steps" are those that
consume the clips, of a frozen ViT with static adapters.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases.step import VITS, Net
from bench.measure.case import Point, Provider, SkippedError
from bench.measure.harness import Contender

# What reads videos is imported by the functions that need it: other cases run without.

BASELINE = "torchvision"
NUM_FRAMES = 64  # of a video
NUM_VIDEOS = 8  # that differ
FILES_AND_PACKS = ("torchvision", "one process", "packed", "packed raw", "for a GPU", "packed, for a GPU", "decoding")


def points(device: torch.device, quick: bool) -> Sequence[Point]:
    if quick:
        return [Point({"vit": "tiny", "T": 4, "B": 2, "clips": 4, "pixels": 64, "precision": "no"}, rounds=3, warmup=1)]
    sizes = {"vit": "ViT-B/16", "T": 16, "B": 8, "clips": 32, "pixels": 288, "precision": "bf16"}
    large = Point(sizes | {"clips": 16, "pixels": 720}, rounds=10, warmup=1, only=FILES_AND_PACKS)
    return [Point(sizes, rounds=15, warmup=1), large]


def providers(point: Point, device: torch.device) -> Mapping[str, Provider]:
    from fe_adapter.data import Feed, TrainTransform

    side = VITS[point["vit"]][1].get("img_size", 224)
    transform = TrainTransform((side, side))
    videos = functools.cache(functools.partial(_write_videos, point))

    packs = {"packed": functools.cache(lambda: _pack(videos())),
             "packed raw": functools.cache(lambda: _pack(videos(), codec="raw", size=None))}  # fmt: skip

    def fed(
        role: str, num_workers: int, transform: Callable[..., Tensor], data: Callable[[], Path] = videos
    ) -> Provider:
        def build() -> Contender:
            feed = Feed(_open(data(), point, transform), point["B"], device=device, num_workers=num_workers)
            return _contender(lambda: (batch["video"] for batch in feed.epoch(0)), functools.partial(expected, data))

        return Provider(build, role)

    def expected(data: Callable[[], Path]) -> Tensor:
        clips = _open(data(), point, functools.partial(torchvisions, transform))
        return torch.stack([clips[i]["video"] for i in range(point["B"])])

    def cut(data: Callable[[], Path] = videos) -> Contender:
        clips = _open(data(), point, transform)
        return _contender(lambda: (clips.unfinished(i)["video"] for i in range(point["clips"])))

    def decoded() -> Contender:
        clips = _open(videos(), point, None)
        return _contender(lambda: (clips[i]["video"] for i in range(point["clips"])))

    def steps() -> Contender:
        if device.type == "cpu" and side == 224:
            raise SkippedError("on a CPU they take minutes")
        net = Net(point, device)
        step = net.contender(net.adapted(1)).step
        return Contender(lambda _: [step(None) for _ in range(point["clips"] // point["B"])])

    found = {
        "torchvision": fed("rival", 0, functools.partial(torchvisions, transform)),
        "one process": fed("ours", 0, transform),
        "1 worker": fed("ours", 1, transform),
        "2 workers": fed("ours", 2, transform),
        **{name: fed("ours", 0, transform, pack) for name, pack in packs.items()},
        "decoding": Provider(decoded, "floor"),
        "steps": Provider(steps, "floor"),
    }
    if device.type == "cpu":
        found["for a GPU"] = Provider(cut, "ours")
        found["packed, for a GPU"] = Provider(functools.partial(cut, packs["packed"]), "ours")
    return found


def torchvisions(transform: Any, clip: Tensor, seed: int) -> Tensor:
    """``transform``, whose RandAugment is torchvision's."""
    from torchvision.transforms import v2

    plain = dataclasses.replace(transform, randaugment=False)(clip, seed)
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator
        torch.manual_seed(seed)
        return v2.RandAugment(num_ops=4, magnitude=21, num_magnitude_bins=31)(plain)


def _contender(epoch: Callable[[], Iterable[Tensor]], expected: Callable[[], Tensor] | None = None) -> Contender:
    def step(_: object) -> None:
        for video in epoch():
            del video  # what consumes it is not measured here

    def check() -> None:
        """The same crops and operations of the same frames; a GPU scales, turns and shears a few pixels otherwise."""
        if expected is not None:
            off = (next(iter(epoch())).cpu().float() - expected().float()).abs().mean().item()
            assert off < 2, f"pixels are off by {off:.1f} levels, on average, from torchvision's"

    return Contender(step, check=check)


def _open(folder: Path, point: Point, transform: Any) -> Any:
    from fe_adapter.data import FrameSampler
    from fe_adapter.data.datasets import open_dataset

    return open_dataset(folder, sampler=FrameSampler(point["T"]), transform=transform, is_training=True)


def _pack(videos: Path, **options: Any) -> Path:
    from fe_adapter.data.pack import pack_data

    folder = _temporary_folder()
    pack_data(videos, folder, **options)
    return folder


def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _write_videos(point: Point) -> Path:
    """As many files as clips, in two classes: coloured patches that move, and noise, so that decoding takes work."""
    import av

    folder = _temporary_folder()
    h, w = point["pixels"], point["pixels"] * 2 // 3 * 2
    generator = torch.Generator().manual_seed(0)
    for i in range(point["clips"]):
        path = folder / str(i % 2) / f"{i:04d}.mp4"
        path.parent.mkdir(exist_ok=True)
        if i >= NUM_VIDEOS:
            shutil.copyfile(folder / str(i % 2) / f"{i % NUM_VIDEOS:04d}.mp4", path)
            continue
        patches = torch.rand(1, 3, h // 8, w // 8, generator=generator)
        scene = F.interpolate(patches, (2 * h, 2 * w), mode="bicubic").clamp(0, 1)[0].mul(255)
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"crf": "23"})
            stream.height, stream.width, stream.pix_fmt = h, w, "yuv420p"
            for t in range(NUM_FRAMES):
                y, x = h * t // NUM_FRAMES, w * t // NUM_FRAMES
                noise = torch.randint(-6, 7, (3, h, w), generator=generator)
                frame = (scene[:, y : y + h, x : x + w] + noise).clamp(0, 255).byte()
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")))
            file.mux(stream.encode(None))
    return folder
