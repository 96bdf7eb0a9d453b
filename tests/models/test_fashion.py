import gzip
import hashlib

import numpy as np
import pytest
import torch

from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.models import fashion
from dqlab.models.tint import BACKGROUNDS, COLOURS, Attributes, draw_tints, dress, tint


def idx(values: np.ndarray) -> bytes:
    sizes = np.array(values.shape, ">u4").tobytes()
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four small idx files of our own, with their sums in place of the published ones."""
    files = {}
    for (split, kind), (name, md5, _) in fashion._FILES.items():
        count = 6 if split == "train" else 4
        shape = (count, 28, 28) if kind == "images" else (count,)
        raw = idx(np.arange(np.prod(shape)).reshape(shape) % 251)
        (tmp_path / name).write_bytes(gzip.compress(raw))
        files[split, kind] = (name, md5, hashlib.sha256(raw).hexdigest())
    monkeypatch.setattr(fashion, "_FILES", files)
    monkeypatch.setenv("DQLAB_DATA_DIR", str(tmp_path))
    return tmp_path


def test_reads_and_pads(folder) -> None:
    images, labels = fashion.load_split("train")
    assert images.shape == (6, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.dtype == torch.int64
    assert images[0, 2, 2:6].tolist() == [0, 1, 2, 3]
    assert images[:, :2].sum() == images[:, -2:].sum() == images[:, :, :2].sum() == 0
    assert len(fashion.load_split("test")[0]) == 4


@pytest.mark.parametrize("keep", [0, 3, 30, -5])
def test_truncated_file_is_named(folder, keep) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"train-images.*(unpacked|other data).*Delete it"):
        fashion.load_split("train")


def test_damaged_file_is_named(folder) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    damaged = bytearray(path.read_bytes())
    damaged[14] ^= 255
    path.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError, match=r"train-labels.*DQLAB_DATA_DIR"):
        fashion.load_split("train")


def test_other_data_is_noticed_by_its_sum(folder) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4))))
    with pytest.raises(CheckpointError, match=r"t10k-labels.*other data than Fashion-MNIST.*SHA"):
        fashion.load_split("test")


def test_a_folder_that_lacks_a_file_is_passed_over(folder, tmp_path, monkeypatch) -> None:
    assert fashion.find() == folder
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert fashion.find() != folder


def test_no_data_and_no_network_says_what_to_do(tmp_path, monkeypatch) -> None:
    import pooch

    def offline(*args, **named):
        raise OSError("no route")

    monkeypatch.setattr(fashion, "_folders", lambda: iter([tmp_path]))
    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(CheckpointError, match=r"no route.*DQLAB_DATA_DIR.*dataset-fashion-mnist"):
        fashion.load_split("train")


def test_cache_follows_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fashion._cache() == tmp_path / "dqlab" / "fashion-mnist"


@pytest.mark.parametrize("split", ["validation", "", None])
def test_unknown_split_is_refused(split) -> None:
    with pytest.raises(InvalidInputError, match="choose 'train' or 'test'"):
        fashion.load_split(split)


def test_real_files_hold_what_was_published() -> None:
    if fashion.find() is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    images, labels = fashion.load_split("test")
    assert images.shape == (10_000, 32, 32)
    assert labels.bincount().tolist() == [1000] * 10
    shipped, named = fashion.load_held_out()
    assert torch.equal(shipped, images[:1000])
    assert torch.equal(named, labels[:1000])


def test_shipped_images_need_no_download() -> None:
    images, labels = fashion.load_held_out()
    assert images.shape == (1000, 32, 32)
    assert images.dtype == torch.uint8
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("content", [None, b"", b"not tensors"])
def test_missing_or_damaged_shipped_images_are_named(content, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    (tmp_path / "fashion-mnist").mkdir()
    if content is not None:
        (tmp_path / "fashion-mnist" / "held-out.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"held-out\.safetensors.*restore it"):
        fashion.load_held_out()


def test_tint_follows_its_formula() -> None:
    grey = torch.tensor([[[0, 51, 102, 255]]], dtype=torch.uint8)
    teal, beige = list(COLOURS).index("teal"), list(BACKGROUNDS).index("beige")
    image = tint(grey, torch.tensor([teal]), torch.tensor([beige]))
    assert image.shape == (1, 3, 1, 4)
    for channel in range(3):
        c, b = COLOURS["teal"][channel], BACKGROUNDS["beige"][channel]
        expected = [b, 0.5 * b + 0.5 * c * 0.48, c * 0.61, c]
        assert image[0, channel, 0].tolist() == pytest.approx([2 * e - 1 for e in expected])


def test_dressing_is_seeded_and_stays_in_range() -> None:
    grey, labels = fashion.load_held_out()
    first, shown = dress(grey[:64], labels[:64], torch.Generator().manual_seed(1))
    again, _ = dress(grey[:64], labels[:64], torch.Generator().manual_seed(1))
    other, _ = dress(grey[:64], labels[:64], torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert -1 <= first.min() < first.max() <= 1
    assert torch.equal(shown.garment, labels[:64])
    colour, background = draw_tints(4000, torch.Generator().manual_seed(3))
    assert set(colour.tolist()) == set(range(8))
    assert set(background.tolist()) == set(range(4))


def test_captions() -> None:
    shown = Attributes(torch.tensor([7, 1, 0]), torch.tensor([4, 5, 1]), torch.tensor([2, 0, 1]))
    assert shown.captions() == [
        "a teal sneaker on a grey background",
        "blue trousers on a white background",
        "an orange t-shirt on a black background",
    ]
