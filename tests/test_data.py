"""Data sets: reading them, splitting them, label noise, and batches decoded on the way."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from examples.image_classification import __main__ as entry
from examples.image_classification import data
from examples.image_classification.batches import (
    Batches,
    Dataset,
    Images,
    Stream,
    center_crop,
    random_resized_crop,
)
from examples.image_classification.config import Config
from examples.image_classification.data import label_shifts, load, read_corrupted, split_indices
from examples.training.train import train

COUNTS = {"train": 20, "test": 6, "validation": 6}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of decoded images, and a default data folder that does not exist."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    return tmp_path / "cache" / "xsam_jax"


def encode(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def prepare(directory, name="cifar10", shape=(32, 32, 3), classes=10, seed=0, version="3.0.2"):
    """Writes a dataset as TensorFlow Datasets would, and returns the images by split."""
    writers = pytest.importorskip("array_record.python.array_record_module")
    protos = pytest.importorskip("tensorflow_datasets.proto").tf_example_pb2
    folder = directory / name / version
    folder.mkdir(parents=True)
    rng, images, splits = np.random.default_rng(seed), {}, []
    for split, count in COUNTS.items():
        pixels = rng.integers(0, 256, (count, *shape), np.uint8)
        labels = rng.integers(0, classes, count).astype(np.int32)
        path = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = writers.ArrayRecordWriter(str(path), "group_size:1")
        for image, label in zip(pixels, labels, strict=True):
            example = protos.Example()
            features = example.features.feature
            features["image"].bytes_list.value.append(encode(image.squeeze()))
            features["label"].int64_list.value.append(int(label))
            writer.write(example.SerializeToString())
        writer.close()
        images[split] = Images(pixels, labels)
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "shardLengths": [str(count)], "filepathTemplate": template})
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    module = "tensorflow_datasets.core.features"
    dimensions = [str(length) for length in shape]
    image = {"image": {"dtype": "uint8", "shape": {"dimensions": dimensions}}}
    label = {"classLabel": {"numClasses": str(classes)}}
    features = {
        "image": image | {"pythonClassName": f"{module}.image_feature.Image"},
        "label": label | {"pythonClassName": f"{module}.class_label_feature.ClassLabel"},
    }
    top = {"featuresDict": {"features": features}}
    top["pythonClassName"] = f"{module}.features_dict.FeaturesDict"
    (folder / "features.json").write_text(json.dumps(top))
    return images


def assert_same_images(one, other):
    """Compares images in any order, with their labels."""

    def rows(images):
        flat = np.asarray(images.pixels).reshape(len(images.labels), -1)
        return sorted(zip(map(bytes, flat), images.labels.tolist(), strict=True))

    assert rows(one) == rows(other)


# --- Digits ---


def test_digits_match_scikit_learn():
    dataset = load(Config())
    digits = load_digits()
    expected = np.round(digits.images / 16 * 255).astype(np.uint8)[..., None]
    both = Images(*map(np.concatenate, zip(dataset.train, dataset.test, strict=True)))
    assert_same_images(both, Images(expected, digits.target))
    assert dataset.train.pixels.shape == (1297, 8, 8, 1)
    assert dataset.train.pixels.dtype == np.uint8
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int32
    assert (dataset.num_classes, dataset.image_shape) == (10, (8, 8, 1))
    order = np.random.default_rng(0).permutation(1797)
    np.testing.assert_array_equal(dataset.test.pixels, expected[order[1297:]])
    np.testing.assert_array_equal(dataset.test.labels, digits.target[order[1297:]])
    assert (dataset.mean, dataset.std) == ([0.0], [1.0])  # between 0 and 1 as they are


def test_an_unknown_dataset_suggests_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown dataset 'cifar-10'; did you mean 'cifar10'\?.*mnist"
    ):
        load(Config(dataset="cifar-10"))


# --- Splits and label noise ---


def test_smaller_training_sets_are_parts_of_larger_ones_for_all_seeds():
    small = load(Config(train_size=100)).train
    large = load(Config(train_size=500, validation_size=200, seed=1))
    np.testing.assert_array_equal(large.train.pixels[:100], small.pixels)
    np.testing.assert_array_equal(large.train.labels[:100], small.labels)
    assert large.validation.pixels.shape == (200, 8, 8, 1)
    other = load(Config(validation_size=200, seed=2))
    np.testing.assert_array_equal(other.validation.pixels, large.validation.pixels)
    assert len(other.train.labels) == 1097


def test_no_image_is_for_both_training_and_validation():
    train, validation = split_indices(1000, None, 300)
    assert sorted([*train, *validation]) == list(range(1000))
    assert 250 < np.sum(validation < 850) < 270  # shuffled
    assert load(Config()).validation is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train_size": 1298}, "train_size must be between 1 and 1297, got 1298"),
        ({"train_size": 0}, "train_size must be between 1 and 1297, got 0"),
        (
            {"train_size": 1000, "validation_size": 298},
            "train_size must be between 1 and 999 beside 298 for validation, got 1000",
        ),
        ({"validation_size": 1297}, "validation_size must leave some of the 1297 training images"),
        ({"validation_size": -1}, "validation_size must be at least 0, got -1"),
        ({"label_noise": 1.5}, "label_noise must be between 0 and 1, got 1.5"),
    ],
)
def test_sizes_that_are_none_are_errors(sizes, message):
    with pytest.raises(ValueError, match=message):
        load(Config(**sizes))


def test_exactly_the_rate_of_training_labels_is_wrong_and_no_others():
    config = Config(train_size=900, validation_size=300, seed=3)
    clean, noisy = load(config), load(dataclasses.replace(config, label_noise=0.4))
    assert np.sum(clean.train.labels != noisy.train.labels) == 360
    assert set(noisy.train.labels) == set(range(10))
    assert noisy.train.labels.dtype == np.int32
    np.testing.assert_array_equal(clean.train.pixels, noisy.train.pixels)
    for one, other in [(clean.validation, noisy.validation), (clean.test, noisy.test)]:
        np.testing.assert_array_equal(one.labels, other.labels)


def test_wrong_labels_are_uniform_over_the_others_and_over_the_images():
    shifts = label_shifts(100_000, 0.3, 10, seed=0)
    counts = np.bincount(shifts, minlength=10)
    assert counts[0] == 70_000
    assert np.sum((counts[1:] - 30_000 / 9) ** 2 / (30_000 / 9)) < 29  # 8 degrees: one in 3,000
    assert np.mean(np.flatnonzero(shifts)) == pytest.approx(50_000, rel=0.02)
    assert np.all(label_shifts(50, 1.0, 2, seed=0) == 1)


def test_the_seed_decides_which_labels_are_wrong():
    np.testing.assert_array_equal(label_shifts(500, 0.5, 10, 7), label_shifts(500, 0.5, 10, 7))
    assert (label_shifts(500, 0.5, 10, 7) != label_shifts(500, 0.5, 10, 8)).any()


# --- TensorFlow Datasets ---


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("cifar100", (32, 32, 3), 100), ("mnist", (28, 28, 1), 10)]
)
def test_prepared_datasets_are_read_completely(tmp_path, name, shape, classes):
    prepared = prepare(tmp_path, name, shape, classes)
    dataset = load(Config(dataset=name, data_dir=tmp_path))
    assert_same_images(dataset.train, prepared["train"])
    np.testing.assert_array_equal(dataset.test.pixels, prepared["test"].pixels)
    np.testing.assert_array_equal(dataset.test.labels, prepared["test"].labels)
    assert (dataset.num_classes, dataset.image_shape) == (classes, shape)
    assert dataset.mean.shape == dataset.std.shape == shape[-1:]


def test_published_corruptions_are_read_where_they_are_prepared(tmp_path):
    prepared = prepare(tmp_path / "cifar10_corrupted", "frosted_glass_blur_3")
    config = Config(dataset="cifar10", data_dir=tmp_path)
    assert_same_images(read_corrupted(config, "glass_blur", 3), prepared["test"])
    assert read_corrupted(config, "glass_blur", 4) is None
    assert read_corrupted(dataclasses.replace(config, dataset="cifar100"), "glass_blur", 3) is None


def test_images_are_decoded_once(tmp_path, monkeypatch, cache):
    prepare(tmp_path)
    config = Config(dataset="cifar10", data_dir=tmp_path)
    first = load(config)
    assert sorted(path.suffix for path in cache.iterdir()) == [".npy"] * 4  # and no temporary files
    monkeypatch.setattr(data, "_tfds_records", None)
    again = load(config)
    assert_same_images(again.train, first.train)
    assert_same_images(again.test, first.test)


def test_the_cache_separates_folders_and_versions(tmp_path, monkeypatch):
    one, two = (prepare(tmp_path / name, seed=seed) for seed, name in enumerate("ab"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "a"))
    assert_same_images(load(Config(dataset="cifar10")).train, one["train"])
    in_b = Config(dataset="cifar10", data_dir=tmp_path / "b")
    assert_same_images(load(in_b).train, two["train"])
    newer = prepare(tmp_path / "b", seed=3, version="3.0.10")
    assert_same_images(load(in_b).train, newer["train"])


def test_the_cache_depends_on_path_size_and_time_of_files(tmp_path):
    reads = []

    def read(path):
        def count():
            reads.append(path.name)
            return Images(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int32))

        data.cached("name", [path], count)
        return reads.count(path.name)

    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(b"same")
        os.utime(path, ns=(1, 1))
    assert [read(one), read(one), read(two)] == [1, 1, 1]
    os.utime(one, ns=(1, 2))
    assert [read(one), read(one)] == [2, 2]
    one.write_bytes(b"longer")
    os.utime(one, ns=(1, 2))
    assert read(one) == 3


@pytest.mark.parametrize("broken", ["folder", "file"])
def test_an_unusable_cache_is_ignored(tmp_path, cache, broken):
    prepared = prepare(tmp_path)
    config = Config(dataset="cifar10", data_dir=tmp_path)
    if broken == "folder":
        cache.parent.write_text("a file where a folder would be")
    else:
        load(config)
        for path in cache.iterdir():
            path.write_bytes(path.read_bytes()[:200])
    assert_same_images(load(config).train, prepared["train"])


def test_missing_data_raise_with_folder_and_command(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load(Config(dataset="cifar10"))
    message = str(error.value)
    assert f"cifar10 is not in {tmp_path / 'nowhere'} as array_record files" in message
    assert 'file_format="array_record").download_and_prepare()' in message
    assert "--data-dir" in message
    assert "\n" not in message


def spoil(name, change):
    """Returns a function that changes the bytes of one file of a prepared dataset."""

    def apply(folder):
        (path,) = folder.glob(name)
        path.write_bytes(change(path.read_bytes()))

    return apply


DAMAGE = {
    "info is cut": spoil("dataset_info.json", lambda text: text[:50]),
    "info is a list": spoil("dataset_info.json", lambda text: b"[]"),
    "info is no text": spoil("dataset_info.json", lambda text: b"\xff" + text),
    "features are cut": spoil("features.json", lambda text: text[:50]),
    "shard is empty": spoil("*train*", lambda text: b""),
    "shard is cut": spoil("*train*", lambda text: text[: len(text) // 2]),
    "shard is something else": spoil("*test*", lambda text: b"x" * len(text)),
    "shard has another byte": spoil(
        "*train*", lambda text: text[: len(text) // 3] + b"x" * 40 + text[len(text) // 3 + 40 :]
    ),
    "shard is gone": lambda folder: next(folder.glob("*test*")).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_datasets_raise_with_their_folder(damage, tmp_path):
    prepare(tmp_path)
    folder = tmp_path / "cifar10" / "3.0.2"
    DAMAGE[damage](folder)
    with pytest.raises(OSError) as error:
        load(Config(dataset="cifar10", data_dir=tmp_path))
    message = str(error.value)
    assert message.startswith(str(folder))
    assert message.endswith("it may be damaged, prepare it again")
    assert "\n" not in message


def test_only_png_and_jpeg_are_decoded(tmp_path, monkeypatch):
    encoded = encode
    monkeypatch.setitem(globals(), "encode", lambda pixels: encoded(pixels, "GIF"))
    prepare(tmp_path)
    with pytest.raises(OSError, match="cannot identify image file"):
        load(Config(dataset="cifar10", data_dir=tmp_path))
    record = {"image": encoded(np.zeros((30, 30, 3), np.uint8), "BMP"), "label": 0}
    images = Stream([record], np.arange(1), np.zeros(1, np.int32), 10, side=16)
    with pytest.raises(OSError, match="cannot identify image file"):
        next(images.batches(1))


@pytest.mark.parametrize("label", [-1, 10])
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_that_are_no_classes_raise(label, split, tmp_path, monkeypatch):
    good = np.arange(20, dtype=np.int32) % 10
    bad = np.where(np.arange(20) == 7, label, good).astype(np.int32)
    pixels = np.zeros((20, 8, 8, 1), np.uint8)
    splits = [Images(pixels, bad if split == name else good) for name in ("train", "test")]
    source = data.DATASETS["digits"]._replace(read=lambda *_: tuple(splits))
    monkeypatch.setitem(data.DATASETS, "digits", source)
    config = Config(batch_size=4, rho=0.1, rho_max=0.2, out=tmp_path / "run")
    of_digits = f"{'training' if split == 'train' else 'test'} labels of digits"
    message = rf"{of_digits} must be from 0 to 9, got {label} \(1 of 20 are wrong\)"
    with pytest.raises(ValueError, match=message):
        train(config, show=False)
    assert not (tmp_path / "run").exists()
    record = {"image": encode(np.zeros((20, 20, 3), np.uint8)), "label": label}
    images = Stream([record], np.arange(1), np.zeros(1, np.int32), 10, side=16, name="x, train")
    with pytest.raises(
        OSError, match=f"x, train, record 0 .*label must be from 0 to 9, got {label}"
    ):
        next(images.batches(1))


@pytest.mark.parametrize("name", ["pixels", "mean", "std"])
def test_data_that_are_not_finite_raise(name):
    splits = [Images(np.ones((8, 8, 8, 1), np.float32), np.zeros(8, np.int32)) for _ in range(2)]
    constants = {"mean": np.zeros(1), "std": np.ones(1)}
    if name == "pixels":
        splits[1].pixels[3, 2, 1] = np.nan
    else:
        constants[name][:] = {"mean": np.inf, "std": 0.0}[name]
    dataset = Dataset(*splits, **constants, num_classes=10, image_shape=(8, 8, 1))
    with pytest.raises(ValueError, match=rf"{name} of the data must be finite"):
        Batches(dataset, Config(batch_size=4))


def test_a_damaged_record_of_a_stream_ends_the_run_with_its_name(tmp_path, monkeypatch, capsys):
    good = {"image": encode(np.zeros((20, 20, 3), np.uint8)), "label": 3}
    bad = [{"image": good["image"][:40], "label": 3}, {"label": 3}, good | {"label": 10}]

    def stream(name, *records):
        records = [*records, *[good] * 5]
        return Stream(records, np.arange(8), np.zeros(8, np.int32), 10, side=16, name=name)

    for record in bad:
        splits = stream("a, train", good, record, good), stream("a, test", good, good, good)
        dataset = Dataset(*splits, np.zeros(3), np.ones(3), 10, (16, 16, 3))
        monkeypatch.setattr("examples.image_classification.data.load", lambda _, d=dataset: d)
        words = ["--method", "sgd", "--batch-size", "8", "--out", str(tmp_path / "run")]
        assert entry.main(words) == 1
        [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert "error: a, train, record 1 cannot be read (" in line


def test_tfrecord_files_count_as_missing(tmp_path):
    info = tmp_path / "mnist" / "3.0.1" / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.write_text('{"name": "mnist", "fileFormat": "tfrecord"}')
    with pytest.raises(FileNotFoundError, match=r"mnist is not in .* as array_record"):
        load(Config(dataset="mnist", data_dir=tmp_path))


@pytest.mark.skipif("XSAM_DATA_DIR" not in os.environ, reason="needs CIFAR-10 in XSAM_DATA_DIR")
def test_cifar10_has_its_mean_and_standard_deviation():
    dataset = load(Config(dataset="cifar10", data_dir=Path(os.environ["XSAM_DATA_DIR"])))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (50_000, 10_000)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), 5000)
    # A copy in JPEG is allowed: it loses contrast.
    np.testing.assert_allclose(dataset.train.pixels.mean((0, 1, 2)) / 255, dataset.mean, atol=1e-3)
    np.testing.assert_allclose(dataset.train.pixels.std((0, 1, 2)) / 255, dataset.std, atol=3e-3)


# --- Tiny ImageNet ---


def test_tiny_imagenet_is_read_from_its_folder(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    grays = {}
    for label, wnid in enumerate(["n01", "n02", "n10"]):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        for i in range(2):
            gray = 50 * label + 20 * i
            shape = (64, 64, 3) if i else (64, 64)  # some images are gray
            (images / f"{wnid}_{i}.JPEG").write_bytes(
                encode(np.full(shape, gray, np.uint8), "JPEG")
            )
            grays[gray] = label
    for i in range(2):
        path = folder / "val" / "images" / f"val_{i}.JPEG"
        path.write_bytes(encode(np.full((64, 64, 3), 200 + i, np.uint8), "JPEG"))
    lines = "val_1.JPEG\tn10\t0\t0\t1\t1\nval_0.JPEG\tn02\t0\t0\t1\t1\n"
    (folder / "val" / "val_annotations.txt").write_text(lines)
    dataset = load(Config(dataset="tiny_imagenet", data_dir=tmp_path))
    assert dataset.train.pixels.shape == (6, 64, 64, 3)
    found = zip(dataset.train.pixels[:, 3, 3, 2].tolist(), dataset.train.labels, strict=True)
    assert dict(found) == grays
    np.testing.assert_array_equal(dataset.test.pixels[:, 0, 0, 0], [201, 200])
    np.testing.assert_array_equal(dataset.test.labels, [2, 1])


def test_missing_tiny_imagenet_names_the_file_to_unpack(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no tiny-imagenet-200/val.*Unpack http"):
        load(Config(dataset="tiny_imagenet", data_dir=tmp_path))


# --- Batches that are decoded on the way ---


@pytest.fixture(scope="module")
def stream():
    """Thirteen images of several sizes, each of its own color."""
    pytest.importorskip("grain")
    sizes = np.random.default_rng(0).integers(12, 40, (13, 2))
    records = [
        {"image": encode(np.full((*size, 3), 10 * i, np.uint8)), "label": i}
        for i, size in enumerate(sizes)
    ]
    return Stream(records, np.arange(13), np.zeros(13, np.int32), 13, side=8)


def collect(batches):
    """The first pixel and the label of every image, whose pixels are all equal."""
    found = []
    for batch in batches:
        assert isinstance(batch, Images)
        assert batch.pixels.shape[1:] == (8, 8, 3)
        assert (batch.pixels.dtype, batch.labels.dtype) == (np.uint8, np.int32)
        assert (batch.pixels == batch.pixels[:, :1, :1, :1]).all()
        found.append(np.stack([batch.pixels[:, 0, 0, 0], batch.labels]))
    return np.array(found)


def test_an_evaluation_has_all_images_in_order_and_pads(stream):
    found = collect(stream.batches(5))
    labels = found[:, 1].ravel()
    np.testing.assert_array_equal(labels, [*range(13), -1, -1])
    np.testing.assert_array_equal(found[:, 0].ravel()[:13], 10 * np.arange(13))


def test_an_epoch_has_every_image_at_most_once_in_an_order_of_its_own(stream):
    epochs = [collect(stream.batches(4, seed=0, epoch=epoch)) for epoch in (0, 1)]
    for found in epochs:
        pixels, labels = np.moveaxis(found, 1, 0)
        np.testing.assert_array_equal(pixels, 10 * labels)
        assert labels.shape == (3, 4)
        assert len(set(labels.ravel())) == 12
    assert (epochs[0] != epochs[1]).any()
    assert (collect(stream.batches(4, seed=1)) != epochs[0]).any()


def test_labels_follow_their_images(stream):
    order = np.arange(13)[::-1]
    shifted = stream.shift_labels(np.arange(13), 13).select(order)
    (labels,) = collect(shifted.batches(13))[:, 1]
    np.testing.assert_array_equal(labels, 2 * order % 13)


def textured(stream):
    """A stream of noise, in which all crops differ."""
    rng = np.random.default_rng(1)
    records = [
        {"image": encode(rng.integers(0, 256, (20, 25, 3), np.uint8)), "label": i} for i in range(9)
    ]
    return dataclasses.replace(
        stream, records=records, indices=np.arange(9), shifts=np.zeros(9, int), num_classes=9
    )


def test_a_stream_resumes_at_any_step_and_number_of_processes(stream):
    stream = textured(stream)
    whole = list(stream.batches(4, seed=0, epoch=2))
    (rest,) = stream.batches(4, seed=0, epoch=2, start_step=1)
    np.testing.assert_array_equal(rest.pixels, whole[1].pixels)
    np.testing.assert_array_equal(rest.labels, whole[1].labels)
    parts = [
        next(stream.batches(4, seed=0, epoch=2, process_index=i, process_count=2)) for i in range(2)
    ]
    assert parts[0].pixels.shape == (2, 8, 8, 3)
    joined = np.concatenate([part.pixels for part in parts])
    np.testing.assert_array_equal(joined, whole[0].pixels)


def test_every_epoch_has_crops_of_its_own(stream):
    by_epoch = []
    for epoch in range(2):
        images = [
            Images(pixels, int(label))
            for batch in textured(stream).batches(3, seed=0, epoch=epoch)
            for pixels, label in zip(*batch, strict=True)
        ]
        by_epoch.append({image.labels: image.pixels for image in images})
    assert all((by_epoch[0][label] != by_epoch[1][label]).any() for label in range(9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"seed": 0, "batch_size": 14},
            "batch_size must be at most 13, the training images, got 14",
        ),
        ({"process_count": 2, "batch_size": 3}, "batch_size must be a multiple of the 2 processes"),
    ],
)
def test_impossible_batch_sizes_raise(stream, arguments, message):
    with pytest.raises(ValueError, match=message):
        next(stream.batches(**arguments))


def test_imagenet_has_the_same_splits_and_label_noise(tmp_path):
    pytest.importorskip("grain")
    prepared = prepare(tmp_path, "imagenet2012", (30, 40, 3), classes=1000)
    config = Config(dataset="imagenet2012", data_dir=tmp_path, train_size=12, validation_size=5)
    clean, noisy = load(config), load(dataclasses.replace(config, label_noise=0.5))
    (batch,) = clean.train.batches(12)
    assert batch.pixels.shape == (12, *clean.image_shape) == (12, 224, 224, 3)
    (wrong,) = noisy.train.batches(12)
    assert np.sum(batch.labels != wrong.labels) == 6
    (held_out,) = noisy.validation.batches(5)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(batch.labels, prepared["train"].labels[order[:12]])
    np.testing.assert_array_equal(held_out.labels, prepared["train"].labels[order[15:]])
    assert (clean.train.size, clean.validation.size, clean.test.size) == (12, 5, 6)
    (test,) = clean.test.batches(6)
    np.testing.assert_array_equal(test.labels, prepared["validation"].labels)


@pytest.mark.parametrize(
    ("name", "classes"), [("cars196", 196), ("oxford_flowers102", 102), ("oxford_iiit_pet", 37)]
)
def test_photographs_to_fine_tune_on_are_decoded_on_the_way(name, classes, tmp_path):
    pytest.importorskip("grain")
    prepared = prepare(tmp_path, name, (30, 40, 3), classes=classes)
    path = next(tmp_path.glob(f"{name}/*/features.json"))
    features = json.loads(path.read_text())
    inner = features["featuresDict"]["features"]
    inner["segmentation_mask"] = inner["image"]  # as the pets have, but no record does here
    path.write_text(json.dumps(features))
    dataset = load(Config(dataset=name, data_dir=tmp_path))
    assert (dataset.num_classes, dataset.image_shape) == (classes, (224, 224, 3))
    (test,) = dataset.test.batches(dataset.test.size)
    np.testing.assert_array_equal(test.labels, prepared["test"].labels)
    np.testing.assert_allclose(dataset.mean, [0.485, 0.456, 0.406])


def test_images_are_normalized_as_pretrained_networks_need_them():
    for normalization, mean, std in (("dataset", 0.0, 1.0), ("half", 0.5, 0.5)):
        dataset = load(Config(normalization=normalization))
        assert dataset.mean[0] == mean
        assert dataset.std[0] == std
    dataset = load(Config(normalization="imagenet"))
    np.testing.assert_allclose(dataset.std, [0.229, 0.224, 0.225])


# --- Crops of images of any size ---


def ramp(width, height):
    """An image whose red is the column, and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def test_random_resized_crops_have_areas_and_ratios_in_bounds_and_half_are_mirrored():
    rng, image, found = np.random.default_rng(0), ramp(250, 200), []
    for _ in range(800):
        view = random_resized_crop(image, 64, rng).astype(float)
        assert view.shape == (64, 64, 3)
        # Enlarging and shrinking keep a ramp one, so that its slope within is the size.
        width = (view[:, 48, 0].mean() - view[:, 16, 0].mean()) * 2
        height = (view[48, :, 1].mean() - view[16, :, 1].mean()) * 2
        left, top = view[:, :, 0].mean() - abs(width) / 2, view[:, :, 1].mean() - height / 2
        found.append((width, height, left, top))
    widths, heights, lefts, tops = np.array(found).T
    assert 350 < np.sum(widths < 0) < 450
    areas, ratios = abs(widths) * heights / (250 * 200), abs(widths) / heights
    assert 0.075 < areas.min() < 0.1
    assert 0.9 < areas.max() < 1.02
    assert np.mean(areas < 0.29) / np.mean(areas < 0.5) == pytest.approx(0.5, abs=0.08)
    assert 0.72 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.38
    small = areas < 0.4  # the others do not always fit
    assert np.mean(np.log(ratios[small])) == pytest.approx(0.0, abs=0.03)
    assert np.mean(lefts[small] / (250 - abs(widths[small]))) == pytest.approx(0.5, abs=0.06)
    assert np.mean(tops[small] / (200 - heights[small])) == pytest.approx(0.5, abs=0.06)


def test_the_middle_of_a_long_image_is_cropped():
    view = random_resized_crop(ramp(250, 6), 32, np.random.default_rng(0))
    columns = np.sort(view[16, :, 0])
    assert columns[0] == pytest.approx((250 - 8) / 2, abs=1)  # six rows, hence eight columns
    assert columns[-1] == pytest.approx((250 + 8) / 2 - 1, abs=1)


@pytest.mark.parametrize("size", [(160, 96), (96, 160), (50, 50)])
def test_center_crop_takes_224_of_256_pixels_of_the_shorter_side(size):
    columns, rows = np.meshgrid(*(np.linspace(0, 9, length) for length in size))
    waves = np.sin(columns + rows / 2)
    image = Image.fromarray((127 + 100 * waves).astype(np.uint8)).convert("RGB")
    scale = 256 / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.BILINEAR)
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    view = center_crop(image, 224).astype(int)
    assert np.abs(view - expected).max() <= 6
    assert np.abs(view - expected).mean() < 1
