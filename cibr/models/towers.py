"""Backbones of a `DualEncoder`: tiny towers from scratch, frozen towers under heads, or a model of
transformers.

A backbone pools each modality (`image_pooled`, `text_pooled`), projects it (`image_head`,
`text_head`) and has the attributes `dim`, `dim_image_pooled`, `dim_text_pooled`, `context`,
`reads_padding` and `settings`. The module also has image preprocessing, the tokenizer of tiny
models, and the search order for pretrained models: an existing folder, `$CIBR_MODELS/<hub id>`, the
two checkpoints that are shipped with the package, the hub.

Classes of transformers are imported on use: those of images import torchvision, which takes two
seconds and is not needed for tiny models.
"""

import os
import pickle
import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.implementations import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers.utils import logging

from cibr.data.pairs import to_rgb
from cibr.utils import nearest, shipped

MODELS = ("tiny", "frozen")
CHECKPOINTS = ("clip-tiny", "cibr-tiny")  # shipped with the package
IMAGE_TOWER = "timm/tf_efficientnet_lite0.in1k"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"
PAD, END = "<pad>", "<end>"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name
# For error messages: what a class of transformers loads, and from which files.
LOADS = {
    "AutoImageProcessor": ("the image preprocessing of ", "preprocessor_config.json"),
    "AutoTokenizer": ("the tokenizer of ", "tokenizer.json and tokenizer_config.json"),
}
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 128, 1, 4  # of the tiny text tower


@dataclass(frozen=True)
class ImageProcessor:
    """CLIP's image preprocessing: an antialiased bicubic resize of the short side to `size`, then a
    centre crop.

    The pixels equal those of `transformers.CLIPImageProcessor` bit for bit, and the file format is
    the same.

    Args:
        size: the short side after the resize, in pixels.
        crop_size: the side of the square crop, in pixels, at most `size`.
        image_mean: channel means of the normalisation, for values in [0, 1].
        image_std: channel standard deviations of the normalisation.
    """

    size: int
    crop_size: int
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    def __call__(self, images: list[Image.Image]) -> UInt8[Tensor, "n 3 crop_size crop_size"]:
        """Images of any mode and size as 8-bit squares."""
        return torch.stack(
            [self._square(torch.from_numpy(np.array(to_rgb(image)))) for image in images]
        )

    def _square(self, pixels: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "3 crop_size crop_size"]:
        pixels, sides = pixels.movedim(2, 0), pixels.shape[:2]
        new = [self.size * side // min(sides) for side in sides]
        if new != list(sides):
            pixels = F.interpolate(pixels[None], new, mode="bicubic", antialias=True)[0]
        top, left = ((side - self.crop_size) // 2 for side in new)
        return pixels[:, top : top + self.crop_size, left : left + self.crop_size]

    def to_dict(self) -> dict:
        """The settings in the hub's format; omitted ones have the defaults of CLIP."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": self.size},
            "crop_size": {"height": self.crop_size, "width": self.crop_size},
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }


class HubImageProcessor:
    """An image processor of transformers with the interface of `ImageProcessor`, for models unlike
    CLIP.

    It returns float inputs of the model: pixels [n, 3, h, w], resized, cropped and normalised. For
    images that
    keep their proportions (SigLIP 2 NaFlex) it returns patches, [n, p, 3 * side^2 + 3]: the values
    of a patch, its mask (0 for padding), and the numbers of rows and columns of patches of its
    image. `unpack` separates them.

    Args:
        settings: the processor in the hub's format, its class named as `image_processor_type`.
    """

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the values are normalised already

    def __init__(self, settings: dict):
        size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
        sides = {(size or {}).get(side) for side in ("height", "width")}
        self.crop_size = (
            sides.pop() if len(sides) == 1 else None
        )  # None if images keep their proportions
        self.processor = getattr(transformers, settings["image_processor_type"]).from_dict(settings)
        self.to_dict = self.processor.to_dict

    def __call__(self, images: list[Image.Image]) -> Float[Tensor, "n ..."]:
        """Images of any mode and size as inputs of the model."""
        values = self.processor([to_rgb(image) for image in images], return_tensors="pt")
        pixels = values["pixel_values"]
        if "spatial_shapes" not in values:
            return pixels
        shapes = values["spatial_shapes"][:, None].expand(-1, pixels.shape[1], -1)
        return torch.cat([pixels, values["pixel_attention_mask"][:, :, None], shapes], 2)

    @staticmethod
    def unpack(pixels: Float[Tensor, "n ..."]) -> dict[str, Tensor]:
        """The keyword arguments of `get_image_features`."""
        if pixels.ndim == 4:
            return {"pixel_values": pixels}
        values, mask, shapes = pixels[..., :-3], pixels[..., -3].int(), pixels[:, 0, -2:].long()
        return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def image_processor(settings: dict) -> ImageProcessor | HubImageProcessor:
    """The image processor of settings in the hub's format: `ImageProcessor` if CLIP's, or
    `HubImageProcessor`.
    """
    size, crop = settings.get("size") or {}, settings.get("crop_size") or {}
    like_clip = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True)
    like_clip |= {"resample": Image.Resampling.BICUBIC, "rescale_factor": 1 / 255}
    if (
        "shortest_edge" in size
        and crop.get("height", 0) == crop.get("width")
        and all(settings.get(name, value) == value for name, value in like_clip.items())
        # Other processors, such as LeViT's, give the same names another meaning.
        and settings["image_processor_type"].startswith("CLIPImageProcessor")
    ):
        return ImageProcessor(
            size["shortest_edge"], crop["height"], settings["image_mean"], settings["image_std"]
        )
    return HubImageProcessor(settings)


def train_tokenizer(
    texts: list[str], vocabulary: int = 2048, context: int = 64
) -> transformers.PreTrainedTokenizerFast:
    """A lower-case byte-level BPE tokenizer learned from texts; it can encode every string."""
    learned = ByteLevelBPETokenizer(lowercase=True, unicode_normalizer="nfc", add_prefix_space=True)
    learned.train_from_iterator(
        texts, vocabulary, min_frequency=0, show_progress=False, special_tokens=[PAD, END]
    )
    tokenizer = Tokenizer.from_str(learned.to_str())
    ends = [(END, tokenizer.token_to_id(END))]
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=ends)
    names = dict(pad_token=PAD, eos_token=END, model_max_length=context)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def layout(width: int) -> torch.memory_format:
    """Memory format of activations: channels last, unless the width is no multiple of 16 channels.

    On several threads oneDNN's gradient of such narrow channels-last convolutions writes out of
    bounds (torch 2.13, odd batches).
    """
    return torch.contiguous_format if width % 16 else torch.channels_last


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position of a feature map [n, c, h, w]."""

    def __init__(self, dim: int, memory_format: torch.memory_format):
        super().__init__(dim)
        self.memory_format = memory_format

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        normed = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed.contiguous(memory_format=self.memory_format)


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, initialised to its skip connection."""

    def __init__(
        self, dim_in: int, dim_out: int, memory_format: torch.memory_format, stride: int = 1
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, stride, 1, bias=False)
        self.norm1 = ChannelNorm(dim_out, memory_format)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, 1, 1, bias=False)
        self.norm2 = ChannelNorm(dim_out, memory_format)
        self.skip = (
            nn.Identity() if stride == 1 else nn.Conv2d(dim_in, dim_out, 1, stride, bias=False)
        )
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class TinyImageTower(nn.Sequential):
    """Small CNN: normalised images [n, 3, h, w] to features [n, 4 * width * 16], pooled to a 4 x 4
    grid.
    """

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
    """Small transformer from token ids to the mean of the last hidden states, without padding."""

    def __init__(self, vocabulary: int, context: int, dropout: float):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, TEXT_WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(context, TEXT_WIDTH))
        nn.init.normal_(self.tokens.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            TEXT_WIDTH,
            TEXT_HEADS,
            4 * TEXT_WIDTH,
            dropout,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, TEXT_LAYERS, enable_nested_tensor=False)

    def forward(
        self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n dim_pooled"]:
        states = self.tokens(ids) + self.positions[: ids.shape[1]]
        states = self.layers(states, src_key_padding_mask=mask == 0)
        return mean_pool(states, mask)


def mean_pool(states: Float[Tensor, "n t d"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
    """The mean over the tokens, without padding."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TinyBackbone(nn.Module):
    """The two tiny towers with linear heads."""

    kind, reads_padding = "tiny", False

    def __init__(self, dim: int, width: int, vocabulary: int, context: int, dropout: float):
        super().__init__()
        self.settings = dict(
            dim=dim, width=width, vocabulary=vocabulary, context=context, dropout=dropout
        )
        self.context = context
        self.dim, self.dim_image_pooled, self.dim_text_pooled = dim, 64 * width, TEXT_WIDTH
        self.image_tower, self.text_tower = (
            TinyImageTower(width),
            TinyTextTower(vocabulary, context, dropout),
        )
        self.image_head = _head(self.dim_image_pooled, dim, dropout)
        self.text_head = _head(self.dim_text_pooled, dim, dropout)

    def image_pooled(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim_pooled"]:
        return self.image_tower(pixels)

    def text_pooled(
        self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n dim_pooled"]:
        return self.text_tower(ids, mask)


def _head(dim_in: int, dim: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim_in), nn.Dropout(dropout), nn.Linear(dim_in, dim, bias=False)
    )


class ProjectionHead(nn.Module):
    """Projection of pooled features to the joint space: a linear map and a residual layer, each
    with dropout.
    """

    def __init__(self, dim_in: int, dim: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)

    @torch.no_grad()
    def start_at(
        self, mean: Float[Tensor, " dim_in"], linear_map: Float[Tensor, "dim dim_in"]
    ) -> None:
        """Initialises the head with a linear map of centred features and a zero residual layer."""
        self.linear.weight.copy_(linear_map)
        self.linear.bias.copy_(-linear_map @ mean)
        for parameter in self.residual[-1].parameters():
            parameter.zero_()

    def forward(self, pooled: Float[Tensor, "n dim_in"]) -> Float[Tensor, "n dim"]:
        x = self.linear(self.dropout(pooled))
        return self.norm(x + self.residual(x))


class FrozenBackbone(nn.Module):
    """Two frozen pretrained towers, always in eval mode, under trainable projection heads.

    The heads project the image tower's pooled output and the mean over the text tower's tokens;
    `cibr.models.features` computes both once per data set and caches them.
    """

    kind, reads_padding = "frozen", False

    def __init__(self, image_tower: nn.Module, text_tower: nn.Module, dim: int, dropout: float):
        super().__init__()
        self.settings = dict(dim=dim, dropout=dropout)
        self.image_tower, self.text_tower = (
            t.requires_grad_(False) for t in (image_tower, text_tower)
        )
        self.dim, self.dim_text_pooled = dim, text_tower.config.hidden_size
        self.context = text_tower.config.max_position_embeddings
        self.dim_image_pooled = image_pooled_size(image_tower)
        self.image_head = ProjectionHead(self.dim_image_pooled, dim, dropout)
        self.text_head = ProjectionHead(self.dim_text_pooled, dim, dropout)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        super().train(mode)
        self.image_tower.eval()
        self.text_tower.eval()
        return self

    @torch.no_grad()
    def image_pooled(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim_pooled"]:
        pixels = pixels.contiguous(
            memory_format=torch.channels_last
        )  # convolutions run twice as fast on a CPU
        return self.image_tower(pixel_values=pixels).pooler_output.flatten(1)

    @torch.no_grad()
    def text_pooled(
        self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n dim_pooled"]:
        return mean_pool(
            self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state, mask
        )


def image_pooled_size(tower: nn.Module) -> int:
    """The width of an image tower's pooled output, from a forward pass on a blank image."""
    size = (
        getattr(tower.config, "image_size", None) or tower.config.pretrained_cfg["input_size"][-1]
    )
    height, width = (size, size) if isinstance(size, int) else size
    with torch.no_grad():
        return (
            tower(pixel_values=torch.zeros(1, 3, height, width)).pooler_output.flatten(1).shape[1]
        )


def tower_normalisation(name: str, tower: nn.Module) -> tuple[list[float], list[float]]:
    """The channel means and standard deviations that an image tower was trained with."""
    timm = getattr(tower.config, "pretrained_cfg", None)
    if timm:
        return list(timm["mean"]), list(timm["std"])
    processor = from_hub("AutoImageProcessor", name)
    return list(processor.image_mean), list(processor.image_std)


class HubBackbone(nn.Module):
    """A trainable dual encoder of transformers: any class with `get_image_features` and
    `get_text_features`.

    If both modalities end in a linear projection (CLIP, MetaCLIP 2, AltCLIP, Chinese CLIP, CLIPSeg,
    VisionTextDualEncoder), the projections are the heads and their inputs are the pooled features.
    Otherwise (SigLIP, SigLIP 2, ALIGN) the features themselves take the place of pooled features,
    and `dim_image_pooled` and `dim_text_pooled` are None.

    SigLIP was trained on texts padded to the context, with attention to the padding; see
    https://huggingface.co/docs/transformers/model_doc/siglip.

    Args:
        model: a model of transformers.

    Raises:
        ValueError: a model without a single vector per text.
    """

    kind = "clip"

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.settings = model, {}
        self.context = model.config.text_config.max_position_embeddings
        self.reads_padding = model.config.model_type.startswith("siglip")
        with (
            torch.no_grad()
        ):  # on any two tokens: configurations have various names for the feature width
            features = model.get_text_features(
                input_ids=torch.zeros(1, 2, dtype=torch.long)
            ).pooler_output
        if features is None or features.ndim != 2:
            what = f"{type(model).__name__} is no dual encoder: its get_text_features gives no single vector"
            raise ValueError(f"{what}. Give a model such as a CLIPModel or a SiglipModel")
        self.dim, self.dim_image_pooled, self.dim_text_pooled = features.shape[1], None, None
        heads = [getattr(model, f"{side}_projection", None) for side in ("visual", "text")]
        if all(isinstance(head, nn.Linear) for head in heads):
            self.dim_image_pooled, self.dim_text_pooled = (head.in_features for head in heads)

    @property
    def image_head(self) -> nn.Module:
        return nn.Identity() if self.dim_image_pooled is None else self.model.visual_projection

    @property
    def text_head(self) -> nn.Module:
        return nn.Identity() if self.dim_text_pooled is None else self.model.text_projection

    @property
    def log_logit_scale(self) -> Float[Tensor, ""]:
        """The model's own logit scale; ALIGN has a temperature instead."""
        own = getattr(self.model, "logit_scale", None)
        return (-self.model.temperature.log() if own is None else own).detach().squeeze()

    @log_logit_scale.setter
    def log_logit_scale(self, value: Float[Tensor, ""]) -> None:
        if hasattr(self.model, "logit_scale"):
            self.model.logit_scale.data.copy_(value)
        else:
            self.model.temperature.data.copy_((-value).exp())

    def image_pooled(self, pixels: Float[Tensor, "n ..."]) -> Float[Tensor, "n dim_pooled"]:
        return _read_by(
            self.image_head, self.model.get_image_features, **HubImageProcessor.unpack(pixels)
        )

    def text_pooled(
        self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]
    ) -> Float[Tensor, "n dim_pooled"]:
        masked = {} if self.reads_padding else {"attention_mask": mask}
        return _read_by(self.text_head, self.model.get_text_features, input_ids=ids, **masked)


def _read_by(head: nn.Module, encode: Callable, **inputs: Tensor) -> Float[Tensor, "n dim_pooled"]:
    """The input of a head during a forward pass of its model, or the features if the model has no
    such head.
    """
    read = []
    with head.register_forward_pre_hook(lambda _, values: read.append(values[0])):
        features = encode(**inputs).pooler_output
    return read[0] if read else features


def load_dual_encoder(name: str) -> HubBackbone:
    """Loads a dual encoder of transformers by folder or hub id, of the class that its config.json
    names.

    Raises:
        FileNotFoundError: the model is missing.
        ValueError: a model of another type, or without a single vector per text.
    """
    config = from_hub("AutoConfig", name)
    loader = transformers.MODEL_MAPPING.get(type(config), None)
    if not all(hasattr(loader, call) for call in ("get_image_features", "get_text_features")):
        lacks = f"{config.model_type!r} has no get_image_features with get_text_features"
        raise ValueError(f"{name!r} is no image-text model: {lacks}. Give one such as a CLIPModel")
    return HubBackbone(from_hub("AutoModel", name, dtype=torch.float32))


def resolve_model(name: str, known: Sequence[str] = CHECKPOINTS) -> str:
    """The location of a model's files: a local folder, or the name itself as a hub id, not yet
    fetched.

    Raises:
        FileNotFoundError: a name that is neither; the message suggests the nearest of the `known`
            names.
    """
    root, path = os.environ.get("CIBR_MODELS"), Path(name).expanduser()
    folders = [path] + ([Path(root).expanduser() / name] if root else [])
    if name in CHECKPOINTS:
        folders.append(shipped(f"checkpoints/{name}"))
    if folder := next((str(folder) for folder in folders if name and folder.is_dir()), None):
        return folder
    if HUB_ID.fullmatch(name) and not path.is_symlink():
        return name
    found = ": it is a file." if path.is_file() else nearest(name, known) or "."
    found = ": it is a link to nothing." if path.is_symlink() else found
    fix = f"a hub id such as openai/clip-vit-base-patch32, or {' or '.join(known)}"
    raise FileNotFoundError(f"unknown model {name!r}{found} Give the folder of a model, {fix}")


def model_kind(name: str) -> str:
    """The kind of a model to train, `tiny`, `frozen` or `clip`, from its name, without loading it.

    Raises:
        ValueError: a name that is not `tiny` or `frozen`, a folder or a hub id.
    """
    if name in MODELS:
        return name
    try:
        resolve_model(name, MODELS)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    return "clip"


@contextmanager
def quiet_transformers():
    """A context without progress bars and loading reports of transformers, such as on unused
    weights.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def from_hub(loader: str, name: str, **options):
    """Calls `from_pretrained` of a class of transformers; errors say where it searched and how to
    fix them.
    """
    source = resolve_model(name)
    try:
        with quiet_transformers():
            found = getattr(transformers, loader).from_pretrained(source, **options)
        if loader == "AutoTokenizer" and len(found) <= len(found.all_special_tokens):
            raise ValueError(
                "its files hold no vocabulary"
            )  # transformers makes an empty one, silently
        return found
    except (ImportError, OSError, ValueError, SafetensorError, pickle.UnpicklingError) as error:
        where = f"folder {source!r}" if Path(source).is_dir() else f"hub model {name!r}"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        what, files = LOADS.get(loader, ("", "config.json and weights"))
        fix = f"Give a folder with {files}, set CIBR_MODELS to one that holds {name}, or connect to the hub"
        raise FileNotFoundError(f"cannot load {what}{where}: {reason}. {fix}") from error
