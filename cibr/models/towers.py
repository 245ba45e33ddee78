"""Towers and heads of a `DualEncoder`.

Towers read images and texts with a processor and a tokenizer of their own and pool them:
`image_pooled` takes normalised pixels, `text_pooled` token ids. They are tiny ones from scratch,
two frozen ones, or those of a dual encoder of transformers. Heads project what towers pool to the
joint space.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from cibr.models._io import from_hub, load_model, load_tokenizer

_TEXT_WIDTH = 128  # of the tiny text tower
_PROJECTIONS = ("visual_projection", "text_projection")  # heads within models of transformers
_PREPROCESSING = "preprocessor_config.json"

_Pixels = Float[Tensor, "n 3 h w"]  # normalised images
_Tokens = Int[Tensor, "n t"]  # token ids, or their mask: 1 for tokens, 0 for padding
_Pooled = Float[Tensor, "n p"]


# Preprocessing


@dataclass
class ImageProcessor:
    """Image preprocessing of tiny models and over two frozen towers: an antialiased bicubic resize
    of the short side, then a centre crop.

    The pixels equal those of `transformers.CLIPImageProcessor` bit for bit, in two thirds of its
    time and without importing torchvision.

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


class HubImageProcessor:
    """An image processor of transformers with the interface of `ImageProcessor`; its images are
    normalised floats, the inputs of the model.
    """

    image_mean = (0.0, 0.0, 0.0)
    image_std = (1.0, 1.0, 1.0)

    def __init__(self, processor: Callable):
        self.processor = processor

    def __repr__(self) -> str:
        return repr(self.processor.to_dict())

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


# Towers


class Towers(nn.Module):
    """An image and a text encoder up to their pooled features, with what prepares their inputs.

    A subclass has `image_pooled`, of normalised images, and `text_pooled`, of token ids and mask.
    Pretrained towers have `parts`, the models of images and of texts, and `save`.

    Args:
        processor: makes a tensor of PIL images: 8-bit pixels, or normalised floats.
        tokenizer: of transformers.
        n_positions: tokens that the text tower has positions for.
    """

    reads_padding = False

    def __init__(self, processor: Callable, tokenizer, n_positions: int):
        super().__init__()
        self.processor = processor
        self.tokenizer = tokenizer
        self.n_positions = n_positions
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def widths(self) -> list[int]:
        """The dimensions of the pooled features of images and of texts."""
        blank = self.processor([Image.new("RGB", (64, 48))]).float()
        tokens = torch.zeros(1, 2, dtype=torch.long)
        pooled = self.image_pooled(blank), self.text_pooled(tokens, torch.ones_like(tokens))
        return [part.shape[1] for part in pooled]

    def digests(self) -> list[str]:
        """A digest of the weights of the image tower and of the text tower."""
        return [weights_digest(part) for part in self.parts()]


class TinyTowers(Towers):
    """Two small towers to be trained from scratch.

    Args:
        tokenizer: from `train_tokenizer`.
        width: channels of the image tower's first layer.
        image_size: side of the images, in pixels.
        dropout: probability of dropout, in the text tower.
    """

    def __init__(self, tokenizer, width: int, image_size: int, dropout: float):
        super().__init__(ImageProcessor(image_size), tokenizer, tokenizer.model_max_length)
        # On several threads oneDNN's gradient of channels-last convolutions whose width is no
        # multiple of 16 writes out of bounds (torch 2.13, odd batches).
        self.memory_format = torch.contiguous_format if width % 16 else torch.channels_last
        self.width = width
        # Residual blocks at the higher resolutions double the time and gain no recall on glyphs.
        self.image_tower = nn.Sequential(
            nn.Conv2d(3, width, 5, 2, 2, bias=False),
            _ChannelNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            _ChannelNorm(2 * width),
            nn.ReLU(),
            _Block(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        ).to(memory_format=self.memory_format)
        self.text_tower = _TinyTextTower(len(tokenizer), self.n_positions, dropout)

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Features of a 4 x 4 grid, [n, 64 * width]."""
        return self.image_tower(pixels.contiguous(memory_format=self.memory_format))

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Mean last hidden states, [n, 128]."""
        return self.text_tower(ids, mask)

    def widths(self) -> list[int]:
        """The dimensions of the pooled features of images and of texts."""
        return [64 * self.width, _TEXT_WIDTH]

    def save(self, folder: Path) -> None:
        """Writes the tokenizer to a folder."""
        save_tokenizer(self.tokenizer, folder)


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


class TwoTowers(Towers):
    """An image and a text model of transformers that know nothing of each other.

    Args:
        image: with a pooled output.
        text: with hidden states, whose mean over the tokens is pooled.
        processor: of the images.
        tokenizer: of the text model.
    """

    def __init__(self, image: nn.Module, text: nn.Module, processor: ImageProcessor, tokenizer):
        super().__init__(processor, tokenizer, text.config.max_position_embeddings)
        self.image_tower, self.text_tower = image, text

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        # Convolutions run twice as fast on a CPU in this format.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.image_tower(pixel_values=pixels).pooler_output.flatten(1)

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Mean last hidden states of token ids."""
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(states, mask)

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The models of images and of texts."""
        return self.image_tower, self.text_tower

    def save(self, image_folder: Path, text_folder: Path) -> None:
        """Writes each tower to a folder, with what prepares its input."""
        self.image_tower.save_pretrained(image_folder)
        self.text_tower.save_pretrained(text_folder)
        save_tokenizer(self.tokenizer, text_folder)
        settings = {"image_processor_type": "CLIPImageProcessor"}
        settings["image_mean"] = list(self.processor.image_mean)
        settings["image_std"] = list(self.processor.image_std)
        (image_folder / _PREPROCESSING).write_text(json.dumps(settings, indent=2))


class HubTowers(Towers):
    """The towers of a dual encoder of transformers: any class with `get_image_features` and
    `get_text_features`.

    Where these end in linear projections (CLIP, MetaCLIP 2, AltCLIP, Chinese CLIP, CLIPSeg,
    VisionTextDualEncoder), `take_projections` makes their inputs the pooled features. Elsewhere
    (SigLIP) the embeddings take the place of pooled features.

    SigLIP was trained on texts padded to the context, with attention to the padding; see
    https://huggingface.co/docs/transformers/model_doc/siglip.

    Args:
        model: a model of transformers.
        processor: of the images.
        tokenizer: of the model.

    Raises:
        ValueError: a model of another kind, or without a single vector per text.
    """

    def __init__(self, model: nn.Module, processor: Callable, tokenizer):
        dim = _embedding_width(model)
        super().__init__(processor, tokenizer, model.config.text_config.max_position_embeddings)
        self.model, self.dim = model, dim
        self.reads_padding = model.config.model_type.startswith("siglip")

    def take_projections(self) -> list[nn.Module]:
        """Takes the projections of images and texts out of the model; identities if it has none."""
        taken = [getattr(self.model, name, nn.Identity()) for name in _PROJECTIONS]
        for name in _PROJECTIONS:
            if hasattr(self.model, name):
                setattr(self.model, name, nn.Identity())
        return taken

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        masked = {} if self.reads_padding else {"attention_mask": mask}
        return self.model.get_text_features(input_ids=ids, **masked).pooler_output

    def parts(self) -> tuple[nn.Module, nn.Module]:
        """The model of images and of texts, which is one."""
        return self.model, self.model

    def save(self, folder: Path, *_: Path, projections: Sequence[nn.Module] = ()) -> None:
        """Writes the model to a folder, with what prepares its inputs and with projections that
        were taken out of it.
        """
        weights = self.model.state_dict()
        for name, taken in zip(_PROJECTIONS, projections, strict=False):
            weights |= {f"{name}.{key}": own for key, own in taken.state_dict().items()}
        self.model.save_pretrained(folder, state_dict=weights)
        save_tokenizer(self.tokenizer, folder)
        settings = self.processor.processor.to_dict()
        (folder / _PREPROCESSING).write_text(json.dumps(settings, indent=2))


def _embedding_width(model: nn.Module) -> int:
    """The dimension of a dual encoder's embeddings; a model of another kind is refused."""
    width = None
    if hasattr(model, "get_image_features") and hasattr(model, "logit_scale"):
        with torch.no_grad():  # configurations have various names for it
            output = model.get_text_features(input_ids=torch.zeros(1, 2, dtype=torch.long))
        if output.pooler_output is not None and output.pooler_output.ndim == 2:
            width = output.pooler_output.shape[1]
    if width is None:
        raise ValueError(
            f"{type(model).__name__} is not a dual encoder, with logit_scale and one vector per "
            "image and per text: give a model such as a CLIPModel or a SiglipModel"
        )
    return width


# Heads


def linear_head(dim_in: int, dim: int, dropout: float) -> nn.Sequential:
    """The head of a tiny model: LayerNorm, dropout and a linear map."""
    return nn.Sequential(
        nn.LayerNorm(dim_in), nn.Dropout(dropout), nn.Linear(dim_in, dim, bias=False)
    )


class ResidualHead(nn.Module):
    """The head over a frozen tower: a linear map and a residual layer, each after dropout, and a
    LayerNorm.
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


class JoinedHeads(nn.ModuleList):
    """Heads side by side, whose unit vectors are concatenated: cosines are means over the heads."""

    def forward(self, pooled: _Pooled) -> Float[Tensor, "n d"]:
        return torch.cat([F.normalize(head(pooled), dim=-1) for head in self], dim=-1)


# Loading and saving


def load_hub_towers(name: str | Path, unused: tuple[str, ...] = ()) -> HubTowers:
    """The towers of a dual encoder of transformers, with its projections.

    Args:
        name: its folder or hub id.
        unused: of `load_model`.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: a model of another kind, weights that do not fit, or an image processor whose
            images are not square, such as that of SigLIP 2 NaFlex.
    """
    model = load_model(name, unused)
    _embedding_width(model)  # refuses others before their files are looked for
    processor = HubImageProcessor(from_hub("AutoImageProcessor", name))
    shape = processor([Image.new("RGB", (64, 48))]).shape
    if len(shape) != 4 or shape[2] != shape[3]:
        raise ValueError(
            f"{type(processor.processor).__name__} does not resize images to one square size: give "
            "a model of square images, such as google/siglip2-base-patch16-224"
        )
    return HubTowers(model, processor, load_tokenizer(name))


def load_towers(image: str | Path, text: str | Path, image_size: int) -> TwoTowers | HubTowers:
    """Towers to be frozen, without projections.

    Args:
        image: folder or hub id of an image tower with pooled features.
        text: of a text tower and its tokenizer; the same as `image` for a dual encoder.
        image_size: side of the images, in pixels; a dual encoder has its own.
    """
    if image == text:
        towers = load_hub_towers(image, unused=_PROJECTIONS)
        towers.take_projections()
        return towers
    image_model, text_model = load_model(image), load_model(text, unused="pooler.")
    processor = ImageProcessor(image_size, *_image_statistics(image, image_model.config))
    return TwoTowers(image_model, text_model, processor, load_tokenizer(text))


def _image_statistics(name: str | Path, config: Any) -> tuple[tuple, tuple]:
    """Means and deviations with which an image tower was trained."""
    if hasattr(config, "pretrained_cfg"):  # of a model of timm
        return tuple(config.pretrained_cfg["mean"]), tuple(config.pretrained_cfg["std"])
    processor = from_hub("AutoImageProcessor", name)
    return tuple(processor.image_mean), tuple(processor.image_std)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer, without the padding and truncation of its last call."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def weights_digest(tower: nn.Module) -> str:
    """Digest of a tower's weights as float32, whatever their names in a version of transformers."""
    seen = hashlib.sha256()
    for weights in tower.state_dict().values():
        weights = weights.float() if weights.is_floating_point() else weights
        seen.update(repr(weights.shape).encode())
        seen.update(weights.cpu().reshape(-1).numpy())
    return seen.hexdigest()
