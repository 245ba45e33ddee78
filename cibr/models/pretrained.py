"""Backbones that start from pretrained weights: two frozen towers under trained heads, or a whole CLIP.

Of a frozen image tower the last blocks can be trained too, as a copy of them: the tower below them stays as it is,
so what it gives is still computed once.

Names are resolved in the order: an existing folder; `$CIBR_MODELS/<hub id>`; the checkpoints that come with the
repository, `clip-tiny` and `cibr-tiny`; the hub.
"""

import copy
import os
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from cibr.models.tiny import mean_pool
from cibr.names import nearest
from cibr.paths import project_root

MODELS = ("tiny", "frozen")
IMAGE_TOWER = "timm/tf_efficientnet_lite0.in1k"
TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"
STEM = ("conv_stem", "bn1")  # of an EfficientNet of timm, below its blocks
NECK = ("conv_head", "bn2", "global_pool")  # and above them
CHECKPOINTS = ("clip-tiny", "cibr-tiny")  # come with the repository


def resolve_model(name: str) -> str:
    """Where a model's files are: a folder on this machine, or the hub id itself."""
    root = os.environ.get("CIBR_MODELS")
    folders = [Path(name).expanduser()] + ([Path(root).expanduser() / name] if root else [])
    folders.append(project_root() / "data" / "checkpoints" / name)
    return next((str(folder) for folder in folders if name and folder.is_dir()), name)


def trained_model(name: str) -> Path:
    """The folder of a trained model, or its hub id as a path; nothing is fetched.

    Raises:
        FileNotFoundError: a name that is no folder and, without a slash, no hub id.
    """
    source = Path(resolve_model(name))
    if (name and source.is_dir()) or "/" in name:
        return source
    raise FileNotFoundError(
        f"there is no model {name!r}{nearest(name, CHECKPOINTS) or '.'} Give a folder, a hub id such as "
        f"openai/clip-vit-base-patch32, or one of {', '.join(CHECKPOINTS)}"
    )


def model_kind(name: str) -> str:
    """`tiny`, `frozen` or `clip`, from a model's name, before anything is loaded.

    Raises:
        ValueError: a name that is none of them, no folder and no hub id (which holds a slash).
    """
    if name in MODELS:
        return name
    source = Path(resolve_model(name))
    if name and (source.is_dir() or name.count("/") == 1):
        return "clip"
    raise ValueError(
        f"unknown model {name!r}{nearest(name, MODELS) or '.'} Give {' or '.join(MODELS)}, a folder with a "
        "CLIPModel, or a hub id such as openai/clip-vit-base-patch32"
    )


@contextmanager
def quiet_transformers():
    """No bars and no reports from transformers: that a tower comes without its classifier is no news."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def from_hub(loader, name: str, **options):
    """`loader.from_pretrained` with an error that says where was looked and what helps."""
    source = resolve_model(name)
    try:
        with quiet_transformers():
            return loader.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        where = f"folder {source!r}" if Path(source).is_dir() else f"hub model {name!r}"
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"cannot load {where}: {reason}. Give a folder with the model's files, set "
            f"CIBR_MODELS to a folder that holds <CIBR_MODELS>/{name}, or connect to the hub"
        ) from error


def text_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that comes with a pretrained model."""
    return from_hub(AutoTokenizer, name)


class ProjectionHead(nn.Module):
    """Pooled features to the joint space: a linear map plus a residual layer, with dropout before both."""

    def __init__(self, dim_in: int, dim: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(dim_in, dim)
        self.residual = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim))
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(dim)

    def forward(self, pooled: Float[Tensor, "n dim_in"]) -> Float[Tensor, "n dim"]:
        x = self.linear(self.dropout(pooled))
        return self.norm(x + self.residual(x))


class FrozenBackbone(nn.Module):
    """Two pretrained towers that never train and always run in eval mode, under trained projection heads.

    The image tower's pooled output and the text tower's mean over tokens are what the heads see; `fit`
    computes them once for a data set and keeps them. With `trained_blocks` the image tower's last blocks are
    trained too, in a copy, and what is kept are the maps that enter them; their batch statistics stay fixed.
    """

    kind = "frozen"

    def __init__(
        self, image_tower: nn.Module, text_tower: nn.Module, dim: int, dropout: float, trained_blocks: int = 0
    ):
        super().__init__()
        self.settings = dict(dim=dim, dropout=dropout, trained_blocks=trained_blocks)
        self.trained_blocks = trained_blocks
        self.image_tower, self.text_tower = (
            image_tower.requires_grad_(False),
            text_tower.requires_grad_(False),
        )
        self.dim, self.dim_text_pooled = dim, text_tower.config.hidden_size
        self.context = text_tower.config.max_position_embeddings
        self.dim_image_pooled = image_pooled_size(image_tower)
        self.image_head = ProjectionHead(self.dim_image_pooled, dim, dropout)
        self.text_head = ProjectionHead(self.dim_text_pooled, dim, dropout)
        if trained_blocks:
            self.image_top = copy.deepcopy(split_tower(image_tower, trained_blocks)[1]).requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        super().train(mode)
        self.image_tower.eval()
        self.text_tower.eval()
        if self.trained_blocks:
            self.image_top.eval()
        return self

    @torch.no_grad()
    def image_base(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n ..."]:
        """What never changes for a picture: the pooled output, or the map that enters the trained blocks."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # convolutions run twice as fast on a CPU
        if self.trained_blocks:
            return split_tower(self.image_tower, self.trained_blocks)[0](pixels)
        return self.image_tower(pixel_values=pixels).pooler_output.flatten(1)

    def finish_image(self, base: Float[Tensor, "n ..."]) -> Float[Tensor, "n dim_pooled"]:
        """What `image_base` gives, pooled."""
        if not self.trained_blocks:
            return base
        return self.image_top(base.contiguous(memory_format=torch.channels_last)).flatten(1)

    def image_pooled(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim_pooled"]:
        return self.finish_image(self.image_base(pixels))

    @torch.no_grad()
    def text_pooled(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n dim_pooled"]:
        states = self.text_tower(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(states, mask)


def split_tower(tower: nn.Module, n_blocks: int) -> tuple[nn.Sequential, nn.Sequential]:
    """An image tower below its last blocks, pictures to maps [n, c, h, w], and from there on to pooled features.

    Args:
        tower: an EfficientNet of timm.
        n_blocks: how many of its stages the second part has, with all that follows them.

    Raises:
        ValueError: another tower, or as many blocks as it has or more.
    """
    net = getattr(tower, "timm_model", None)
    if not all(hasattr(net, part) for part in (*STEM, "blocks", *NECK)):
        raise ValueError(
            f"an image tower of type {type(tower).__name__} has no blocks that are known here: give an "
            "EfficientNet of timm"
        )
    if not 0 < n_blocks < len(net.blocks):
        raise ValueError(
            f"trained_blocks is {n_blocks}: the image tower has {len(net.blocks)}, and one stays fixed"
        )
    stem, neck = ([getattr(net, part) for part in parts] for parts in (STEM, NECK))
    return nn.Sequential(*stem, *net.blocks[:-n_blocks]), nn.Sequential(*net.blocks[-n_blocks:], *neck)


def load_tower(name: str) -> nn.Module:
    """A pretrained tower in float32 and eval mode."""
    return from_hub(AutoModel, name, dtype=torch.float32).eval()


def image_pooled_size(tower: nn.Module) -> int:
    """The width of an image tower's pooled output, read off a blank picture."""
    size = tower_image_size(tower.config)
    with torch.no_grad():
        return tower(pixel_values=torch.zeros(1, 3, size, size)).pooler_output.flatten(1).shape[1]


def tower_normalisation(name: str, tower: nn.Module) -> tuple[list[float], list[float]]:
    """The channel means and deviations that an image tower was trained with."""
    timm = getattr(tower.config, "pretrained_cfg", None)
    if timm:
        return list(timm["mean"]), list(timm["std"])
    processor = from_hub(AutoImageProcessor, name)
    return list(processor.image_mean), list(processor.image_std)


def tower_image_size(config: PreTrainedConfig) -> int:
    """The picture size that a tower was trained for."""
    size = getattr(config, "image_size", None) or config.pretrained_cfg["input_size"][-1]
    return size if isinstance(size, int) else size[0]


class ClipBackbone(nn.Module):
    """A `transformers.CLIPModel`, trained whole: its towers pool, its two projections are the heads."""

    kind = "clip"

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.settings: dict = {}
        self.clip = clip
        self.dim = clip.config.projection_dim
        self.context = clip.config.text_config.max_position_embeddings
        self.dim_image_pooled = clip.config.vision_config.hidden_size
        self.dim_text_pooled = clip.config.text_config.hidden_size

    @property
    def image_head(self) -> nn.Module:
        return self.clip.visual_projection

    @property
    def text_head(self) -> nn.Module:
        return self.clip.text_projection

    def image_pooled(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim_pooled"]:
        return self.clip.vision_model(pixel_values=pixels).pooler_output

    def text_pooled(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n dim_pooled"]:
        return self.clip.text_model(input_ids=ids, attention_mask=mask).pooler_output
