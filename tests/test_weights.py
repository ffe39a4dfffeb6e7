"""A trained network is the same after it was a file, and no other passes for it."""

import copy
import hashlib
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save, save_file
from torch import nn
from torch.nn.utils import prune

from helpers import dataset, models, train_test, utils, weights
from tests.shared import CPU

DATA = "made-up data, for a test"


@pytest.fixture(scope="module")
def images():
    return dataset.synthetic_cifar10(train=96, test=60)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Where the records' figures are from, whatever the machine has."""
    monkeypatch.setattr(utils, "get_device", lambda: CPU)


@pytest.fixture(scope="module")
def trained(images):
    """A network that gets some images right, as one on a GPU is laid out in memory."""
    torch.manual_seed(0)
    model = models.CustomResNet().to(memory_format=torch.channels_last)
    loaders = dataset.make_loaders(
        *images, batch_size=16, device=CPU, augment_on="device", cutout=0
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        train_test.train_one_epoch(model, loaders.train, optimizer, device=CPU)
    return model.eval()


@pytest.fixture(scope="module")
def saved(trained, images, tmp_path_factory):
    """The file and its record's entry, as a run leaves them."""
    path = tmp_path_factory.mktemp("weights") / "new" / "trained.safetensors"
    entry = weights.save_scored(trained, path, images[1], data=DATA, device=CPU)
    return path, entry


def small(network=models.CustomResNet, **options):
    """A network of other sizes, its running statistics moved from 0 and 1."""
    torch.manual_seed(1)
    model = network(**options)
    model(torch.randn(4, model.prep[0].in_channels, 8, 8))
    return model.eval()


def stored(path):
    """The tensors of the file and what else it says, read by safetensors alone."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), json.loads(header["__metadata__"]["helpers"])


# --- there and back --------------------------------------------------------------------


def test_network_answers_the_same_from_its_file(trained, saved, images):
    path, entry = saved
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    model = models.load_pretrained(path, sha256=entry["sha256"])
    assert type(model) is models.CustomResNet and not model.training
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    test = dataset.make_loaders(
        *images, batch_size=16, device=CPU, augment_on="device"
    ).test
    there, here = (train_test.predict(m, test, device=CPU) for m in (trained, model))
    assert there.metrics.accuracy > 0.2, "by chance it would be 0.1"
    rounded = weights.TOLERANCE / len(there.labels)  # which may turn a close call
    for accuracy in (there.metrics.accuracy, here.metrics.accuracy):
        assert accuracy == pytest.approx(entry["accuracy"], abs=rounded)
    spread = there.logits.std()
    assert 0 < (here.logits - there.logits).abs().max() < 0.01 * spread
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name]), "writing has changed the model"


def test_parameters_are_rounded_to_float16_and_statistics_kept(trained, saved):
    tensors, _ = stored(saved[0])
    parameters = dict(trained.named_parameters())
    for name, exact in trained.state_dict().items():
        assert tensors[name].dtype == (
            torch.float16 if name in parameters else exact.dtype
        )
        kept = exact.half() if name in parameters else exact
        assert torch.equal(tensors[name], kept), name


def test_file_is_small_and_its_entry_names_it(saved):
    path, entry = saved
    content = path.read_bytes()
    assert 13e6 < len(content) < 14e6
    assert entry["file"] == "trained.safetensors"
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (models.ResNet18, {}),
        (
            models.CustomResNet,
            {"num_classes": 3, "in_channels": 1, "logit_scale": 0.125},
        ),
    ],
)
def test_any_network_comes_back_with_what_it_was_built_with(network, options, tmp_path):
    model, path = small(network, **options), tmp_path / "some.safetensors"
    classes = [f"class {i}" for i in range(model.linear.out_features)]
    digest = models.save_weights(model, path, classes=classes, data=DATA)
    back = models.load_pretrained(path, sha256=digest.upper())
    assert type(back) is network
    assert (back.classes, back.trained_on) == (tuple(classes), DATA)
    assert back.logit_scale == model.logit_scale
    batch = torch.randn(2, model.prep[0].in_channels, 8, 8)
    torch.testing.assert_close(back(batch), model(batch), rtol=0.01, atol=0.01)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            network(**options).eval()(batch), model(batch), rtol=0.01, atol=0.01
        )
    back.train()(batch).sum().backward()  # it can be trained further
    assert all(p.grad is not None for p in back.parameters())
    assert stored(path)[1] == {
        "format": 1,
        "model": network.__name__,
        "num_classes": len(classes),
        "in_channels": options.get("in_channels", 3),
        "logit_scale": options.get("logit_scale", 1),
        "classes": classes,
        "data": DATA,
    }


def test_same_weights_are_the_same_bytes(tmp_path):
    model, path = small(num_classes=1), tmp_path / "some.safetensors"
    digests = {
        models.save_weights(model, path, classes="a", data=DATA) for _ in range(4)
    }
    assert len(digests) == 1


def test_network_of_numpys_numbers_is_kept(tmp_path):
    model, path = small(num_classes=np.int64(2), logit_scale=np.float32(0.5)), tmp_path
    models.save_weights(model, path / "w", classes="ab", data=DATA)
    images = torch.randn(2, 3, 8, 8)
    reread = models.load_pretrained(path / "w")
    assert torch.allclose(reread(images), model(images), atol=1e-2)


def test_loading_leaves_the_random_numbers_alone(saved):
    before = torch.get_rng_state()
    models.load_pretrained(saved[0])
    assert torch.equal(before, torch.get_rng_state())


# --- what can't be written -------------------------------------------------------------


def spoilt(name, value):
    model = small(num_classes=3)
    model.state_dict()[name].view(-1)[1] = value
    return model


@pytest.mark.parametrize(
    ("model", "classes", "message"),
    [
        (
            nn.Linear(2, 3),
            "abc",
            "model is a Linear, which a file of weights can't name; pass one of Custom",
        ),
        (
            small(num_classes=3),
            "ab",
            "classes has 2 names and the model 3 outputs; name each of them",
        ),
        (
            spoilt("linear.bias", 1e5),
            "abc",
            "linear.bias holds 1e+05, which is not finite in torch.float16; the training",
        ),
        (
            spoilt("prep.0.weight", torch.nan),
            "abc",
            "prep.0.weight holds nan, which is not finite in torch.float16; ",
        ),
        (
            spoilt("prep.1.running_var", torch.inf),
            "abc",
            "prep.1.running_var holds inf, which is not finite in torch.float32; ",
        ),
    ],
)
def test_what_no_file_can_hold_is_said_and_the_old_file_kept(
    model, classes, message, tmp_path
):
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(ValueError) as caught:
        models.save_weights(model, path, classes=classes, data=DATA)
    assert str(caught.value).startswith(message)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("classes", [{"a", "b"}, {0: "a", 1: "b"}])
def test_classes_that_are_no_sequence_are_refused(classes, tmp_path):
    with pytest.raises(TypeError, match="in the outputs' order, as a list"):
        models.save_weights(
            small(num_classes=2), tmp_path / "w", classes=classes, data=DATA
        )


def pooled(model):
    model.pool = nn.AdaptiveAvgPool2d(1)


def without_bias(model):
    model.linear = nn.Linear(512, 3, bias=False)


def dropping(model):
    model.linear = nn.Sequential(nn.Dropout(), nn.Linear(512, 3))


def replaced(model):
    model.prep = nn.Conv2d(3, 64, 3)


def holding(model):
    model.register_buffer("mean", torch.zeros(3))


def pruned(model):
    prune.l1_unstructured(model.linear, "weight", 0.5)


@pytest.mark.parametrize(
    "alter", [pooled, without_bias, dropping, replaced, holding, pruned]
)
def test_network_with_other_layers_than_its_own_is_refused(alter, tmp_path):
    model = models.CustomResNet(num_classes=3)
    alter(model)
    with pytest.raises(
        ValueError, match="a CustomResNet with other layers or buffers than"
    ):
        models.save_weights(model, tmp_path / "x.safetensors", classes="abc", data=DATA)
    assert not list(tmp_path.iterdir())


def test_what_only_training_uses_is_no_other_layer(tmp_path):
    model, path = models.CustomResNet(num_classes=3), tmp_path / "x.safetensors"
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.prep[1].momentum, model.prep[2].inplace = 0.05, True
    models.save_weights(model, path, classes="abc", data=DATA)
    assert models.load_pretrained(path).classes == ("a", "b", "c")


def test_names_and_data_of_other_kinds_are_kept_as_text(tmp_path):
    path = tmp_path / "some.safetensors"
    models.save_weights(
        small(num_classes=2), path, classes=np.arange(2), data=Path("mine")
    )
    back = models.load_pretrained(path)
    assert (back.classes, back.trained_on) == (("0", "1"), "mine")


def test_variance_beyond_float16_is_kept_exactly(tmp_path):
    model, path = small(num_classes=3), tmp_path / "some.safetensors"
    model.prep[1].running_var[:2] = torch.tensor([1e6, 1e-9])
    models.save_weights(model, path, classes="abc", data=DATA)
    back = models.load_pretrained(path).prep[1].running_var
    assert torch.equal(back, model.prep[1].running_var)


# --- what can't be read ----------------------------------------------------------------


def rewritten(**changed):
    """A file's tensors as they are, and other facts about them."""

    def change(path):
        tensors, facts = stored(path)
        save_file(tensors, path, {"helpers": json.dumps({**facts, **changed})})

    return change


def without_a_tensor(path):
    tensors, facts = stored(path)
    del tensors["linear.bias"]
    save_file(tensors, path, {"helpers": json.dumps(facts)})


DAMAGE = [
    ("is no file; name one that save_weights wrote", Path.unlink),
    (
        "is damaged or no file of save_weights (SafetensorError: ",
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ),
    (
        "is damaged or no file of save_weights (SafetensorError: Error while deserializing",
        lambda path: path.write_bytes(b""),
    ),
    (
        "is damaged or no file of save_weights (KeyError: 'helpers'); fetch it again",
        lambda path: path.write_bytes(save({"weight": torch.ones(2)})),
    ),
    (
        "is damaged or no file of save_weights (KeyError: 'helpers'); fetch it again",
        lambda path: save_file({"weight": torch.ones(2)}, path, {"format": "pt"}),
    ),
    (
        "is damaged or no file of save_weights (JSONDecodeError: ",
        lambda path: save_file({"weight": torch.ones(2)}, path, {"helpers": "pt"}),
    ),
    (
        "is of format 2 and this version reads up to 1; use a newer one",
        rewritten(format=2, model="ResNet1000"),
    ),
    (
        "holds a ResNet1000, and MODELS has CustomResNet, ResNet18; use the version",
        rewritten(model="ResNet1000"),
    ),
    (
        "doesn't fit CustomResNet: size mismatch for linear.weight",
        rewritten(num_classes=5),
    ),
    (
        'doesn\'t fit CustomResNet: Missing key(s) in state_dict: "linear.bias"',
        without_a_tensor,
    ),
]


def test_home_is_meant_by_its_sign_in_each_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows's name
    names = {"classes": ["a", "b", "c"], "data": DATA}
    digest = models.save_weights(small(num_classes=3), "~/w.safetensors", **names)
    assert models.load_pretrained("~/w.safetensors").trained_on == DATA
    entry = {"file": "w.safetensors", "sha256": digest}
    utils.write_record("~/run.json", {"weights": entry})
    assert utils.read_record("~/run.json")["weights"] == entry
    assert len(utils.read_records("~")) == 1
    assert weights.load_run("~/run.json")[0].trained_on == DATA
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "w.safetensors"}


@pytest.fixture
def file(tmp_path):
    """A small file of weights, and its digest."""
    path = tmp_path / "some.safetensors"
    digest = models.save_weights(
        small(num_classes=3), path, classes=["a", "b", "c"], data=DATA
    )
    return path, digest


@pytest.mark.parametrize(("message", "damage"), DAMAGE)
def test_file_of_another_kind_is_one_sentence(message, damage, file):
    path, _ = file
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        models.load_pretrained(path)
    assert str(caught.value).startswith(f"{path} {message}")
    assert isinstance(caught.value, FileNotFoundError) == ("is no file" in message)


def test_network_stays_as_it_is_when_its_file_is_written_anew(file):
    path, _ = file
    network = models.load_pretrained(path)
    before = copy.deepcopy(network.state_dict())
    with open(path, "r+b") as there:  # the same file, not another in its place
        there.write(b"\xff" * path.stat().st_size)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_damaged_header_is_one_sentence_even_without_a_digest(file):
    path, _ = file
    content, refused = path.read_bytes(), 0
    places = range(0, content.index(b'"dtype"'), 5)  # up to the first tensor
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            models.load_pretrained(path)  # a class's name may have another letter now
        except ValueError as error:
            assert str(error).startswith(f"{path} ")
            refused += 1
    assert refused > len(places) / 2


def test_compiled_network_has_the_file_of_the_plain_one(file, tmp_path):
    compiled = torch.compile(small(num_classes=3), backend="eager")
    path, classes = tmp_path / "compiled.safetensors", ["a", "b", "c"]
    assert models.save_weights(compiled, path, classes=classes, data=DATA) == file[1]


def test_one_other_byte_is_another_digest(file):
    path, digest = file
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 20):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        found = hashlib.sha256(changed).hexdigest()
        with pytest.raises(ValueError) as caught:
            models.load_pretrained(path, sha256=digest)
        assert str(caught.value) == (
            f"{path} has the SHA-256 {found} instead of {digest}; it is damaged or "
            "another file, fetch it again"
        )


# --- scored again ----------------------------------------------------------------------


@pytest.fixture
def record(saved, images, tmp_path):
    """A record of the run that left `saved`; takes changes and gives its path."""
    train, test = images
    data = {
        "source": test.source,
        "train_images": len(train),
        "test_images": len(test),
        "evaluated_on": "test set",
        "test_fingerprint": test.fingerprint(),
    }

    shutil.copy(saved[0], tmp_path)

    def write(*, entry=saved[1], **changed):
        path = tmp_path / "record.json"
        content = {"format": 2, "model": "CustomResNet", "data": {**data, **changed}}
        path.write_text(json.dumps({**content, "weights": entry}))
        return path

    return write


def rescore(record, data="synthetic"):
    weights.main([str(record), "--data", str(data)])


def test_record_behind_a_link_finds_its_weights_and_drawn_images_need_no_folder(
    record, tmp_path_factory, monkeypatch, capsys
):
    monkeypatch.setenv("CIFAR10_ROOT", "nowhere")
    link = tmp_path_factory.mktemp("elsewhere") / "link.json"
    link.symlink_to(record())
    weights.main([str(link)])
    assert "They agree" in capsys.readouterr().out


def test_network_beside_a_linked_record_may_be_a_link_too(saved, record, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    for file in (record(), tmp_path / saved[1]["file"]):
        kept = file.rename(store / f"{file.name} of some digest")
        file.symlink_to(kept)
    weights.load_run(tmp_path / "record.json")


@pytest.mark.parametrize(("root", "folder"), [("elsewhere", "elsewhere"), ("", "data")])
def test_dataset_is_looked_for_where_the_environment_says(
    root, folder, record, monkeypatch
):
    monkeypatch.setenv("CIFAR10_ROOT", root)

    def images_of(data, **options):
        raise ValueError(f"asked for {data}")

    monkeypatch.setattr(dataset, "images_of", images_of)
    with pytest.raises(SystemExit, match=f"asked for {folder}$"):
        weights.main([str(record(source="CIFAR-10"))])


def test_weights_are_worth_what_their_record_says(saved, record, capsys):
    entry = saved[1]
    rescore(record())
    out = capsys.readouterr().out
    right = round(60 * entry["accuracy"])
    assert f"{right} of 60 right, {entry['accuracy']:.2%}; synthetic images" in out
    assert f"trained on {DATA}" in out
    assert f"They agree: {right} images are right, {right} in the record." in out


@pytest.mark.parametrize(("images_off", "agrees"), [(3, True), (4, False)])
def test_rounding_explains_three_images(images_off, agrees, saved, record, capsys):
    entry = saved[1]
    right = round(60 * entry["accuracy"])
    claim = record(entry={**entry, "accuracy": (right + images_off) / 60})
    if agrees:
        rescore(claim)
        assert "They agree" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as caught:
        rescore(claim)
    assert str(caught.value).startswith(
        f"error: {right} images are right and the record says {right + images_off}: "
        "rounding explains 3 at most"
    )


def test_other_images_are_scored_and_not_compared(saved, record, capsys):
    entry = saved[1]
    claim = record(
        entry={**entry, "accuracy": 1.0}, test_fingerprint="0123456789abcdef"
    )
    rescore(claim)
    out = capsys.readouterr().out
    assert re.search(
        r"record: (\d+) of \1 right, 100.00%; synth.*, 0123456789abcdef\n", out
    )
    assert out.endswith("images, or in another order: the two needn't agree.\n")


def test_images_held_out_from_training_are_found_again(saved, record, images, capsys):
    path, entry = saved
    train, _ = dataset.synthetic_cifar10(train=96 + 20, test=0)
    held = train.split(20)[1]
    accuracy = weights.score(models.load_pretrained(path), held, device=CPU)
    claim = record(
        entry={**entry, "accuracy": accuracy},
        evaluated_on="held-out training images",
        test_images=20,
        test_fingerprint=held.fingerprint(),
    )
    rescore(claim)
    assert "They agree" in capsys.readouterr().out


def test_subset_of_a_folder_of_images_is_found_again(saved, record, images, tmp_path):
    root = tmp_path / "cifar"
    for split, part in zip(("train", "test"), images):
        for number, (image, label) in enumerate(zip(part.images, part.labels)):
            place = root / split / dataset.CIFAR10_CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number:03}.png")
    path, entry = saved
    subset = dataset.load_cifar10(root)[1].subset(30)
    accuracy = weights.score(models.load_pretrained(path), subset, device=CPU)
    claim = record(
        entry={**entry, "accuracy": accuracy},
        test_images=30,
        test_fingerprint=subset.fingerprint(),
    )
    rescore(claim, root)
    with pytest.raises(SystemExit, match="61 images were asked for"):
        rescore(record(test_images=61), root)


def test_other_weights_than_the_records_are_refused(file, saved, record):
    path, digest = file
    claim = record()
    shutil.copy(path, claim.with_name(saved[1]["file"]))
    with pytest.raises(SystemExit, match=f"{digest} instead of {saved[1]['sha256']}"):
        rescore(claim)


def test_record_without_weights_is_one_sentence(tmp_path):
    path = tmp_path / "record.json"
    path.write_text('{"format": 2}')
    with pytest.raises(SystemExit, match="is a record of a run without weights; name"):
        rescore(path)


def test_program_says_what_is_wrong_and_fails(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["weights", "no.json"])
    with pytest.raises(SystemExit, match="no.json"):  # with a text: status 1
        runpy.run_path(weights.__file__, run_name="__main__")
