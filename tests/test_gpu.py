"""What of a GPU's part can be seen without one: where tensors lie, and what waits."""

import math
import os

import pytest
import torch
from torch import nn

from helpers import dataset, models, train_test, utils
from helpers.train_test import RECIPES
from tests.pretended_gpu import pretended_gpu
from tests.shared import (
    Failing,
    Interrupted,
    Tiny,
    assert_same_state,
    interrupt,
    loaders,
    network,
    raising,
    repeatable,
    state_of,
    steep,
)
from tests.shared import recipe as tiny
from tests.test_main import main

# A DataLoader's, where there is no GPU to pin memory for.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

STEPS = 3  # of an epoch


def recipe(name, **changes):
    # The range test's rate, unless it is given; the small network has no scale.
    own = {"max_lr": None, **RECIPES[name], "logit_scale": 1}
    return tiny(**{**own, "epochs": 4, **changes})


def fit(model, plan, device, on="device", pair=None, **options):
    pair = pair or loaders(on=on, device=device, **plan.augmentation)
    return train_test.fit(model, pair, plan, device=device, **options)


def test_pretended_gpu_refuses_what_lies_elsewhere_and_notes_what_waits():
    with pretended_gpu() as waits:
        there, here = torch.ones(2, device="cuda"), torch.ones(2)
        assert (there + 1).device.type == "cuda" and here.device.type == "cpu"
        for wrong in (lambda: there + here, lambda: here @ there, there.numpy):
            with pytest.raises((RuntimeError, TypeError), match="on cuda"):
                wrong()
        assert here.to("cuda", non_blocking=True).device.type == "cuda"
        assert not waits
        assert there.cpu().device.type == "cpu" and float(there.sum()) == 2
        assert there[there > 0].tolist() == [1, 1]
        assert len(waits) == 4
        there[torch.tensor([0])] = here.to("cuda")[0]
        assert len(waits) == 6


@pytest.mark.parametrize("on", ["device", "cpu"])
@pytest.mark.parametrize("name", ["page", "ours"])
def test_training_on_a_gpu_keeps_all_in_its_place_and_computes_the_same(name, on):
    plan, model, on_gpu = recipe(name), network(), network()
    expected = fit(model, plan, "cpu", on)
    with pretended_gpu():
        found = fit(on_gpu, plan, "cuda", on)
        places = {tensor.device.type for tensor in on_gpu.state_dict().values()}
        assert places == {"cuda"}
        assert_same_state(state_of(on_gpu.cpu()), state_of(model))
    assert repeatable(found) == repeatable(expected)


# As on new GPUs, and as on older ones, where a scaler looks for infinite gradients.
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("on", ["device", "cpu"])
@pytest.mark.parametrize("name", ["page", "ours"])
def test_within_an_epoch_nothing_waits_for_the_gpu(name, on, precision):
    plan, seen = recipe(name, precision=precision, max_lr=0.01), []

    def note(module, _):
        if module.training:
            seen.append(len(waits))

    with pretended_gpu() as waits:
        model = network()
        model.register_forward_pre_hook(note)
        fit(model, plan, "cuda", on)
    steps = seen[-plan.epochs * STEPS :]  # before them, trials
    for epoch in range(plan.epochs):
        assert len({*steps[epoch * STEPS : (epoch + 1) * STEPS]}) == 1


def test_training_on_a_gpu_goes_on_from_its_checkpoint(tmp_path):
    # In float16 there is a scaler to keep too.
    plan = recipe("ours", max_lr=0.01, precision="float16")
    path, straight, model = tmp_path / "training.pt", steep(), steep(seed=9)
    with pretended_gpu():
        expected = fit(straight, plan, "cuda")
        train, test = loaders(device="cuda", **plan.augmentation)
        pair = Failing(train, interrupt, epoch=2), test
        with pytest.raises(Interrupted):
            fit(steep(), plan, "cuda", pair=pair, checkpoint=path)
        found = fit(model, plan, "cuda", checkpoint=path, resume=True)
        assert_same_state(state_of(model), state_of(straight))
    assert repeatable(found) == repeatable(expected)


def test_loss_that_is_no_number_is_located_on_a_gpu_too():
    # There it is seen only after the epoch's last step.
    plan = recipe("page", max_lr=0.01)
    rates = train_test.planned_learning_rates(plan, max_lr=0.01, steps_per_epoch=STEPS)
    with pretended_gpu():
        train, test = loaders(device="cuda", **plan.augmentation)
        nans = Failing(train, lambda images: images * math.nan, epoch=2, batch=1)
        sentence = f"nan in epoch 3, step 2, at learning rate {rates[7]:.2e}"
        with pytest.raises(train_test.NonFiniteLoss, match=sentence):
            fit(network(), plan, "cuda", pair=(nans, test))


class Full(nn.Module):
    """Has no memory for more than four images to train on."""

    def forward(self, images):
        if self.training and len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images


def test_out_of_memory_on_a_gpu_names_a_batch_that_fits():
    model = nn.Sequential(Full(), network())
    said = "16 images needs more memory than cuda has; one of 4 fits"
    with pretended_gpu(), pytest.raises(MemoryError, match=said):
        fit(model, recipe("page", max_lr=0.01), "cuda")


def test_answers_of_a_gpu_come_back_to_the_cpu(tmp_path):
    path, model = tmp_path / "weights.safetensors", models.CustomResNet()
    facts = {"classes": list("abcdefghij"), "data": "drawn"}
    digest = models.save_weights(model, path, **facts)
    model = models.load_pretrained(path)
    on_cpu = train_test.predict(model, loaders().test, device="cpu", flip_tta=True)
    with pretended_gpu():
        model, test = model.to("cuda"), loaders(device="cuda").test
        found = train_test.predict(model, test, device="cuda", flip_tta=True)
        assert found.logits.device.type == found.labels.device.type == "cpu"
        assert models.save_weights(model, path, **facts) == digest
    assert torch.equal(found.logits, on_cpu.logits)


def test_images_that_do_not_fit_on_a_gpu_are_said(monkeypatch):
    full = torch.OutOfMemoryError("CUDA out of memory")
    with pretended_gpu(), monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "to", raising(full))
        with pytest.raises(MemoryError, match='0.0 GB of images .* augment_on="cpu"'):
            loaders(device="cuda")


def test_gpu_that_computes_nothing_is_said_at_once(monkeypatch):
    error = RuntimeError("CUDA error: no kernel image is available\nand more")
    with pretended_gpu():
        assert utils.get_device() == torch.device("cuda")
        monkeypatch.setattr(torch, "ones", raising(error))
        said = r"a pretended GPU can't compute \(CUDA error: no .* available\); choose"
        with pytest.raises(OSError, match=said):
            utils.get_device()


def test_own_transform_is_for_workers_though_the_model_is_on_a_gpu(monkeypatch):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda _: set(range(24)), raising=False
    )
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pretended_gpu():
        train, test = loaders(on="auto", workers=None, device="cuda")
        assert train.augment_on == test.augment_on == "device"
        own = dataset.import_albumentations().Compose([])
        train, test = loaders(on="auto", workers=None, device="cuda", transform=own)
    assert train.augment_on == "cpu"
    assert train.num_workers == 8
    assert loaders(on="cpu", workers=None)[0].num_workers == 0


def test_program_takes_the_gpu_and_what_is_fast_on_it(tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "Tiny", Tiny)
    with pretended_gpu():
        main(tmp_path)
    (path,) = tmp_path.glob("*.json")
    record = utils.read_record(path)
    assert record["augment_on"] == "device"
    assert record["hardware"]["device"] == "a pretended GPU"
    assert record["hardware"]["precision"] == "bfloat16"
