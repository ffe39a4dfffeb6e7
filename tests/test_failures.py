"""What goes wrong in a training, for real: memory, workers, the stop button."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers import dataset, train_test
from helpers.copies import copy_of
from helpers.memory import explaining_memory
from helpers.preflight import require_model
from helpers.processes import synchronized
from tests.shared import (
    CPU,
    PROJECT,
    Around,
    generators,
    network,
    python,
    recipe,
    undiverged,
)

RECIPE = recipe(batch_size=8)
IMAGES = dataset.synthetic_cifar10(train=24, test=8)  # three batches and one


IMAGE = torch.zeros(8, 3, 32, 32)


def trained(model, batch=None, plan=RECIPE):
    batch = batch or (IMAGE, torch.arange(8))
    return train_test.fit(model, ([batch] * 3, [batch]), plan, device=CPU)


# --- memory ----------------------------------------------------------------------------

SHORT_OF_MEMORY = """
import resource, torch
from torch import nn
from helpers import dataset, train_test

class Hungry(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 256, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(256, 10),
        )

def train(batch, **options):
    sets = dataset.synthetic_cifar10(train=1024, test=8)
    loaders = dataset.make_loaders(
        *sets, batch_size=batch, device="cpu", augment_on="device"
    )
    recipe = train_test.Recipe(
        epochs=2, batch_size=batch, precision="float32", lr_test_steps=10, **options
    )
    return train_test.fit(Hungry(), loaders, recipe, device="cpu")

train(16, peak_epoch=1, max_lr=1e-3)  # what torch sets aside once
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 1_000 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for max_lr in (1e-3, None):
    try:
        train(1024, peak_epoch=1.5, max_lr=max_lr)
    except MemoryError as error:
        print(error)
        fits = int(str(error).split()[-1])
print(len(train(fits, peak_epoch=1, max_lr=1e-3).epochs), "epochs")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_out_of_memory_names_a_batch_size_that_fits():
    done = python("-c", SHORT_OF_MEMORY, check=True)
    lines = [line for line in done.stdout.splitlines() if line[:6] != "epoch "]
    assert lines[0] == "MemoryError in epoch 1; no step was taken"
    for sentence in lines[1:3]:  # in training, in the range test
        assert re.fullmatch(
            r"a step of 1024 images needs more memory than cpu has; one of (\d+) fits: "
            r"make batch_size \1",
            sentence,
        )
    assert lines[3] == "2 epochs"


def test_none_fits_is_also_said_of_a_network_that_cannot_train_on_one_image():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), Full())
    batch = torch.zeros(8, 3, 2, 2), torch.zeros(8, dtype=torch.int64)
    with pytest.raises(
        MemoryError,
        match="of 8 images needs .* no smaller batch fits: .* a smaller model$",
    ):
        trained(model, batch)


class Full(nn.Module):
    """In training alone: what is tried before that is answers."""

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            raise MemoryError
        return x


def failing(error, *, beyond=0):
    """Raises it in training, for batches of more images."""

    def then(logits):
        if torch.is_grad_enabled() and len(logits) > beyond:
            raise error
        return logits

    return then


class Short(torch.autograd.Function):
    """Runs out of memory on the way back, by more than 2 images."""

    alive: ClassVar = weakref.WeakSet()

    @staticmethod
    def forward(ctx, images):
        assert not Short.alive, "the failed step is still in the way"
        answer = images.clone()
        Short.alive.add(answer)
        ctx.save_for_backward(answer)
        return answer.view_as(answer)

    @staticmethod
    def backward(ctx, grad):
        if len(grad) > 2:
            raise MemoryError
        return grad


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_smaller_batch_is_found_once_the_failed_step_is_out_of_the_way(kind):
    def short(logits):
        return Short.apply(logits) if torch.is_grad_enabled() else logits

    batch = torch.zeros(16, 3, 32, 32), torch.zeros(16, dtype=kind)
    said = "a step of 16 images .* make batch_size 2$"
    with pytest.raises(MemoryError, match=said):
        trained(Around(short), batch)


@pytest.mark.parametrize(
    "said",
    [
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ],
)
def test_lack_of_memory_that_a_library_of_the_gpu_reports_is_known(said):
    with pytest.raises(MemoryError, match="make batch_size 4$"):
        trained(Around(failing(RuntimeError(said), beyond=4)))


ENGINE = "GET was unable to find an engine to execute this computation"


@pytest.mark.parametrize(
    ("beyond", "kind", "said"),
    [(4, MemoryError, "one of 4 fits"), (0, RuntimeError, f"^{ENGINE}$")],
)
def test_convolution_without_an_engine_lacks_memory_if_a_smaller_batch_works(
    beyond, kind, said
):
    with pytest.raises(kind, match=said):
        trained(Around(failing(RuntimeError(ENGINE), beyond=beyond)))


def test_what_was_too_large_to_answer_is_not_kept_with_the_error():
    kept = weakref.WeakSet()

    def full(logits):
        large = logits.clone()
        kept.add(large)
        raise MemoryError

    batch = torch.zeros(8, 3, 32, 32), torch.arange(8)
    with pytest.raises(MemoryError, match="a smaller batch_size") as error:
        train_test.predict(Around(full), [batch], device=CPU)
    assert error.value.__cause__ and not kept


def test_out_of_memory_of_several_processes_tries_nothing_and_says_what_to_halve():
    sets = dataset.synthetic_cifar10(train=16, test=8)
    loader = dataset.make_loaders(
        *sets, batch_size=8, device=CPU, augment_on="device", share=(0, 2)
    ).train
    model = network()
    model.forward = None  # a trial would call it
    sentence = r"step of 4 images needs more memory .* batch_size .* halve it"
    with (
        pytest.raises(MemoryError, match=sentence),
        explaining_memory(model, loader, torch.float32, CPU),
    ):
        raise torch.OutOfMemoryError("out of memory")


# --- batches and workers ---------------------------------------------------------------


def test_last_batch_of_one_is_an_error_before_training_only_if_it_must_be():
    sets = dataset.synthetic_cifar10(train=17, test=8)
    loaders = dataset.make_loaders(*sets, batch_size=8, device=CPU, augment_on="device")
    model = nn.Sequential(network(), nn.BatchNorm1d(10))
    sentence = r"last batch of an epoch has one image .* choose a batch_size"
    with pytest.raises(ValueError, match=sentence):
        train_test.fit(model, loaders, RECIPE, device=CPU)
    history = train_test.fit(network(), loaders, RECIPE, device=CPU)
    assert len(history.epochs) == 3
    own = TensorDataset(torch.zeros(17, 3, 32, 32), torch.zeros(17, dtype=torch.int64))
    shuffled = DataLoader(own, batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match=sentence):
        train_test.fit(model, (shuffled, loaders.test), RECIPE, device=CPU)
    whole = DataLoader(own, batch_size=8, drop_last=True, shuffle=True)
    train_test.fit(model, (whole, loaders.test), RECIPE, device=CPU)
    one = [tuple(part[:1] for part in batch) for batch in loaders.test]
    # To test on one is possible.
    train_test.fit(model, (whole, one), RECIPE, device=CPU)


def test_share_of_the_last_batch_that_is_one_image_is_said_too():
    sets, model = dataset.synthetic_cifar10(train=18, test=8), network()
    loaders = dataset.make_loaders(
        *sets, batch_size=8, device=CPU, augment_on="device", share=(0, 2)
    )
    require_model(model, loaders, RECIPE, device=CPU, dtype=torch.float32)
    model.append(nn.BatchNorm1d(10))
    with pytest.raises(ValueError, match="a process's share of the last batch of an "):
        require_model(model, loaders, RECIPE, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({"images": IMAGE, "labels": torch.arange(8)}, "a dict, is not a pair"),
        ((IMAGE, torch.arange(8), torch.arange(8)), "a tuple, is not a pair"),
        ((IMAGE.numpy(), torch.arange(8)), "is not a pair of tensors"),
        ((IMAGE, torch.arange(8).float()), r"float32 \(8,\) .* \.long\(\)"),
        ((IMAGE, torch.arange(8) > 4), r"labels are torch.bool \(8,\)"),
        ((IMAGE, torch.arange(8)[:, None]), r"\(8, 1\) .* \.squeeze\(1\)"),
        ((IMAGE, torch.arange(7)), "8 images and 7 labels"),
        ((IMAGE, torch.eye(8)), r"float32 \(8, 8\) .* \.argmax\(1\)"),
        ((IMAGE[:, 0], torch.arange(8)), r"\(8, 32, 32\) and .* \.unsqueeze\(1\)"),
        ((IMAGE[:, 0, 0], torch.arange(8)), r"\(8, 32\) .* go as \[:, :, None, None\]"),
        (
            (IMAGE.double(), torch.arange(8)),
            r"can't take the images, torch.float64 .* \.float\(\)",
        ),
        (
            (IMAGE.permute(0, 2, 3, 1), torch.arange(8)),
            r"\.permute\(0, 3, 1, 2\) turns",
        ),
    ],
)
def test_batch_that_training_cannot_take_is_said_with_the_remedy(batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        trained(network(), batch)


def test_error_before_the_first_step_says_that_none_was_taken(capsys):
    good, bad = (IMAGE, torch.arange(8)), (IMAGE, torch.eye(8))
    with pytest.raises(ValueError, match="labels are"):
        train_test.fit(network(), ([bad] * 3, [good]), RECIPE, device=CPU)
    assert capsys.readouterr().out == "ValueError in epoch 1; no step was taken\n"


def test_what_is_no_loader_or_no_model_is_said_by_its_kind():
    sets = dataset.synthetic_cifar10(train=16, test=8)
    with pytest.raises(TypeError, match=r"^ImageSet is no loader.* make_loaders"):
        train_test.fit(network(), sets, RECIPE, device=CPU)
    batches = [(IMAGE, torch.arange(8))]
    with pytest.raises(TypeError, match="^generator is no loader"):
        train_test.fit(
            network(), (iter(b for b in batches), batches), RECIPE, device=CPU
        )
    pair = dataset.make_loaders(*sets, batch_size=16, device=CPU, augment_on="device")
    with pytest.raises(ValueError, match=r"a DeviceLoader, .* pass one of them$"):
        train_test.predict(network(), pair, device=CPU)
    with pytest.raises(TypeError, match=r"must be an nn\.Module, not a function"):
        train_test.fit(keeping, (batches, batches), RECIPE, device=CPU)


class InTraining(Around):
    """Whose answer is another one in training."""

    def forward(self, images):
        logits = self.inner(images)
        return self.then(logits) if self.training else logits


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (lambda logits: (logits, logits), TypeError, "gives a tuple; a classifier"),
        (
            lambda logits: logits[:, 0],
            ValueError,
            r"gives \(2,\) for 2 images; a class",
        ),
    ],
)
def test_model_that_answers_otherwise_in_training_is_told_so_before(answer, kind, said):
    with pytest.raises(kind, match=f"^in training the model {said}"):
        trained(InTraining(answer))


def test_model_that_computes_in_float32_alone_is_said_before():
    def positive(logits):
        found = torch.zeros(logits.shape)
        found[logits > 0] = logits[logits > 0]
        return found

    plan = replace(RECIPE, precision="bfloat16")
    said = r"can't compute in torch.bfloat16 \(.*\); .* precision=\"float32\""
    with pytest.raises(ValueError, match=said):
        trained(Around(positive), plan=plan)
    trained(Around(positive))


class Frozen(nn.Sequential):
    """network(), whose BatchNorm a training leaves as it is, as README says."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def test_averages_of_a_frozen_batchnorm_stay_where_train_keeps_them():
    model = Frozen(*network())
    model[1].requires_grad_(False)
    before = deepcopy(model[1].state_dict())
    trained(model)
    torch.testing.assert_close(model[1].state_dict(), before, rtol=0, atol=0)


class Halved(Around):
    """With BatchNorm, and on two GPUs: it normalizes each half of a batch."""

    def __init__(self):
        super().__init__(nn.BatchNorm1d(10))

    def forward(self, images):
        return torch.cat(
            [super(Halved, self).forward(half) for half in images.chunk(2)]
        )


@pytest.mark.parametrize(
    "model",
    [InTraining(lambda logits: logits.view(-1, 4, 10).flatten(0, 1)), Halved()],
)
def test_model_that_trains_on_parts_of_a_batch_is_trained(model):
    assert len(trained(model).epochs) == 3


class Mute(Around):
    """Whose mode is set by a method that gives nothing back."""

    def train(self, mode=True):
        super().train(mode)


def pruned():
    model = network()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def keeping():
    model = Around(lambda logits: setattr(model, "kept", logits) or logits)
    model(IMAGE)  # what it keeps has a history, which torch refuses to copy
    return model


def remembering():
    model, seen = network(), {}
    model.seen, model.order = seen, []

    def look(layer, _, out):
        seen["first"] = out
        model.order[:] = [out + 1]

    model[0].register_forward_hook(look)
    model(IMAGE)
    return model


@undiverged
@pytest.mark.parametrize(
    "make", [lambda: Mute(lambda logits: logits), pruned, keeping, remembering]
)
def test_model_that_torch_alone_would_train_is_tried_and_trained(make):
    plan = replace(RECIPE, max_lr=None, lr_test_steps=10)
    assert len(trained(make(), plan=plan).epochs) == 3


@pytest.mark.parametrize("make", [pruned, keeping, remembering])
def test_copy_for_several_processes_has_the_models_own_tensors(make):
    model = make()
    twin = synchronized(model)
    for own, shared in zip(model.parameters(), twin.parameters(), strict=True):
        assert own is shared


def hooked():
    class Watch:
        def look(self, layer, _, out):
            self.out = out

    model = network()
    model[0].register_forward_hook(Watch().look)
    model(IMAGE)
    return model


def locked():
    model = network()
    model.lock = threading.Lock()
    return model


@pytest.mark.parametrize("make", [hooked, locked])
def test_model_that_cannot_be_copied_is_said_with_the_remedy(make):
    with pytest.raises(TypeError, match=r"can't be copied, .*; keep what .* hooks"):
        trained(make())


def test_model_that_cannot_be_copied_is_still_said_to_lack_memory():
    lacking = pytest.raises(MemoryError, match="needs more memory.*no smaller batch")
    with (
        lacking,
        explaining_memory(locked(), [(IMAGE, torch.arange(8))], torch.float32, CPU),
    ):
        raise MemoryError


def test_other_errors_of_copying_are_the_models_own():
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            return 1 + "1"

    with pytest.raises(TypeError, match="^unsupported operand"):
        copy_of(Own(1, 1))


def test_copy_of_a_model_is_one_of_what_it_keeps_too():
    model = keeping()
    copy_of(model).kept.fill_(7)
    assert not (model.kept == 7).any()


def test_model_made_without_the_recipes_logit_scale_is_refused():
    model, plan = network(), replace(RECIPE, logit_scale=0.125)
    with pytest.raises(ValueError, match=r"logit_scale is 0\.125 and the model's 1;"):
        trained(model, plan=plan)
    model.logit_scale = 0.125
    # As in DataParallel, or behind a layer that normalizes.
    for fitting in (model, nn.Sequential(nn.Identity(), model)):
        trained(fitting, plan=plan)
    model.logit_scale = nn.Parameter(torch.tensor(2.7))  # one that is learned
    trained(model, plan=plan)


def test_model_that_ends_in_softmax_is_trained_and_warned_of():
    batch = IMAGE, torch.arange(8)
    model = Around(lambda logits: logits.softmax(1))
    plan, train = replace(RECIPE, max_lr=None), [batch] * 3
    sentence = "are probabilities, .* leave the softmax"
    with pytest.warns(UserWarning, match=sentence) as fitted:
        history = train_test.fit(model, (train, [batch]), plan, device=CPU)
    assert len(history.epochs) == 3
    with pytest.warns(UserWarning, match=sentence) as tested:
        train_test.lr_range_test(model, train, plan, device=CPU)
    for warned in (fitted, tested):
        assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("wide", ["train", "test"])
@pytest.mark.parametrize("on", ["cpu", "device"])
def test_label_beyond_the_outputs_is_found_where_the_images_are_in_order_of_class(
    wide, on
):
    few = replace(IMAGES[0], classes=tuple("abcdefghijkl"))
    labels = np.sort(few.labels)
    labels[-1] = 11
    odd = replace(few, labels=labels)
    sets = {"train": few, "test": few, wide: odd}
    loaders = dataset.make_loaders(**sets, batch_size=8, device=CPU, augment_on=on)
    with pytest.raises(ValueError, match="labels run from 0 to 11 .* as many outputs"):
        train_test.fit(network(), loaders, RECIPE, device=CPU)


class Broken(Dataset):
    """Fails at one image, once the file is there."""

    def __init__(self, trigger):
        self.trigger = trigger

    def __len__(self):
        return 24

    def __getitem__(self, index):
        if index == 20 and self.trigger.exists():
            raise ValueError("image 20 is broken")
        return torch.zeros(3, 32, 32), index % 10


def test_worker_that_fails_is_said_and_the_epochs_before_are_kept(tmp_path, capsys):
    trigger, path = tmp_path / "trigger", tmp_path / "training.pt"

    class AfterOne(DataLoader):
        def set_epoch(self, epoch):
            if epoch == 1:
                trigger.touch()

    train = AfterOne(Broken(trigger), batch_size=8, num_workers=1, shuffle=True)
    loaders = train, DataLoader(Broken(Path("never")), batch_size=8)
    with pytest.raises(ValueError, match="image 20 is broken"):
        train_test.fit(network(), loaders, RECIPE, device=CPU, checkpoint=path)
    last = capsys.readouterr().out.splitlines()[-1]
    assert (
        last == f"ValueError in epoch 2; go on from {path} with resume=True (--resume)"
    )
    assert len(train_test.read_history(path).epochs) == 1


# --- the stop button -------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signal")
def test_signal_of_the_stop_button_leaves_the_workers_to_the_next_pass():
    loaders = dataset.make_loaders(*IMAGES, batch_size=8, device=CPU, num_workers=1)
    others = multiprocessing.active_children()
    assert len(list(loaders.train)) == 3
    for worker in multiprocessing.active_children():
        if worker not in others:
            os.kill(worker.pid, signal.SIGINT)
    assert len(list(loaders.train)) == 3


@pytest.mark.parametrize(("on", "workers"), [("cpu", 0), ("cpu", 1), ("device", 0)])
def test_pass_of_the_loader_draws_from_no_global_generator(on, workers):
    loaders = dataset.make_loaders(
        *IMAGES, batch_size=8, device=CPU, augment_on=on, num_workers=workers
    )
    before = generators()
    for loader in loaders:
        assert list(loader)
    assert generators() == before


def test_interrupted_program_says_what_is_kept_and_goes_on(tmp_path):
    command = ["-u", "-m", "helpers", "--profile", "smoke"]
    command += ["--train-images", "64", "--max-lr", "1e-3", "--out", str(tmp_path)]
    command += ["--epochs", "6"]  # so that it isn't over before it is interrupted
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, *command], cwd=PROJECT, text=True, **pipes
    ) as running:
        while not running.stdout.readline().startswith("epoch   1"):
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate()
    (checkpoint,) = tmp_path.glob("*.pt")
    assert out.splitlines()[-1].endswith(
        f"go on from {checkpoint} with resume=True (--resume)"
    )
    assert (running.returncode, errors) == (130, "")
    done = python(*command, "--resume", check=True)
    assert f"{checkpoint}: going on after epoch" in done.stdout
    (record,) = tmp_path.glob("*.json")
    assert len(json.loads(record.read_text())["history"]) == 6


ENDLESS = """
import torch
from tests.shared import fit, loaders, network, recipe

endless = recipe(epochs=100_000)
history = fit(network(), loaders(), endless, checkpoint="{path}", resume=True)
"""


def test_stopped_cell_goes_on_when_it_is_run_again(tmp_path):
    path = tmp_path / "training.pt"
    manager, client = start_new_kernel(cwd=str(PROJECT))
    printed = []

    def stop_when(text):
        """An output hook that presses the button as soon as `text` is printed."""
        seen = []

        def hook(message):
            shown = message["content"].get("text", "")
            printed.append(shown)
            if text in shown and not seen:
                seen.append(text)
                manager.interrupt_kernel()

        return hook

    try:
        # A front end that can ask for input is taken for somebody who watches.
        for text, watched in (("epoch   2", True), ("| train loss", False)):
            before = len(printed)
            reply = client.execute_interactive(
                ENDLESS.replace("{path}", str(path)),
                output_hook=stop_when(text),
                allow_stdin=watched,
                timeout=120,
            )
            assert reply["content"]["ename"] == "KeyboardInterrupt"
            shown = "".join(printed[before:])
            assert bool(re.search(r"epoch \d+: ", shown)) is watched
            assert ("going on after epoch" in shown) is (before > 0)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    lines = "".join(printed)
    assert str(path) in lines
    assert "with resume=True" in lines
    epochs = [int(number) for number in re.findall(r"epoch +(\d+) \|", lines)]
    assert len(train_test.read_history(path).epochs) >= max(epochs) >= 2
