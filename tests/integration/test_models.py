import importlib.util
import os
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.data import DataOptions, ImageLoader, ImageSplit, load_data
from secateur.data.catalog import CATALOG
from secateur.errors import DataError, InvalidArgument, MissingExtra, ModelError
from secateur.factories import load_object
from secateur.models import MODELS, build_model, load_weights, weights
from secateur.models.resnet import PaddedShortcut

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("SECATEUR_TEST_DATA", ROOT.parent / "shared" / "data"))

# He et al. 2016, table 6, and torchvision's counts less its 7×7 stem and 1,000 classes; VGG without
# the biases that BatchNorm makes void. ResNet-20 to 56 have shortcuts without parameters (option A):
# the 272,474 and 855,770 that are often cited include 1×1 convolutions (option B).
N_PARAMETERS = {
    "small-cnn": 56_554,
    "wide-cnn": 223_690,
    "separable-cnn": 49_418,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "vgg16-bn": 14_724_042,
    "small-vit": 151_690,
}


def real(name):
    path = REAL / name
    return pytest.param(path, marks=pytest.mark.skipif(not path.is_file(), reason=f"needs {name}"), id=name)


class TestBuiltIn:
    def test_every_model_is_counted(self):
        assert set(MODELS) == set(N_PARAMETERS)

    @pytest.mark.parametrize(("name", "n"), N_PARAMETERS.items())
    def test_number_of_parameters(self, name, n):
        with torch.device("meta"):
            model = build_model(
                name, num_classes=10, in_channels=1 if "small" in name or "cnn" in name else 3
            )
        assert sum(p.numel() for p in model.parameters()) == n

    @pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32)])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("name", MODELS)
    def test_shapes(self, name, channels, size):
        with torch.device("meta"):
            model = build_model(name, num_classes=7, in_channels=channels).eval()
            assert model(torch.zeros(2, channels, *size)).shape == (2, 7)

    @pytest.mark.parametrize("name", ["small-cnn", "resnet20"])
    def test_torch_seed_decides_the_weights(self, name):
        def build(seed):
            torch.manual_seed(seed)
            return build_model(name, num_classes=10, in_channels=3).state_dict()

        one, again, other = build(0), build(0), build(1)
        assert all(torch.equal(one[key], again[key]) for key in one)
        assert any(not torch.equal(one[key], other[key]) for key in one)

    @pytest.mark.parametrize(
        "name",
        [
            "small-cnn",
            "wide-cnn",
            "separable-cnn",
            "resnet20",
            "resnet56",
            "resnet18",
            "vgg16-bn",
            "small-vit",
        ],
    )
    def test_output_is_neither_dead_nor_exploding(self, name):
        torch.manual_seed(0)
        model = build_model(name, num_classes=10, in_channels=3)
        assert 0.01 < float(model(torch.randn(16, 3, 16, 16)).detach().std()) < 10

    def test_padded_shortcut_keeps_every_other_pixel(self):
        x = torch.arange(2 * 4 * 5 * 5, dtype=torch.float32).reshape(2, 4, 5, 5)
        out = PaddedShortcut(4, 8, stride=2)(x)
        assert out.shape == (2, 8, 3, 3)
        assert torch.equal(out[:, 2:6], x[:, :, [0, 2, 4]][:, :, :, [0, 2, 4]])
        assert not out[:, [0, 1, 6, 7]].any()

    def test_names_follow_torchvision(self):
        with torch.device("meta"):
            names = build_model("resnet18", num_classes=10, in_channels=3).state_dict()
        assert {"conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias", "fc.weight"} < set(names)
        assert not any(name.startswith("layer1.0.downsample") for name in names)

    def test_small_cnn_learns_digits(self):
        data = load_data(DataOptions(augment=False), seed=0)
        torch.manual_seed(0)
        model = build_model("small-cnn", num_classes=10, in_channels=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        epochs = 20
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - epoch / epochs)
            for batch in data.train.epoch(epoch):
                optimizer.zero_grad()
                F.cross_entropy(model(batch.inputs), batch.labels).backward()
                optimizer.step()
        model.eval()
        assert accuracy(model, data.test) > 0.97


class TestByName:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "my_model_module.py").write_text(
            "from torch import nn\n"
            "def both(num_classes, in_channels): return nn.Conv2d(in_channels, num_classes, 1)\n"
            "def one(num_classes=3): return nn.Linear(2, num_classes)\n"
            "def wrong(): return 1\n"
            "def demanding(width): ...\n"
            "def failing(): raise KeyError('boom')\n"
            "class Nested:\n"
            "    factory = staticmethod(one)\n"
            "number = 5\n"
            "ready = nn.Linear(1, 1)\n"
        )
        (tmp_path / "my_broken_module.py").write_text("1 / 0")
        (tmp_path / "my_incomplete_module.py").write_text("import no_such_package_at_all")

    def test_a_factory_gets_what_it_accepts(self):
        assert build_model("my_model_module:both", num_classes=4, in_channels=2).weight.shape == (4, 2, 1, 1)
        assert build_model("my_model_module:one", num_classes=4, in_channels=2).out_features == 4
        assert build_model("my_model_module:Nested.factory", num_classes=4, in_channels=2).out_features == 4

    def test_the_search_path_comes_back(self):
        before = list(sys.path)
        load_object("my_model_module:one", kind="model")
        with pytest.raises(ModelError):
            load_object("my_broken_module:one", kind="model")
        assert sys.path == before

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("my_model_module:wrong", "returned an object of type int"),
            ("my_model_module:demanding", "needs the arguments width"),
            ("my_model_module:failing", "'my_model_module:failing': calling it failed with KeyError: 'boom'"),
            ("my_model_module:absent", "module 'my_model_module' has no attribute 'absent'.*both, one"),
            ("my_model_module:number", "is an object of type int; name a function"),
            ("my_model_module:ready", "is an object of type Linear; name a function"),
            ("my_absent_module:build", "no module 'my_absent_module'"),
            ("my_model_module.sub:build", r"no module 'my_model_module\.sub'"),
            ("my_broken_module:build", "ZeroDivisionError"),
            ("my_incomplete_module:build", "imports 'no_such_package_at_all'"),
            ("my_model_module:", "pkg.mod:attr"),
            (":build", "pkg.mod:attr"),
            ("a:b:c", "pkg.mod:attr"),
            ("my_model_module:o-ne", "pkg.mod:attr"),
            ("resnet-20", "Did you mean resnet20"),
            ("ResNet20", "Did you mean resnet20"),
            ("zzz", "Built in: small-cnn, wide-cnn, separable-cnn"),
        ],
    )
    def test_errors(self, spec, message):
        with pytest.raises(ModelError, match=message):
            build_model(spec, num_classes=4, in_channels=2)

    def test_kind_decides_the_error(self):
        for kind, error in (("data", DataError), ("model", ModelError), ("criterion", InvalidArgument)):
            with pytest.raises(error, match=kind):
                load_object("my_absent_module:x", kind=kind)

    @pytest.mark.parametrize(("num_classes", "in_channels"), [(0, 3), (10, 0)])
    def test_refuses_no_classes_or_channels(self, num_classes, in_channels):
        with pytest.raises(ModelError, match="at least 1"):
            build_model("resnet20", num_classes=num_classes, in_channels=in_channels)


class TestTimm:
    """timm is not installed here: a stand-in records what it is asked for."""

    @pytest.fixture
    def asked(self, monkeypatch):
        asked = []

        def create_model(name, **kwargs):
            asked.append((name, kwargs))
            return nn.Linear(1, 1)

        fake = types.SimpleNamespace(list_models=lambda: ["resnet18", "vit_tiny"], create_model=create_model)
        monkeypatch.setitem(sys.modules, "timm", fake)
        return asked

    def test_builds(self, asked):
        build_model("timm:resnet18", num_classes=4, in_channels=2)
        assert asked == [("resnet18", {"num_classes": 4, "in_chans": 2})]

    @pytest.mark.usefixtures("asked")
    def test_unknown_names_get_a_hint(self):
        with pytest.raises(ModelError, match=r"no model 'resnet1'.*resnet18"):
            build_model("timm:resnet1", num_classes=4, in_channels=2)

    def test_says_that_it_is_missing(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "timm", None)
        with pytest.raises(MissingExtra, match="pip install timm"):
            build_model("timm:resnet18", num_classes=4, in_channels=2)


class TestWeights:
    @pytest.fixture
    def trained(self):
        torch.manual_seed(1)
        return build_model("small-cnn", num_classes=10, in_channels=1).state_dict()

    @pytest.fixture
    def model(self):
        torch.manual_seed(2)
        return build_model("small-cnn", num_classes=10, in_channels=1)

    @staticmethod
    def same(model, state):
        own = model.state_dict()
        return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)

    def test_safetensors(self, model, trained, tmp_path):
        save_file(trained, tmp_path / "a.safetensors")
        load_weights(model, str(tmp_path / "a.safetensors"))
        assert self.same(model, trained)

    @pytest.mark.parametrize("suffix", ["pt", "pth", "th", "bin"])
    @pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_torch_files(self, model, trained, tmp_path, suffix, wrap, prefix):
        state = {prefix + name: value for name, value in trained.items()}
        path = tmp_path / f"a.{suffix}"
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
        load_weights(model, path)
        assert self.same(model, trained)

    def test_safetensors_under_the_name_of_a_torch_file(self, model, trained, tmp_path):
        save_file(trained, tmp_path / "a.pt")
        load_weights(model, tmp_path / "a.pt")
        assert self.same(model, trained)

    def test_the_counter_of_batchnorm_may_be_missing(self, model, trained, tmp_path):
        save_file({k: v for k, v in trained.items() if "num_batches" not in k}, tmp_path / "a.safetensors")
        load_weights(model, tmp_path / "a.safetensors")
        assert self.same(model, trained)

    def test_lists_what_does_not_fit_and_changes_nothing(self, model, trained, tmp_path):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        del trained["features.0.weight"]
        trained["classifier.weight"] = torch.zeros(100, 64)
        trained["extra"] = torch.zeros(1)
        save_file(trained, tmp_path / "a.safetensors")
        with pytest.raises(ModelError) as caught:
            load_weights(model, tmp_path / "a.safetensors")
        for part in (
            "1 missing: features.0.weight",
            "1 unexpected: extra",
            "1 of another shape: classifier.weight (100, 64) instead of (10, 64)",
        ):
            assert part in str(caught.value)
        assert self.same(model, before)

    def test_a_long_list_is_cut(self, model, tmp_path):
        save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match=r"17 missing: .* and 12 more"):
            load_weights(model, tmp_path / "a.safetensors")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.safetensors", b"\x08\0\0\0\0\0\0\0not json", "not a readable safetensors"),
            ("a.pt", b"no zip at all", "not a file of plain tensors"),
            ("a.pth", b"", "not a file of plain tensors"),
            ("a.h5", b"", r"ends in '\.h5'.*\.safetensors, \.pt"),
        ],
    )
    def test_refuses_other_files(self, model, tmp_path, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            load_weights(model, tmp_path / name)

    def test_refuses_a_missing_file(self, model, tmp_path):
        with pytest.raises(ModelError, match="no weight file"):
            load_weights(model, tmp_path / "absent.safetensors")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([1, 2], "holds a list"),
            ({"a": 1, "b": "x"}, "not named tensors: a, b"),
            ({0: torch.zeros(1)}, "not named tensors: 0"),
        ],
    )
    def test_refuses_other_contents(self, model, tmp_path, content, message):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=message):
            load_weights(model, tmp_path / "a.pt")

    def test_runs_no_code(self, model, tmp_path):
        torch.save(nn.Linear(1, 1), tmp_path / "a.pt")  # a pickled class, as torch.save(model) writes it
        with pytest.raises(ModelError, match="not a file of plain tensors"):
            load_weights(model, tmp_path / "a.pt")

    def test_hands_sparse_checkpoints_on(self, model, trained, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(weights, "load_sparse", lambda path, *, into: calls.append((path, into)))
        path = tmp_path / "a.safetensors"
        save_file(trained, path, metadata={"format": "secateur-sparse"})
        load_weights(model, path)
        assert calls == [(path, model)]


class TestReal:
    @pytest.mark.parametrize(
        "path", [real(f"resnet{depth}-cifar10.safetensors") for depth in (20, 32, 44, 56)]
    )
    def test_published_weights_fit(self, path):
        model = build_model(path.name.partition("-")[0], num_classes=10, in_channels=3)
        load_weights(model, path)
        own = model.state_dict()
        state = load_file(path)
        assert {n for n in own if "num_batches_tracked" not in n} == set(state)
        assert all(torch.equal(own[name], state[name]) for name in state)

    @pytest.mark.parametrize("path", [real("resnet20-cifar10.safetensors")])
    @pytest.mark.skipif(not (REAL / "cifar10.zip").is_file(), reason="needs the real CIFAR-10")
    def test_published_accuracy(self, path):
        spec = importlib.util.spec_from_file_location("unpack", REAL / "unpack.py")
        unpack = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(unpack)
        images, labels = unpack.split(zipfile.ZipFile(REAL / "cifar10.zip"), "test")
        split = ImageSplit(
            torch.from_numpy(images[:500]).permute(0, 3, 1, 2), torch.tensor(labels[:500]).long()
        )
        cifar10 = CATALOG["cifar10"]
        model = build_model("resnet20", num_classes=10, in_channels=3).eval()
        load_weights(model, path)
        assert accuracy(model, ImageLoader(split, batch_size=100, mean=cifar10.mean, std=cifar10.std)) > 0.88


def accuracy(model, loader):
    with torch.no_grad():
        right = sum(int((model(inputs).argmax(1) == labels).sum()) for inputs, labels in loader)
    return right / loader.n_samples
