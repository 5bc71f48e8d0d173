"""What `tests.bench.test_cases` runs where PyTorch sees a CUDA that is not there: graphs are captured, not computed."""

from __future__ import annotations

from unittest import mock

import torch

from bench.cases import get_cases
from bench.measure.case import Point
from bench.proof import checks
from tests.imitated import case, main

DEVICE = torch.device("cuda")


def _use_graphs(name: str, point: Point, names: tuple[str, ...]) -> None:
    providers = get_cases()[name].providers(point, DEVICE)
    for provider in names:
        contender = providers[f"{provider} graphed"].build()
        contender.step(contender.prepare())
        assert contender.memory()["peak"] > 0


@case
def layers_are_captured() -> None:
    point = Point({"pass": "both", "B": 1, "T": 2, "N": 16, "D": 64, "R": 64, "dtype": "bfloat16"}, rounds=1)
    _use_graphs("layer", point, ("static", "dynamic", "st-adapter"))


@case
def steps_of_every_provider_are_captured() -> None:
    point = Point({"vit": "tiny", "T": 2, "B": 1, "precision": "bf16"}, rounds=1)
    rivals = ("full fine-tuning", "st-adapter", "LoRA", "linear probe", "attention probe")
    with mock.patch.object(torch.Tensor, "erfinv_", lambda t: t):  # compiled at run time, by what is not imitated
        _use_graphs("step", point, ("static", "dynamic", *rivals))


@case
def the_checks_of_make_gpu_capture() -> None:
    with mock.patch.object(checks, "assert_same_bits"):  # there are none
        checks.captured_step(DEVICE, "resident", checks.TINY)
        checks.lean_path(DEVICE, "resident", checks.TINY)


if __name__ == "__main__":
    torch.backends.cudnn.enabled = False  # which is not imitated
    torch.backends.cuda.enable_cudnn_sdp(False)
    main()
