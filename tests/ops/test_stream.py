"""A stream, frame by frame, gives what the whole clip gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.proof.agreement import pair, share_weights
from fe_adapter import FEAdapter, FusedFEAdapter
from fe_adapter.errors import InputError
from tests.ops.test_causal import FORMS

FORMS = {**FORMS, "one tap": {"kernel_size": 1, "dilation": 1}, "by one row": {"dilation": 3, "num_prefix_tokens": 0}}


def causal(form: str, cls: type = FusedFEAdapter, **options) -> FEAdapter:
    return pair(6, 4, num_frames=5, causal=True, **FORMS[form], **options)[cls is FusedFEAdapter]


def streamed(layer: FEAdapter, clips: torch.Tensor, resets: dict[int, list[int]] | None = None) -> torch.Tensor:
    B, T, L, _ = clips.shape
    state, found = layer.init_state(B, L), []
    for t in range(T):
        if resets and t in resets:
            state.reset(resets[t])
        y, state = layer.update(clips[:, t], state)
        found.append(y)
    return torch.stack(found, 1)


@settings(max_examples=25, deadline=None)
@given(form=st.sampled_from(sorted(FORMS)), T=st.integers(1, 23), B=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_stream_gives_what_the_clip_gives(form, T, B, seed):
    layer = causal(form, seed=seed)
    x = torch.randn(B, T, 7 if "prefix" not in str(FORMS[form]) else 6, 6)
    torch.testing.assert_close(streamed(layer, x), layer(x), rtol=1e-5, atol=2e-5)  # of values of 10


@pytest.mark.parametrize("cls", [FEAdapter, FusedFEAdapter])
@pytest.mark.parametrize("form", FORMS)
def test_in_double_precision(cls, form):
    layer = causal(form, cls, dtype=torch.float64)
    x = torch.randn(2, 20, 7 if "prefix" not in str(FORMS[form]) else 6, 6, dtype=torch.float64)
    y = streamed(layer, x)
    torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-12)
    P = layer.num_prefix_tokens
    assert torch.equal(y[:, :, :P], x[:, :, :P])


@pytest.mark.parametrize("form", ["dilated", "dynamic", "bounded", "spatial"])
def test_streams_of_one_batch_begin_again_each_on_its_own(form):
    layer = causal(form, dtype=torch.float64)
    x = torch.randn(3, 17, 7, 6, dtype=torch.float64)
    y = streamed(layer, x, {4: [1], 9: [0, 1], 13: [2]})
    starts = {0: [0, 9], 1: [0, 4, 9], 2: [0, 13]}
    for b, begins in starts.items():
        for begin, end in zip(begins, [*begins[1:], 17], strict=True):
            torch.testing.assert_close(y[b, begin:end], layer(x[b : b + 1, begin:end])[0])


def test_all_streams_begin_again():
    layer = causal("dynamic", dtype=torch.float64)
    x, state = torch.randn(2, 30, 7, 6, dtype=torch.float64), layer.init_state(2, 7)
    for t in range(30):
        layer.update(x[:, t], state)
    state.reset()
    assert state.num_frames == 0
    y = torch.stack([layer.update(x[:, t], state)[0] for t in range(5)], 1)
    torch.testing.assert_close(y, layer(x[:, :5]))


@pytest.mark.parametrize(("form", "most"), [("static", 3), ("dilated", 9), ("bounded", 8), ("beyond the clip", 19)])
def test_the_memory_of_a_stream_ends(form, most):
    layer = causal(form)
    state, sizes = layer.init_state(1, 7), set()
    for _ in range(60):
        layer.update(torch.randn(1, 7, 6), state)
        sizes.add(state.hidden.shape[1])
    assert max(sizes) == most
    assert state.hidden.shape == (1, most, 6, 4)


def test_a_dilation_beyond_all_memory():
    layer = pair(6, 4, num_frames=2, causal=True, dilation=10**12)[1]
    x = torch.randn(1, 9, 7, 6)
    torch.testing.assert_close(streamed(layer, x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_and_autocast(dtype):
    """As near as the clip's own way is, which rounds a product and what it is added to once, not twice."""
    exact, layer = causal("dilated", FEAdapter, dtype=torch.float64), causal("dilated").to(dtype)
    share_weights(exact, layer)
    x = torch.randn(2, 12, 7, 6).to(dtype)
    y, by_clip, right = streamed(layer, x), layer(x), exact(x.double())
    assert y.dtype == dtype
    assert (y - right).abs().mean() < 2 * (by_clip - right).abs().mean()
    layer = causal("dilated")
    with torch.autocast("cpu", dtype):
        state = layer.init_state(2, 7)
        y, state = layer.update(x[:, 0].float(), state)
        assert (y.dtype, state.hidden.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(y, layer(x[:, :1].float())[:, 0], rtol=0.05, atol=0.1)


def test_an_update_has_no_gradient():
    layer = causal("static")
    y, state = layer.update(torch.randn(1, 7, 6, requires_grad=True), layer.init_state(1, 7))
    assert not y.requires_grad
    assert not state.hidden.requires_grad


def test_what_does_not_fit_is_refused():
    layer = causal("static")
    other = pair(6, 4, num_frames=5)[1]
    x = torch.randn(2, 7, 6)
    for refused in (lambda: other.init_state(2, 7), lambda: other.update(x, layer.init_state(2, 7))):
        with pytest.raises(InputError, match=r"later frames.*train one with causal=True \(fe-adapter train --causal\)"):
            refused()
    with pytest.raises(InputError, match="num_tokens=1 is too small"):
        layer.init_state(2, 1)
    with pytest.raises(InputError, match="batch_size=-1"):
        layer.init_state(-1, 7)
    with pytest.raises(InputError, match=r"the state is of 3 streams of 6 patches, 4 wide.*gives \(2, 6, 4\)"):
        layer.update(x, layer.init_state(3, 7))
    with pytest.raises(ValueError, match=r"a frame of streams is \(B, L, D\)"):
        layer.update(x[None], layer.init_state(2, 7))
    with pytest.raises(ValueError, match="x has width 5"):
        layer.update(x[..., :5], layer.init_state(2, 7))
    state = layer.init_state(2, 7)
    layer.update(x, state)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match=r"in torch\.float32 on cpu"):
        layer.update(x, state)
