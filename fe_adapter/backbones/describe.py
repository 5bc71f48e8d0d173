"""Find the image transformer in a model, of whichever library, and describe it.

Everything is read from the model's own attributes; nothing is decided by version numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fe_adapter.backbones import hf_vit, openclip_vit, timm_vit, torchvision_vit
from fe_adapter.backbones.backbone import Backbone, Library, unwrapped
from fe_adapter.errors import InputError

# in the order in which they are asked: towers of open_clip may be timm's
LIBRARIES: tuple[Library, ...] = (openclip_vit, timm_vit, torchvision_vit, hf_vit)


def describe_backbone(model: nn.Module) -> Backbone:
    """Find the image transformer in ``model`` and describe it.

    Raises:
        InputError: the model cannot be adapted (the message says why) or is of no known library.
    """
    model = unwrapped(model)
    name = type(model).__name__
    for library in LIBRARIES:
        if name in library.REFUSED:
            raise InputError(f"{name} cannot be adapted: {library.REFUSED[name]}")
    for library in LIBRARIES:
        backbone = library.describe(model)
        if backbone is not None:
            _refuse_patch_dropout(backbone.vit)
            return backbone
    raise InputError(
        f"{name} is no image transformer of timm, transformers, open_clip or torchvision; "
        "to adapt it anyway give blocks_path, embed_dim and num_prefix_tokens"
    )


def _refuse_patch_dropout(vit: nn.Module) -> None:
    for module in vit.modules():
        if type(module).__name__ in ("PatchDropout", "PatchDropoutWithIndices") and module.prob > 0:  # type: ignore[operator]
            raise InputError("a backbone with patch dropout cannot be adapted: frames would keep different patches")


def forward_with_mlp_adapter(block: nn.Module) -> Callable[..., Tensor]:
    """The forward ``(block, adapter, *args, **kwargs)`` that runs ``adapter`` before the block's MLP.

    Raises:
        InputError: blocks of this kind have no point before the MLP, or none that is known.
    """
    module, name = type(block).__module__, type(block).__name__
    if "Parallel" in name:
        raise InputError(f"{name} runs attention and MLP side by side: positions='mlp' does not exist, use 'attn'")
    known = [item for library in LIBRARIES for item in library.FORWARDS.items()]
    for cls in type(block).__mro__:  # FSDP2, say, makes a subclass of a block's own
        for (where, kind), forward in known:
            if cls.__name__ == kind and cls.__module__.startswith(where):
                return forward
    raise InputError(f"no point before the MLP is known for {name} of {module}; use positions='attn'")
