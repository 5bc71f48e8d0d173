"""ST-Adapter's checkpoints."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fe_adapter import FEAdapterConfig, VideoClassifier, adapt, add_adapter, set_adapter
from fe_adapter.errors import InputError
from fe_adapter.sharing import load_st_adapter, save_st_adapter
from tests.vits import build


def st_adapter_checkpoint(positions=("attn", "mlp"), D=48, R=6):
    torch.manual_seed(3)
    state = {"fc.weight": torch.randn(5, D), "fc.bias": torch.randn(5)}
    for block in range(2):
        for position in positions:
            prefix = f"transformer.resblocks.{block}.adapter_pre_{position}"
            shapes = {"fc1": (R, D), "conv": (R, 1, 3, 1, 1), "fc2": (D, R)}
            for stage, shape in shapes.items():
                state[f"{prefix}.{stage}.weight"] = torch.randn(shape)
                state[f"{prefix}.{stage}.bias"] = torch.randn(shape[0])
    return state


def test_st_adapter_checkpoints_load(tmp_path):
    state = st_adapter_checkpoint()
    torch.save({"model": state, "optimizer": {}, "next_epoch": 3}, tmp_path / "checkpoint-3.pth")
    vit = build("timm clip")
    head = load_st_adapter(vit, tmp_path / "checkpoint-3.pth", num_frames=2)
    assert torch.equal(head["weight"], state["fc.weight"])
    adapter = vit.blocks[1].fe_adapter_mlp
    assert (adapter.dilation, adapter.bottleneck) == (1, 6)
    prefix = "transformer.resblocks.1.adapter_pre_mlp"
    assert torch.equal(adapter.temporal_conv.weight, state[f"{prefix}.conv.weight"])
    assert torch.equal(adapter.up_proj.bias, state[f"{prefix}.fc2.bias"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.zeros(1)}, "holds no whole ST-Adapter"),
        (st_adapter_checkpoint(D=32), "does not fit this backbone: size mismatch"),
    ],
)
def test_foreign_st_adapter_checkpoints_are_refused(tmp_path, state, message):
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    vit = build("timm clip")
    with pytest.raises(InputError, match=message):
        load_st_adapter(vit, tmp_path / "checkpoint.pth", num_frames=2)
    assert not hasattr(vit, "fe_adaptation")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_st_adapter_checkpoints_come_out_as_they_went_in(tmp_path, suffix):
    state = st_adapter_checkpoint()
    torch.save({"model": state}, tmp_path / "in.pth")
    vit = build("timm clip")
    head = load_st_adapter(vit, tmp_path / "in.pth", num_frames=2)
    model = VideoClassifier(vit, 5, num_frames=2)
    model.head.load_state_dict(head)
    save_st_adapter(model, tmp_path / f"out{suffix}")
    if suffix == ".pth":
        written = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    else:
        written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)
    again = build("timm clip")
    load_st_adapter(again, tmp_path / f"out{suffix}", num_frames=2)
    x = torch.randn(4, 3, *model.preprocessing.size)
    assert torch.equal(again.forward_features(x), vit.forward_features(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": "dynamic"}, "has dilation=1; this model's adapters have 'dynamic'"),
        ({"dilation": 2}, "has dilation=1; this model's adapters have 2"),
        ({"dilation": 1, "causal": True}, "has causal=False"),
        ({"dilation": 1, "activation": "gelu"}, "has activation='identity'"),
    ],
)
def test_other_adapters_are_not_handed_on_as_st_adapter(tmp_path, options, message):
    vit = adapt(build("timm clip"), FEAdapterConfig(bottleneck=4, **options), num_frames=2)
    with pytest.raises(InputError, match=message):
        save_st_adapter(vit, tmp_path / "out.pth")
    with pytest.raises(InputError, match=r"neither \.pth nor \.safetensors"):
        save_st_adapter(vit, tmp_path / "out.bin")
    assert list(tmp_path.iterdir()) == []


def test_of_several_adapters_the_active_one_is_written(tmp_path):
    config = FEAdapterConfig(bottleneck=6, dilation=1)
    vit = adapt(build("timm clip"), config, num_frames=2)
    set_adapter(add_adapter(vit, "b", config), "b")
    save_st_adapter(vit, tmp_path / "b.safetensors")
    again = build("timm clip")
    load_st_adapter(again, tmp_path / "b.safetensors", num_frames=2)
    assert torch.equal(again.blocks[0].fe_adapter.down_proj.weight, vit.blocks[0].fe_adapter__b.down_proj.weight)
