from dataclasses import replace

import pytest
import torch
import tyro
from torch.utils.data import DataLoader, TensorDataset

from image_files import load
from secateur.data import CATALOG, Augmentation, Data, DataOptions, ImageLoader, ImageSplit, load_data
from secateur.data.images import seeded, split_by_class
from secateur.errors import DataError, InvalidArgument
from secateur.naming import IndexedLoader


def random_split(n=50, channels=3, height=12, width=9, n_classes=5):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=g)
    return ImageSplit(images, torch.arange(n) % n_classes)


def make_loader(**kwargs):
    defaults = {"batch_size": 8, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return ImageLoader(random_split(), **(defaults | kwargs))


class TestAugmentation:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("padding", [0, 1, 4])
    def test_equals_one_image_at_a_time(self, padding, flip):
        images = random_split().images
        augment = Augmentation(crop_padding=padding, flip=flip)
        choices = augment.draw(len(images), seeded("test"))
        out = augment.apply(images, choices)
        for image, (top, left, mirrored), got in zip(images, choices.tolist(), out, strict=True):
            canvas = torch.zeros(3, 12 + 2 * padding, 9 + 2 * padding, dtype=torch.uint8)
            canvas[:, padding : padding + 12, padding : padding + 9] = image
            crop = canvas[:, top : top + 12, left : left + 9]
            assert torch.equal(got, crop.flip(2) if mirrored else crop)

    def test_draws_every_place_and_both_sides(self):
        choices = Augmentation(crop_padding=2, flip=True).draw(2000, seeded("test"))
        assert choices[:, 0].unique().tolist() == choices[:, 1].unique().tolist() == [0, 1, 2, 3, 4]
        assert 0.4 < choices[:, 2].float().mean() < 0.6
        assert not Augmentation(crop_padding=2, flip=False).draw(2000, seeded("test"))[:, 2].any()

    def test_refuses_negative_padding(self):
        with pytest.raises(InvalidArgument, match=r"crop_padding.*-1"):
            Augmentation(crop_padding=-1, flip=False)


class TestLoader:
    def test_yields_normalised_pairs_in_order(self):
        loader = make_loader()
        batches = list(loader)
        assert (len(loader), len(batches), loader.n_samples) == (7, 7, 50)
        assert [len(y) for _, y in batches] == [8] * 6 + [2]
        inputs = torch.cat([x for x, _ in batches])
        mean, std = torch.tensor(loader.mean), torch.tensor(loader.std)
        expected = (loader.split.images / 255 - mean[:, None, None]) / std[:, None, None]
        assert inputs.dtype is torch.float32
        assert inputs.is_contiguous()
        torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.cat([y for _, y in batches]), loader.split.labels)

    def test_is_an_indexed_loader(self):
        assert isinstance(make_loader(), IndexedLoader)

    def test_epochs_repeat_and_differ(self):
        loader = make_loader(shuffle=True, augmentation=Augmentation(2, True), seed=3)
        first, again, other = (list(loader.epoch(n)) for n in (5, 5, 6))
        for a, b in zip(first, again, strict=True):
            assert all(torch.equal(p, q) for p, q in zip(a[:3], b[:3], strict=True))
        orders = [torch.cat([b.indices for b in epoch]) for epoch in (first, other)]
        assert not torch.equal(*orders)
        assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
        reseeded = make_loader(shuffle=True, augmentation=Augmentation(2, True), seed=4)
        assert not torch.equal(torch.cat([b.indices for b in reseeded.epoch(5)]), orders[0])

    def test_pairs_are_those_of_epoch_0(self):
        loader = make_loader(shuffle=True, augmentation=Augmentation(2, True))
        for (inputs, labels), batch in zip(loader, loader.epoch(0), strict=True):
            assert torch.equal(inputs, batch.inputs)
            assert torch.equal(labels, batch.labels)
            assert torch.equal(labels, loader.split.labels[batch.indices])

    def test_an_image_looks_the_same_in_the_same_view(self):
        def looks(batch_size, number, view, seed=0):
            loader = make_loader(
                shuffle=True, augmentation=Augmentation(3, True), batch_size=batch_size, seed=seed
            )
            out = torch.empty(50, 3, 12, 9)
            for batch in loader.epoch(number, view=view):
                assert batch.view == (number if view is None else view)
                out[batch.indices] = batch.inputs
            return out

        assert torch.equal(looks(8, 1, 4), looks(50, 9, 4))
        assert torch.equal(looks(8, 4, None), looks(8, 4, 4))
        assert not torch.equal(looks(8, 1, 4), looks(8, 1, 5))
        assert not torch.equal(looks(8, 1, 4), looks(8, 1, 4, seed=1))

    def test_without_augmentation_there_is_one_view(self):
        assert {batch.view for n in range(3) for batch in make_loader().epoch(n, view=n)} == {0}

    def test_touches_no_global_generator(self):
        before = torch.get_rng_state()
        list(make_loader(shuffle=True, augmentation=Augmentation(2, True)))
        assert torch.equal(torch.get_rng_state(), before)

    def test_moves_to_a_device(self):
        moved = make_loader(shuffle=True).to("cpu")
        for a, b in zip(moved, make_loader(shuffle=True), strict=True):
            assert torch.equal(a[0], b[0])

    def test_can_be_narrowed_to_some_classes(self):
        loader = make_loader(shuffle=True, augmentation=Augmentation(1, True), seed=3)
        assert loader.n_classes == 5
        some = loader.of_classes([3, 1])
        whole = (loader.split.labels == 3) | (loader.split.labels == 1)
        assert torch.equal(some.split.images, loader.split.images[whole])
        assert torch.equal(some.split.labels, (loader.split.labels[whole] == 1).long())
        assert (some.n_classes, some.batch_size, some.seed) == (2, loader.batch_size, 3)
        assert {int(y) for _, labels in some for y in labels} == {0, 1}
        with pytest.raises(InvalidArgument, match=r"classes must be in \[0, 5\), got \[5\]"):
            loader.of_classes([5])
        with pytest.raises(DataError, match="at least one image"):
            loader.of_classes([])

    @pytest.mark.parametrize("together", [2, 3, 100])
    @pytest.mark.parametrize("piece", [{}, {"start": 2, "stop": 5}, {"start": 6}, {"start": 9}])
    def test_batches_made_together_are_those_made_one_by_one(self, monkeypatch, together, piece):
        loader = make_loader(shuffle=True, augmentation=Augmentation(3, True))
        alone = list(loader.epoch(3, view=1, **piece))
        monkeypatch.setattr(ImageLoader, "_made_together", lambda self: together)
        grouped = list(loader.epoch(3, view=1, **piece))
        assert len(alone) == len(grouped) == len(range(7)[slice(piece.get("start"), piece.get("stop"))])
        for a, b in zip(alone, grouped, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))
            assert a.view == b.view == 1

    def test_small_batches_are_made_together_only_on_an_accelerator(self):
        meta = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device="meta")
        for batch_size, together in ((128, 21), (512, 5), (10**6, 1)):
            loader = make_loader(batch_size=batch_size)
            assert loader._made_together() == 1
            object.__setattr__(loader.split, "images", meta)
            assert loader._made_together() == together

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_is_the_same_on_a_gpu(self):
        loader = make_loader(shuffle=True, augmentation=Augmentation(3, True))
        for a, b in zip(loader.to("cuda").epoch(2), loader.epoch(2), strict=True):
            assert a.inputs.device.type == "cuda"
            assert torch.equal(a.indices.cpu(), b.indices)
            torch.testing.assert_close(a.inputs.cpu(), b.inputs)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_size": 0}, "batch_size.*0"),
            ({"mean": (0.5,)}, "mean must be 3"),
            ({"std": (0.5, 0.5, float("nan"))}, "std must be 3"),
            ({"std": (0.5, 0.0, 0.5)}, "std must be greater than 0"),
        ],
    )
    def test_refuses(self, change, message):
        with pytest.raises(InvalidArgument, match=message):
            make_loader(**change)

    def test_refuses_negative_epochs_and_views(self):
        with pytest.raises(InvalidArgument, match="-1"):
            make_loader().epoch(-1)
        with pytest.raises(InvalidArgument, match="-2"):
            make_loader().epoch(0, view=-2)


class TestSplit:
    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "uint8"),
            (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(2, 3, 3\)"),
            (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\(3,\)"),
            (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), "float32"),
            (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "at least one"),
            (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, -1]), "-1"),
        ],
    )
    def test_refuses(self, images, labels, message):
        with pytest.raises(DataError, match=message):
            ImageSplit(images, labels)

    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
    def test_takes_the_same_share_of_each_class(self, fraction):
        labels = torch.tensor([0] * 40 + [1] * 13 + [2] * 7)[torch.randperm(60, generator=seeded("x"))]
        first, second = split_by_class(labels, fraction, seeded("y"))
        assert len(second) == round(60 * fraction)
        assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(60))
        share = torch.bincount(labels[second], minlength=3) - torch.tensor([40, 13, 7]) * fraction
        assert share.abs().max() <= 1

    @pytest.mark.parametrize("fraction", [0.001, 0.999])
    def test_refuses_an_empty_part(self, fraction):
        with pytest.raises(InvalidArgument, match="val_fraction"):
            split_by_class(torch.zeros(10, dtype=torch.int64), fraction, seeded("y"))


class TestDigits:
    def test_sizes(self):
        data = load("digits", None)
        parts = (data.train, data.val, data.test, data.calibration)
        assert [part.n_samples for part in parts] == [1294, 144, 359, 1294]
        assert (data.input_shape, data.n_classes, len(data.classes)) == ((1, 8, 8), 10, 10)
        assert data.train.shuffle
        assert data.train.augmentation == Augmentation(crop_padding=0, flip=False)
        assert data.test.augmentation is data.val.augmentation is data.calibration.augmentation is None
        assert int(data.test.split.images.max()) == 255
        assert torch.bincount(data.test.split.labels).min() >= 34

    def test_the_seed_decides_validation_but_not_test(self):
        one, two = load("digits", None), load("digits", None, seed=1)
        assert torch.equal(one.test.split.images, two.test.split.images)
        assert not torch.equal(one.val.split.images, two.val.split.images)

    def test_other_size_and_normalisation(self):
        data = load("digits", None, image_size=16, mean=(0.25,), std=(2.0,), augment=False, n_calibration=10)
        assert data.input_shape == (1, 16, 16)
        assert (data.train.mean, data.train.std, data.train.augmentation) == ((0.25,), (2.0,), None)
        assert data.calibration.n_samples == 10

    def test_padding_grows_with_the_images(self, monkeypatch):
        padded = replace(CATALOG["digits"], augmentation=Augmentation(crop_padding=1, flip=False))
        monkeypatch.setattr("secateur.data.load.CATALOG", {"digits": padded})
        assert load("digits", None, image_size=32).train.augmentation.crop_padding == 4

    def test_refuses_what_memory_does_not_hold(self):
        with pytest.raises(DataError, match=r"'train' needs 1,438,000,000,000,000 bytes.*image_size"):
            load("digits", None, image_size=10**6)

    def test_does_not_take_a_folder(self, tmp_path):
        with pytest.raises(InvalidArgument, match="data_dir"):
            load("digits", tmp_path)


class TestData:
    @staticmethod
    def make(**kwargs):
        loader = make_loader()
        parts = dict.fromkeys(("train", "val", "test", "calibration"), loader)
        return Data(**({"name": "mine", "n_classes": 5, "input_shape": (3, 12, 9)} | parts | kwargs))

    def test_describes_itself(self):
        inputs = torch.zeros(7, 3, 12, 9)
        dataset = DataLoader(TensorDataset(inputs, torch.zeros(7)), batch_size=2)
        assert self.make(test=dataset, calibration=[(inputs, None)]).describe() == {
            "name": "mine",
            "n_classes": 5,
            "input_shape": [3, 12, 9],
            "n_train": 50,
            "n_val": 50,
            "n_test": 7,
            "n_calibration": None,
        }

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"n_classes": 0}, "n_classes"),
            ({"input_shape": (3, 0)}, r"\(3, 0\)"),
            ({"classes": ("a", "b")}, "2 names of classes for 5"),
            ({"train": None}, r"train must be batches, .* got NoneType\. Pass \[\] where there are none"),
        ],
    )
    def test_refuses(self, change, message):
        with pytest.raises(DataError, match=message):
            self.make(**change)

    @pytest.mark.parametrize(("free", "moves"), [(2 * 4 * 50 * 3 * 12 * 9, True), (50 * 3 * 12 * 9, False)])
    def test_goes_near_a_gpu_that_has_room(self, monkeypatch, free, moves):
        asked = []
        monkeypatch.setattr(ImageLoader, "to", lambda self, device: asked.append(device) or self)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
        data = self.make()
        cuda = torch.device("cuda", 0)
        assert data.near(torch.device("cpu")) is data
        assert asked == []
        data.near(cuda)
        assert asked == ([cuda] * 4 if moves else [])

    def test_moves_image_loaders_and_no_others(self):
        other = DataLoader(TensorDataset(torch.zeros(2, 3, 12, 9), torch.zeros(2, dtype=torch.int64)))
        data = self.make(calibration=other)
        moved = data.to("cpu")
        assert moved.calibration is other
        assert moved.train is not data.train
        assert torch.equal(moved.train.split.images, data.train.split.images)


class TestOptions:
    def test_are_flags(self):
        flags = ["--data", "cifar10", "--mean", ".5", ".4", ".3", "--no-augment", "--image-size", "16"]
        options = tyro.cli(DataOptions, args=flags)
        assert options == DataOptions(data="cifar10", mean=(0.5, 0.4, 0.3), augment=False, image_size=16)
        assert tyro.cli(DataOptions, args=[]) == DataOptions()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_size": 0}, "batch_size.*0"),
            ({"n_calibration": 0}, "n_calibration.*0"),
            ({"val_fraction": 0.0}, "val_fraction.*0.0"),
            ({"val_fraction": 1.0}, "val_fraction.*1.0"),
            ({"val_fraction": float("nan")}, "val_fraction.*nan"),
            ({"image_size": 0}, "image_size.*0"),
            ({"mean": ()}, "mean"),
            ({"mean": (float("inf"),)}, "mean.*inf"),
            ({"std": (0.0,)}, "std.*greater than 0"),
        ],
    )
    def test_refuse(self, change, message):
        with pytest.raises(InvalidArgument, match=message):
            DataOptions(**change)

    def test_normalisation_must_fit_the_channels(self):
        with pytest.raises(InvalidArgument, match="mean must be 1"):
            load("digits", None, mean=(0.5, 0.5, 0.5))

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("cifar", "Did you mean cifar10"),
            ("Digits", "Did you mean digits"),
            ("uoft-cs/cifar10x", "hf:uoft-cs/cifar10x"),
            ("zzz", "Known: digits, cifar10"),
        ],
    )
    def test_unknown_names_get_a_hint(self, name, message):
        with pytest.raises(DataError, match=message):
            load(name, None)


class TestFactory:
    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my_data_module.py").write_text(
            "from secateur.data import Data, DataOptions, load_data\n"
            "def whole(seed, batch_size, data_dir):\n"
            "    options = DataOptions(batch_size=batch_size, val_fraction=0.5)\n"
            "    assert data_dir is None\n"
            "    return load_data(options, seed=seed)\n"
            "def without(): return load_data(DataOptions(), seed=0)\n"
            "def wrong(**kwargs): return sorted(kwargs)\n"
            "def demanding(seed, path): ...\n"
        )

    @pytest.mark.usefixtures("module")
    def test_is_called_with_what_it_accepts(self):
        data = load_data(DataOptions(data="my_data_module:whole", batch_size=7), seed=3)
        assert (data.train.batch_size, data.train.seed, data.val.n_samples) == (7, 3, 719)
        assert load("my_data_module:without", None).n_classes == 10

    @pytest.mark.usefixtures("module")
    def test_must_return_data_and_need_no_more(self):
        with pytest.raises(DataError, match="wrong' returned an object of type list"):
            load("my_data_module:wrong", None)
        with pytest.raises(DataError, match="demanding' needs the arguments path"):
            load("my_data_module:demanding", None)
        with pytest.raises(DataError, match="no module 'my_other_module'"):
            load("my_other_module:demanding", None)

    def test_refuses_options_that_it_would_not_see(self):
        with pytest.raises(InvalidArgument, match="val_fraction, augment cannot be given"):
            load("my_data_module:whole", None, val_fraction=0.3, augment=False)
