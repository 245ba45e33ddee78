"""Make the two figures of searches over photos: `CIBR_DATA=... CIBR_MODELS=... python book/photo_search.py`.

Heads on frozen towers are trained on Flickr8k as the search page's CLIP is (a minute on two cores once the
towers' features are cached, a quarter of an hour before), or a model folder is given as the only argument. Test
photos and captions then search each other, half of them with success, and a few queries that are no caption of the
set search the photos. Figures go to book/images as small JPEG files: the photos are Flickr8k's (Hodosh et al. 2013),
for research use.
"""

import sys
from pathlib import Path

import torch

import cibr
from cibr import plots
from cibr.metrics import retrieval_ranks
from cibr.models.features import embed_pairs, prepare
from cibr_book.search import trained_heads

FOLDER = Path(__file__).resolve().parent / "images"
QUERIES = ["a dog jumps into the water", "children play football", "a red car"]
N_PHOTOS, N_CAPTIONS, N_FOUND, SEED = 6, 4, 4, 3


def main() -> None:
    """Embed the test photos and captions, choose what is shown and draw it."""
    model = (
        cibr.DualEncoder.from_pretrained(sys.argv[1])
        if sys.argv[1:]
        else trained_heads(0.0)
    )
    plots.set_style()
    pairs = cibr.load_pairs("flickr8k", "test")
    images, texts = embed_pairs(model, prepare(model, pairs, truncate=True))
    text_to_image = pairs.text_to_image()
    of_images, of_texts = retrieval_ranks(images, texts, text_to_image)
    print(cibr.recall_at_k(images, texts, text_to_image, [1]))
    as_jpeg = {"dpi": 110, "pil_kwargs": {"quality": 85}}

    shown = plots.pick_evenly(of_images == 0, N_PHOTOS, SEED)
    captions = [pairs.captions[i] for i in shown]
    similarity = images[shown] @ texts.T
    axes = plots.retrieval_gallery(
        list(pairs.images(shown)), captions, pairs.texts(), similarity
    )
    axes[0].figure.savefig(FOLDER / "photos-image-to-text.jpg", **as_jpeg)

    asked = plots.pick_evenly(of_texts == 0, N_CAPTIONS, SEED)
    queries = [pairs.texts()[i] for i in asked] + QUERIES
    found = model.embed_texts(queries, truncate=True) @ images.T
    right = torch.cat([text_to_image[asked], torch.full((len(QUERIES),), -1)])
    axes = plots.search_gallery(queries, found, pairs.image, right, N_FOUND)
    axes[0].figure.savefig(FOLDER / "photos-text-to-image.jpg", **as_jpeg)


if __name__ == "__main__":
    main()
