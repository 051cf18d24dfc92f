"""What several families of transformers call alike: (pattern of a name, timm's words)."""

from __future__ import annotations

OF_VIT = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.(?:attention\.)?(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
)
OF_SWIN = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.norm\.", "patch_embed.norm."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"encoder\.(layers\.\d+\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
)
