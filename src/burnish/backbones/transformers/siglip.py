"""The image half of SigLIP (arXiv:2303.15343) and of SigLIP 2 for one image size, as transformers names it, in timm's words."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from burnish.backbones.torchvision.names import joined, renamed

State = dict[str, Tensor]
KINDS = (
    "siglip",
    "siglip_vision_model",
)  # what a config.json of transformers calls them; SigLIP 2's is called siglip, too
POOL = "attn_pool."  # the beginning of timm's names of the layer that pools by attention

_RULES = (
    (r"embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layers\.(\d+)\.layer_norm(\d)\.", r"blocks.\1.norm\2."),
    (r"encoder\.layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"post_layernorm\.", "norm."),
    (r"head\.probe$", f"{POOL}latent"),
    (r"head\.attention\.in_proj_", f"{POOL}all."),
    (r"head\.attention\.out_proj\.", f"{POOL}proj."),
    (r"head\.layernorm\.", f"{POOL}norm."),
    (r"head\.mlp\.", f"{POOL}mlp."),
)
# Of texts, of the comparison with them, and of a head.
_LEFT_OUT = ("text_model.", "logit_scale", "logit_bias", "embeddings.position_ids", "classifier.")


def translated(state: Mapping[str, Tensor]) -> State | None:
    """The weights of the image half under timm's names; None where they are not SigLIP's.

    What belongs to texts is left out; the layer that pools by attention is kept where the file has it.
    """
    prefix = next(
        (one for one in ("vision_model.", "model.vision_model.") if any(name.startswith(one) for name in state)), ""
    )
    inside = {name.removeprefix(prefix): one for name, one in state.items()}
    kept = {name: one for name, one in inside.items() if not name.startswith(_LEFT_OUT)}
    patches = kept.get("embeddings.patch_embedding.weight")
    # CLIP has a class token; SigLIP 2 for images of any shape takes its patches by a Linear layer.
    if (
        patches is None
        or patches.ndim != 4
        or "embeddings.class_embedding" in kept
        or "post_layernorm.weight" not in kept
    ):
        return None
    try:
        return _shaped(joined(renamed(kept, _RULES), ("q", "k", "v")))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError):
        return None  # looked like it, and is something else


def _shaped(state: State) -> State:
    """Places [n d] as [1 n d]; of the layer that pools, the query apart from keys and values."""
    state["pos_embed"] = state["pos_embed"].reshape(1, *state["pos_embed"].shape[-2:])
    for kind in ("weight", "bias"):
        parts = state.pop(f"{POOL}all.{kind}", None)
        if parts is not None:
            query, key, value = parts.chunk(3)
            state[f"{POOL}q.{kind}"] = query
            state[f"{POOL}kv.{kind}"] = torch.cat([key, value])
    return state
