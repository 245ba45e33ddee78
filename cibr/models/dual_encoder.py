"""`DualEncoder`: images and texts as unit vectors; from scratch, over frozen towers or from
transformers.

One class over towers (`cibr.models.towers`), which pool, and two heads, which project. It has the
temperature, embeds any images and strings, and has a folder format.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cibr.models._io import check_weights, is_hub_id, load_tokenizer, quiet_transformers, resolve
from cibr.models.towers import (
    JoinedHeads,
    ResidualHead,
    TinyTowers,
    linear_head,
    load_hub_towers,
    load_towers,
    train_tokenizer,
)
from cibr.utils import check_number

_Pixels = Float[Tensor, "n 3 h w"]
_Tokens = Int[Tensor, "n t"]
_Vectors = Float[Tensor, "n d"]
_Pooled = Float[Tensor, "n p"]
_IMAGE_TOWER = "timm/tf_efficientnet_lite0.in1k"
_TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"

_CONFIG = "cibr.json"
_WEIGHTS = "cibr.safetensors"
_TRAINED_ON = "trained_on.json"


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
        image_head: what projects the pooled features of images to the joint space.
        text_head: the same for texts.
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

    def __init__(
        self,
        towers: nn.Module | None,
        image_head: nn.Module,
        text_head: nn.Module,
        kind: str,
        settings: dict[str, Any],
    ):
        super().__init__()
        if kind == "frozen" and towers is not None:
            towers.requires_grad_(False).eval()
        self.register_module("towers", towers)
        self.image_head, self.text_head = image_head, text_head
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

        Raises:
            ValueError: texts that are not a list of strings, or a size below 1.
        """
        for name, size in dict(dim=dim, width=width, image_size=image_size).items():
            check_number(name, size, 1, whole=True)
        tokenizer = train_tokenizer([*_checked(texts, str)])
        return cls._tiny(tokenizer, [dim], width=width, image_size=image_size, dropout=dropout)

    @classmethod
    def _tiny(cls, tokenizer, dims: list[int], **sizes: Any) -> "DualEncoder":
        towers = TinyTowers(tokenizer, **sizes)
        dims = [dims[0], *towers.widths()]
        heads = [linear_head(dim_in, dims[0], sizes["dropout"]) for dim_in in dims[1:]]
        return cls(towers, *heads, "tiny", sizes | {"dims": dims})

    @classmethod
    def frozen(
        cls,
        image_tower: str = _IMAGE_TOWER,
        text_tower: str = _TEXT_TOWER,
        *,
        towers: str = "",
        dims_pooled: Sequence[int] | None = None,
        dim: int = 512,
        image_size: int = 160,
        dropout: float = 0.4,
    ) -> "DualEncoder":
        """Frozen pretrained towers under trainable projection heads.

        Args:
            image_tower: folder or hub id of a tower with pooled features; by default
                `timm/tf_efficientnet_lite0.in1k`.
            text_tower: folder or hub id of the text tower and its tokenizer; by default
                `sentence-transformers/all-MiniLM-L6-v2`. Its features are means over tokens.
            towers: in place of these two, folder or hub id of a dual encoder of transformers; its
                pooled features are the inputs of its projections, or its embeddings where it has
                none (SigLIP).
            dims_pooled: of the features of images and texts, if there are some already
                (`Pairs.features`): the towers are then loaded when an image or a text needs them.
            dim: dimension of the joint space.
            image_size: side of the square that images are cropped to, in pixels; a dual encoder has
                its own.
            dropout: probability of dropout, in the heads.

        Raises:
            FileNotFoundError: a tower, the tokenizer or the image preprocessing is missing.
            ValueError: towers that are not a dual encoder of transformers; weights that do not fit
                a tower or are not finite.
        """
        names = [towers, towers] if towers else [image_tower, text_tower]
        settings = dict(towers=names, image_size=image_size, dropout=dropout, with_linear=False)
        loaded = None
        if dims_pooled is None:
            loaded = load_towers(*names, image_size)
            settings["digests"] = loaded.digests()
        settings["dims"] = [dim, *(dims_pooled or loaded.widths())]
        return cls.over(loaded, settings)

    @classmethod
    def over(cls, towers: nn.Module | None, settings: dict[str, Any]) -> "DualEncoder":
        """Untrained heads over frozen towers, or over none yet.

        Args:
            towers: of which several models may share one object.
            settings: of the class, with `dropout` and `with_linear`, see `add_linear_heads`.
        """
        dim, *dims_pooled = settings["dims"]
        heads = [ResidualHead(dim_in, dim, settings["dropout"]) for dim_in in dims_pooled]
        model = cls(towers, *heads, "frozen", settings | {"with_linear": False})
        if settings["with_linear"]:
            model.add_linear_heads()
        return model

    @classmethod
    def whole(cls, towers: nn.Module) -> "DualEncoder":
        """A trainable dual encoder of transformers, whose projections are the heads."""
        heads = towers.take_projections()
        dims = [towers.dim, *(getattr(head, "in_features", None) for head in heads)]
        model = cls(towers, *heads, "hub", {"dims": dims})
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
        return tuple(self.settings.get("towers", ("image_tower", "text_tower")))

    def loaded_towers(self) -> nn.Module:
        """The towers, which are loaded now if nothing has needed them yet.

        Raises:
            FileNotFoundError: a tower is neither here nor on the hub; the message says the fix.
            ValueError: towers of other weights than those that the heads were trained over.
        """
        if self.towers is None:
            towers = load_towers(*self.tower_names, self.settings["image_size"])
            digests = towers.digests()
            if self.settings.get("digests", digests) != digests:
                raise ValueError(
                    f"the towers {' and '.join(self.tower_names)} have other weights than those "
                    "that the heads were trained over: get these, or train the heads again"
                )
            self.towers = towers.requires_grad_(False).eval().to(self.log_logit_scale)
        return self.towers

    def train(self, mode: bool = True) -> "DualEncoder":
        """Sets the mode; frozen towers stay in eval mode."""
        self.training = mode
        self.image_head.train(mode)
        self.text_head.train(mode)
        if self.kind != "frozen":
            self.towers.train(mode)
        return self

    def own_weights(self) -> dict[str, Tensor]:
        """The weights by name, without those of frozen towers."""
        weights = self.state_dict()
        if self.kind == "frozen":
            weights = {name: x for name, x in weights.items() if not name.startswith("towers.")}
        return dict(weights)

    def load_own_weights(self, weights: Mapping[str, Tensor], source: str | Path) -> None:
        """Sets the weights that `own_weights` returned.

        Args:
            weights: by name.
            source: their folder, for messages.

        Raises:
            ValueError: weights that are missing or not finite.
        """
        missing, others = self.load_state_dict(weights, strict=False)
        check_weights(self, source, {*missing} & self.own_weights().keys(), others)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.log_logit_scale.device

    @property
    def processor(self) -> Callable:
        """The image preprocessing of the towers."""
        return self.loaded_towers().processor

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
        """Sets the temperature and whether it is trained.

        Raises:
            ValueError: a temperature that is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}: give a number above 0, such as 0.07")
        self.log_logit_scale.data.fill_(-math.log(temperature))
        self.log_logit_scale.requires_grad_(learn)

    def preprocess(self, images: list[Image.Image]) -> UInt8[Tensor, "n 3 h w"] | _Pixels:
        """Resizes and crops images, to be passed to `normalise`.

        Args:
            images: PIL images of any size, in any mode but `F` and `I`.

        Returns:
            8-bit RGB, [n, 3, h, w]; for a model of transformers, normalised
            floats from its own image processor.
        """
        return self.processor(images)

    def normalise(self, pixels: UInt8[Tensor, "n 3 h w"] | _Pixels) -> _Pixels:
        """8-bit pixels as normalised inputs of the image tower, on its device; floats keep their
        values.
        """
        pixels = pixels.to(self.device)
        if pixels.is_floating_point():
            return pixels
        towers = self.loaded_towers()
        return (pixels.float() / 255 - towers.mean) / towers.std

    def tokenize(self, texts: list[str], truncate: bool = False) -> tuple[_Tokens, _Tokens]:
        """Token ids and attention mask, padded to the longest text.

        SigLIP attends to padding, so its texts are padded to the context and its mask is 1
        throughout.

        Raises:
            ValueError: a text longer than the context, unless `truncate` is set.
        """
        options = dict(padding=True, return_attention_mask=True, return_tensors="pt", verbose=False)
        limit = dict(truncation=truncate, max_length=self.context)
        tokens = self.tokenizer(texts, **options, **limit)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        missing = self.context - ids.shape[1]
        if missing < 0:
            n_tokens, longest = mask.sum(1).max(0)
            raise ValueError(
                f"a text has {n_tokens} tokens and the model reads {self.context}: "
                f"{texts[longest][:80]!r}... Shorten it, or cut such texts with truncate=True"
            )
        if self.loaded_towers().reads_padding:
            sides = (missing, 0) if self.tokenizer.padding_side == "left" else (0, missing)
            ids = F.pad(ids, sides, value=self.tokenizer.pad_token_id)
            mask = torch.ones_like(ids)
        return ids, mask

    def encode_images(self, images: UInt8[Tensor, "n 3 h w"] | _Pixels | _Pooled) -> Encoded:
        """Encodes images on the model's device.

        Args:
            images: from `preprocess` or `normalise`, [n, 3, h, w]; or pooled features [n, p].

        Returns:
            Unit vectors [n, d] and pooled features [n, p].
        """
        images = images.to(self.device)
        if images.ndim == 4:
            images = self.loaded_towers().image_pooled(self.normalise(images))
        return Encoded(F.normalize(self.image_head(images), dim=-1), images)

    def encode_texts(self, texts: _Tokens | _Pooled, mask: _Tokens | None = None) -> Encoded:
        """Encodes texts on the model's device.

        Args:
            texts: token ids from `tokenize`, [n, t]; or pooled features [n, q], without a mask.
            mask: 1 for tokens, 0 for padding, [n, t].

        Returns:
            Unit vectors [n, d] and pooled features [n, q].
        """
        texts = texts.to(self.device)
        if mask is not None:
            texts = self.loaded_towers().text_pooled(texts, mask.to(self.device))
        return Encoded(F.normalize(self.text_head(texts), dim=-1), texts)

    def embed_images(self, images: Iterable[Image.Image], batch_size: int = 256) -> _Vectors:
        """Embeds images as unit vectors.

        Args:
            images: PIL images of any size, in any mode but `F` and `I`.
            batch_size: images encoded at once.

        Returns:
            Unit vectors [n, d], float32, on the CPU.

        Raises:
            ValueError: anything but a list of PIL images; a mode without a fixed range of greys,
                `F` or `I`; batch_size < 1.
        """

        def encode(batch: list[Image.Image]) -> Encoded:
            return self.encode_images(self.preprocess(batch))

        return self._embed(encode, _checked(images, Image.Image), batch_size)

    def embed_texts(
        self, texts: Iterable[str], batch_size: int = 256, truncate: bool = False
    ) -> _Vectors:
        """Embeds texts as unit vectors.

        Args:
            texts: strings.
            batch_size: texts encoded at once.
            truncate: truncate texts longer than the context instead of raising.

        Returns:
            Unit vectors [n, d], float32, on the CPU.

        Raises:
            ValueError: anything but a list of strings; a text longer than the context, unless
                `truncate` is set; batch_size < 1.
        """

        def encode(batch: list[str]) -> Encoded:
            return self.encode_texts(*self.tokenize(batch, truncate))

        return self._embed(encode, _checked(texts, str), batch_size)

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

    def _embed(self, encode: Callable, items: Iterator, batch_size: int) -> _Vectors:
        check_number("batch_size", batch_size, 1, whole=True)
        vectors = [torch.zeros(0, self.dim)]
        with self.evaluating():
            while batch := list(itertools.islice(items, batch_size)):
                vectors.append(encode(batch).features.float().cpu())
        return finite(torch.cat(vectors))

    def save_pretrained(self, folder: str | Path, copy_towers: bool = False) -> Path:
        """Writes a folder that `from_pretrained` reads, bit for bit; those of another model are
        replaced, other files in it kept.

        A model of transformers is saved as on the hub, with its tokenizer and image preprocessing.
        Others store `cibr.json` (kind and settings) and `cibr.safetensors` (trainable weights).
        Tiny ones add their tokenizer. Frozen towers are stored by name; those without a hub id, and
        all with `copy_towers`, are copied to `image_tower/` and `text_tower/`, or `towers/`.
        `trained_on.json` lists digests of the training images.

        Args:
            folder: where to write.
            copy_towers: whether frozen towers are copied, for a machine that cannot get them.

        Raises:
            ValueError: a folder that cannot be written.
            FileNotFoundError: towers to be copied that are missing.
        """
        folder = Path(folder)
        if self.kind == "frozen" and not all(map(is_hub_id, self.tower_names)):
            copy_towers = True
        if copy_towers:
            self.loaded_towers()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder) as new, quiet_transformers():
                self._write(Path(new), copy_towers)
                _move_files(Path(new), folder)  # at the end: a full disk keeps the old model
            if self.kind == "hub":  # these would be read in place of a model of transformers
                (folder / _CONFIG).unlink(missing_ok=True)
                (folder / _WEIGHTS).unlink(missing_ok=True)
            if not self.trained_on:
                (folder / _TRAINED_ON).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            what = f"cannot write the model to {str(folder)!r}: {error}"
            raise ValueError(f"{what}; make room or choose another output_dir") from error
        return folder

    def _write(self, folder: Path, copy_towers: bool) -> None:
        if self.trained_on:
            (folder / _TRAINED_ON).write_text(json.dumps(sorted(self.trained_on)))
        if self.kind == "hub":
            self.towers.model.logit_scale.data.fill_(self.log_logit_scale.item())
            self.towers.save(folder, projections=[self.image_head, self.text_head])
            return
        if self.kind == "tiny":
            self.towers.save(folder)
        elif copy_towers:
            self.towers.save(*_copies(folder, self.tower_names))
        about = {"kind": self.kind, "settings": self.settings, "copied": copy_towers}
        (folder / _CONFIG).write_text(json.dumps(about, indent=2))
        save_weights(self.own_weights(), folder / _WEIGHTS)

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
            ValueError: a folder that is incomplete or damaged, a model that is not a dual encoder,
                or weights that do not fit it or are not finite.
        """
        folder = Path(resolve(str(name))).absolute()
        if (folder / _CONFIG).exists() or (folder / _WEIGHTS).exists():
            try:
                return cls._read(folder)
            except Exception as error:  # readers raise nearly anything on damaged files
                raise ValueError(f"cannot load the model in {str(folder)!r}: {error}") from error
        if folder.is_dir() and not (folder / "config.json").exists():
            raise FileNotFoundError(
                f"{str(folder)!r} holds no model, neither cibr.json nor config.json: give the "
                "folder of a saved model, or finish the run that began here"
            )
        model = cls.whole(load_hub_towers(name))
        model.trained_on = _trained_on(folder)
        return model

    @classmethod
    def _read(cls, folder: Path) -> "DualEncoder":
        """Loads a `tiny` or a `frozen` model."""
        about = json.loads((folder / _CONFIG).read_text())
        settings = about["settings"]
        if about["kind"] == "tiny":
            model = cls._tiny(load_tokenizer(folder), **settings)
        elif about["copied"]:
            places = _copies(folder, settings["towers"])
            model = cls.over(load_towers(*places, settings["image_size"]), settings)
        else:
            model = cls.over(None, settings)
        model.load_own_weights(load_file(folder / _WEIGHTS), folder)
        model.trained_on = _trained_on(folder)
        return model.eval()


def image_key(digest: str) -> str:
    """The name of an image in `DualEncoder.trained_on`: the start of its digest."""
    return digest[:16]


def _trained_on(folder: Path) -> set[str]:
    file = folder / _TRAINED_ON
    return set(json.loads(file.read_text())) if file.is_file() else set()


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Writes weights to a file of safetensors, which holds neither views nor shared memory."""
    whole = {
        name: own.clone(memory_format=torch.contiguous_format) for name, own in weights.items()
    }
    save_file(whole, file)


def finite(vectors: _Vectors) -> _Vectors:
    """The vectors, or ValueError if some are not finite."""
    if not vectors.isfinite().all():
        raise ValueError("embeddings are not finite: the model's weights are damaged")
    return vectors


def _copies(folder: Path, names: Sequence[str]) -> list[Path]:
    """Where towers of these names are copied to; those of a dual encoder are one."""
    if names[0] == names[1]:
        return [folder / "towers"] * 2
    return [folder / "image_tower", folder / "text_tower"]


def _move_files(source: Path, target: Path) -> None:
    """Moves the files of a folder and its subfolders into another one."""
    mode = min(source.glob("*.json")).stat().st_mode  # safetensors writes for the owner alone
    for file in [file for file in source.rglob("*") if file.is_file()]:
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        file.chmod(mode)
        file.replace(place)


def _checked(items: Iterable, kind: type) -> Iterator:
    """The items, each after a check of its type: an image of PIL, or a string."""
    wanted = "strings" if kind is str else "PIL images, from Image.open or Image.fromarray"
    if items is None or isinstance(items, (str, Path, Image.Image)):
        raise ValueError(f"got one {type(items).__name__}: pass a list of {wanted}")
    for item in items:
        if not isinstance(item, kind):
            raise ValueError(f"got a list with {type(item).__name__}: pass a list of {wanted}")
        yield item
