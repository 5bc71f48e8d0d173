"""Models that cannot be a backbone are refused before data are read; those that can are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fe_adapter import VideoClassifier, estimate_memory
from fe_adapter.errors import InputError
from tests.vits import BACKBONES, build

TINY = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_passes_and_is_as_it_was(name):
    vit = build(name).eval()
    model = VideoClassifier(vit, 2, num_frames=2)
    assert all(p.device.type == "cpu" for p in vit.parameters())
    assert not any(module._forward_pre_hooks for module in vit.modules())
    logits = model(torch.zeros(1, 2, 3, *model.preprocessing.size))
    assert type(logits) is torch.Tensor
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("hf:videomae", TINY, "makes no features of frames"),
        ("hf:timesformer", TINY, "makes no features of frames"),
        ("hf:vivit", TINY, "is no image transformer"),
        ("hf:vilt", TINY, "makes no features of frames"),
        ("hf:layoutlmv3", TINY, "is no image transformer"),
        ("timm:cait_xxs24_224", {}, "makes no features of frames"),
        ("timm:convit_tiny", {}, "makes no features of frames"),
        ("timm:vit_tiny_patch16_224", {"in_chans": 1}, "makes no features of frames"),
        ("timm:vit_tiny_patch16_224", {"patch_size": 0}, "cannot build"),
        ("timm:vit_tiny_patch16_224", {"num_heads": 7}, "cannot build"),
        ("timm:vit_tiny_patch16_224", {"embed_dim": 0}, "cannot build"),
    ],
)
def test_others_are_refused_in_one_line(name, args, message):
    pytest.importorskip("transformers" if name.startswith("hf") else "timm")
    with pytest.raises(InputError, match=message) as caught:
        VideoClassifier.from_name(name, 2, weights=None, backbone_args=args, num_frames=2)
    assert "\n" not in str(caught.value)


class Waits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_calls", torch.zeros(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return z + 0 * z.sum().item()


def test_a_module_that_asks_for_values_is_no_reason_to_refuse():
    vit = build("timm vit")
    vit.blocks[0].mlp.drop2 = Waits()
    model = VideoClassifier(vit, 2, num_frames=2)
    assert vit.blocks[0].mlp.drop2.num_calls == 0
    size = model.num_frames, 3, *model.preprocessing.size
    assert model(torch.zeros(1, *size)).isfinite().all()
    with pytest.raises(InputError, match="the model asks for values on its way"):
        estimate_memory(model, 1, *size)


def test_tokens_that_are_not_where_the_model_says_are_refused():
    vit = build("timm vit")
    vit.num_prefix_tokens = 3
    with pytest.raises(InputError, match=r"are given \(2, 17, 48\) for two frames, not \(2, 19, 48\)"):
        VideoClassifier(vit, 2, num_frames=2)
