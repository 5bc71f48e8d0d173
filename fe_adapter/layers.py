"""The adapter as a layer: `FEAdapter`, the readable reference, and `FusedFEAdapter`, the same on fused kernels."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fe_adapter import functional
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
from fe_adapter.errors import InputError
from fe_adapter.kernels.spec import AdapterSpec, Weights, as_weights
from fe_adapter.ops import direct, reference, stream
from fe_adapter.ops.stream import StreamState


class DilationProjection(nn.Module):
    """Three temporal taps that predict ``a`` of the dilation ``ELU(a) + 1``; zero at first, so the dilation is 1."""

    def __init__(
        self, bottleneck: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, bottleneck, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))


class FEAdapter(nn.Module):
    """``x + up_proj(φ(temporal_conv(down_proj(x))))`` on the patch tokens of every frame, in plain PyTorch.

    The adapter of *FE-Adapter* (arXiv 2408.02421) in front of a frozen self-attention; prefix tokens (class,
    registers) pass through bit-identical. A fresh layer is the identity: the convolution and every bias start at zero,
    the two projections as in `nn.Linear`. This class is the reference, float64 and second derivatives included;
    `FusedFEAdapter` computes the same faster and keeps less. Their state dicts interchange.

    Args:
        embed_dim: width D of the backbone.
        bottleneck: width R between the projections; None is ``embed_dim // 2``.
        num_frames: frames T of a clip, for inputs that do not say it themselves.
        kernel_size: temporal taps K, or ``(K, kh, kw)`` to convolve over the patch grid as well; odd.
        dilation: frames between taps; or ``(t, h, w)``, patches on the grid as well, of a spatial kernel; or "dynamic":
            predicted for every token, 1 at the start.
        max_dilation: upper bound of a dynamic dilation, in frames.
        causal: taps read the present frame and earlier ones alone, so that `update` can take a stream frame by frame.
        activation: φ, one of "identity", "relu", "gelu" (tanh form), "silu".
        num_prefix_tokens: tokens in front of the patches that are left alone.
        grid_size: patch grid ``(H, W)``; needed where ``kh·kw > 1`` and the grid is not square.
        recompute: None, "hidden" or "input", see `fe_adapter.functional.adapter`; the reference ignores it.
        backend: "auto", "triton" or "eager"; the reference ignores it.

    Shape:
        ``x`` (B*T, L, D) or (B, T, L, D), L = prefix + patch tokens; the output has its shape and dtype.

    Raises:
        ValueError: a size or option is out of range, or ``x`` does not fit.
        TypeError: unsupported or mixed dtypes.

    Example:
        >>> layer = FEAdapter(768, 64, num_frames=8)
        >>> x = torch.randn(2 * 8, 197, 768)
        >>> torch.equal(layer(x), x)  # fresh: the identity
        True
    """

    def __init__(
        self,
        embed_dim: int,
        bottleneck: int | None = None,
        *,
        num_frames: int,
        kernel_size: int | tuple[int, int, int] = 3,
        dilation: Dilation = "dynamic",
        max_dilation: float | None = None,
        causal: bool = False,
        activation: str = "identity",
        num_prefix_tokens: int = 1,
        grid_size: tuple[int, int] | None = None,
        recompute: str | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype={dtype} is not floating point")
        self.embed_dim = check_count("embed_dim", embed_dim, 1)
        self.bottleneck = check_count("bottleneck", max(1, embed_dim // 2) if bottleneck is None else bottleneck, 1)
        self.num_frames = check_count("num_frames", num_frames, 1)
        self.kernel_size = check_kernel_size(kernel_size)
        self.dilation = check_dilation(dilation, max_dilation, self.kernel_size)
        self.max_dilation = max_dilation
        self.causal = check_flag("causal", causal)
        check_choice("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.num_prefix_tokens = check_count("num_prefix_tokens", num_prefix_tokens, 0)
        self.grid_size = check_grid_size(grid_size)
        check_choice("recompute", recompute, RECOMPUTE)
        self.recompute = recompute
        check_choice("backend", backend, BACKENDS)
        self.backend = backend

        R = self.bottleneck
        self.down_proj = nn.Linear(embed_dim, R, device=device, dtype=dtype)
        self.temporal_conv = nn.Conv3d(R, R, self.kernel_size, groups=R, device=device, dtype=dtype)
        self.up_proj = nn.Linear(R, embed_dim, device=device, dtype=dtype)
        self.dilation_proj = DilationProjection(R, device=device, dtype=dtype) if dilation == "dynamic" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the layer the identity again, ready to be trained."""
        for linear in (self.down_proj, self.up_proj):
            linear.reset_parameters()
            nn.init.zeros_(linear.bias)
        for module in filter(None, (self.temporal_conv, self.dilation_proj)):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, num_frames: int | None = None) -> Tensor:
        T, spec = self._prepare(x, self._frames(x, num_frames))
        with torch.autocast(x.device.type, enabled=False):  # the compute dtype is settled
            return reference.adapter(x, self._weights(), spec, T)

    def init_state(self, batch_size: int, num_tokens: int) -> StreamState:
        """What `update` remembers, before the first frame of ``batch_size`` streams of ``num_tokens`` L = P + N.

        It holds as many frames as taps may ask for, R wide; of a dynamic dilation without ``max_dilation`` all there
        were.

        Raises:
            InputError: the adapter is not causal; there are no patch tokens.
        """
        if not self.causal:
            raise InputError(
                "this adapter looks at later frames, which a stream does not have yet; train one with causal=True "
                "(fe-adapter train --causal)"
            )
        B = check_count("batch_size", batch_size, 0)
        N = check_count("num_tokens", num_tokens, self.num_prefix_tokens + 1) - self.num_prefix_tokens
        most = stream.most_frames(self.kernel_size[0], self._frames_between(), self.max_dilation)
        return StreamState.empty((B, N, self.bottleneck), most, self._weights().down.detach())

    @torch.no_grad()
    def update(self, x: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """What `forward` would give at the next frame of streams, of all their frames so far.

        Args:
            x: the frame of every stream (B, L, D).
            state: as of `init_state` or the last call, whose dtype, device and shape this frame has. It is changed in
                place; ``state.reset(streams)`` lets streams begin again.

        Returns:
            Output like ``x``, without a gradient, and ``state``.

        Raises:
            InputError: the adapter is not causal, or ``state`` is of other frames.
            ValueError: ``x`` does not fit.
        """
        if x.dim() != 3:
            raise ValueError(f"a frame of streams is (B, L, D); got {tuple(x.shape)}")
        if not self.causal:
            self.init_state(len(x), x.shape[1])  # says so
        _, spec = self._prepare(x, 1)
        frames = self._frames_between() or 1  # which no clip's length bounds
        spec = dataclasses.replace(spec, dilation=(frames, *spec.dilation[1:]))
        with torch.autocast(x.device.type, enabled=False):
            return stream.update(x, self._weights(), spec, state), state

    def _frames_between(self) -> int | None:
        """Frames between taps; None where they are predicted."""
        if isinstance(self.dilation, str):
            return None
        return self.dilation[0] if isinstance(self.dilation, tuple) else self.dilation

    def __prepare_scriptable__(self) -> NoReturn:  # what torch.jit.script asks of every module first
        raise RuntimeError("torch.jit.script does not know adapters; use torch.export")

    def extra_repr(self) -> str:
        parts = [f"{self.embed_dim}, {self.bottleneck}, num_frames={self.num_frames}"]
        parts += [f"kernel_size={self.kernel_size}, dilation={self.dilation!r}"]
        defaults = {"max_dilation": None, "causal": False, "activation": "identity", "grid_size": None}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        parts.append(f"num_prefix_tokens={self.num_prefix_tokens}")
        return ", ".join(parts)

    def _prepare(self, x: Tensor, num_frames: int | None) -> tuple[int, AdapterSpec]:
        return functional.prepare(
            x,
            self._weights(),
            num_frames,
            self.dilation,
            self.max_dilation,
            self.causal,
            self.activation,
            self.num_prefix_tokens,
            self.grid_size,
        )

    def _frames(self, x: Tensor, num_frames: int | None) -> int | None:
        return self.num_frames if num_frames is None and x.dim() == 3 else num_frames

    def _weights(self) -> Weights:
        modules: Any = self._modules  # the dictionaries: a module asked for an attribute takes ten times as long
        down, conv, up = modules["down_proj"], modules["temporal_conv"], modules["up_proj"]
        dilation = modules.get("dilation_proj")
        if "base_layer" in down._modules or "base_layer" in up._modules:
            raise InputError(
                "peft has put its layers into this adapter, where they have no effect; leave adapters out of its "
                "target_modules (all-linear takes them: exclude_modules='.*fe_adapter.*')"
            )
        try:
            d, c, u = down._parameters, conv._parameters, up._parameters
            p = _NONE if dilation is None else dilation._parameters
            return as_weights(
                (d["weight"], d["bias"], c["weight"], c["bias"], u["weight"], u["bias"], p["weight"], p["bias"])
            )
        except KeyError:  # one is computed, such as by a parametrization
            p = (None, None) if dilation is None else (dilation.weight, dilation.bias)
            return Weights(down.weight, down.bias, conv.weight, conv.bias, up.weight, up.bias, *p)


_NONE = {"weight": None, "bias": None}


class FusedFEAdapter(FEAdapter):
    """`FEAdapter` on fused kernels: one registered operator forward, one backward.

    For backward it keeps ``x`` and one tensor of the bottleneck's width (see ``recompute``), where plain autograd keeps
    several of each. It can be differentiated once.
    """

    def forward(self, x: Tensor, num_frames: int | None = None) -> Tensor:
        options = (
            self.num_frames if num_frames is None and x.dim() == 3 else num_frames,
            self.dilation,
            self.max_dilation,
            self.causal,
            self.activation,
            self.num_prefix_tokens,
            self.grid_size,
            self.recompute,
            self.backend,
        )
        weights = self._weights()
        y = direct.call(x, weights, options, functional.settle)
        return functional.call(x, weights, options) if y is None else y
