"""Small dual encoders of transformers with random weights, saved as on the hub."""

import torch
import transformers
from helpers import TEXTS

from cibr.models.preprocessing import train_tokenizer

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
TEXT = SIZES | dict(max_position_embeddings=40, bos_token_id=1, eos_token_id=1, pad_token_id=0)
VISION = SIZES | dict(image_size=32, patch_size=8)
SQUARE = {"height": 32, "width": 32}
CROP = {"crop_size": SQUARE, "size": {"shortest_edge": 36}}
JOINT = dict(projection_dim=16)
BERT = TEXT | dict(model_type="bert")
VIT = VISION | dict(model_type="vit")

# By model: settings of its text tower, its vision tower and the whole, its image processor and
# settings of that.
MODELS = {
    "CLIP": (TEXT, VISION, JOINT, "CLIP", CROP),
    "VisionTextDualEncoder": (BERT, VIT, JOINT, "ViT", {"size": SQUARE, "resample": 3}),
    "Siglip": (TEXT | dict(projection_size=32), VISION, {}, "Siglip", {"size": SQUARE}),
}


def save_model(folder, name: str = "CLIP") -> None:
    """Writes a model of a class, its processor and its tokenizer."""
    text, vision, options, processor, settings = MODELS[name]
    tokenizer = train_tokenizer(TEXTS, context=40)
    text = text | {"vocab_size": len(tokenizer)}
    config = getattr(transformers, f"{name}Config")
    torch.manual_seed(3)
    model = getattr(transformers, f"{name}Model")
    model(config(text_config=text, vision_config=vision, **options)).save_pretrained(folder)
    getattr(transformers, f"{processor}ImageProcessor")(**settings).save_pretrained(folder)
    if name == "Siglip":  # as google/siglip-base-patch16-224 has it
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
    tokenizer.save_pretrained(folder)
