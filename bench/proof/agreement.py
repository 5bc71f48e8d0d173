"""Adapters with random weights, and how far a way of computing one may be from float64.

The yardstick is measured, not set: the reference runs in float64 some times over, with every tensor that a layer has to
round *stochastically rounded*, and its results scatter by what rounding does to this very layer at this very input,
cancellation in short sums and jumps in a slope included. Stochastic rounding leaves alone what the type holds exactly,
is unbiased, and has twice the variance of rounding to nearest: the scatter is √2 of what is right. See Connolly, Higham
and Mary, *Stochastic rounding and its probabilistic backward error analysis*, SIAM J. Sci. Comput. 43 (2021).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fe_adapter import FEAdapter, FusedFEAdapter


def pair(embed_dim: int, bottleneck: int, *, seed: int = 0, **options) -> tuple[FEAdapter, FusedFEAdapter]:
    """The reference and the fused layer with the same random weights, none of them zero."""
    torch.manual_seed(seed)
    reference, fused = FEAdapter(embed_dim, bottleneck, **options), FusedFEAdapter(embed_dim, bottleneck, **options)
    for parameter in reference.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        nn.init.normal_(parameter, std=fan_in**-0.5)
    fused.load_state_dict(reference.state_dict())
    return reference, fused


def settled_pair(D: int, R: int, dilation: int | str = "dynamic", **options: Any) -> tuple[FEAdapter, FusedFEAdapter]:
    """A `pair` whose dilation, where it is dynamic, `settle_dilation` has settled."""
    plain, fused = pair(D, R, dilation=dilation, **options)
    settle_dilation(plain)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def settle_dilation(adapter: FEAdapter) -> None:
    """Predict dilations of about 1.4 frames: at whole ones the derivative jumps, and rounding would decide."""
    if adapter.dilation_proj is not None:
        nn.init.normal_(adapter.dilation_proj.weight, std=0.02 * adapter.bottleneck**-0.5)
        nn.init.constant_(adapter.dilation_proj.bias, 0.4)


def share_weights(exact: nn.Module, layer: nn.Module) -> None:
    """Give both the weights of ``exact``, rounded to the dtype of ``layer``."""
    layer.load_state_dict(exact.state_dict())
    exact.load_state_dict(layer.state_dict())


def forward_backward(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output and every gradient of ``layer`` at ``x``, by name."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    found = {"y": y.detach()}
    for name, tensor in (("x", x), *layer.named_parameters()):
        assert tensor.grad is not None, f"{name} has no gradient"
        found[name] = tensor.grad.clone()
    return found


PLAIN_SLACK = 3  # plain PyTorch rounds every operation: three taps and a sum are seven roundings, not one; 3 > √7
RECOMPUTED_SLACK = 2  # x computed again from y has two roundings of y more, which is √2 times as large as x: 2 = √(2·2)


class Expected(NamedTuple):
    """A result in float64, and what rounding does to it."""

    exact: Tensor
    error: Tensor  # σ_i: root mean square of the errors of each element
    spread: Tensor  # s: standard deviation of the norm of all errors
    along: Tensor  # s': root mean square of the errors' component along the exact result
    bias: float  # what is systematic, relative to the exact result


def expect(
    layer: nn.Module,
    x: Tensor,
    dy: Tensor,
    dtype: torch.dtype,
    *,
    run: Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]] = forward_backward,
) -> dict[str, Expected]:
    """What ``run`` must give, of ``layer`` computed in ``dtype``: "y" and "x", and the gradients of the parameters.

    ``layer`` is one of plain PyTorch, in any dtype. ``x`` and ``dy`` are in the dtype of the stream.
    """
    layer, stream_eps, tokens = copy.deepcopy(layer).double(), torch.finfo(x.dtype).eps, x.shape[:-1].numel()
    x, dy = x.double(), dy.double()
    exact = run(layer, x, dy)
    rounding = _Rounding(dtype, x.device)
    squares = {name: torch.zeros_like(value) for name, value in exact.items()}
    norms: dict[str, list[Tensor]] = {name: [] for name in exact}
    components: dict[str, list[Tensor]] = {name: [] for name in exact}
    for _ in range(_SAMPLES):
        with rounding:
            results = run(_rounded_weights(layer, rounding), x, dy)
        for name, value in results.items():
            eps = stream_eps if name in ("y", "x") else rounding.result(tokens)
            error = rounding.round(value, eps) - exact[name]
            squares[name] += error.square() / _SAMPLES
            norms[name].append(error.norm())
            components[name].append(_component(error, exact[name]))
    return {
        name: Expected(
            value,
            squares[name].sqrt(),
            torch.stack(norms[name]).std(),
            torch.stack(components[name]).square().mean().sqrt(),
            rounding.bias,
        )
        for name, value in exact.items()
    }


def _rounded_weights(layer: nn.Module, rounding: _Rounding) -> nn.Module:
    """A copy of ``layer`` with weights as its kernels read them: under autocast rounded, else they are so already."""
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        parameter.data = rounding.round(parameter.data, rounding.eps)
    return layer


def assert_within(actual: dict[str, Tensor], expected: dict[str, Expected], slack: float = 1, copies: int = 1) -> None:
    """Each tensor is as near to float64 as rounding allows: as a whole, in every element, and in its scale.

    With σ² the mean of the σ_i² of a tensor's n elements (see `Expected`):

    - ``‖error‖ ≤ √n·σ + 6·√(σ² + s²) + bias``: the norm of n independent normal errors exceeds √n·σ + 6 σ with a
      probability below exp(−18); s is for those that are not, as where one slope that jumps changes a sum over all
      tokens; cutting off instead of rounding shrinks all that it meets, which is the bias;
    - ``|error_i| ≤ 8·max σ_i + bias``: of 10¹⁵ normal errors one exceeds 8 σ; the largest, as slopes jump in single
      rows;
    - ``|error · exact| / ‖exact‖ ≤ 6·√(σ² + s'²) + bias``: rounding has no direction, so that a component of n normal
      errors is one such error.

    ``slack`` widens all for a way that rounds more often than `expect` does. ``copies`` of each token are equal, and so
    are their errors: a sum over tokens, as a weight's gradient and a component are, is off √copies times as far.
    """
    for name, (exact, error, spread, along, bias) in expected.items():
        found = actual[name].double() - exact
        typical = error.square().mean().sqrt()
        tiny = torch.finfo(actual[name].dtype).tiny
        bounds = {
            "as a whole": (
                found.norm(),
                exact.numel() ** 0.5 * typical + 6 * torch.hypot(typical, spread) + bias * exact.norm(),
            ),
            "in one element": (found.abs(), 8 * error.max() + bias * exact.abs()),
            "in scale": (_component(found, exact).abs(), 6 * torch.hypot(typical, along) + bias * exact.norm()),
        }
        for where, (size, allowed) in bounds.items():
            sums = name not in ("y", "x") or where == "in scale"
            widened = slack * (math.sqrt(copies) if sums else 1) * allowed
            ratio = (size / (widened + tiny)).max()  # of NaN it is NaN, which is not within
            assert ratio <= 1, f"{name}: {ratio:.3g} times the allowed error {where}"


def _component(error: Tensor, exact: Tensor) -> Tensor:
    """The component of ``error`` along ``exact``."""
    return (error * exact).sum() / (exact.norm() + torch.finfo(exact.dtype).tiny)


_SAMPLES = 8
_STEPS = 32  # operations in fp32 between two products: the taps of a convolution, and an activation


class _Rounding(TorchFunctionMode):
    """Within the block PyTorch rounds as a layer in ``dtype`` does, but stochastically; computed in float64.

    Operands and results of products are rounded to ``dtype``, gradients too; sums of L products are off by √L roundings
    of fp32 (float64 for float64), as random walks are. On GPUs with TF32 on, operands are rounded to that.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.eps = torch.finfo(dtype).eps
        self.sum_eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
        uses_tf32 = (
            dtype == torch.float32 and device.type == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32"
        )
        self.operand_eps = 2**-9 if uses_tf32 else self.eps  # 2^-10, doubled: tensor cores may cut off
        # systematic: functions that are good to some ulps, or operands that are cut off
        self.bias = self.operand_eps if uses_tf32 else self.sum(_STEPS**2)
        self.generator = torch.Generator(device).manual_seed(0)

    def result(self, length: int) -> float:
        """The relative spacing to which a sum of ``length`` products is good."""
        return max(self.eps, self.sum(length))

    def sum(self, length: int) -> float:
        """The relative spacing of a sum that stays in registers."""
        return self.sum_eps * math.sqrt(length)

    def round(self, z: Tensor, eps: float) -> Tensor:
        """``z``, in float64, rounded stochastically to multiples of ``eps·2^e``, with 2^e its power of two."""
        power = (z.view(torch.int64) & -(2**52)).view(z.dtype)  # sign and exponent, no mantissa
        spacing = eps * power + torch.finfo(z.dtype).tiny  # which is not 0 where z is
        dither = torch.rand(z.shape, generator=self.generator, dtype=z.dtype, device=z.device) - 0.5
        return (z / spacing + dither).round() * spacing

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, *bias = args
            operand = max(self.operand_eps, self.sum(_STEPS))
            x = _Rounded.apply(x, self, operand, self.result(weight.shape[0]))
            weight = _Rounded.apply(weight, self, self.operand_eps, 0)
            y = func(x, weight, *bias, **kwargs)
            return _Rounded.apply(y, self, self.result(weight.shape[1]), operand)
        if func in (F.relu, F.gelu, F.silu):
            return func(_Rounded.apply(args[0], self, self.sum(_STEPS), self.result(_STEPS)), *args[1:], **kwargs)
        if func is F.elu:  # the dilation, in fp32, is added to a number of up to T frames
            spacing = self.sum_eps * 2 * args[0].shape[1]
            return _Rounded.apply(func(*args, **kwargs), self, spacing, spacing)
        return func(*args, **kwargs)


class _Rounded(torch.autograd.Function):
    """A tensor rounded to one relative spacing, its gradient to another; 0 leaves it alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rounding: _Rounding, eps: float, gradient_eps: float) -> Tensor:
        ctx.rounding, ctx.gradient_eps = rounding, gradient_eps
        return rounding.round(z, eps)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        return (ctx.rounding.round(dz, ctx.gradient_eps) if ctx.gradient_eps else dz), None, None, None
