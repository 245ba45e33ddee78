"""Make the two figures of searches over photos: `CIBR_DATA=... CIBR_MODELS=... python book/photo_search.py`.

Heads on frozen towers are trained on Flickr8k at the preset with beta = 0 and seed 0 (a minute on two cores once the
towers' features are there, a quarter of an hour before), or a model is given with `--model FOLDER`. Test photos and
captions then search each other, as many finding what they look for as not; and a few queries that nobody wrote as a
caption search the photos. Figures go to book/images, small and as JPEG: the photos are Flickr8k's (Hodosh et al.
2013), for research use.
"""

import argparse
import tempfile
from pathlib import Path

import torch

import cibr
from cibr import plots, plots_evaluation
from cibr.inputs import embed_pairs, prepare

FOLDER = Path(__file__).resolve().parent / "images"
QUERIES = ("a dog jumps into the water", "children play football", "a red car")
N_PHOTOS, N_CAPTIONS, N_FOUND, SEED = 6, 4, 4, 3


def trained() -> cibr.DualEncoder:
    """Heads on the frozen towers, trained as CLIP."""
    with tempfile.TemporaryDirectory() as folder:
        config = cibr.configure(
            dataset="flickr8k", model="frozen", beta=0.0, output_dir=folder
        )
        train, validation, _ = cibr.load_splits(config)
        model = cibr.build_model(config, train)
        cibr.fit(model, train, validation, config)
        return model


def save(axes: list, name: str) -> None:
    """Write the figure that holds the Axes."""
    options = {"dpi": 110, "pil_kwargs": {"quality": 85}}
    axes[0].figure.savefig(FOLDER / name, **options)
    print(f"book/images/{name}")


def main() -> None:
    """Embed the test photos and captions, choose what is shown and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the folder of a trained model")
    folder = parser.parse_args().model
    model = cibr.DualEncoder.from_pretrained(folder) if folder else trained()
    plots.set_style()
    pairs = cibr.load_pairs("flickr8k", "test")
    images, texts = embed_pairs(model, prepare(model, pairs, truncate=True))
    text_to_image = pairs.text_to_image()
    of_images, of_texts = cibr.retrieval_ranks(images, texts, text_to_image)
    recalls = cibr.recall_at_k(images, texts, text_to_image, [1])
    print({name: round(value, 3) for name, value in recalls.items()})

    shown = plots.pick_right_and_wrong(of_images == 0, N_PHOTOS, SEED)
    captions = [pairs.captions[i] for i in shown]
    photos = list(pairs.images(shown))
    axes = plots.retrieval_gallery(
        photos, captions, pairs.texts(), images[shown] @ texts.T
    )
    save(axes, "photos-image-to-text.jpg")

    asked = plots.pick_right_and_wrong(of_texts == 0, N_CAPTIONS, SEED)
    queries = [pairs.texts()[i] for i in asked] + list(QUERIES)
    found = model.embed_texts(queries, truncate=True) @ images.T
    right = torch.cat([text_to_image[asked], torch.full((len(QUERIES),), -1)])
    axes = plots_evaluation.search_gallery(queries, found, pairs.image, right, N_FOUND)
    save(axes, "photos-text-to-image.jpg")


if __name__ == "__main__":
    main()
