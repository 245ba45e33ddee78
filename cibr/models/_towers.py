"""Backbones of a `DualEncoder`: tiny towers from scratch, frozen towers under heads, or a model of
transformers.

A backbone pools each modality (`image_pooled`, `text_pooled`), projects it (`image_head`,
`text_head`) and has the attributes `dim`, `dim_image_pooled`, `dim_text_pooled`, `context`,
`reads_padding` and `settings`. The module also has image preprocessing and the tokenizer of tiny
models.

Tiny models and those over frozen towers have image preprocessing of their own: that of transformers
imports torchvision, which takes two seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int, UInt8
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from cibr.data.pairs import to_rgb

_TEXT_WIDTH = 128  # of the tiny text tower

_Pixels = Float[Tensor, "n 3 h w"]  # normalised images
_Tokens = Int[Tensor, "n t"]  # token ids, or their mask: 1 for tokens, 0 for padding
_Pooled = Float[Tensor, "n p"]


@dataclass(frozen=True)
class ImageProcessor:
    """Image preprocessing of tiny models and over frozen towers: an antialiased bicubic resize of
    the short side, then a centre crop.

    The pixels equal those of `transformers.CLIPImageProcessor` bit for bit, and the file format is
    the same.

    Args:
        size: the side of the square images, in pixels.
        image_mean: channel means of the normalisation, for values in [0, 1].
        image_std: channel standard deviations of the normalisation.
    """

    size: int
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    def __call__(self, images: list[Image.Image]) -> UInt8[Tensor, "n 3 size size"]:
        """Images of any size as 8-bit squares; `to_rgb` has the modes."""
        return torch.stack([self._square(image) for image in images])

    def _square(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        pixels = torch.from_numpy(np.array(to_rgb(image))).movedim(2, 0)
        short = min(pixels.shape[1:])
        if short != self.size:
            sides = [self.size * side // short for side in pixels.shape[1:]]
            pixels = F.interpolate(pixels[None], sides, mode="bicubic", antialias=True)[0]
        top, left = ((side - self.size) // 2 for side in pixels.shape[1:])
        return pixels[:, top : top + self.size, left : left + self.size]

    def to_dict(self) -> dict:
        """The settings in the hub's format; omitted ones have the defaults of CLIP."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": self.size},
            "crop_size": {"height": self.size, "width": self.size},
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    @classmethod
    def from_dict(cls, settings: dict) -> "ImageProcessor":
        """The processor of settings from `to_dict`."""
        size = settings["size"]["shortest_edge"]
        return cls(size, settings["image_mean"], settings["image_std"])


class HubImageProcessor:
    """An image processor of transformers with the interface of `ImageProcessor`.

    It returns float inputs of the model, [n, 3, size, size]: resized, cropped and normalised.

    Args:
        processor: of transformers.

    Raises:
        ValueError: a processor whose images are not square, such as that of SigLIP 2 NaFlex.
    """

    image_mean = (0.0, 0.0, 0.0)  # the values are normalised already
    image_std = (1.0, 1.0, 1.0)

    def __init__(self, processor):
        self.processor = processor
        self.to_dict = processor.to_dict
        shape = self([Image.new("RGB", (64, 48))]).shape
        if len(shape) != 4 or shape[2] != shape[3]:
            name = type(processor).__name__
            fix = "give a model of square images, such as google/siglip2-base-patch16-224"
            raise ValueError(f"{name} does not resize images to one square size: {fix}")
        self.size = shape[2]

    def __call__(self, images: list[Image.Image]) -> Tensor:
        """Images of any size as inputs of the model; `to_rgb` has the modes."""
        rgb = [to_rgb(image) for image in images]
        return self.processor(rgb, return_tensors="pt")["pixel_values"]


def train_tokenizer(texts: list[str], context: int = 64) -> transformers.PreTrainedTokenizerFast:
    """A lower-case byte-level BPE tokenizer learned from texts; it can encode every string."""
    learned = ByteLevelBPETokenizer(lowercase=True, unicode_normalizer="nfc", add_prefix_space=True)
    options = dict(min_frequency=0, show_progress=False, special_tokens=["<pad>", "<end>"])
    learned.train_from_iterator(texts, 2048, **options)
    tokenizer = Tokenizer.from_str(learned.to_str())
    ends = [("<end>", tokenizer.token_to_id("<end>"))]
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=ends)
    names = dict(pad_token="<pad>", eos_token="<end>", model_max_length=context)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position of a feature map [n, c, h, w]."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        normed = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed.contiguous() if x.is_contiguous() else normed


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions that halves the sides, initialised to its skip."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, 2, 1, bias=False)
        self.norm1 = _ChannelNorm(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, 1, 1, bias=False)
        self.norm2 = _ChannelNorm(dim)
        self.skip = nn.Conv2d(dim_in, dim, 1, 2, bias=False)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


def _tiny_image_tower(width: int) -> nn.Sequential:
    """Small CNN: normalised images [n, 3, h, w] to features [n, 4 * width * 16], pooled to a 4 x 4
    grid.

    Residual blocks at the higher resolutions double its time and gain no recall on glyphs.
    """
    return nn.Sequential(
        nn.Conv2d(3, width, 5, 2, 2, bias=False),
        _ChannelNorm(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
        _ChannelNorm(2 * width),
        nn.ReLU(),
        _Block(2 * width, 4 * width),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    )


class _TinyTextTower(nn.Module):
    """Small transformer from token ids to the mean of the last hidden states, without padding."""

    def __init__(self, vocabulary: int, context: int, dropout: float):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, _TEXT_WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(context, _TEXT_WIDTH))
        nn.init.normal_(self.tokens.weight, std=0.02)
        options = dict(dropout=dropout, activation="gelu", batch_first=True, norm_first=True)
        layer = nn.TransformerEncoderLayer(_TEXT_WIDTH, 4, 2 * _TEXT_WIDTH, **options)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        states = self.tokens(ids) + self.positions[: ids.shape[1]]
        return mean_pool(self.layers(states, src_key_padding_mask=mask == 0), mask)


def mean_pool(states: Float[Tensor, "n t p"], mask: _Tokens) -> _Pooled:
    """The mean over the tokens, without padding."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TinyBackbone(nn.Module):
    """The two tiny towers with linear heads."""

    kind = "tiny"
    reads_padding = False

    def __init__(self, dim: int, width: int, vocabulary: int, context: int, dropout: float):
        super().__init__()
        self.settings = dict(dim=dim, width=width, vocabulary=vocabulary)
        self.settings |= dict(context=context, dropout=dropout)
        self.context = context
        self.dim = dim
        self.dim_image_pooled = 64 * width
        self.dim_text_pooled = _TEXT_WIDTH
        # On several threads oneDNN's gradient of channels-last convolutions whose width is no
        # multiple of 16 writes out of bounds (torch 2.13, odd batches).
        self.memory_format = torch.contiguous_format if width % 16 else torch.channels_last
        self.image_tower = _tiny_image_tower(width).to(memory_format=self.memory_format)
        self.text_tower = _TinyTextTower(vocabulary, context, dropout)
        self.image_head = _linear_head(self.dim_image_pooled, dim, dropout)
        self.text_head = _linear_head(self.dim_text_pooled, dim, dropout)

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return self.image_tower(pixels.contiguous(memory_format=self.memory_format))

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        return self.text_tower(ids, mask)


def _linear_head(dim_in: int, dim: int, dropout: float) -> nn.Sequential:
    linear = nn.Linear(dim_in, dim, bias=False)
    return nn.Sequential(nn.LayerNorm(dim_in), nn.Dropout(dropout), linear)


class _ResidualHead(nn.Module):
    """Projection of pooled features to the joint space: a linear map and a residual layer, each
    with dropout.
    """

    def __init__(self, dim_in: int, dim: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, " p"], linear_map: Float[Tensor, "d p"]) -> None:
        """Initialises the head with a linear map of centred features and a zero residual layer."""
        self.linear.weight.copy_(linear_map)
        self.linear.bias.copy_(-linear_map @ mean)
        for parameter in self.residual[-1].parameters():
            parameter.zero_()

    def forward(self, pooled: _Pooled) -> Float[Tensor, "n d"]:
        x = self.linear(self.dropout(pooled))
        return self.norm(x + self.residual(x))


class _JoinedHeads(nn.ModuleList):
    """Heads side by side, whose unit vectors are concatenated: cosines are means over the heads."""

    def forward(self, pooled: _Pooled) -> Float[Tensor, "n d"]:
        return torch.cat([F.normalize(head(pooled), dim=-1) for head in self], dim=-1)


def _residual_heads(dim_in: int, dim: int, dropout: float, n_heads: int) -> nn.Module:
    """One head, or several side by side."""
    heads = [_ResidualHead(dim_in, dim, dropout) for _ in range(n_heads)]
    return heads[0] if n_heads == 1 else _JoinedHeads(heads)


class TwoTowers(nn.Module):
    """An image and a text model of transformers that know nothing of each other.

    Args:
        image: with a pooled output, in eval mode.
        text: with hidden states, whose mean over the tokens is pooled, in eval mode.
    """

    reads_padding = False

    def __init__(self, image: nn.Module, text: nn.Module):
        super().__init__()
        self.image_tower, self.text_tower = image, text
        self.context = text.config.max_position_embeddings

    def parts(self) -> dict[str, nn.Module]:
        """The models, by the name of their folder."""
        return {"image_tower": self.image_tower, "text_tower": self.text_tower}

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        # Convolutions run twice as fast on a CPU in this format.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.image_tower(pixel_values=pixels).pooler_output.flatten(1)

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(states, mask)


class FrozenBackbone(nn.Module):
    """Frozen pretrained towers, always in eval mode, under trainable projection heads.

    The heads project the towers' pooled features; `cibr.models.features` computes these once per
    data set and caches them. The towers are not a submodule: steps and the state dict cover only
    the heads.

    Args:
        towers: `TwoTowers`, or the `HubBackbone` of a dual encoder.
        size: side of the images, in pixels.
        dim: dimension of the joint space, or of each of several heads.
        dropout: probability of dropout, in the heads.
        n_heads: heads of each modality, whose scores are averaged.
    """

    kind = "frozen"

    def __init__(self, towers: nn.Module, size: int, dim: int, dropout: float, n_heads: int = 1):
        super().__init__()
        self.settings = dict(dim=dim, dropout=dropout, n_heads=n_heads)
        self._unregistered = (towers.requires_grad_(False).eval(),)
        self.context, self.reads_padding = towers.context, towers.reads_padding
        self.dim = dim * n_heads
        device = next(towers.parameters()).device
        tokens = torch.zeros(1, 2, dtype=torch.long, device=device)
        pixels = torch.zeros(1, 3, size, size, device=device)
        self.dim_image_pooled = self.image_pooled(pixels).shape[1]
        self.dim_text_pooled = self.text_pooled(tokens, torch.ones_like(tokens)).shape[1]
        self.image_head = _residual_heads(self.dim_image_pooled, dim, dropout, n_heads)
        self.text_head = _residual_heads(self.dim_text_pooled, dim, dropout, n_heads)

    @property
    def towers(self) -> nn.Module:
        """The frozen towers."""
        return self._unregistered[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> "FrozenBackbone":
        self.towers._apply(fn)  # to a device or type
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return self.towers.image_pooled(pixels)

    @torch.no_grad()
    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        return self.towers.text_pooled(ids, mask)


class HubBackbone(nn.Module):
    """A trainable dual encoder of transformers: any class with `get_image_features` and
    `get_text_features`.

    If both modalities end in a linear projection (CLIP, MetaCLIP 2, AltCLIP, Chinese CLIP, CLIPSeg,
    VisionTextDualEncoder), the projections are the heads and their inputs are the pooled features.
    Otherwise (SigLIP) the features themselves take the place of pooled features, and
    `dim_image_pooled` and `dim_text_pooled` are None.

    SigLIP was trained on texts padded to the context, with attention to the padding; see
    https://huggingface.co/docs/transformers/model_doc/siglip.

    Args:
        model: a model of transformers.

    Raises:
        ValueError: a model of another kind, or without a single vector per text.
    """

    kind = "hub"

    def __init__(self, model: nn.Module):
        super().__init__()
        needed = ("get_image_features", "get_text_features", "logit_scale")
        features = None
        if all(hasattr(model, name) for name in needed):
            with torch.no_grad():  # configurations have various names for the width of the features
                output = model.get_text_features(input_ids=torch.zeros(1, 2, dtype=torch.long))
            features = output.pooler_output
        if features is None or features.ndim != 2:
            rule = f"it needs {', '.join(needed)}, and one vector per text"
            fix = "Give a model such as a CLIPModel or a SiglipModel"
            raise ValueError(f"{type(model).__name__} is not a dual encoder: {rule}. {fix}")
        self.model = model
        self.settings = {}
        self.context = model.config.text_config.max_position_embeddings
        self.reads_padding = model.config.model_type.startswith("siglip")
        self.dim = features.shape[1]
        self.dim_image_pooled = getattr(self.image_head, "in_features", None)
        self.dim_text_pooled = getattr(self.text_head, "in_features", None)

    def parts(self) -> dict[str, nn.Module]:
        """The model, which has both towers, by the name of its folder where it is frozen."""
        return {"towers": self.model}

    @property
    def image_head(self) -> nn.Module:
        """The projection of images."""
        return getattr(self.model, "visual_projection", nn.Identity())

    @property
    def text_head(self) -> nn.Module:
        """The projection of texts."""
        return getattr(self.model, "text_projection", nn.Identity())

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return _input_of(self.image_head, self.model.get_image_features, pixel_values=pixels)

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        masked = {} if self.reads_padding else {"attention_mask": mask}
        return _input_of(self.text_head, self.model.get_text_features, input_ids=ids, **masked)


def _input_of(head: nn.Module, encode: Callable, **inputs: Tensor) -> _Pooled:
    """The input of a head during a forward pass of its model, or the features if the model has no
    such head.
    """
    seen = []
    with head.register_forward_pre_hook(lambda _, values: seen.append(values[0])):
        features = encode(**inputs).pooler_output
    return seen[0] if seen else features
