"""`DualEncoder`: images and texts as unit vectors; from scratch, over frozen towers or from
transformers.

One class over towers (`cibr.models.towers`), which pool, and two heads, which project. It has the
temperature, embeds any images and strings, and has a folder format.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cibr.models._io import check_weights, is_hub_id, load_tokenizer, resolve
from cibr.models.towers import TinyTowers, load_hub_towers, load_towers, preprocess, train_tokenizer
from cibr.utils import batched

_Pixels = Float[Tensor, "n 3 h w"]
_Tokens = Int[Tensor, "n t"]
_Vectors = Float[Tensor, "n d"]
_Pooled = Float[Tensor, "n p"]
_ABOUT = "cibr.json"
_WEIGHTS = "cibr.safetensors"


class Encoded(NamedTuple):
    """One modality of a batch: unit vectors, and the pooled features that the head projected.

    A model without projections, such as SigLIP, has no pooled features; the unnormalised vectors
    take their place, and its `dim_image_pooled` is None.
    """

    features: Float[Tensor, "n d"]
    pooled: Float[Tensor, "n p"]


class DualEncoder(nn.Module):
    """An image encoder and a text encoder with a joint space of `dim` dimensions.

    Build one with `tiny`, `frozen` or `from_pretrained` rather than by hand.

    Args:
        towers: what pools; None for frozen towers that are loaded by their names as soon as an
            image or a text needs them. Heads over given features need none.
        heads: what projects the pooled features of images, and of texts, to the joint space.
        kind: `tiny`, `frozen` or `hub`, any dual encoder of transformers.
        settings: what builds the model again, with `dims`, of a head's vectors and of the pooled
            features of images and texts (None without projections), and the names of frozen
            `towers`, folders or hub ids; one name twice is a dual encoder.

    Attributes:
        log_logit_scale: the logarithm of the multiplier of the cosines.
        trained_on: the images of its training by `image_key`; empty if they are not known.

    Examples:
        >>> from cibr import DualEncoder, load_pairs
        >>> pairs = load_pairs("glyphs", "test")
        >>> model = DualEncoder.tiny(pairs.texts())
        >>> model.embed_images([pairs.image(0), pairs.image(1)]).shape
        torch.Size([2, 128])
        >>> round(model.embed_texts(["latin small letter a"]).norm().item(), 4)
        1.0
    """

    def __init__(self, towers: nn.Module | None, heads: list, kind: str, settings: dict[str, Any]):
        super().__init__()
        self.register_module("towers", towers)
        self.image_head, self.text_head = heads
        self.kind, self.settings = kind, settings
        self.dim, self.dim_image_pooled, self.dim_text_pooled = settings["dims"]
        self.trained_on: set[str] = set()
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @classmethod
    def tiny(
        cls,
        texts: list[str],
        *,
        dim: int = 128,
        width: int = 32,
        image_size: int = 32,
        dropout: float = 0.0,
    ) -> "DualEncoder":
        """A small untrained model with a tokenizer learned from `texts`; `torch.manual_seed` sets
        its weights.

        Args:
            texts: of a training set.
            dim: dimension of the joint space.
            width: channels of the image tower's first layer.
            image_size: side of the square that images are cropped to, in pixels.
            dropout: probability of dropout, in the heads and the text tower.
        """
        sizes = dict(width=width, image_size=image_size, dropout=dropout)
        towers = TinyTowers(train_tokenizer(texts), **sizes)
        return cls.over(towers, sizes | {"dims": [dim, *towers.widths()]}, "tiny")

    @classmethod
    def frozen(
        cls,
        image_tower: str = "timm/tf_efficientnet_lite0.in1k",
        text_tower: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        dims_pooled: Sequence[int] | None = None,
        dim: int = 512,
        dropout: float = 0.4,
    ) -> "DualEncoder":
        """Frozen pretrained towers under trainable projection heads.

        Args:
            image_tower: folder or hub id of a tower with pooled features.
            text_tower: folder or hub id of the text tower and its tokenizer; its features are means
                over tokens. The same as `image_tower` for a dual encoder of transformers; its
                pooled features are the inputs of its projections, or its embeddings where it has
                none (SigLIP).
            dims_pooled: of the features of images and texts, if there are some already
                (`Pairs.features`): the towers are then loaded when an image or a text needs them.
            dim: dimension of the joint space.
            dropout: probability of dropout, in the heads.

        Raises:
            FileNotFoundError: a tower, the tokenizer or the image preprocessing is missing.
            ValueError: towers that are not a dual encoder of transformers; weights that do not fit
                a tower or are not finite.
        """
        names = [image_tower, text_tower]
        towers = None if dims_pooled else load_towers(*names)
        dims = [dim, *(dims_pooled or towers.widths())]
        return cls.over(towers, dict(towers=names, dims=dims, dropout=dropout))

    @classmethod
    def over(cls, towers: nn.Module | None, settings: dict, kind: str = "frozen") -> "DualEncoder":
        """Untrained heads over towers, or over none yet.

        Args:
            towers: of which several models may share one object, if they are frozen.
            settings: of the class, with `dropout` and perhaps `with_linear`, see
                `add_linear_heads`.
            kind: `frozen` or `tiny`.
        """
        dim, *dims_pooled = settings["dims"]
        head = ResidualHead if kind == "frozen" else linear_head
        heads = [head(dim_in, dim, settings["dropout"]) for dim_in in dims_pooled]
        model = cls(towers, heads, kind, settings | {"with_linear": False})
        if settings.get("with_linear"):
            model.add_linear_heads()
        return model

    @classmethod
    def whole(cls, towers: nn.Module) -> "DualEncoder":
        """A trainable dual encoder of transformers, whose projections are the heads."""
        heads = towers.exchange_projections(nn.Identity(), nn.Identity())
        dims_pooled = [getattr(head, "in_features", None) for head in heads]
        dims = [getattr(heads[0], "out_features", None) or towers.widths()[0], *dims_pooled]
        model = cls(towers, heads, "hub", {"dims": dims})
        model.log_logit_scale.data.fill_(towers.model.logit_scale.item())
        return model.eval()

    def add_linear_heads(self) -> None:
        """Puts a linear map beside the head of each modality, of the same width.

        Their unit vectors are joined, so `dim` doubles and a cosine is the mean of both.
        """
        image_linear = nn.Linear(self.dim_image_pooled, self.dim, device=self.device)
        text_linear = nn.Linear(self.dim_text_pooled, self.dim, device=self.device)
        self.image_head = JoinedHeads([self.image_head, image_linear])
        self.text_head = JoinedHeads([self.text_head, text_linear])
        self.dim *= 2
        self.settings = self.settings | {"with_linear": True}

    @property
    def tower_names(self) -> tuple[str, ...]:
        """Folders or hub ids of frozen towers, of images and of texts."""
        return tuple(self.settings["towers"])

    def loaded_towers(self) -> nn.Module:
        """The towers, which are loaded now if nothing has needed them yet.

        Raises:
            FileNotFoundError: a tower is neither here nor on the hub; the message says the fix.
        """
        if self.towers is None:
            self.towers = load_towers(*self.tower_names).to(self.log_logit_scale)
        return self.towers

    def train(self, mode: bool = True) -> "DualEncoder":
        """Sets the mode; frozen towers stay in eval mode."""
        super().train(mode)
        if self.kind == "frozen" and self.towers is not None:
            self.towers.eval()
        return self

    def own_weights(self) -> dict[str, Tensor]:
        """The weights by name, without those of frozen towers."""
        own = self.state_dict().items()
        is_frozen = self.kind == "frozen"
        return {name: x for name, x in own if not (is_frozen and name.startswith("towers."))}

    def load_own_weights(self, weights: Mapping[str, Tensor], source: str | Path) -> None:
        """Sets the weights that `own_weights` returned.

        Args:
            weights: by name.
            source: their folder, for messages.

        Raises:
            ValueError: weights that are missing or not finite.
        """
        missing = self.load_state_dict(weights, strict=False).missing_keys
        check_weights(self, str(source), {*missing} & self.own_weights().keys())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.log_logit_scale.device

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the towers."""
        return self.loaded_towers().tokenizer

    @property
    def context(self) -> int:
        """The maximum number of tokens of the text encoder."""
        return min(self.loaded_towers().n_positions, self.tokenizer.model_max_length)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """The multiplier of the cosines, 1 / temperature."""
        return self.log_logit_scale.exp()

    def limit_logit_scale(self) -> None:
        """Clamps the multiplier to at most 100 after a step, as in CLIP."""
        # A clamp inside the loss would have no gradient above 100, so it could not recover.
        self.log_logit_scale.data.clamp_(max=math.log(100))

    def set_temperature(self, temperature: float, learn: bool = True) -> None:
        """Sets the temperature, above 0, and whether it is trained."""
        self.log_logit_scale.data.fill_(-math.log(temperature))
        self.log_logit_scale.requires_grad_(learn)

    def preprocess(self, images: list[Image.Image]) -> _Pixels:
        """Resizes, crops and normalises images.

        Args:
            images: PIL images of any size, in any mode but `F` and `I`.

        Returns:
            The inputs of `encode_images`, [n, 3, h, w].
        """
        return preprocess(self.loaded_towers().processor, images)

    def tokenize(self, texts: list[str]) -> tuple[_Tokens, _Tokens]:
        """Token ids and attention mask, padded to the longest text and cut to the context.

        SigLIP attends to padding, so its texts are padded to the context and its mask is 1
        throughout.
        """
        reads_padding = self.loaded_towers().reads_padding
        padding = "max_length" if reads_padding else True
        options = dict(padding=padding, truncation=True, max_length=self.context)
        tokens = self.tokenizer(texts, return_attention_mask=True, return_tensors="pt", **options)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        return ids, torch.ones_like(mask) if reads_padding else mask

    def encode_images(self, images: _Pixels | _Pooled) -> Encoded:
        """Encodes images on the model's device.

        Args:
            images: from `preprocess`, [n, 3, h, w]; or pooled features [n, p].

        Returns:
            Unit vectors [n, d] and pooled features [n, p].
        """
        images = images.to(self.log_logit_scale)  # its device and type
        if images.ndim == 4:
            images = self.loaded_towers().image_pooled(images)
        return Encoded(F.normalize(self.image_head(images), dim=-1), images)

    def encode_texts(self, texts: _Tokens | _Pooled, mask: _Tokens | None = None) -> Encoded:
        """Encodes texts on the model's device.

        Args:
            texts: token ids from `tokenize`, [n, t]; or pooled features [n, q], without a mask.
            mask: 1 for tokens, 0 for padding, [n, t].

        Returns:
            Unit vectors [n, d] and pooled features [n, q].
        """
        if mask is None:
            texts = texts.to(self.log_logit_scale)
        else:
            texts = self.loaded_towers().text_pooled(texts.to(self.device), mask.to(self.device))
        return Encoded(F.normalize(self.text_head(texts), dim=-1), texts)

    def embed_images(self, images: Iterable[Image.Image], batch_size: int = 256) -> _Vectors:
        """Embeds images as unit vectors.

        Args:
            images: PIL images of any size, in any mode but `F` and `I`.
            batch_size: images encoded at once.

        Returns:
            Unit vectors [n, d], float32, on the CPU.

        Raises:
            ValueError: a mode without a fixed range of greys, `F` or `I`; batch_size < 1.
        """
        batches = batched(images, batch_size)
        return self.unit_vectors(self.encode_images(self.preprocess(batch)) for batch in batches)

    def embed_texts(self, texts: Iterable[str], batch_size: int = 256) -> _Vectors:
        """Embeds texts as unit vectors; those longer than the context are cut.

        Args:
            texts: strings.
            batch_size: texts encoded at once.

        Returns:
            Unit vectors [n, d], float32, on the CPU.

        Raises:
            ValueError: one string; batch_size < 1.
        """
        if isinstance(texts, str):
            raise ValueError("embed_texts got one string: pass a list of strings")
        batches = (self.tokenize(batch) for batch in batched(texts, batch_size))
        return self.unit_vectors(self.encode_texts(*batch) for batch in batches)

    def unit_vectors(self, encoded: Iterable[Encoded]) -> _Vectors:
        """Unit vectors of batches, which are encoded here, in eval mode; float32, on the CPU."""
        with self.evaluating():
            parts = [batch.features.float().cpu() for batch in encoded]
        return torch.cat([torch.zeros(0, self.dim), *parts])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context in eval mode and without gradients; the mode is restored afterwards."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    def save_pretrained(self, folder: str | Path, copy_towers: bool = False) -> Path:
        """Writes a folder that `from_pretrained` reads, bit for bit; other files in it are kept.

        `cibr.json` has kind, settings and digests of the training images. A model of transformers
        is saved as on the hub, with its tokenizer and image preprocessing. Others store their
        trainable weights, `cibr.safetensors`, and tiny ones their tokenizer. Frozen towers are
        stored by name; those without a hub id, and all with `copy_towers`, are copied to
        `image_tower/` and `text_tower/`, or `towers/`.

        Args:
            folder: where to write.
            copy_towers: whether frozen towers are copied, for a machine that cannot get them.

        Raises:
            FileNotFoundError: towers to be copied that are missing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"kind": self.kind, "settings": self.settings, "copied": False}
        if self.kind == "hub":
            self.towers.model.logit_scale.data.fill_(self.log_logit_scale.item())
            self.towers.exchange_projections(self.image_head, self.text_head)
            self.towers.save(folder, folder)
            self.towers.exchange_projections(nn.Identity(), nn.Identity())
        elif self.kind == "tiny":
            self.tokenizer.save_pretrained(folder)
        elif copy_towers or not all(map(is_hub_id, self.tower_names)):
            about["copied"] = True
            self.loaded_towers().save(*_copies(folder, self.tower_names))
        if self.kind != "hub":
            weights = {name: x.contiguous() for name, x in self.own_weights().items()}
            save_file(weights, folder / _WEIGHTS)
        about["trained_on"] = sorted(self.trained_on)
        (folder / _ABOUT).write_text(json.dumps(about))
        return folder

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "DualEncoder":
        """Loads a folder that `save_pretrained` wrote, bit for bit, or a dual encoder of
        transformers with its temperature.

        Two small models, trained on glyphs, are shipped with the package: `clip-tiny` and
        `cibr-tiny`. Any transformers class with `get_image_features` and `get_text_features`, such
        as `CLIPModel` (`openai/clip-vit-base-patch32`) or `SiglipModel`
        (`google/siglip-base-patch16-224`), loads with its own tokenizer and image preprocessing.
        The bias of SigLIP's logits is kept but not used: it changes no ranking.

        Frozen towers that are stored by name are loaded when an image or a text needs them.

        Args:
            name: a folder, a hub id or the name of a shipped model.

        Raises:
            FileNotFoundError: the model, its tokenizer or its image preprocessing is missing; the
                message names the places searched.
            ValueError: a model that is not a dual encoder, or weights that do not fit it or are not
                finite.
        """
        folder = Path(resolve(str(name)))
        if not (folder / _ABOUT).exists():
            return cls.whole(load_hub_towers(name))
        about = json.loads((folder / _ABOUT).read_text())
        kind, settings = about["kind"], about["settings"]
        if kind == "hub":
            model = cls.whole(load_hub_towers(folder))
        else:
            towers = None
            if kind == "tiny":
                sizes = {size: settings[size] for size in ("width", "image_size", "dropout")}
                towers = TinyTowers(load_tokenizer(folder), **sizes)
            elif about["copied"]:
                towers = load_towers(*_copies(folder, settings["towers"]))
            model = cls.over(towers, settings, kind)
            try:
                weights = load_file(folder / _WEIGHTS)
            except SafetensorError as error:
                damaged = f"{folder / _WEIGHTS} is damaged ({error}): save it again"
                raise ValueError(damaged) from error
            model.load_own_weights(weights, folder)
        model.trained_on = set(about.get("trained_on", ()))
        return model.eval()


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

    def forward(self, pooled: _Pooled) -> Float[Tensor, "n d"]:
        x = self.linear(self.dropout(pooled))
        return self.norm(x + self.residual(x))


class JoinedHeads(nn.ModuleList):
    """Heads side by side, whose unit vectors are concatenated: cosines are means over the heads."""

    def forward(self, pooled: _Pooled) -> Float[Tensor, "n d"]:
        return torch.cat([F.normalize(head(pooled), dim=-1) for head in self], dim=-1)


def image_key(digest: str) -> str:
    """The name of an image in `DualEncoder.trained_on`: the start of its digest."""
    return digest[:16]


def _copies(folder: Path, names: Sequence[str]) -> list[Path]:
    """Where towers of these names are copied to; those of a dual encoder are one."""
    if names[0] == names[1]:
        return [folder / "towers"] * 2
    return [folder / "image_tower", folder / "text_tower"]
