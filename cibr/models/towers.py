"""Towers of a `DualEncoder`.

Towers read images and texts with a processor and a tokenizer of their own and pool them:
`image_pooled` takes normalised pixels, `text_pooled` token ids. They are tiny ones from scratch,
two frozen ones, or those of a dual encoder of transformers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from cibr.data.pairs import to_rgb
from cibr.models._io import from_hub, load_model, load_tokenizer

_IMAGE_SIZE = 160  # pixels, of images for a tower of timm
_TEXT_WIDTH = 128  # of the tiny text tower
_PROJECTIONS = ("visual_projection", "text_projection")  # heads within models of transformers

_Pixels = Float[Tensor, "n 3 h w"]  # normalised images
_Tokens = Int[Tensor, "n t"]  # token ids, or their mask: 1 for tokens, 0 for padding
_Pooled = Float[Tensor, "n p"]


# Preprocessing


@dataclass
class ImageProcessor:
    """Image preprocessing of tiny models and of image towers of timm, with the interface of those
    of transformers: an antialiased bicubic resize of the short side, a centre crop and a
    normalisation.

    The pixels equal those of `transformers.CLIPImageProcessor`, in two thirds of its time and
    without importing torchvision.

    Args:
        size: the side of the square images, in pixels.
        image_mean: channel means of the normalisation, for values in [0, 1].
        image_std: channel standard deviations of the normalisation.
    """

    size: int
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    def __call__(self, images: list[Image.Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        """`pixel_values` of RGB images, normalised squares [n, 3, size, size]."""
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.image_mean, self.image_std))
        squares = torch.stack([self._square(image) for image in images])
        return {"pixel_values": (squares.float() / 255 - mean) / std}

    def _square(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).movedim(2, 0)
        short = min(pixels.shape[1:])
        if short != self.size:
            sides = [self.size * side // short for side in pixels.shape[1:]]
            pixels = F.interpolate(pixels[None], sides, mode="bicubic", antialias=True)[0]
        top, left = ((side - self.size) // 2 for side in pixels.shape[1:])
        return pixels[:, top : top + self.size, left : left + self.size]


def preprocess(processor: Callable, images: list[Image.Image]) -> _Pixels:
    """Images of any size and mode, see `to_rgb`, as inputs of an image tower."""
    return processor([to_rgb(image) for image in images], return_tensors="pt")["pixel_values"]


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

    Args:
        processor: of images, from transformers, or an `ImageProcessor`.
        tokenizer: of transformers.
        n_positions: tokens that the text tower has positions for.

    Attributes:
        parts: of pretrained towers, the models of images and of texts.
    """

    reads_padding = False
    parts: tuple[nn.Module, ...] = ()

    def __init__(self, processor: Callable, tokenizer, n_positions: int):
        super().__init__()
        self.processor, self.tokenizer, self.n_positions = processor, tokenizer, n_positions

    @torch.no_grad()
    def widths(self) -> list[int]:
        """The dimensions of the pooled features of images and of texts."""
        tokens = torch.zeros(1, 2, dtype=torch.long)
        images = self.image_pooled(preprocess(self.processor, [Image.new("RGB", (64, 48))]))
        return [images.shape[1], self.text_pooled(tokens, torch.ones_like(tokens)).shape[1]]

    def save(self, *folders: Path) -> None:
        """Writes the models of images and of texts to two folders, or one that is both to one
        folder, with what prepares their inputs.
        """
        for folder, part in dict(zip(folders, self.parts, strict=True)).items():
            part.save_pretrained(folder)
        self.tokenizer.save_pretrained(folders[1])
        if not isinstance(self.processor, ImageProcessor):
            self.processor.save_pretrained(folders[0])


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
            *_halved(3, width, 5),
            *_halved(width, 2 * width, 3),
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
        return [64 * self.width, _TEXT_WIDTH]  # known without a pass, which would draw dropout


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position of a feature map [n, c, h, w]."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        normed = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed.contiguous() if x.is_contiguous() else normed


def _halved(dim_in: int, dim: int, size: int) -> tuple[nn.Module, ...]:
    """A convolution that halves the sides, normalised and rectified."""
    conv = nn.Conv2d(dim_in, dim, size, 2, size // 2, bias=False)
    return conv, _ChannelNorm(dim), nn.ReLU()


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

    def __init__(self, image: nn.Module, text: nn.Module, processor: Callable, tokenizer):
        super().__init__(processor, tokenizer, text.config.max_position_embeddings)
        self.image_tower, self.text_tower = image, text
        self.parts = image, text

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        # Convolutions run twice as fast on a CPU in this format.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.image_tower(pixel_values=pixels).pooler_output.flatten(1)

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Mean last hidden states of token ids."""
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(states, mask)


class HubTowers(Towers):
    """The towers of a dual encoder of transformers: any class with `get_image_features` and
    `get_text_features`.

    Where these end in linear projections (CLIP, MetaCLIP 2, AltCLIP, Chinese CLIP, CLIPSeg,
    VisionTextDualEncoder), `exchange_projections` makes their inputs the pooled features. Elsewhere
    (SigLIP) the embeddings take the place of pooled features.

    SigLIP was trained on texts padded to the context, with attention to the padding; see
    https://huggingface.co/docs/transformers/model_doc/siglip.

    Args:
        model: a model of transformers.
        processor: of the images.
        tokenizer: of the model.
    """

    def __init__(self, model: nn.Module, processor: Callable, tokenizer):
        super().__init__(processor, tokenizer, model.config.text_config.max_position_embeddings)
        self.model = model
        self.parts = model, model
        self.reads_padding = model.config.model_type.startswith("siglip")

    def exchange_projections(self, image: nn.Module, text: nn.Module) -> list[nn.Module]:
        """Replaces the projections of images and texts; returns those before, or identities if it
        had none.
        """
        before = [getattr(self.model, name, nn.Identity()) for name in _PROJECTIONS]
        self.model.visual_projection, self.model.text_projection = image, text
        return before

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Pooled features of normalised images."""
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Pooled features of token ids."""
        masked = {} if self.reads_padding else {"attention_mask": mask}
        return self.model.get_text_features(input_ids=ids, **masked).pooler_output


# Loading


def load_hub_towers(name: str | Path, unused: tuple[str, ...] = ()) -> HubTowers:
    """The towers of a dual encoder of transformers, with its projections.

    Args:
        name: its folder or hub id.
        unused: of `load_model`.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: a model of another kind, or weights that do not fit.
    """
    model = load_model(name, unused)
    if not (hasattr(model, "get_image_features") and hasattr(model, "logit_scale")):
        raise ValueError(
            f"{type(model).__name__} is not a dual encoder: give a model such as a CLIPModel"
        )
    return HubTowers(model, from_hub("AutoImageProcessor", name), load_tokenizer(name))


def load_towers(image: str | Path, text: str | Path) -> TwoTowers | HubTowers:
    """Frozen towers, without projections.

    Args:
        image: folder or hub id of an image tower with pooled features.
        text: of a text tower and its tokenizer; the same as `image` for a dual encoder.
    """
    if image == text:
        towers = load_hub_towers(image, unused=_PROJECTIONS)
        towers.exchange_projections(nn.Identity(), nn.Identity())
        return towers.requires_grad_(False).eval()
    image_model, text_model = load_model(image), load_model(text, unused="pooler.")
    if hasattr(image_model.config, "pretrained_cfg"):
        about = image_model.config.pretrained_cfg
        processor = ImageProcessor(_IMAGE_SIZE, tuple(about["mean"]), tuple(about["std"]))
    else:
        processor = from_hub("AutoImageProcessor", image)
    towers = TwoTowers(image_model, text_model, processor, load_tokenizer(text))
    return towers.requires_grad_(False).eval()
