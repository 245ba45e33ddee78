"""`DualEncoder`: images and texts as unit vectors; from scratch, over frozen towers or from
transformers.

One class around three backbones (`cibr.models._towers`), which pool and project. It adds
preprocessing, the tokenizer, the temperature, embedding of any images and strings, and a folder
format.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from cibr.models import _io, _towers
from cibr.utils import check_number

_Pixels = Float[Tensor, "n 3 h w"]
_Tokens = Int[Tensor, "n t"]
_Vectors = Float[Tensor, "n d"]
_Pooled = Float[Tensor, "n p"]
_IMAGE_TOWER = "timm/tf_efficientnet_lite0.in1k"
_TEXT_TOWER = "sentence-transformers/all-MiniLM-L6-v2"

_CONFIG = "cibr.json"
_WEIGHTS = "cibr.safetensors"
_PREPROCESSING = "preprocessor_config.json"
_DUAL_TOWERS = Path("towers", "config.json")
# Files of another kind of model that would be read in place of a new one's.
_OF_OTHERS = {"hub": (Path(_CONFIG), Path(_WEIGHTS)), "frozen": (_DUAL_TOWERS,)}


class Encoded(NamedTuple):
    """One modality of a batch: unit vectors, and the pooled features that the head projected.

    A backbone without heads, such as SigLIP's, has no pooled features; the unnormalised vectors
    take their place, and `dim_image_pooled` of the backbone is None.
    """

    features: Float[Tensor, "n d"]
    pooled: Float[Tensor, "n p"]


class DualEncoder(nn.Module):
    """An image encoder and a text encoder with a joint space of `dim` dimensions.

    Build one with `tiny`, `frozen` or `from_pretrained` rather than by hand.

    Attributes:
        kind: `tiny`, `frozen` or `hub`, any dual encoder of transformers.
        dim: dimension of the joint space.
        image_size: side of the square that images are cropped to, in pixels.
        log_logit_scale: the logarithm of the multiplier of the cosines.

    Examples:
        >>> from cibr import DualEncoder, load_pairs
        >>> pairs = load_pairs("glyphs", "test")
        >>> model = DualEncoder.tiny(pairs.texts())
        >>> model.embed_images([pairs.image(0), pairs.image(1)]).shape
        torch.Size([2, 128])
        >>> round(model.embed_texts(["latin small letter a"]).norm().item(), 4)
        1.0
    """

    def __init__(self, backbone: nn.Module, processor: Callable, tokenizer):
        super().__init__()
        self.backbone = backbone
        self.processor = processor
        self.tokenizer = tokenizer
        self.kind = backbone.kind
        self.dim = backbone.dim
        self.image_size = processor.size
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

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
        rule = "a tiny model learns its tokenizer from a list of texts"
        tokenizer = _towers.train_tokenizer([*_checked(texts, str, rule)])
        context = tokenizer.model_max_length
        backbone = _towers.TinyBackbone(dim, width, len(tokenizer), context, dropout)
        return cls(backbone, _towers.ImageProcessor(image_size), tokenizer)

    @classmethod
    def frozen(
        cls,
        image_tower: str = _IMAGE_TOWER,
        text_tower: str = _TEXT_TOWER,
        *,
        towers: str = "",
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
            dim: dimension of the joint space.
            image_size: side of the square that images are cropped to, in pixels; a dual encoder has
                its own.
            dropout: probability of dropout, in the heads.

        Raises:
            FileNotFoundError: a tower, the tokenizer or the image preprocessing is missing.
            ValueError: towers that are not a dual encoder of transformers; weights that do not fit
                a tower or are not finite.
        """
        if towers:
            dual = cls.from_pretrained(towers)
            if dual.kind != "hub":
                what = f"{towers!r} is a model of kind {dual.kind!r}"
                raise ValueError(f"{what}: give the folder or hub id of one of transformers")
            backbone = _towers.FrozenBackbone(dual.backbone, dual.image_size, dim, dropout)
            return cls(backbone, dual.processor, dual.tokenizer)
        image = _io.from_hub("AutoModel", image_tower)
        text = _io.from_hub("AutoModel", text_tower, unused="pooler.")
        if hasattr(image.config, "pretrained_cfg"):  # of a model of timm
            mean, std = image.config.pretrained_cfg["mean"], image.config.pretrained_cfg["std"]
        else:
            trained_as = _io.from_hub("AutoImageProcessor", image_tower)
            mean, std = trained_as.image_mean, trained_as.image_std
        processor = _towers.ImageProcessor(image_size, mean, std)
        backbone = _towers.FrozenBackbone(_towers.TwoTowers(image, text), image_size, dim, dropout)
        return cls(backbone, processor, _io.from_hub("AutoTokenizer", text_tower))

    @property
    def context(self) -> int:
        """The maximum number of tokens of the text encoder."""
        return min(self.backbone.context, self.tokenizer.model_max_length)

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
            raise ValueError(
                f"temperature is {temperature!r}: give a positive number, such as 0.07"
            )
        self.log_logit_scale.data.fill_(-math.log(temperature))
        self.log_logit_scale.requires_grad_(learn)

    def preprocess(self, images: list[Image.Image]) -> UInt8[Tensor, "n 3 h w"] | _Pixels:
        """Resizes and crops images, to be passed to `normalise`.

        Args:
            images: PIL images of any size, in any mode but `F` and `I`.

        Returns:
            8-bit RGB, [n, 3, image_size, image_size]; for a model of transformers, normalised
            floats from its own image processor.
        """
        return self.processor(images)

    def normalise(self, pixels: UInt8[Tensor, "n 3 h w"] | _Pixels) -> _Pixels:
        """8-bit pixels as normalised inputs of the image tower, on its device; floats keep their
        values.
        """
        pixels = pixels.to(self.mean.device)
        if pixels.is_floating_point():
            return pixels
        return (pixels.float() / 255 - self.mean) / self.std

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
            problem = f"a text has {n_tokens} tokens and the model reads {self.context}"
            fix = "Shorten it, or cut such texts with truncate=True"
            raise ValueError(f"{problem}: {texts[longest][:80]!r}... {fix}")
        if self.backbone.reads_padding:
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
        images = images.to(self.mean.device)
        if images.ndim == 4:
            images = self.backbone.image_pooled(self.normalise(images))
        return Encoded(F.normalize(self.backbone.image_head(images), dim=-1), images)

    def encode_texts(self, texts: _Tokens | _Pooled, mask: _Tokens | None = None) -> Encoded:
        """Encodes texts on the model's device.

        Args:
            texts: token ids from `tokenize`, [n, t]; or pooled features [n, q], without a mask.
            mask: 1 for tokens, 0 for padding, [n, t].

        Returns:
            Unit vectors [n, d] and pooled features [n, q].
        """
        texts = texts.to(self.mean.device)
        if mask is not None:
            texts = self.backbone.text_pooled(texts, mask.to(self.mean.device))
        return Encoded(F.normalize(self.backbone.text_head(texts), dim=-1), texts)

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
        fix = "open files with PIL.Image.open(path), make images of arrays with Image.fromarray"
        images = _checked(images, Image.Image, f"embed_images takes a list of PIL images: {fix}")
        return self._embed(
            lambda part: self.encode_images(self.preprocess(part)), images, batch_size
        )

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
        texts = _checked(
            texts, str, "embed_texts takes a list of strings: make them with str(item)"
        )
        return self._embed(
            lambda part: self.encode_texts(*self.tokenize(part, truncate)), texts, batch_size
        )

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
        parts = [torch.zeros(0, self.dim)]
        with self.evaluating():
            while part := list(itertools.islice(items, batch_size)):  # of a generator, no more
                parts.append(encode(part).features.float().cpu())
        vectors = torch.cat(parts)
        if not vectors.isfinite().all():
            raise ValueError("embeddings are not finite: the model's weights are damaged")
        return vectors

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes a folder that `from_pretrained` reads, bit for bit; those of another model are
        replaced, other files in it kept.

        A model of transformers is saved as on the hub, with its tokenizer and image preprocessing.
        Others store `cibr.json` (kind and settings of the backbone) and `cibr.safetensors` (all
        trainable weights) in place of its model. `frozen` ones add their towers in `image_tower/`
        and `text_tower/`, or `towers/`.

        Raises:
            ValueError: a folder that cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder) as new, _io.quiet_transformers():
                self._write(Path(new))
                names = [file.relative_to(new) for file in Path(new).rglob("*.*")]
                mode = (Path(new) / _PREPROCESSING).stat().st_mode  # safetensors: the owner's only
                for name in names:  # at the end: a full disk keeps the old model
                    (folder / name).parent.mkdir(exist_ok=True)
                    (Path(new) / name).chmod(mode)
                    (Path(new) / name).replace(folder / name)
                for name in {*_OF_OTHERS.get(self.kind, ())} - {*names}:
                    (folder / name).unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            what = f"cannot write the model to {str(folder)!r}: {error}"
            raise ValueError(f"{what}; make room or choose another output_dir") from error
        return folder

    def _write(self, folder: Path) -> None:
        backbone = self.backbone
        if self.tokenizer.is_fast:  # the file would hold padding and truncation of the last call
            self.tokenizer.backend_tokenizer.no_padding()
            self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.save_pretrained(folder)
        (folder / _PREPROCESSING).write_text(json.dumps(self.processor.to_dict(), indent=2))
        if self.kind == "hub":
            backbone.model.logit_scale.data.fill_(self.log_logit_scale.item())
            backbone.model.save_pretrained(folder)
            return
        if self.kind == "frozen":
            for part, tower in backbone.towers.parts().items():
                tower.save_pretrained(folder / part)
        about = {"kind": self.kind, "settings": backbone.settings}
        (folder / _CONFIG).write_text(json.dumps(about, indent=2))
        save_model(self, folder / _WEIGHTS)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "DualEncoder":
        """Loads a folder that `save_pretrained` wrote, bit for bit, or a dual encoder of
        transformers with its temperature.

        Two small models, trained on glyphs, are shipped with the package: `clip-tiny` and
        `cibr-tiny`. Any transformers class with `get_image_features` and `get_text_features`, such
        as `CLIPModel` (`openai/clip-vit-base-patch32`) or `SiglipModel`
        (`google/siglip-base-patch16-224`), loads with its own tokenizer and image preprocessing.
        The bias of SigLIP's logits is kept but not used: it changes no ranking.

        Args:
            name: a folder, a hub id or the name of a shipped model.

        Raises:
            FileNotFoundError: the model, its tokenizer or its image preprocessing is missing; the
                message names the places searched.
            ValueError: a folder that is incomplete or damaged, a model that is not a dual encoder,
                or weights that do not fit it or are not finite.
        """
        name = str(name)
        folder = Path(_io.resolve(name)).absolute()
        if (folder / _CONFIG).exists() or (folder / _WEIGHTS).exists():
            try:
                return cls._read(folder)
            except _io.WeightsError:
                raise
            except Exception as error:  # readers raise nearly anything on damaged files
                damaged = f"{str(folder)!r} is incomplete or damaged"
                raise ValueError(f"{damaged}: save the model again ({error})") from error
        is_run = (folder / "run.json").exists() or any(folder.glob("checkpoint*"))
        if is_run and not (folder / "config.json").exists():
            what = f"{name!r} has no model yet: it is the folder of an unfinished run"
            raise FileNotFoundError(f"{what}; repeat the command that began it")
        backbone = _towers.HubBackbone(_io.from_hub("AutoModel", name))
        processor = _towers.HubImageProcessor(_io.from_hub("AutoImageProcessor", name))
        model = cls(backbone, processor, _io.from_hub("AutoTokenizer", name))
        model.log_logit_scale.data.fill_(backbone.model.logit_scale.item())
        return model.eval()

    @classmethod
    def _read(cls, folder: Path) -> "DualEncoder":
        """Loads a `tiny` or a `frozen` model."""
        about = json.loads((folder / _CONFIG).read_text())
        settings = json.loads((folder / _PREPROCESSING).read_text())
        if about["kind"] == "tiny":
            processor = _towers.ImageProcessor.from_dict(settings)
            backbone = _towers.TinyBackbone(**about["settings"])
        else:
            towers, processor = _read_towers(folder, settings)
            backbone = _towers.FrozenBackbone(towers, processor.size, **about["settings"])
        model = cls(backbone, processor, _io.from_hub("AutoTokenizer", folder))
        missing, others = load_model(model, folder / _WEIGHTS, strict=False)
        _io.check_weights(model, folder, missing, others)
        return model.eval()


def _read_towers(folder: Path, settings: dict) -> tuple[nn.Module, Callable]:
    """Frozen towers and their image preprocessing, of a folder that `save_pretrained` wrote."""
    if (folder / _DUAL_TOWERS).exists():
        processor = _towers.HubImageProcessor(_io.from_hub("AutoImageProcessor", folder))
        return _towers.HubBackbone(_io.from_hub("AutoModel", folder / "towers")), processor
    image, text = (
        _io.from_hub("AutoModel", folder / f"{side}_tower") for side in ("image", "text")
    )
    return _towers.TwoTowers(image, text), _towers.ImageProcessor.from_dict(settings)


def _checked(items: Iterable, kind: type, rule: str) -> Iterator:
    """The items, each after a check of its type."""
    is_one = items is None or isinstance(items, (kind, str, Path))
    for item in [items] if is_one else items:
        if is_one or not isinstance(item, kind):
            one = "one " if is_one else "a list with "
            raise ValueError(f"got {one}{type(item).__name__}, but {rule}")
        yield item
