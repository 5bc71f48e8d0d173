"""The adapter as a function: validation and dtypes, then one registered operator."""

from __future__ import annotations

import torch
from torch import Tensor

from fe_adapter.checks import (
    ACTIVATIONS,
    BACKENDS,
    RECOMPUTE,
    Dilation,
    check_choice,
    check_count,
    check_dilation,
    check_flag,
    check_grid_size,
    check_kernel_size,
)
from fe_adapter.kernels.spec import AdapterSpec, Weights
from fe_adapter.ops import direct, operator

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def adapter(
    x: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    *,
    num_frames: int | None,
    dilation: Dilation = 1,
    dilation_weight: Tensor | None = None,
    dilation_bias: Tensor | None = None,
    max_dilation: float | None = None,
    causal: bool = False,
    activation: str = "identity",
    num_prefix_tokens: int = 1,
    grid_size: tuple[int, int] | None = None,
    recompute: str | None = None,
    backend: str = "auto",
) -> Tensor:
    """``x + up(φ(temporal_conv(down(x))))`` on patch tokens; prefix tokens pass through bit-identical.

    Differentiable once, in ``x`` and every weight. The compute dtype is autocast's where autocast is on, else that of
    ``x``; weights of another dtype are cast on use and get gradients in their own.

    Args:
        x: ``(B, T, L, D)`` or ``(B*T, L, D)``, L = prefix + patch tokens, any strides.
        down_weight: ``(R, D)``; ``down_bias``: ``(R,)``.
        conv_weight: ``(R, 1, K, kh, kw)``, odd sizes; ``conv_bias``: ``(R,)``.
        up_weight: ``(D, R)``; ``up_bias``: ``(D,)``.
        num_frames: T. None where ``x`` is 4-D and brings its own.
        dilation: frames between taps; or ``(t, h, w)``, patches on the grid as well, of a spatial kernel; or "dynamic":
            ``ELU(a) + 1`` frames, predicted for every token.
        dilation_weight: ``(3, R)``, and ``dilation_bias`` ``(1,)``: predict ``a``; only with "dynamic".
        max_dilation: upper bound of a dynamic dilation, in frames.
        causal: taps read the present frame and earlier ones alone: ``t``, ``t − d``, … ``t − (K − 1)·d``.
        activation: φ, one of "identity", "relu", "gelu" (tanh form), "silu".
        num_prefix_tokens: P, the class and register tokens in front.
        grid_size: ``(H, W)`` of the patches, needed where ``kh·kw > 1`` and the grid is not square.
        recompute: what backward computes again: None keeps ``x`` and the hidden ``(B, T, N, R)``; "hidden" keeps only
            ``x``; "input" keeps the hidden and the output (which the next LayerNorm keeps anyway), and is exact up to
            half an ulp of the output.
        backend: "auto", "triton" or "eager".

    Returns:
        A new tensor with the shape and dtype of ``x``.

    Raises:
        ValueError: shapes, sizes or options do not fit together.
        TypeError: unsupported or mixed dtypes.
        RuntimeError: ``backend="triton"`` cannot run; a second or a forward-mode derivative is asked for.
    """
    weights = Weights(
        down_weight, down_bias, conv_weight, conv_bias, up_weight, up_bias, dilation_weight, dilation_bias
    )
    options = num_frames, dilation, max_dilation, causal, activation, num_prefix_tokens, grid_size, recompute, backend
    y = direct.call(x, weights, (*options, *map(type, options)), settle)  # for 1, True and 1.0 are equal
    return call(x, weights, options) if y is None else y


def call(x: Tensor, weights: Weights, options: tuple) -> Tensor:
    """`adapter` by its operator. ``options``: its keyword arguments, the dilation's tensors left out, in order."""
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "the fused adapter is one operator that torch.jit.trace and ONNX do not know; use torch.export, or for "
            "ONNX fe-adapter export, or FEAdapter, its plain PyTorch form"
        )
    T, spec = settle(x, weights, options)
    recompute, backend = options[7:9]
    tensors = [p for p in weights if p is not None]
    needs_backward = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors))
    y, *_ = operator.forward_op(
        x,
        tensors,
        T,
        spec.dilation,
        spec.max_dilation,
        spec.causal,
        spec.activation,
        spec.num_prefix_tokens,
        spec.grid_size,
        spec.compute_dtype,
        recompute,
        needs_backward,
        backend,
    )
    return y


def settle(x: Tensor, weights: Weights, options: tuple) -> tuple[int, AdapterSpec]:
    """`prepare`, of the options of `call`."""
    *others, recompute, backend = options[:9]
    check_choice("recompute", recompute, RECOMPUTE)
    check_choice("backend", backend, BACKENDS)
    return prepare(x, weights, *others)


def prepare(
    x: Tensor,
    weights: Weights,
    num_frames: int | None,
    dilation: Dilation,
    max_dilation: float | None,
    causal: bool,
    activation: str,
    num_prefix_tokens: int,
    grid_size: tuple[int, int] | None,
) -> tuple[int, AdapterSpec]:
    """The frames T of a clip and the spec of the call; raises what `adapter` says it raises."""
    check_flag("causal", causal)
    check_choice("activation", activation, ACTIVATIONS)
    check_grid_size(grid_size)
    check_count("num_prefix_tokens", num_prefix_tokens, 0)
    _check_tensors(x, weights)
    _check_weights(weights, dilation)
    dilation = check_dilation(dilation, max_dilation, weights.conv.shape[2:])
    T = _frames(x, num_frames)
    L, D = x.shape[-2:]
    if weights.down.shape[1] != D:
        raise ValueError(f"x has width {D}, but the adapter was built for embed_dim={weights.down.shape[1]}")
    if num_prefix_tokens >= L:
        raise ValueError(f"num_prefix_tokens={num_prefix_tokens} leaves no patch tokens of the {L} tokens in x")
    grid = _grid(L - num_prefix_tokens, weights.conv.shape[-2:], grid_size)
    spec = AdapterSpec(
        dilation=_distances(dilation, T, *grid),
        max_dilation=None if max_dilation is None else float(max_dilation),
        activation=activation,
        num_prefix_tokens=num_prefix_tokens,
        grid_size=grid,
        compute_dtype=_compute_dtype(x),
        gradient_dtype=weights.down.dtype,
        causal=causal,
    )
    return T, spec


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype  # as autocast itself: never float64
    return torch.get_autocast_dtype(device)


def _frames(x: Tensor, num_frames: int | None) -> int:
    if x.dim() == 4:
        if num_frames is not None and num_frames != x.shape[1]:
            raise ValueError(f"num_frames={num_frames}, but x (B, T, L, D) = {tuple(x.shape)} has T={x.shape[1]}")
        if x.shape[1] == 0:
            raise ValueError(f"x (B, T, L, D) = {tuple(x.shape)} has no frames; an empty batch is (0, T, L, D)")
        return x.shape[1]
    if x.dim() != 3:
        raise ValueError(f"x has {x.dim()} dimensions; pass it as (B*T, L, D) or (B, T, L, D)")
    if num_frames is None:
        raise ValueError("x (B*T, L, D) does not say how many frames a clip has; pass num_frames")
    T = check_count("num_frames", num_frames, 1)
    if x.shape[0] % T:
        raise ValueError(
            f"num_frames={T} does not divide batch {x.shape[0]} of x; pass x as (B*T, L, D) with T=num_frames"
        )
    return T


def _grid(num_patches: int, kernel: tuple[int, ...], grid_size: tuple[int, int] | None) -> tuple[int, int]:
    if tuple(kernel) == (1, 1):
        return num_patches, 1
    if grid_size is None:
        side = int(num_patches**0.5 + 0.5)  # which torch.compile traces for a size that varies, unlike math.isqrt
        grid_size = (side, side)
    H, W = grid_size
    if num_patches != H * W:
        raise ValueError(
            f"a spatial kernel needs the patch grid, and {H}x{W} is not {num_patches} patches; pass grid_size=(H, W)"
        )
    return H, W


def _distances(dilation: Dilation, T: int, H: int, W: int) -> tuple[int, int, int]:
    """(t, h, w) between taps, each at most its axis's length: from there on all taps but the middle are outside."""
    if isinstance(dilation, str):
        return 1, 1, 1
    t, h, w = dilation if isinstance(dilation, tuple) else (dilation, 1, 1)
    return min(t, T), 1 if h == 1 else min(h, H), 1 if w == 1 else min(w, W)  # H of any size, where it is traced


def _check_tensors(x: Tensor, weights: Weights) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; pass a tensor (B*T, L, D) or (B, T, L, D)")
    for name, p in zip(Weights._fields, weights, strict=True):
        if not isinstance(p, Tensor) and not (p is None and name in Weights._field_defaults):
            raise TypeError(f"the {name} parameter is a {type(p).__name__}; pass a tensor")
    if any(t is not None and (t.layout != torch.strided or t.is_nested) for t in (x, *weights)):
        raise TypeError("x and the adapter's parameters must be dense tensors, neither sparse nor nested")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x is {x.dtype}; the adapter takes float32, bfloat16, float16 or float64")
    dtype, device = weights.down.dtype, x.device
    if any(p is not None and p.dtype != dtype for p in weights):
        dtypes = sorted({str(p.dtype) for p in weights if p is not None})
        raise TypeError(f"the adapter's parameters have several dtypes ({', '.join(dtypes)}); give them all one")
    if any(p is not None and p.device != device for p in weights):
        devices = sorted({str(p.device) for p in weights if p is not None} | {str(device)})
        raise ValueError(f"x and the adapter's parameters are on several devices ({', '.join(devices)})")
    if dtype not in _DTYPES:
        raise TypeError(f"the adapter's parameters are {dtype}; they must be floating point")
    if (x.dtype == torch.float64) != (dtype == torch.float64):
        raise TypeError(f"x is {x.dtype} and the adapter's parameters are {dtype}; float64 mixes with nothing else")


def _check_weights(weights: Weights, dilation: Dilation) -> None:
    if weights.down.dim() != 2 or weights.conv.dim() != 5:
        raise ValueError(
            f"down_weight {tuple(weights.down.shape)} and conv_weight {tuple(weights.conv.shape)} must be (R, D) and "
            "(R, 1, K, kh, kw)"
        )
    R, D = weights.down.shape
    if any(size % 2 == 0 for size in weights.conv.shape[2:]):
        check_kernel_size(tuple(weights.conv.shape[2:]))  # type: ignore[arg-type]  # says what is wrong
    if (weights.dilation is None) != (weights.dilation_bias is None) or (weights.dilation is None) != (
        dilation != "dynamic"
    ):
        raise ValueError(
            f"dilation={dilation!r} and dilation_weight, dilation_bias do not fit: 'dynamic' needs both, a number none"
        )
    expected = Weights((R, D), (R,), (R, 1, *weights.conv.shape[2:]), (R,), (D, R), (D,), (3, R), (1,))  # type: ignore[arg-type]
    for name, p, shape in zip(Weights._fields, weights, expected, strict=True):
        if p is not None and tuple(p.shape) != shape:
            raise ValueError(f"the {name} parameter has shape {tuple(p.shape)}; R={R} and D={D} need {shape}")
