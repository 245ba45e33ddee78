"""Evaluation of a model on a suite: every set once, what is finished kept, a rerun goes on where it stopped.

Zero-shot classification follows Radford et al. (2021): a class is the renormalised mean of its prompts' unit
vectors. Retrieval follows Karpathy and Fei-Fei (2015). Texts longer than the context are cut, as both do. Where
several pictures of a set share one text, as drawings of one character do, it stands once among the texts and each
of its pictures is a right one: copies of it would tie with each other, and a tie counts against the model.
"""

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from cibr.data import Pairs, check_dataset, load_pairs
from cibr.evaluate.outcomes import Outcome, read_outcome
from cibr.evaluate.suites import KINDS, Task, suite_tasks
from cibr.evaluate.tables import Evaluation
from cibr.inputs import Digests, digest_model, embed_pairs, pixel_digests, prepare
from cibr.metrics import class_embeddings, class_ranks, predictions, retrieval_outcomes
from cibr.models import DualEncoder


def evaluate(
    model: DualEncoder,
    suite: str,
    *,
    name: str,
    kinds: Sequence[str] = KINDS,
    limit: int = 0,
    batch_size: int = 256,
    output_dir: str | Path | None = None,
    on_error: str = "raise",
    max_skipped: int = 0,
) -> Evaluation:
    """Measures a model on all sets of a suite.

    Args:
        model: the encoders, on the device where they run.
        suite: a name of `SUITES`.
        name: what tables call the model.
        kinds: of the suite's sets: `zero-shot`, `retrieval` or both.
        limit: at most this many pictures a set, two or more, drawn by a fixed seed; 0 for all.
        batch_size: rows that are encoded at once.
        output_dir: where results are kept, in a folder of the suite's name. A set whose results lie there, of the
            same weights, pictures, texts and limit, is not evaluated again.
        on_error: `raise` at the first unusable sample, or `skip`, as `load_pairs`.
        max_skipped: with `skip`, how many samples of a set may be left out.

    Returns:
        The evaluation, with `rows` of scores and the `outcomes` of single items.

    Raises:
        ValueError: an unknown suite, kind or set, an unusable sample (the message names its set), or an output
            folder that cannot be made.
        FileNotFoundError: a file of a set is missing.
        ConnectionError: the hub does not give a file.
    """
    tasks = suite_tasks(suite, kinds)
    whole = all(isinstance(number, int) for number in (limit, batch_size))
    if not whole or limit < 0 or limit == 1 or batch_size < 1:
        raise ValueError(
            f"limit is {limit!r} and batch_size {batch_size!r}: a limit is 0 for all pictures, or 2 or more, for "
            "one alone has no interval; a batch has a row at least"
        )
    for task in tasks:
        check_dataset(task.dataset)
    folder = None if output_dir is None else _made(Path(output_dir) / suite)
    options = {"on_error": on_error, "max_skipped": max_skipped}
    digests, outcomes = digest_model(model), {}
    with tqdm(tasks, desc=name, unit="set", delay=1) as bar:
        for task in bar:
            bar.set_postfix_str(task.title)
            with _naming(task, suite, folder):
                pairs = load_task(task, limit, **options)
                outcomes[task.title] = _outcome(model, task, pairs, batch_size, folder, digests)
    evaluation = Evaluation(name, suite, outcomes)
    if folder is not None:
        evaluation.save(folder)
    return evaluation


def load_task(task: Task, limit: int = 0, **options) -> Pairs:
    """The pairs that `evaluate` shows to a model.

    Args:
        task: of a suite.
        limit: at most this many pictures, drawn by a fixed seed (the first ones may be of one class); 0 for all.
        options: of `cibr.load_pairs`.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: as `cibr.load_pairs`.
    """
    pairs = load_pairs(task.dataset, task.split, **options)
    if not limit or limit >= len(pairs):
        return pairs
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return pairs.subset(order[:limit].sort().values)


def _outcome(
    model: DualEncoder, task: Task, pairs: Pairs, batch_size: int, folder: Path | None, digests: Digests
) -> Outcome:
    """The outcome that lies in the folder if it is this model's on these pairs, or a new one."""
    texts = pairs.prompts() if task.kind == "zero-shot" else _shared_texts(pairs)
    asked = _asked(task, pairs, texts)
    identity = hashlib.sha256(f"{digests.model} {asked}".encode()).hexdigest()
    file = None if folder is None else folder / task.file
    stored = None if file is None else read_outcome(file)
    if stored is not None and stored[1] == identity:
        return stored[0]
    if stored is not None:
        other = "another model" if stored[0].asked == asked else "other pictures or texts"
        warnings.warn(f"{str(file)!r} holds results of {other}: {task.title} is evaluated again", stacklevel=3)
    score = _zero_shot if task.kind == "zero-shot" else _retrieval
    outcome = Outcome(task.kind, score(model, pairs, texts, batch_size, digests), asked)
    if file is not None:
        outcome.save(file, identity)
    return outcome


def _zero_shot(model, pairs: Pairs, prompts, batch_size: int, digests: Digests) -> dict[str, torch.Tensor]:
    flat = [prompt for of_class in prompts for prompt in of_class]
    images, texts = _embed(model, pairs, flat, batch_size, digests)
    classes = class_embeddings(texts.unflatten(0, (len(prompts), -1)))
    return {
        "labels": pairs.labels,
        "predictions": predictions(images, classes),
        "ranks": class_ranks(images, classes, pairs.labels),
        "n_classes": torch.tensor(len(classes)),
    }


def _retrieval(model, pairs: Pairs, shared, batch_size: int, digests: Digests) -> dict[str, torch.Tensor]:
    images, texts = _embed(model, pairs, shared, batch_size, digests)
    if shared is None:
        text_to_image = pairs.text_to_image()
        found = retrieval_outcomes(images, texts, text_to_image)
        return found._asdict() | {"text_to_image": text_to_image}
    places = {text: i for i, text in enumerate(shared)}
    image_to_text = torch.tensor([places[text] for text in pairs.texts()])
    found = retrieval_outcomes(
        texts, images, image_to_text
    )  # one text has several pictures: the sides trade places
    return {
        "image_ranks": found.text_ranks,
        "text_ranks": found.image_ranks,
        "image_average_precisions": found.text_average_precisions,
        "text_average_precisions": found.image_average_precisions,
        "image_to_text": image_to_text,
    }


def _shared_texts(pairs: Pairs) -> list[str] | None:
    """The texts, each once, of a set in which pictures of the same content share one; of other sets None."""
    if pairs.labels is None or len(pairs.texts()) > len(pairs):
        return None
    texts = list(dict.fromkeys(pairs.texts()))
    return texts if len(texts) == len(pairs.labels.unique()) < len(pairs) else None


def _embed(model, pairs: Pairs, texts: list[str] | None, batch_size: int, digests: Digests):
    device = model.log_logit_scale.device
    inputs = prepare(model, pairs, truncate=True, device=device, texts=texts, digests=digests)
    return embed_pairs(model, inputs, batch_size)


def _made(folder: Path) -> Path:
    """The folder for results, made now rather than after the first set."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {str(folder)!r}: {error}; choose another output_dir") from error
    return folder


def _asked(task: Task, pairs: Pairs, given: list | None) -> str:
    """A digest of what the model is shown and asked; `given` are prompts, or texts that pictures share."""
    labels = None if pairs.labels is None else pairs.labels.tolist()
    texts = pairs.captions if given is None else (given, labels)
    shown = (task.kind, pairs.name, pairs.split, pairs.keys, texts, pixel_digests(pairs))
    return hashlib.sha256(repr(shown).encode()).hexdigest()


@contextmanager
def _naming(task: Task, suite: str, folder: Path | None):
    """Errors of a set with its name, and what became of the sets before it."""
    try:
        yield
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        kinds = (FileNotFoundError, ConnectionError, ValueError)
        kept = f". The sets before it are kept in {str(folder)!r}" if folder is not None else ""
        message = f"{task.kind} on {task.title} of suite {suite!r}: {error}{kept}"
        raise next(kind for kind in kinds if isinstance(error, kind))(message) from error
