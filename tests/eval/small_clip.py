"""A small CLIP of `transformers` with random weights."""

import torch
import transformers


def small_clip(patch: int = 8, image: int = 32) -> transformers.CLIPModel:
    """Random weights, large enough that patches differ."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        vision_config=dict(
            hidden_size=48, num_attention_heads=4, num_hidden_layers=3, intermediate_size=96,
            image_size=image, patch_size=patch, projection_dim=24,
        ),
        text_config=dict(
            hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64,
            vocab_size=49408, max_position_embeddings=77, projection_dim=24,
            eos_token_id=49407, bos_token_id=49406, pad_token_id=0,
        ),
        projection_dim=24,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6 if "token_embedding" not in name else 20)
            elif "bias" in name:
                parameter.normal_(std=0.1)
    return model
