"""Two small towers to be trained from scratch, on images of 32 or 64 pixels."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cibr.models.loading import load_tokenizer
from cibr.models.preprocessing import ImageProcessor
from cibr.models.towers import Towers, mean_pool

_GRID = 4  # side of the pooled feature map
_TEXT_WIDTH = 128

_Pixels = Float[Tensor, "n 3 h w"]  # normalised images
_Tokens = Int[Tensor, "n t"]  # token ids, or their mask: 1 for tokens, 0 for padding
_Pooled = Float[Tensor, "n p"]


class TinyTowers(Towers):
    """Two small towers to be trained from scratch.

    Args:
        tokenizer: from `train_tokenizer`.
        width: channels of the image tower's first layer.
        image_size: side of the images, in pixels.
        dropout: probability of dropout, in the text tower.
    """

    is_pretrained = False

    def __init__(self, tokenizer, width: int, image_size: int, dropout: float):
        super().__init__()
        self.processor = ImageProcessor(image_size)
        self.tokenizer = tokenizer
        self.n_positions = tokenizer.model_max_length
        # On several threads oneDNN's gradient of channels-last convolutions whose width is no
        # multiple of 16 writes out of bounds (torch 2.13, odd batches).
        self.memory_format = torch.contiguous_format if width % 16 else torch.channels_last
        self.width = width
        self.image_size = image_size
        self.dropout = dropout
        self.dim_image = 4 * width * _GRID**2
        self.dim_text = _TEXT_WIDTH
        # Residual blocks at the higher resolutions double the time and gain no recall on glyphs.
        self.image_tower = nn.Sequential(
            *_downsample(3, width, size=5),
            *_downsample(width, 2 * width, size=3),
            _Block(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(_GRID),
            nn.Flatten(),
        ).to(memory_format=self.memory_format)
        self.text_tower = _TinyTextTower(len(tokenizer), self.n_positions, dropout)

    def image_pooled(self, pixels: _Pixels) -> _Pooled:
        """Features of a 4 x 4 grid, [n, dim_image]."""
        return self.image_tower(pixels.contiguous(memory_format=self.memory_format))

    def text_pooled(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        """Mean last hidden states, [n, dim_text]."""
        return self.text_tower(ids, mask)

    def save(self, folder: Path, copy: bool = False) -> dict[str, Any]:
        """Writes the tokenizer into a folder; returns the other arguments of `load`."""
        self.tokenizer.save_pretrained(folder)
        return {"width": self.width, "image_size": self.image_size, "dropout": self.dropout}

    @classmethod
    def load(cls, folder: Path, **sizes: Any) -> "TinyTowers":
        """Towers with the tokenizer of a folder, of the given sizes, with new weights."""
        return cls(load_tokenizer(folder), **sizes)


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position of a feature map [n, c, h, w]."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        normed = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed.contiguous() if x.is_contiguous() else normed


def _downsample(dim_in: int, dim: int, size: int) -> tuple[nn.Module, ...]:
    """A convolution that halves the sides, normalised and rectified."""
    conv = nn.Conv2d(dim_in, dim, size, stride=2, padding=size // 2, bias=False)
    return conv, _ChannelNorm(dim), nn.ReLU()


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions that halves the sides; it starts as its skip."""

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, stride=2, padding=1, bias=False)
        self.norm1 = _ChannelNorm(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm2 = _ChannelNorm(dim)
        self.skip = nn.Conv2d(dim_in, dim, 1, stride=2, bias=False)
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
        layer = nn.TransformerEncoderLayer(
            d_model=_TEXT_WIDTH,
            nhead=4,
            dim_feedforward=2 * _TEXT_WIDTH,
            dropout=dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)

    def forward(self, ids: _Tokens, mask: _Tokens) -> _Pooled:
        states = self.tokens(ids) + self.positions[: ids.shape[1]]
        return mean_pool(self.layers(states, src_key_padding_mask=mask == 0), mask)
