"""Blocks with an adapter between their attention and their MLP: one short forward for each kind of block.

The second half of a pre-norm block is ``x + f(x)``, and the adapter must act on both x. No hook can do that exactly, so
the block's forward is written out. The adapter is the block's child ``fe_adapter_mlp``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fe_adapter.errors import InputError


def _timm_block(self: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
    x = self.fe_adapter_mlp(x)
    return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _timm_eva_block(self: Any, x: Tensor, rope: Tensor | None = None, **attention: Any) -> Tensor:
    z = self.attn(self.norm1(x), rope=rope, **attention)
    x = x + self.drop_path1(z if self.gamma_1 is None else self.gamma_1 * z)
    x = self.fe_adapter_mlp(x)
    z = self.mlp(self.norm2(x))
    return x + self.drop_path2(z if self.gamma_2 is None else self.gamma_2 * z)


def _timm_beit_block(self: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    z = self.attn(self.norm1(x), shared_rel_pos_bias=shared_rel_pos_bias)
    x = x + self.drop_path1(z if self.gamma_1 is None else self.gamma_1 * z)
    x = self.fe_adapter_mlp(x)
    z = self.mlp(self.norm2(x))
    return x + self.drop_path2(z if self.gamma_2 is None else self.gamma_2 * z)


def _vit_layer(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    z, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
    x = self.fe_adapter_mlp(self.dropout(z) + hidden_states)
    return self.dropout(self.mlp(self.layernorm_after(x))) + x


def _beit_layer(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    interpolate_pos_encoding: bool = False,
    resolution: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Tensor:
    if self.relative_position_bias is not None:
        assert resolution is not None
        window = (resolution[0] // self.patch_size, resolution[1] // self.patch_size)
        bias = self.relative_position_bias(window, interpolate_pos_encoding, dim_size=hidden_states.shape[1])
        attention_mask = bias if attention_mask is None else bias + attention_mask
    z, _ = self.attention(self.layernorm_before(hidden_states), attention_mask=attention_mask, **kwargs)
    x = self.fe_adapter_mlp(self.drop_path(self.lambda_1 * self.dropout(z)) + hidden_states)
    z = self.dropout(self.mlp(self.layernorm_after(x)))
    return self.drop_path(self.lambda_2 * z) + x


def _dino_layer(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    z, _ = self.attention(self.norm1(hidden_states), attention_mask=attention_mask, **kwargs)
    x = self.fe_adapter_mlp(self.drop_path(self.layer_scale1(z)) + hidden_states)
    return self.drop_path(self.layer_scale2(self.mlp(self.norm2(x)))) + x


def _clip_layer(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    z, _ = self.self_attn(hidden_states=self.layer_norm1(hidden_states), attention_mask=attention_mask, **kwargs)
    x = self.fe_adapter_mlp(hidden_states + z)
    return x + self.mlp(self.layer_norm2(x))


def _open_clip_block(
    self: Any, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None
) -> Tensor:
    x = q_x + self.ls_1(self.attention(q_x=self.ln_1(q_x), k_x=k_x, v_x=v_x, attn_mask=attn_mask))
    x = self.fe_adapter_mlp(x)
    return x + self.ls_2(self.mlp(self.ln_2(x)))


def _open_clip_custom_block(self: Any, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    x = x + self.ls_1(self.ln_attn(self.attn(self.ln_1(x), attn_mask=attn_mask)))
    x = self.fe_adapter_mlp(x)
    return x + self.ls_2(self.mlp(self.ln_2(x)))


def _torchvision_block(self: Any, input: Tensor) -> Tensor:
    z = self.ln_1(input)
    z, _ = self.self_attention(z, z, z, need_weights=False)
    x = self.fe_adapter_mlp(self.dropout(z) + input)
    return x + self.mlp(self.ln_2(x))


_FORWARDS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("timm.models.vision_transformer", "Block"): _timm_block,
    ("timm.models.eva", "EvaBlock"): _timm_eva_block,
    ("timm.models.beit", "Block"): _timm_beit_block,
    ("transformers.models.vit", "ViTLayer"): _vit_layer,
    ("transformers.models.deit", "DeiTLayer"): _vit_layer,
    ("transformers.models.beit", "BeitLayer"): _beit_layer,
    ("transformers.models.dinov2", "Dinov2Layer"): _dino_layer,
    ("transformers.models.dinov2_with_registers", "Dinov2WithRegistersLayer"): _dino_layer,
    ("transformers.models.dinov3_vit", "DINOv3ViTLayer"): _dino_layer,
    ("transformers.models.clip", "CLIPEncoderLayer"): _clip_layer,
    ("transformers.models.siglip", "SiglipEncoderLayer"): _clip_layer,
    ("open_clip.transformer", "ResidualAttentionBlock"): _open_clip_block,
    ("open_clip.transformer", "CustomResidualAttentionBlock"): _open_clip_custom_block,
    ("torchvision.models.vision_transformer", "EncoderBlock"): _torchvision_block,
}


def forward_with_mlp_adapter(block: nn.Module) -> Callable[..., Tensor]:
    """The forward, to be given ``block`` as its first argument, that runs ``block.fe_adapter_mlp`` before the MLP.

    Raises:
        InputError: blocks of this kind have no point before the MLP, or none that is known.
    """
    module, name = type(block).__module__, type(block).__name__
    if "Parallel" in name:
        raise InputError(f"{name} runs attention and MLP side by side: positions='mlp' does not exist, use 'attn'")
    for (where, kind), forward in _FORWARDS.items():
        if name == kind and module.startswith(where):
            return forward
    raise InputError(f"no point before the MLP is known for {name} of {module}; use positions='attn'")
