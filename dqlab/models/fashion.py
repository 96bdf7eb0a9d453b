"""Fashion-MNIST, found on this machine or downloaded once, read without pickle.

Xiao, Rasul, Vollgraf, "Fashion-MNIST", arXiv 1708.07747 (MIT licence). The original idx files
hold 60,000 training and 10,000 test images, 28x28, grey, ten garments.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.paths import data_dir

GARMENTS = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)

# Per file: the MD5 of the published .gz, for downloads, and the SHA-256 of what it unpacks to,
# which is checked wherever the file comes from (distributions repack the .gz).
_FILES = {
    ("train", "images"): (
        "train-images-idx3-ubyte.gz",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    ("train", "labels"): (
        "train-labels-idx1-ubyte.gz",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    ("test", "images"): (
        "t10k-images-idx3-ubyte.gz",
        "bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    ("test", "labels"): (
        "t10k-labels-idx1-ubyte.gz",
        "bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"


_REPAIR = "Delete it and run again, or point DQLAB_DATA_DIR at the original files."


def _folders() -> Iterator[Path]:
    """Folders that may hold the idx files, in the order they are asked."""
    if chosen := os.environ.get("DQLAB_DATA_DIR"):
        yield Path(chosen)
    yield Path("/usr/share/datasets/fashion-mnist")
    yield _cache()


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dqlab" / "fashion-mnist"


def find() -> Path | None:
    """The first folder with all four idx files, or None if a download is needed."""
    names = [name for name, *_ in _FILES.values()]
    return next((d for d in _folders() if all((d / n).is_file() for n in names)), None)


def _fetch(name: str, md5: str) -> Path:
    """One idx file: local if present, else a checksummed download with a progress bar."""
    if folder := find():
        return folder / name
    import pooch

    try:
        got = pooch.retrieve(
            _URL + name, known_hash=f"md5:{md5}", fname=name, path=_cache(), progressbar=True
        )
    except Exception as error:
        raise CheckpointError(
            f"Fashion-MNIST was not found and {name} could not be downloaded ({error}). Put the "
            "four idx .gz files in a folder and set DQLAB_DATA_DIR to it, or install the Debian "
            "package dataset-fashion-mnist."
        ) from error
    return Path(got)


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    """Decode one idx file: two zero bytes, type 8 (uint8), rank, big-endian sizes, then values."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path} cannot be unpacked ({error}). {_REPAIR}") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{path} holds other data than Fashion-MNIST (SHA-256 {found[:12]}..., expected "
            f"{sha256[:12]}...). {_REPAIR}"
        )
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", count=rank, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_split(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey images and labels of one split.

    Returns:
        uint8 images `[N, 32, 32]` (28x28, zero-padded by 2) and int64 labels `[N]`.

    Raises:
        InvalidInputError: if `split` is neither "train" nor "test".
        CheckpointError: if a file is damaged or cannot be had.

    """
    if split not in ("train", "test"):
        raise InvalidInputError(f"Split {split!r} does not exist; choose 'train' or 'test'.")
    images, labels = (
        _read_idx(_fetch(name, md5), sha256)
        for name, md5, sha256 in (_FILES[split, "images"], _FILES[split, "labels"])
    )
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return torch.from_numpy(padded), torch.from_numpy(labels.astype(np.int64))


def data_hash() -> str:
    """One short hash that names the training data: SHA-256 over the four files' sums."""
    sums = "".join(sha256 for *_, sha256 in _FILES.values())
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def load_held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,000 shipped test images (the first 1,000 of the test split): no download needed.

    Returns:
        uint8 images `[1000, 32, 32]` and int64 labels `[1000]`.

    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = data_dir() / "fashion-mnist" / "held-out.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; restore it from the repository.")
    try:
        stored = load_file(path)
        return stored["images"], stored["labels"].long()
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it from the repository."
        ) from error
