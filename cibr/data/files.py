"""The files of a data set by their names within it: in a local folder, or on the hub.

Both give a local path, and both say in the same words what is missing. Files of the hub are
fetched one at a time when they are asked for and kept in the hub's cache; a fetch that was cut off
goes on where it stopped.
"""

from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class LocalFiles:
    """A data set's files in a local folder."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def fetch(self, filename: str) -> Path:
        """Returns the file's path.

        Raises:
            FileNotFoundError: if the folder has no such file.
        """
        file = self.folder / filename
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: put the data set's {filename} there")
        return file

    def has_split(self, split: str) -> bool:
        """Returns whether the split has a folder."""
        return (self.folder / split).is_dir()

    def splits(self) -> list[str]:
        """Returns the splits that have shards."""
        return sorted(file.parent.name for file in self.folder.glob("*/nshards.txt"))


@dataclass(frozen=True)
class HubFiles:
    """A data set's files in a repository of the Hugging Face hub.

    Args:
        repo_id: the repository, ``owner/name``.
        cache_dir: where files are kept; by default in the hub's own cache.
    """

    repo_id: str
    cache_dir: str | Path | None = None

    def __str__(self) -> str:
        return f"the hub's data set {self.repo_id}"

    def fetch(self, filename: str) -> Path:
        """Returns the file's path in the cache, after fetching it if it is not there yet.

        Raises:
            FileNotFoundError: if the repository has no such file.
            ConnectionError: if the hub does not give the repository's files.
        """
        try:
            file = huggingface_hub.hf_hub_download(
                self.repo_id, filename, repo_type="dataset", cache_dir=self.cache_dir
            )
        # The hub's client raises its own errors, those of its HTTP library and the system's.
        except Exception as error:
            offline = isinstance(error, LocalEntryNotFoundError)
            if isinstance(error, EntryNotFoundError) and not offline:
                raise FileNotFoundError(f"{filename} is missing in {self}") from error
            raise ConnectionError(
                f"could not fetch {filename} of {self} ({type(error).__name__}: {error}): check "
                "the network and the name, or point CIBR_DATA at a folder that holds the data set "
                f"as {self.repo_id.rpartition('/')[2]}"
            ) from error
        return Path(file)

    def has_split(self, split: str) -> bool:
        """Returns whether the repository has the split's ``nshards.txt``."""
        try:
            self.fetch(f"{split}/nshards.txt")
        except FileNotFoundError:
            return False
        return True

    def splits(self) -> list[str]:
        """Returns which of the usual splits the repository has."""
        return [split for split in SPLITS if self.has_split(split)]
