"""What of a GPU's part can be seen without one: where tensors lie, and who waits."""

import pytest
import torch
from torch import nn

from helpers import dataset, models, train_test
from helpers.train_test import RECIPES, Recipe
from tests.pretended_gpu import pretended_gpu

# A DataLoader's, where there is no GPU to pin memory for.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

IMAGES = dataset.synthetic_cifar10(train=40, test=20)
STEPS, ANSWERS = 3, 2  # batches of an epoch, and of an evaluation


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


SMALL = {
    "epochs": 4,
    "batch_size": 16,
    "peak_epoch": 1,
    "logit_scale": 1,
    "lr_test_steps": 20,
    "lr_test_seeds": 2,
    "precision": "float32",
}


def recipe(name, **changes):
    return Recipe(**{**RECIPES[name], **SMALL, **changes})


def loaders(plan, device, on="device"):
    return dataset.make_loaders(
        *IMAGES,
        batch_size=16,
        device=device,
        augment_on=on,
        num_workers=0,
        **plan.augmentation,
    )


def trained(plan, device, on="device", model=None, **options):
    """The model and what its training came to, without what a second one can't repeat."""
    model = model or network()
    history = train_test.fit(
        model, loaders(plan, device, on), plan, device=device, **options
    )
    rows = [row._replace(seconds=0, images_per_second=0) for row in history.epochs]
    return model, (history.max_lr, history.learning_rates, rows)


def weights(model):
    return [tensor.cpu() for tensor in model.state_dict().values()]


def assert_same(ones, others):
    assert all(torch.equal(*pair) for pair in zip(ones, others, strict=True))


def test_pretended_gpu_refuses_what_lies_elsewhere_and_notes_what_is_read():
    with pretended_gpu() as reads:
        there, here = torch.ones(2, device="cuda"), torch.ones(2)
        assert (there + 1).device.type == "cuda" and here.device.type == "cpu"
        for wrong in (lambda: there + here, lambda: here @ there, there.numpy):
            with pytest.raises((RuntimeError, TypeError), match="on cuda"):
                wrong()
        assert not reads
        assert there.cpu().device.type == "cpu" and float(there.sum()) == 2
        assert there[there > 0].tolist() == [1, 1]
        assert len(reads) == 4


@pytest.mark.parametrize("on", ["device", "cpu"])
@pytest.mark.parametrize("name", RECIPES)
def test_training_on_a_gpu_keeps_all_in_its_place_and_computes_the_same(name, on):
    plan = recipe(name)
    model, expected = trained(plan, "cpu", on)
    with pretended_gpu():
        on_gpu, found = trained(plan, "cuda", on)
        assert {tensor.device.type for tensor in on_gpu.state_dict().values()} == {
            "cuda"
        }
        assert_same(weights(on_gpu), weights(model))
    assert found == expected


@pytest.mark.parametrize("on", ["device", "cpu"])
@pytest.mark.parametrize("name", RECIPES)
def test_within_an_epoch_nothing_waits_for_the_gpu(name, on):
    plan, seen = recipe(name, precision="bfloat16", max_lr=0.01), []
    with pretended_gpu() as reads:
        model = network()
        model.register_forward_pre_hook(
            lambda module, batch: seen.append((module.training, len(reads)))
        )
        trained(plan, "cuda", on, model=model)
    steps = [
        seen[at : at + STEPS] for at in range(2, len(seen), STEPS + ANSWERS)
    ]  # after two trials
    assert len(steps) == plan.epochs
    for first, *others in steps:
        assert first[0]
        assert others == [first] * (STEPS - 1)


def test_training_on_a_gpu_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    # In float16 there is a scaler to keep too.
    plan = recipe("ours", max_lr=0.01, precision="float16")
    path = tmp_path / "training.pt"

    def stop(path, state):
        save(path, state)
        if len(state["history"]["epochs"]) == 2:
            raise KeyboardInterrupt

    save = train_test.save_checkpoint
    with pretended_gpu():
        whole, expected = trained(plan, "cuda")
        with monkeypatch.context() as patches:
            patches.setattr(train_test, "save_checkpoint", stop)
            with pytest.raises(KeyboardInterrupt):
                trained(plan, "cuda", checkpoint=path)
        resumed, found = trained(plan, "cuda", checkpoint=path, resume=True)
        assert_same(weights(resumed), weights(whole))
    assert found == expected


def test_answers_of_a_gpu_come_back_to_the_cpu(tmp_path):
    path, network = tmp_path / "weights.safetensors", models.CustomResNet().eval()
    models.save_weights(network, path, classes=IMAGES[0].classes, data="drawn")
    pair = {}
    for device in ("cpu", "cuda"):
        with pretended_gpu():
            model = models.load_pretrained(path).to(device)
            test = loaders(recipe("page"), device).test
            pair[device] = train_test.predict(model, test, device=device, flip_tta=True)
            assert pair[device].logits.device.type == "cpu"
            models.save_weights(model, path, classes=model.classes, data="drawn")
    assert_same(pair["cpu"], pair["cuda"])
