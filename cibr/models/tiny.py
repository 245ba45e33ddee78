"""Two small towers that train from scratch on two cores: convolutions for images, a transformer for texts.

Normalisation is by LayerNorm over channels and over tokens. No layer looks at the batch, so a sample's
embedding does not depend on its neighbours and a batch may be cut in pieces without changing a gradient. The
activations stay in channels-last order, which is where convolution and LayerNorm are fast on a CPU.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

PAD, END = "<pad>", "<end>"
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 128, 1, 4


def layout(width: int) -> torch.memory_format:
    """How activations lie in memory: channels last, unless a tower is narrower than the 16 channels of a block.

    On several threads oneDNN's gradient of such narrow channels-last convolutions writes out of bounds
    (torch 2.13, odd batches).
    """
    return torch.contiguous_format if width % 16 else torch.channels_last


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each place of a feature map [n, c, h, w]."""

    def __init__(self, dim: int, memory_format: torch.memory_format):
        super().__init__(dim)
        self.memory_format = memory_format

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        normed = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed.contiguous(memory_format=self.memory_format)


class Block(nn.Module):
    """Two 3x3 convolutions beside a skip connection; it starts as the skip alone."""

    def __init__(self, dim_in: int, dim_out: int, memory_format: torch.memory_format, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, stride, 1, bias=False)
        self.norm1 = ChannelNorm(dim_out, memory_format)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, 1, 1, bias=False)
        self.norm2 = ChannelNorm(dim_out, memory_format)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(dim_in, dim_out, 1, stride, bias=False)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class TinyImageTower(nn.Sequential):
    """Pictures [n, 3, size, size] to pooled features [n, 4 * width * 16] on a grid of 4 x 4 places."""

    def __init__(self, width: int):
        memory_format = layout(width)
        super().__init__(
            nn.Conv2d(3, width, 5, 2, 2, bias=False),
            ChannelNorm(width, memory_format),
            nn.ReLU(),
            Block(width, width, memory_format),
            Block(width, 2 * width, memory_format, 2),
            Block(2 * width, 4 * width, memory_format, 2),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.memory_format = memory_format
        self.to(memory_format=memory_format)

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim_pooled"]:
        return super().forward(pixels.contiguous(memory_format=self.memory_format))


class TinyTextTower(nn.Module):
    """Token ids to the mean of the last layer's states, padding left out."""

    def __init__(self, vocabulary: int, context: int, dropout: float):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, TEXT_WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(context, TEXT_WIDTH))
        nn.init.normal_(self.tokens.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            TEXT_WIDTH, TEXT_HEADS, 4 * TEXT_WIDTH, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, TEXT_LAYERS, enable_nested_tensor=False)

    def forward(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n dim_pooled"]:
        states = self.tokens(ids) + self.positions[: ids.shape[1]]
        states = self.layers(states, src_key_padding_mask=mask == 0)
        return mean_pool(states, mask)


def mean_pool(states: Float[Tensor, "n t d"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    """The mean over the tokens that are not padding."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TinyBackbone(nn.Module):
    """Both tiny towers with linear heads; the parts that `DualEncoder` asks of every backbone."""

    kind = "tiny"

    def __init__(self, dim: int, width: int, vocabulary: int, context: int, dropout: float):
        super().__init__()
        self.settings = dict(dim=dim, width=width, vocabulary=vocabulary, context=context, dropout=dropout)
        self.context = context
        self.dim, self.dim_image_pooled, self.dim_text_pooled = dim, 64 * width, TEXT_WIDTH
        self.image_tower, self.text_tower = TinyImageTower(width), TinyTextTower(vocabulary, context, dropout)
        self.image_head = _head(self.dim_image_pooled, dim, dropout)
        self.text_head = _head(self.dim_text_pooled, dim, dropout)

    def image_pooled(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim_pooled"]:
        return self.image_tower(pixels)

    def text_pooled(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n dim_pooled"]:
        return self.text_tower(ids, mask)


def _head(dim_in: int, dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim_in), nn.Dropout(dropout), nn.Linear(dim_in, dim, bias=False))


def train_tokenizer(texts: list[str], vocabulary: int = 2048, context: int = 64) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from texts, in lower case; every string can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=context
    )


def square_processor(size: int) -> CLIPImageProcessor:
    """Short side to `size`, centre crop, values to [-1, 1]; in the format that the hub reads."""
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=half,
        image_std=half,
    )
