import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from image_files import load, load_plain, numbered, numbers_in, png, write_folder, write_idx, write_table
from secateur.data import Augmentation
from secateur.errors import DataError, InvalidArgument, MissingExtra

N_TRAIN, N_TEST = 60, 20
NOISE = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("SECATEUR_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def idx_folder(tmp_path):
    """Fashion-MNIST's files with 60 training and 20 test images that are numbered through."""
    for prefix, start, n, suffix in (("train", 0, N_TRAIN, ""), ("t10k", 100, N_TEST, ".gz")):
        images = np.stack([numbered(start + i) for i in range(n)])
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", (np.arange(n) % 10).astype(np.uint8))
    return tmp_path


class TestIdx:
    def test_parts_are_disjoint_and_calibration_is_training(self, idx_folder):
        data = load_plain("fashion-mnist", idx_folder, val_fraction=0.2, n_calibration=15)
        train, val, test = (set(numbers_in(part)) for part in (data.train, data.val, data.test))
        assert train | val == set(range(N_TRAIN))
        assert (len(train), len(val)) == (48, 12)
        assert test == set(range(100, 100 + N_TEST))
        calibration = numbers_in(data.calibration)
        assert len(calibration) == len(set(calibration)) == 15
        assert set(calibration) < train
        other = load_plain("fashion-mnist", idx_folder, val_fraction=0.2, n_calibration=15, seed=1)
        assert set(numbers_in(other.calibration)) != set(calibration)
        assert numbers_in(other.test) == numbers_in(data.test)

    def test_labels_stay_with_their_images(self, idx_folder):
        data = load_plain("fashion-mnist", idx_folder)
        for inputs, labels in data.train:
            assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long() % 10, labels)
        assert data.classes[9] == "Ankle boot"

    def test_defaults_of_the_catalogue(self, idx_folder):
        data = load("fashion-mnist", idx_folder)
        assert (data.train.mean, data.train.std) == ((0.2860,), (0.3530,))
        assert data.train.augmentation == Augmentation(crop_padding=2, flip=True)

    def test_refuses_a_cut_file(self, idx_folder):
        write_idx(idx_folder / "t10k-images-idx3-ubyte.gz", np.zeros((20, 28, 28), np.uint8), cut=1)
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz"):
            load("fashion-mnist", idx_folder)

    @pytest.mark.parametrize("content", [b"", b"\0\0\x08\3", b"PK\3\4" + bytes(40)])
    def test_refuses_another_format(self, idx_folder, content):
        (idx_folder / "train-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*not an IDX file"):
            load("fashion-mnist", idx_folder)

    def test_refuses_damaged_gzip(self, idx_folder):
        path = idx_folder / "t10k-labels-idx1-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DataError, match="t10k-labels"):
            load("fashion-mnist", idx_folder)

    def test_refuses_missing_and_too_few_labels(self, idx_folder):
        labels = idx_folder / "train-labels-idx1-ubyte"
        write_idx(labels, np.zeros(N_TRAIN - 1, np.uint8))
        with pytest.raises(DataError, match="60 images for 59 labels"):
            load("fashion-mnist", idx_folder)
        labels.unlink()
        with pytest.raises(DataError, match="train-labels"):
            load("fashion-mnist", idx_folder)

    def test_refuses_labels_out_of_range(self, idx_folder):
        write_idx(idx_folder / "train-labels-idx1-ubyte", np.full(N_TRAIN, 10, np.uint8))
        with pytest.raises(DataError, match="'train' has label 10"):
            load("fashion-mnist", idx_folder)


class TestParquet:
    def test_files_as_the_hub_lays_them_out(self, tmp_path):
        folder = tmp_path / "fashion_mnist"
        write_table(folder / "train-00000-of-00002.parquet", range(30))
        write_table(folder / "train-00001-of-00002.parquet", range(30, 60))
        write_table(folder / "test-00000-of-00001.parquet", range(100, 120))
        for given in (tmp_path, folder):
            data = load_plain("fashion-mnist", given)
            assert sorted(numbers_in(data.train) + numbers_in(data.val)) == list(range(60))
            assert numbers_in(data.test) == list(range(100, 120))

    def test_grey_pictures_become_rgb_of_the_catalogue(self, tmp_path):
        for split in ("train", "test"):
            write_table(tmp_path / f"{split}.parquet", range(20), image="img", side=40)
        data = load("cifar10", tmp_path)
        assert data.input_shape == (3, 32, 32)
        assert data.train.mean == (0.485, 0.456, 0.406)
        assert data.classes[0] == "airplane"

    def test_validation_stands_in_for_test(self, tmp_path):
        write_table(tmp_path / "train.parquet", range(40))
        write_table(tmp_path / "valid.parquet", range(100, 110))
        data = load_plain("fashion-mnist", tmp_path)
        assert numbers_in(data.test) == list(range(100, 110))
        assert sorted(numbers_in(data.train) + numbers_in(data.val)) == list(range(40))

    def test_a_given_validation_split_is_used(self, tmp_path):
        for split, numbers in (("train", range(40)), ("test", range(50, 60)), ("validation", range(70, 80))):
            write_table(tmp_path / f"{split}.parquet", numbers)
        data = load_plain("fashion-mnist", tmp_path)
        assert sorted(numbers_in(data.train)) == list(range(40))
        assert numbers_in(data.val) == list(range(70, 80))
        assert numbers_in(data.test) == list(range(50, 60))

    def test_columns_and_classes_of_an_unlisted_set(self, tmp_path):
        for split in ("train", "test"):
            labels = [i % 3 for i in range(20)]
            write_table(
                tmp_path / f"{split}.parquet",
                range(20),
                image="photo",
                label="kind",
                labels=labels,
                names=["a", "b", "c"],
                side=16,
                more=["id"],
            )
        data = load("hf:owner/name", tmp_path)
        assert (data.classes, data.n_classes, data.input_shape) == (("a", "b", "c"), 3, (1, 16, 16))
        assert data.train.augmentation == Augmentation(crop_padding=2, flip=False)

    def test_refuses_to_guess_between_columns(self, tmp_path):
        write_table(tmp_path / "train.parquet", range(20), more=["coarse"])
        with pytest.raises(DataError, match=r"label column.*label, coarse.*columns are image, label, coarse"):
            load("hf:owner/name", tmp_path)

    def test_refuses_a_missing_column(self, tmp_path):
        write_table(tmp_path / "train.parquet", range(20))
        with pytest.raises(DataError, match=r"train\.parquet.*'img'.*columns are image, label"):
            load("cifar10", tmp_path)

    def test_names_the_row_of_an_unreadable_image(self, tmp_path):
        write_table(tmp_path / "train-00000-of-00002.parquet", range(20))
        write_table(tmp_path / "train-00001-of-00002.parquet", [1, 2, b"not a picture", 4])
        with pytest.raises(DataError, match=r"row 2 of train-00001-of-00002\.parquet"):
            load("fashion-mnist", tmp_path)
        write_table(tmp_path / "train-00001-of-00002.parquet", [1, png(NOISE)[:400]])
        with pytest.raises(DataError, match=r"row 1 of train-00001-of-00002\.parquet"):
            load("fashion-mnist", tmp_path)

    def test_refuses_rows_without_image_or_label(self, tmp_path):
        write_table(tmp_path / "train.parquet", [1, 2], labels=[0, None])
        with pytest.raises(DataError, match="1 rows without a value in column 'label'"):
            load("fashion-mnist", tmp_path)
        write_table(tmp_path / "train.parquet", [1, b""], labels=[0, 1])
        with pytest.raises(DataError, match=r"row 1 of train\.parquet has no image"):
            load("fashion-mnist", tmp_path)

    def test_reads_bare_bytes_and_refuses_damaged_metadata(self, tmp_path):
        pictures, labels = [png(numbered(i)) for i in range(20)], [i % 4 for i in range(20)]
        table = pa.table({"photo": pictures, "label": labels})
        for split in ("train", "test"):
            parquet.write_table(table, tmp_path / f"{split}.parquet")
        data = load_plain("hf:owner/name", tmp_path)
        assert (data.n_classes, numbers_in(data.test)) == (4, list(range(20)))
        parquet.write_table(table.replace_schema_metadata({"huggingface": "{"}), tmp_path / "train.parquet")
        with pytest.raises(DataError, match="metadata"):
            load("hf:owner/name", tmp_path)

    def test_refuses_an_empty_split(self, tmp_path):
        write_table(tmp_path / "train.parquet", range(20))
        write_table(tmp_path / "test.parquet", [])
        with pytest.raises(DataError, match="split 'test' holds no image"):
            load("fashion-mnist", tmp_path)

    def test_refuses_an_incomplete_series(self, tmp_path):
        write_table(tmp_path / "train-00000-of-00003.parquet", range(20))
        with pytest.raises(DataError, match="one of 3 files, but 1"):
            load("fashion-mnist", tmp_path)

    def test_refuses_several_sets(self, tmp_path):
        for name in ("cifar10", "cifar100"):
            write_table(tmp_path / name / "train.parquet", range(5))
        with pytest.raises(DataError, match="cifar10, cifar100"):
            load("cifar10", tmp_path)

    def test_refuses_a_broken_file(self, tmp_path):
        (tmp_path / "train.parquet").write_bytes(b"PAR1 but no more")
        with pytest.raises(DataError, match=r"train\.parquet"):
            load("cifar10", tmp_path)

    def test_needs_a_test_split(self, tmp_path):
        write_table(tmp_path / "train.parquet", range(20))
        with pytest.raises(DataError, match="no test split"):
            load("fashion-mnist", tmp_path)

    def test_names_the_extra(self, tmp_path, monkeypatch):
        write_table(tmp_path / "train.parquet", range(20))
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtra, match=r"secateur\[data\]"):
            load("fashion-mnist", tmp_path)


class TestImageFolder:
    def test_keeps_a_common_small_size(self, tmp_path):
        for split in ("train", "test"):
            write_folder(
                tmp_path, split, {"b": [numbered(i, 3, 20) for i in range(6)], "a": [numbered(9, 3, 20)] * 6}
            )
        data = load("imagefolder", tmp_path)
        assert (data.input_shape, data.n_classes, data.classes) == ((3, 20, 20), 2, ("a", "b"))
        assert data.test.split.labels.tolist() == [0] * 6 + [1] * 6
        assert data.test.split.images[6:, 0, 0, 0].tolist() == list(range(6))
        assert data.train.augmentation == Augmentation(crop_padding=2, flip=True)

    def test_scales_and_crops_other_sizes(self, tmp_path):
        wide = np.zeros((20, 60, 3), np.uint8)
        wide[:, 20:40] = 255  # the centre square
        for split in ("train", "test"):
            write_folder(tmp_path, split, {"a": [wide] * 4, "b": [numbered(7, 3, 10)] * 4}, suffix=".BMP")
        data = load("imagefolder", tmp_path, image_size=10)
        assert data.input_shape == (3, 10, 10)
        centre = data.test.split.images[0, :, :, 2:8]
        assert torch.equal(centre, torch.full_like(centre, 255))
        assert torch.equal(data.test.split.images[4], torch.full((3, 10, 10), 7, dtype=torch.uint8))
        assert load("imagefolder", tmp_path).input_shape == (3, 224, 224)

    def test_grey_only_if_all_are(self, tmp_path):
        write_folder(tmp_path, "train", {"a": [numbered(1)] * 4, "b": [numbered(1)] * 4})
        write_folder(tmp_path, "test", {"a": [numbered(1)]})
        assert load("imagefolder", tmp_path).input_shape == (1, 28, 28)
        write_folder(tmp_path, "val", {"a": [numbered(1, 3)]})
        assert load("imagefolder", tmp_path).input_shape == (3, 28, 28)

    def test_a_validation_folder_is_used(self, tmp_path):
        for split, start in (("train", 0), ("val", 50), ("test", 100)):
            write_folder(tmp_path, split, {"a": [numbered(start + i) for i in range(5)]})
        data = load_plain("imagefolder", tmp_path)
        assert numbers_in(data.val) == list(range(50, 55))
        assert numbers_in(data.test) == list(range(100, 105))
        assert sorted(numbers_in(data.train)) == list(range(5))

    def test_serves_a_listed_set(self, tmp_path):
        names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        for split in ("train", "test"):
            write_folder(tmp_path, split, {name: [numbered(1, 3, 32)] * 2 for name in names})
        assert load("cifar10", tmp_path).classes == tuple(names)
        with pytest.raises(DataError, match="10 classes, the data set 100"):
            load("cifar100", tmp_path)

    def test_refuses_strange_and_empty_classes(self, tmp_path):
        write_folder(tmp_path, "train", {"a": [numbered(1)] * 4, "b": []})
        write_folder(tmp_path, "test", {"a": [numbered(1)], "c": [numbered(1)]})
        with pytest.raises(DataError, match="b' holds no image"):
            load("imagefolder", tmp_path)
        (tmp_path / "train" / "b").rmdir()
        with pytest.raises(DataError, match="classes that train/ has not: c"):
            load("imagefolder", tmp_path)

    def test_names_an_unreadable_file(self, tmp_path):
        for split in ("train", "test"):
            write_folder(tmp_path, split, {"a": [NOISE] * 4})
        broken = tmp_path / "train" / "a" / "2.png"
        for content in (b"", png(NOISE)[:400]):
            broken.write_bytes(content)
            with pytest.raises(DataError, match=r"train/a/2\.png"):
                load("imagefolder", tmp_path)

    def test_refuses_more_than_8_bits(self, tmp_path):
        for split in ("train", "test"):
            write_folder(tmp_path, split, {"a": [NOISE] * 4})
        Image.fromarray(NOISE.astype(np.uint16) * 100).save(tmp_path / "train" / "a" / "9.png")
        with pytest.raises(DataError, match=r"9\.png has more than 8 bits"):
            load("imagefolder", tmp_path)

    def test_needs_a_folder(self):
        with pytest.raises(InvalidArgument, match="needs data_dir"):
            load("imagefolder", None)


class TestDetection:
    def test_says_what_it_looked_for_and_what_is_there(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        (tmp_path / "images").mkdir()
        with pytest.raises(
            DataError, match=r"train\*\.parquet.*train-images.*train/CLASS.*images/, notes\.txt"
        ):
            load("cifar10", tmp_path)
        with pytest.raises(DataError, match=r"Looked for train/CLASS/\*\.png"):
            load("imagefolder", tmp_path)

    def test_refuses_two_kinds(self, tmp_path):
        write_table(tmp_path / "train.parquet", range(5))
        write_folder(tmp_path, "train", {"a": [NOISE]})
        with pytest.raises(DataError, match="parquet files and an image folder"):
            load("cifar10", tmp_path)

    def test_refuses_two_validation_folders(self, tmp_path):
        for split in ("train", "val", "valid"):
            write_folder(tmp_path, split, {"a": [NOISE]})
        with pytest.raises(DataError, match="both val/ and valid/"):
            load("imagefolder", tmp_path)

    def test_refuses_what_is_no_folder(self, tmp_path):
        with pytest.raises(DataError, match="not a folder"):
            load("cifar10", tmp_path / "nowhere")

    def test_tells_progress(self, idx_folder):
        calls = []
        load("fashion-mnist", idx_folder, progress=lambda *call: calls.append(call))
        assert calls == [("train", N_TRAIN, N_TRAIN), ("test", N_TEST, N_TEST)]


class TestHub:
    """The hub itself is out of reach here: its loader is replaced, what follows is real."""

    @staticmethod
    def answer(monkeypatch, found):
        datasets = pytest.importorskip("datasets")
        asked = []

        def load_dataset(name):
            asked.append(name)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    @staticmethod
    def table(n, column, *, names=None):
        datasets = pytest.importorskip("datasets")
        label = datasets.ClassLabel(names=names or [str(i) for i in range(10)])
        features = datasets.Features({"image": datasets.Image(), column: label})
        rows = {"image": [{"bytes": png(numbered(i))} for i in range(n)], column: [i % 10 for i in range(n)]}
        return datasets.Dataset.from_dict(rows, features=features)

    def test_reads_a_listed_set(self, monkeypatch):
        table = self.table(30, "label")
        asked = self.answer(monkeypatch, {"train": table, "test": table, "unlabelled": None})
        data = load_plain("fashion-mnist", None)
        assert asked == ["zalando-datasets/fashion_mnist"]
        assert numbers_in(data.test) == list(range(30))
        assert data.classes == tuple(str(i) for i in range(10))

    def test_guesses_the_columns_of_any_other(self, monkeypatch):
        table = self.table(30, "kind")
        asked = self.answer(monkeypatch, {"train": table, "validation": table})
        data = load("hf:owner/name", None)
        assert asked == ["owner/name"]
        assert (data.n_classes, data.input_shape) == (10, (1, 28, 28))

    def test_needs_a_training_split(self, monkeypatch):
        self.answer(monkeypatch, {"test": self.table(5, "label")})
        with pytest.raises(DataError, match="no training split, only test"):
            load("fashion-mnist", None)

    def test_says_why_it_cannot_be_fetched(self, monkeypatch):
        self.answer(monkeypatch, ConnectionError("no route"))
        with pytest.raises(DataError, match=r"uoft-cs/cifar10.*ConnectionError: no route.*data_dir"):
            load("cifar10", None)

    def test_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtra, match=r"secateur\[data\]"):
            load("cifar10", None)


@pytest.mark.skipif(not (REAL / "cifar10.zip").is_file(), reason="needs the real CIFAR-10")
def test_real_cifar10(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("unpack", REAL / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    monkeypatch.setattr(sys, "argv", ["unpack.py", "parquet", str(tmp_path), "--per-class", "20"])
    unpack.main()
    data = load("cifar10", tmp_path)
    assert (data.train.n_samples, data.val.n_samples, data.test.n_samples) == (180, 20, 200)
    assert torch.bincount(data.val.split.labels).tolist() == [2] * 10
    assert torch.bincount(data.test.split.labels).tolist() == [20] * 10
    pixels = data.train.split.images.float().mean(dim=(0, 2, 3)) / 255
    torch.testing.assert_close(pixels, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.03, rtol=0)
