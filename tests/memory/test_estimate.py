"""Memory: figures worked out by hand, and estimates against measurements of the same step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fe_adapter import FEAdapterConfig, FusedFEAdapter, VideoClassifier, apply_memory_policy, estimate_memory
from fe_adapter.errors import InputError
from fe_adapter.kernels.spec import AdapterSpec, Weights
from fe_adapter.memory.estimate import _KernelConvolution
from fe_adapter.memory.frozen_weights import _unpack
from fe_adapter.memory.measure import measure_peak_memory, measure_saved_memory
from fe_adapter.memory.optimizers import OPTIMIZERS, make_optimizer
from tests.vits import BACKBONES, build


def test_a_linear_layer_by_hand():
    layer = nn.Linear(128, 64, bias=False)
    weight, x, y = 4 * 128 * 64, 4 * 32 * 128, 4 * 32 * 64
    assert measure_saved_memory(layer, torch.randn(32, 128)) == x
    estimate = estimate_memory(layer, 32, 128)
    assert estimate.resident == weight + x
    assert estimate.saved == x
    assert estimate.peak >= weight + x + y + 3 * weight  # the gradient and AdamW's two moments


def test_peak_is_what_is_alive_at_once():
    x = torch.randn(100, 100)
    assert measure_peak_memory(lambda: x + x) == x.nbytes
    assert measure_peak_memory(lambda: ((x + x) + x) + x) == 2 * x.nbytes


def test_estimate_agrees_with_the_measured_peak():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), FusedFEAdapter(256, 32, num_frames=4), nn.Linear(256, 64))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    estimate = estimate_memory(model, 64, 20, 64)
    x = torch.randn(64, 20, 64)
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert estimate.saved == measure_saved_memory(model, x)
    step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim())
    measured = estimate.resident + state + measure_peak_memory(step)
    assert abs(estimate.peak / measured - 1) < 0.01


def test_a_frozen_model_has_nothing_to_save():
    assert estimate_memory(nn.Linear(8, 8).requires_grad_(False), 4, 8).saved == 0


POLICIES = ("none", "recompute_hidden", "recompute_input", "selective", "full", "full:0", "offload", "gelu2bit",
            "gelu2bit+recompute_input+full:0")  # fmt: skip


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("dilation", [1, "dynamic"])
@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_every_policy_as_measured(precision, dilation):
    config = FEAdapterConfig(bottleneck=8, dilation=dilation)
    model = VideoClassifier(build("timm vit"), 3, num_frames=4, config=config).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters)
    x = torch.randint(0, 256, (32, 4, 3, 32, 32), dtype=torch.uint8)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(x)
        F.cross_entropy(logits.float(), torch.zeros(32, dtype=torch.long)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    for policy in POLICIES:
        estimate = estimate_memory(model, *x.shape, dtype=x.dtype, precision=precision, policy=policy)
        apply_memory_policy(model, policy)
        # oneDNN copies bf16 tensors on CPUs with AVX-512 alone
        with torch.backends.mkldnn.flags(enabled=precision == "no"):
            measured = estimate.resident + state + measure_peak_memory(step)
        assert estimate.peak == pytest.approx(measured, rel=0.02), policy
        apply_memory_policy(model, "none")


@pytest.mark.parametrize("policy", ["int8", "nf4+full"])
def test_packed_weights_as_measured(policy):
    pytest.importorskip("bitsandbytes")
    config = FEAdapterConfig(bottleneck=8, dilation=1)
    model = VideoClassifier(build("timm vit"), 3, num_frames=4, config=config).train()
    x = torch.rand(8, 4, 3, 32, 32)
    estimate = estimate_memory(model, *x.shape, policy=policy)
    apply_memory_policy(model, policy)
    assert estimate.parameters == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    model(x).sum().backward()
    model.zero_grad()
    measured = estimate.resident + 2 * gradients + measure_peak_memory(lambda: model(x).sum().backward())
    assert estimate.peak == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float32, 4), (torch.bfloat16, 4 + 2)])
def test_unpacking_int8_makes_one_copy_in_fp32(dtype, bytes_each):
    packed, scale = torch.ones(512, 512, dtype=torch.int8), torch.ones(512)
    peak = measure_peak_memory(lambda: _unpack(packed, scale, "int8", packed.shape, dtype))
    assert peak == bytes_each * packed.numel()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_as_measured(optimizer):
    """A model of little else than an optimizer's state; bitsandbytes' own step on a CPU is not what is predicted."""
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    model = nn.Linear(2048, 512)
    estimate = estimate_memory(model, 1, 2048, optimizer=optimizer)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.01}]
    stepper = make_optimizer(optimizer, groups, 1e-3, torch.device("cpu"))

    def step():
        model(torch.ones(1, 2048)).sum().backward()
        stepper.step()

    step()
    tensors = {t.untyped_storage()._cdata: t for s in stepper.state.values() for t in s.values() if torch.is_tensor(t)}
    assert estimate.optimizer == pytest.approx(sum(t.nbytes for t in tensors.values()), rel=0.001)
    stepper.zero_grad()
    if optimizer != "adamw8bit":
        measured = estimate.parameters + estimate.optimizer + measure_peak_memory(step)
        assert estimate.peak == pytest.approx(measured, rel=0.01)


def test_a_gpu_is_imitated():
    """Under autocast its norms keep their input in fp32; what is offloaded is not on the GPU; nothing is built."""
    model = VideoClassifier(build("timm vit"), 3, num_frames=4, config=FEAdapterConfig(bottleneck=8)).to("meta")
    cpu, gpu, default, full, offloaded = (
        estimate_memory(model, 8, 4, 3, 32, 32, precision="bf16", policy=policy, device=device)
        for policy, device in (
            ("bf16", "cpu"),
            ("bf16", "cuda"),
            ("bf16", None),
            ("bf16+full", "cuda"),
            ("bf16+offload", "cuda"),
        )
    )
    assert gpu == default
    assert gpu.saved > cpu.saved
    assert offloaded.peak < full.peak < gpu.peak
    assert offloaded.saved < full.saved


def test_cost_counts_products():
    layer = nn.Linear(1024, 1024, bias=False)
    whole = estimate_memory(layer, 1024, 1024, device="cpu").work.products
    assert whole == pytest.approx(2 * 2 * 1024**3, rel=0.01)  # forward, and the weight's gradient
    half = estimate_memory(layer.requires_grad_(False), 1024, 1024, device="cpu").work.products
    assert half == pytest.approx(whole / 2, rel=0.01)


@pytest.mark.parametrize(
    "options", [{"precision": "int8"}, {"optimizer": "lion"}, {"device": "tpu"}, {"policy": "fast"}]
)
def test_bad_options(options):
    with pytest.raises(InputError, match=r"not one of|none of"):
        estimate_memory(VideoClassifier(build("timm vit"), 3, num_frames=2), 1, 2, 3, 32, 32, **options)


@pytest.mark.parametrize(("dynamic", "kernel"), [(False, (3, 1, 1)), (True, (3, 3, 3))])
def test_the_kernels_scratch_is_what_their_launchers_allocate(dynamic, kernel):
    pytest.importorskip("triton", reason="Triton is not installed")
    from bench.proof.ahead import recorded_calls
    from bench.proof.launches import plans_for
    from fe_adapter.kernels import conv, sums

    shapes = (32, 64), (32,), (32, 1, *kernel), (32,), (64, 32), (64,), (3, 32), (1,)
    weights = Weights(*(torch.empty(shape) if dynamic or i < 6 else None for i, shape in enumerate(shapes)))
    spec = AdapterSpec((1, 1, 1), None, "identity", 1, (5, 7), torch.float32)

    def backward(make_convolution):
        convolution = make_convolution(torch.Size((2, 4, 36, 64)), weights, spec)
        h = torch.empty(2, 4, 35, 32)
        rows = convolution.rows(h)
        dc, state = convolution.backward_activation(torch.empty_like(h), h, weights, rows)
        convolution.backward_hidden(dc, h, weights, rows, state)

    with plans_for("sm_90"), recorded_calls(conv, sums):
        launched = measure_peak_memory(lambda: backward(conv.KernelConvolution))
    assert measure_peak_memory(lambda: backward(_KernelConvolution)) == launched


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("hf")])
def test_an_estimate_leaves_nothing_fake_behind(name):
    """Some of transformers' functions keep what they computed for a size; a later forward was made of fake tensors."""
    model = VideoClassifier(build(name), 2, config=FEAdapterConfig(bottleneck=4), num_frames=2)
    shape = 1, 2, 3, *model.preprocessing.size
    first = estimate_memory(model, *shape)
    logits = model(torch.zeros(shape))
    assert type(logits) is torch.Tensor
    assert estimate_memory(model, *shape) == first
    assert torch.equal(model(torch.zeros(shape)), logits)
