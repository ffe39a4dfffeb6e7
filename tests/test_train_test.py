"""From a recipe to a history: what is planned, trained, measured, kept and refused."""

import contextlib
import copy
import ctypes
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import platform
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from helpers import checkpoint, dataset, resume, train_test
from helpers.train_test import Epoch, History, Recipe
from tests import shared
from tests.shared import (
    CPU,
    FIELDS,
    IMAGES,
    NO_SPACE,
    OTHER,
    Around,
    Failing,
    Interrupted,
    assert_same_state,
    batches,
    break_off,
    bytes_in_memory,
    fit,
    interrupt,
    loaders,
    network,
    noise,
    python,
    raising,
    recipe,
    repeatable,
    state_of,
    steep,
    undiverged,
)

# --- the cycle of the learning rate ----------------------------------------------------


def test_assignments_cycle_rises_for_5_of_24_epochs_and_falls_to_nothing():
    rates = train_test.planned_learning_rates(Recipe(), max_lr=0.01, steps_per_epoch=98)
    assert len(rates) == 2352
    assert rates.index(max(rates)) == 489  # the last step of epoch 5
    assert rates[489] == pytest.approx(0.01)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[-1] == pytest.approx(0.01 / 25 / 10_000)
    up, down = np.diff(rates[:490]), np.diff(rates[489:])
    assert (up > 0).all()
    assert (down < 0).all()
    cosine = (1 + np.cos(np.pi * np.linspace(0, 1, 1863))) / 2
    assert rates[489:] == pytest.approx(rates[-1] + (0.01 - rates[-1]) * cosine)


@pytest.mark.parametrize(
    ("peak", "steps", "at"), [(1, 10, 9), (2.5, 4, 9), (0.5, 8, 3)]
)
def test_peak_is_at_the_end_of_its_epoch_or_of_a_fraction_of_one(peak, steps, at):
    rates = train_test.planned_learning_rates(
        recipe(peak_epoch=peak), max_lr=0.3, steps_per_epoch=steps
    )
    assert len(rates) == 3 * steps
    assert rates.index(max(rates)) == at


def test_cycle_leaves_adams_betas_alone():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    scheduler = train_test.make_scheduler(
        optimizer, recipe(), max_lr=0.1, steps_per_epoch=4
    )
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_training_follows_the_plan():
    done = fit(network(), loaders(), recipe())
    assert done.learning_rates == train_test.planned_learning_rates(
        recipe(), max_lr=0.01, steps_per_epoch=3
    )


def test_trained_model_is_laid_out_as_convolutions_are_fast_with():
    model = network()
    fit(model, loaders(), recipe())
    weight = model[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_first_step_is_adams_at_the_first_rate_of_the_plan():
    model, seen = network(), []

    def keep(layer, _):
        if layer is model[-1] and layer.training:  # not a copy's
            seen.append(layer.weight.detach().clone())

    model[-1].register_forward_pre_hook(keep)
    fit(model, (batches(16, 16), batches(16)), recipe())
    # Adam's first step is the learning rate times the gradient's sign.
    moves = (seen[1] - seen[0]).abs()
    assert float(moves.median()) == pytest.approx(0.01 / 25, rel=1e-2)


# --- training --------------------------------------------------------------------------


def test_on_step_tells_images_and_rate_of_each_step():
    model, steps = network(), []
    train_test.train_one_epoch(
        model,
        batches(16, 16, 3),
        torch.optim.SGD(model.parameters(), lr=0.25),
        device=CPU,
        on_step=lambda images, rate: steps.append((images, rate)),
    )
    assert steps == [(16, 0.25), (16, 0.25), (3, 0.25)]


def test_rates_that_are_tensors_are_told_as_they_were():
    model, rates = network(), []
    optimizer = torch.optim.Adam(model.parameters(), torch.tensor(0.25))
    train_test.train_one_epoch(
        model,
        batches(16, 16),
        optimizer,
        device=CPU,
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        on_step=lambda images, rate: rates.append(rate),
    )
    assert rates == [0.25, 0.125]


def test_model_is_trained_in_training_mode_and_left_to_be_called(tmp_path):
    model, path = network().eval(), tmp_path / "training.pt"
    fit(model, (batches(16, 16), batches(16)), recipe(), checkpoint=path)
    assert float(model[1].num_batches_tracked) == 3 * 2
    assert all(parameter.grad is None for parameter in model.parameters())
    train_test.read_history(path, again := network())
    for left in (model, again):
        assert not any(module.training for module in left.modules())


def test_history_tells_each_epoch():
    model, (train, test) = network(), (batches(16, 16, 8), batches(16))
    history = fit(model, (train, test), recipe())
    assert [row.epoch for row in history.epochs] == [1, 2, 3]
    assert history.max_lr == 0.01
    assert [row.learning_rate for row in history.epochs] == history.learning_rates[2::3]
    assert history.last is history.epochs[-1]
    tested = train_test.evaluate(model, test, device=CPU)
    assert tested == (history.last.test_loss, history.last.test_accuracy)


def test_speed_is_that_of_training_and_seconds_are_of_all(monkeypatch):
    clock = [0]

    class Slow(list):
        def __iter__(self):
            for batch in super().__iter__():
                clock[0] += 1
                yield batch

    monkeypatch.setattr(train_test.time, "perf_counter", lambda: clock[0])
    pair = Slow(batches(16, 16, 8)), Slow(batches(16, 16))
    row = fit(network(), pair, recipe()).last
    assert (row.seconds, row.images_per_second) == (5, 40 / 3)


def test_line_of_an_epoch_tells_what_is_known():
    metrics = train_test.Metrics(2.0, 0.25), train_test.Metrics(1.5, 0.5)
    own = "epoch   1 | train loss 2.0000 acc  25.00% | test loss 1.5000 acc  50.00%"
    assert str(Epoch(1, *itertools.chain(*metrics))) == own
    whole = Epoch(1, *itertools.chain(*metrics), 0.01, 3.0, 1234.0)
    assert str(whole) == f"{own} | lr 1.00e-02 |   1,234 images/s"


def rows(*test_accuracies):
    return [
        Epoch(i, 2.0, 0.1, 2.0, accuracy, 0.01, 1.0, 10.0)
        for i, accuracy in enumerate(test_accuracies, start=1)
    ]


def test_best_epoch_is_the_first_with_the_highest_test_accuracy():
    history = History(0.01, rows(0.1, 0.7, 0.3, 0.7, 0.5))
    assert history.best.epoch == 2
    assert history.last.epoch == 5


def test_history_goes_through_json():
    history = History(0.01, rows(0.1, 0.7), [0.001, 0.01])
    assert History.from_dict(json.loads(json.dumps(history.as_dict()))) == history


@undiverged
def test_plain_dataloader_and_somebody_elses_classifier_are_trained():
    data = TensorDataset(*noise(40))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    pair = DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, 40)
    history = fit(model, pair, recipe(epochs=20, peak_epoch=4, max_lr=None))
    assert len(history.learning_rates) == 20 * 3
    assert history.last.test_accuracy == 1


def test_dataloader_whose_batches_a_sampler_makes_is_taken():
    data = TensorDataset(*noise(32))
    sampler = BatchSampler(range(32), batch_size=16, drop_last=False)
    train = DataLoader(data, batch_sampler=sampler)
    assert len(fit(network(), (train, train), recipe()).epochs) == 3


class Counted(IterableDataset):
    """One that has a length."""

    def __iter__(self):
        return iter([(image, label) for image, label in zip(*noise(40))])

    def __len__(self):
        return 40


def test_iterable_dataset_that_has_a_length_is_taken():
    pair = DataLoader(Counted(), batch_size=16), DataLoader(Counted(), batch_size=40)
    assert len(fit(network(), pair, recipe()).learning_rates) == 3 * 3


@pytest.mark.parametrize("broken", [16, 17])
def test_gradients_that_float16_cannot_hold_end_a_training_from_the_17th(broken):
    # As long as the scale is too large, as on a T4 in the first steps, that is no fault.
    factors = itertools.chain([math.nan] * broken, itertools.repeat(1))

    def overflowing(logits):
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * next(factors))
        return logits

    pair = batches(*[4] * 20), batches(8)
    ends = contextlib.nullcontext()
    if broken == 17:
        sentence = "gradients are not finite in ep"
        ends = pytest.raises(train_test.NonFiniteLoss, match=sentence)
    with ends:
        fit(Around(overflowing), pair, recipe(batch_size=4, precision="float16"))


def epoch_of(model, loader, **options):
    """As in a loop of one's own."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return train_test.train_one_epoch(model, loader, optimizer, device=CPU, **options)


def answers_of(model, loader):
    return train_test.predict(model, loader, device=CPU)


class Viewing(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(len(x), -1))


@pytest.mark.parametrize("work", [epoch_of, answers_of])
@pytest.mark.parametrize(
    ("model", "images", "error", "said"),
    [
        (Viewing(3 * 8 * 8, 10), noise()[0], ValueError, "view size .* use .flatten"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(5, 10)),
            noise()[0],
            ValueError,
            "images of this size",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 10, 1), nn.MaxPool2d(8), nn.MaxPool2d(2)),
            noise()[0],
            ValueError,
            "images of this size",
        ),
        (nn.Conv2d(3, 10, 9), noise()[0], ValueError, "images of this size"),
        (
            nn.Conv2d(3, 10, 8).double(),
            noise()[0],
            ValueError,
            r"torch.float64, and .float\(\) converts",
        ),
        (network(), noise()[0].to(torch.uint8), ValueError, r"uint8 .* / 255 converts"),
        (network(), noise()[0][:, :1], ValueError, "as many in_channels"),
        (
            network().to("meta"),
            noise()[0],
            ValueError,
            r"on cpu and it isn.t; model.to\(dev",
        ),
        (Around(lambda x: (x, x)), noise()[0], TypeError, "model gives a tuple; a cl"),
        (
            Around(lambda x: x[0]),
            noise()[0],
            ValueError,
            r"gives \(10,\) for 40 images",
        ),
    ],
    ids=[
        *(
            "view",
            "linear",
            "pool",
            "kernel",
            "double",
            "uint8",
            "channels",
            "elsewhere",
        ),
        *("tuple", "one answer"),
    ],
)
def test_what_a_loop_of_ones_own_cannot_go_on_with_is_said(
    work, model, images, error, said
):
    with pytest.raises(error, match=said):
        work(model, [(images, noise()[1])])


@pytest.mark.parametrize(
    ("model", "error", "said"),
    [
        (Viewing(3 * 8 * 8, 10), ValueError, "can't take the images.* use .flatten"),
        (Around(lambda x: {"logits": x}), TypeError, "the model gives a dict; a class"),
    ],
)
def test_images_or_answers_that_cannot_be_trained_on_are_said_before_training(
    model, error, said
):
    pair = batches(16), batches(16)
    with pytest.raises(error, match=said):
        fit(model, pair, recipe(peak_epoch=2))


def test_optimizer_of_a_model_that_was_made_anew_is_refused():
    optimizer = torch.optim.SGD(network().parameters(), 0.1)
    with pytest.raises(ValueError, match="no parameter of the model.* anew too"):
        train_test.train_one_epoch(network(), batches(16), optimizer, device=CPU)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_scheduler_of_an_optimizer_that_was_made_anew_is_refused():
    model = network()
    first, second = (torch.optim.SGD(model.parameters(), 0.1) for _ in range(2))
    late = torch.optim.lr_scheduler.StepLR(first, 1)
    with pytest.raises(ValueError, match="another optimizer's.* scheduler anew too"):
        train_test.train_one_epoch(
            model, batches(16), second, device=CPU, scheduler=late
        )
    second.param_groups = first.param_groups  # as a wrapper around the first has them
    train_test.train_one_epoch(model, batches(16), second, device=CPU, scheduler=late)
    assert late.get_last_lr() == [pytest.approx(0.01)]


def test_layer_that_was_replaced_since_the_optimizer_was_made_is_warned_of():
    model, spare = network(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    # Two models' parameters may be meant.
    optimizer.add_param_group({"params": spare.parameters()})
    train_test.train_one_epoch(model, batches(16), optimizer, device=CPU)
    model[-1] = nn.Linear(model[-1].in_features, 10)
    with pytest.warns(UserWarning, match="2 of the model's .* replaced since, make it"):
        train_test.train_one_epoch(model, batches(16), optimizer, device=CPU)
    # A part of one too.
    head = torch.optim.SGD(model[-1].parameters(), 0.1)
    train_test.train_one_epoch(model, batches(16), head, device=CPU)


WORKS = {
    "fit": lambda model: fit(model, (batches(16, 16), batches(16)), recipe()),
    "range test": lambda model: train_test.lr_range_test(
        model, batches(16), recipe(), device=CPU
    ),
    "own loop": lambda model: epoch_of(model, batches(16)),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_loss_without_a_gradient_is_said(work):
    for model, grad in ((Around(torch.detach), True), (network(), False)):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(
                ValueError, match="the loss has no gradient: .* detaches, or"
            ),
        ):
            work(model)


class Late(nn.Module):
    """Makes a layer when it is first called."""

    def __init__(self):
        super().__init__()
        self.head = None

    def forward(self, x):
        if self.head is None:
            self.head = nn.Linear(x[0].numel(), 10)
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Late, "the model makes head.bias when it is first called"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
            "LazyLinear say; call it on a batch first",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_layer_that_is_made_by_the_first_call_is_said_before_training(make, said):
    model, pair = make(), (batches(16, 16), batches(16))
    with pytest.raises(ValueError, match=said):
        fit(model, pair, recipe())
    model(pair[1][0][0])  # as the sentences say
    assert len(fit(model, pair, recipe()).epochs) == 3


def test_networks_that_are_evaluated_within_one_autocast_have_their_own_weights():
    model, other = network(seed=1), state_of(network(seed=2))
    with torch.autocast("cpu", torch.bfloat16):
        first = answers_of(model, batches(16)).logits
        model.load_state_dict(other)
        second = answers_of(model, batches(16)).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(second, answers_of(model, batches(16)).logits)
    assert not torch.equal(first, second)
    exact = answers_of(model, batches(16)).logits
    assert torch.allclose(second, exact, atol=0.1) and not torch.equal(second, exact)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_training_within_an_autocast_is_refused(work):
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="autocast is on, .* call it outside of that"),
    ):
        work(network())


@undiverged
def test_weights_of_five_dimensions_are_trained_too():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.inner = nn.Conv3d(1, 1, 3, padding=1), network()

        def forward(self, x):
            return self.inner(self.conv(x[:, None])[:, 0])

    pair = batches(16, 16), batches(16)
    assert len(fit(Deep(), pair, recipe(max_lr=None)).epochs) == 3


def test_default_device_of_torchs_changes_nothing():
    alone = fit(network(), loaders(on="cpu"), recipe(max_lr=None))
    model, pair = network(), loaders(on="cpu")
    with torch.device("meta"):  # on which nothing can be computed
        within = fit(model, pair, recipe(max_lr=None))
    assert repeatable(within) == repeatable(alone)


def test_scheduler_that_waits_for_a_metric_is_refused_before_a_step():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = state_of(model)
    with pytest.raises(TypeError, match="ReduceLROnPlateau .* yourself after evaluate"):
        train_test.train_one_epoch(
            model,
            batches(16),
            optimizer,
            device=CPU,
            scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
        )
    assert_same_state(state_of(model), before)


def test_loss_is_of_float32_whatever_the_network_computes_in(monkeypatch):
    kinds, plan = set(), recipe(precision="bfloat16", max_lr=None)

    def seen(logits, *args, of=F.cross_entropy, **kwargs):
        kinds.add(logits.dtype)
        return of(logits, *args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", seen)
    epoch_of(network(), batches(16), dtype=torch.bfloat16)
    train_test.lr_range_test(network(), loaders().train, plan, device=CPU)
    assert kinds == {torch.float32}


def test_float16_without_a_scaler_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"vanish .*scaler=torch.amp.GradScaler\(\"cpu"
    ):
        epoch_of(network(), batches(16), dtype=torch.float16)


def test_answers_that_are_no_numbers_are_warned_of():
    test = batches(4, 3)
    test[1][0][1] = math.nan
    with pytest.warns(UserWarning, match="no answer to 1 of 7 images"):
        found = train_test.predict(network(norm=False), test, device=CPU)
    assert found.logits.isnan().any(1).tolist() == [False] * 5 + [True, False]


def test_answers_that_are_not_in_the_images_order_are_warned_of():
    model, (train, test) = network(), loaders()
    images = TensorDataset(*noise(16))
    samplers = [
        SubsetRandomSampler(range(16)),
        WeightedRandomSampler([1.0] * 16, 16),
        DistributedSampler(images, num_replicas=1, rank=0),
    ]
    made = [DataLoader(images, sampler=sampler) for sampler in samplers]
    in_batches = BatchSampler(RandomSampler(images), 8, drop_last=False)
    made.append(DataLoader(images, batch_sampler=in_batches))
    for shuffling in (train, DataLoader(images, shuffle=True), *made):
        with pytest.warns(UserWarning, match="shuffles, so these answers .* keeps it"):
            answers_of(model, shuffling)
        train_test.evaluate(model, shuffling, device=CPU)  # of which no order is asked
    split = DataLoader(Subset(images, [3, 1]))
    unshuffled = DistributedSampler(images, num_replicas=1, rank=0, shuffle=False)
    in_order = DataLoader(images, sampler=unshuffled)
    for orderly in (test, DataLoader(images), batches(16), split, in_order):
        answers_of(model, orderly)


def test_outputs_that_no_class_has_are_warned_of_before_training():
    sets = [
        dataclasses.replace(some, labels=some.labels % 3, classes=("a", "b", "c"))
        for some in dataset.synthetic_cifar10(train=32, test=16)
    ]
    few = dataset.make_loaders(*sets, batch_size=16, device=CPU, augment_on="device")
    said = "tells 10 classes apart and there are 3; make it with num_classes=3"
    with pytest.warns(UserWarning, match=said) as told:
        fit(network(), few, recipe())
    assert {warning.filename for warning in told} == {shared.__file__}


def test_transform_of_ones_own_trains_by_any_recipe_without_a_warning():
    own = dataset.import_albumentations().Compose([])
    fit(network(), loaders(on="cpu", transform=own), recipe(padding=2))


def test_sampler_that_draws_by_epoch_is_told_which_begins():
    class Telling(DistributedSampler):
        def __iter__(self):
            begun.append(self.epoch)
            return super().__iter__()

    begun, images = [], TensorDataset(*noise(32))
    sampler = Telling(images, num_replicas=1, rank=0)
    of_batches = BatchSampler(sampler, 16, drop_last=False)
    for train in (
        DataLoader(images, batch_size=16, sampler=sampler),
        DataLoader(images, batch_sampler=of_batches),
    ):
        fit(network(), (train, batches(16)), recipe(epochs=3))
    assert begun == [0, 1, 2, 0, 1, 2]


def test_training_loader_that_always_gives_one_order_is_warned_of():
    (train, test), images = loaders(), TensorDataset(*noise(32))
    for wrong in ((test, train), (DataLoader(images, batch_size=16), test)):
        with pytest.warns(UserWarning, match="in the same order in each epoch") as told:
            fit(network(), wrong, recipe())
        assert {warning.filename for warning in told} == {shared.__file__}
    by_hand = DataLoader(images, batch_sampler=[[*range(16)], [*range(16, 32)]])
    unknown = DataLoader([[*noise(16)]] * 2, batch_size=None)
    # Of one batch the order is of no account.
    whole = DataLoader(images, batch_size=32), recipe(batch_size=32, peak_epoch=2)
    shuffled = DataLoader(images, batch_size=16, shuffle=True)
    for right, plan in (
        *((one, recipe()) for one in (by_hand, unknown, shuffled)),
        whole,
    ):
        fit(network(), (right, test), plan)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drop_last": True}, "drop_last leaves some out"),
        (
            {"sampler": WeightedRandomSampler([1.0] * 20, 20)},
            "WeightedRandomSampler draws some more than once",
        ),
    ],
)
def test_test_loader_that_does_not_give_each_image_once_is_warned_of(options, said):
    given = TensorDataset(*noise(20))
    test = DataLoader(given, batch_size=16, **options)
    with pytest.warns(UserWarning, match=f"doesn't give each image once: {said}") as w:
        fit(network(), (batches(16, 16), test), recipe())
    assert {warning.filename for warning in w} == {shared.__file__}
    whole = DataLoader(given, batch_size=10, drop_last=True, shuffle=True)
    stream = DataLoader(Counted(), batch_size=10, drop_last=True)
    for test in (whole, stream):
        fit(network(), (batches(16, 16), test), recipe())


def test_other_kinds_of_arguments_are_said():
    pair = batches(16), batches(16)
    with pytest.raises(
        TypeError, match=r"must be a Recipe, not a dict; replace\(Recipe"
    ):
        fit(network(), pair, train_test.RECIPES["page"])
    with pytest.raises(TypeError, match=r"two, \(train, test\), not a DataLoader$"):
        fit(network(), DataLoader(TensorDataset(*noise(4))), recipe())
    with pytest.raises(ValueError, match="resume needs a checkpoint"):
        fit(network(), pair, recipe(peak_epoch=2), resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_folder_in_a_checkpoints_place_is_said(resume, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        fit(network(), loaders(), recipe(), checkpoint=tmp_path, resume=resume)


class Normalizing(Around):
    """Takes images from 0 to 255, in whole numbers too."""

    def forward(self, x):
        return self.then(self.inner(x.float() / 255))


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_evaluation_that_runs_out_of_memory_is_not_blamed_on_the_images_or_training(
    error, kind
):
    def hungry(logits):
        if len(logits) > 16:
            raise error
        return logits

    train, test = (
        [(images.to(kind), labels) for images, labels in given]
        for given in (batches(16, 16), batches(32))
    )
    with pytest.raises(
        MemoryError, match="give the loader that is evaluated a smaller"
    ):
        fit(Normalizing(hungry), (train, test), recipe())


def test_devices_and_precisions_that_do_not_work_are_refused():
    for name in ("mps", "gpu", None):
        with pytest.raises(ValueError, match=f"device is {name}; give cpu or cuda"):
            train_test.choose_dtype("auto", name)
    with pytest.raises(ValueError, match="not 'bf16'"):
        train_test.choose_dtype("bf16", CPU)
    model, pair = network(), (batches(16, 16), batches(16))
    before = state_of(model)
    with pytest.raises(ValueError, match="device is meta; give cpu or cuda"):
        train_test.fit(model, pair, recipe(), device="meta")
    assert_same_state(state_of(model), before)


def lines_of(history):
    return [f"range test: max_lr {history.max_lr:.2e}", *map(str, history.epochs)]


def test_lines_go_to_whatever_stands_in_for_a_terminal(monkeypatch):
    class Log:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", log := Log())
    history = fit(network(), loaders(), recipe(max_lr=None))
    assert log.text.splitlines() == lines_of(history)


def test_lines_stay_below_a_progress_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    history = fit(network(), loaders(), recipe(max_lr=None))
    out = capsys.readouterr().out
    for bar in ("range test 1 of 2: ", "range test 2 of 2: ", "epoch 3: "):
        assert bar in out
    # A terminal shows of each line what follows its last carriage return.
    shown = [line.rpartition("\r")[2] for line in out.split("\n")]
    assert shown == [*lines_of(history), ""]


def test_loader_of_another_batch_size_is_an_error_before_training():
    model, pair = network(), loaders()
    before = state_of(model)
    sentence = "batch_size is 16 and the recipe's 8"
    with pytest.raises(ValueError, match=sentence):
        fit(model, pair, recipe(batch_size=8))
    assert_same_state(state_of(model), before)


def test_more_images_than_the_recipes_are_said():
    there = len(IMAGES[0])
    with pytest.warns(UserWarning, match=rf"train_images is 16 and .* has {there},"):
        fit(network(), loaders(), recipe(train_images=16))
    for enough in (there, there + 1):
        fit(network(), loaders(), recipe(train_images=enough))  # warns of nothing
    train, test = loaders()
    fit(network(), ([*train], test), recipe(train_images=1))  # a list doesn't tell


@pytest.mark.parametrize(("trained", "tested"), [(0, 1), (1, 0)])
def test_loader_without_batches_is_an_error(trained, tested):
    pair = batches(16)[:trained], batches(16)[:tested]
    sentence = f"the loaders have {trained} training and {tested} test batches"
    with pytest.raises(ValueError, match=sentence):
        fit(network(), pair, recipe(max_lr=None))


@pytest.mark.parametrize("label", [-1, 10])
def test_label_that_the_model_has_no_output_for_is_an_error_before_training(label):
    model, (images, labels) = network(), noise(32)
    labels[3] = label
    before = state_of(model)
    with pytest.raises(ValueError, match=rf"{label} .*10 classes"):
        fit(model, (batches(16, 16), [(images, labels)]), recipe())
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize(
    "work",
    [
        lambda wrong: fit(network(), (wrong, batches(16)), recipe()),
        lambda wrong: train_test.lr_range_test(network(), wrong, recipe(), device=CPU),
        lambda wrong: train_test.evaluate(network(), wrong, device=CPU),
    ],
    ids=["fit", "range test", "evaluate"],
)
def test_label_without_an_output_that_comes_later_is_the_same_sentence(work):
    # On a GPU it would end all that is computed there.
    images, labels = noise(16)
    said = (
        r"labels run from [07] to 16 .* from 0, by np\.unique\(labels, return_inverse"
    )
    with pytest.raises(ValueError, match=said):
        work([*batches(16), (images, labels + 7)])


@pytest.mark.parametrize("kind", [torch.uint8, torch.uint16, torch.int32])
def test_labels_of_any_whole_numbers_train(kind):
    pair = [[(images, labels.to(kind)) for images, labels in batches(16, 16)]] * 2
    assert len(fit(network(), pair, recipe()).epochs) == 3
    assert answers_of(network(), pair[1]).labels.dtype == torch.int64


def test_whole_numbers_that_a_model_takes_as_images_are_its_own_affair():
    images, labels = noise(16)
    for kind in (torch.uint8, torch.bool):
        pair = [[((images * 255).to(kind), labels)] * 2] * 2
        assert len(fit(Normalizing(nn.Identity()), pair, recipe()).epochs) == 3


def test_images_from_0_to_255_are_warned_of():
    images, labels = noise(16)
    pair = batches(16, 16), [(images.abs() * 100, labels)]
    with pytest.warns(UserWarning, match="tested on reach .* by 255, in training too"):
        fit(network(), pair, recipe())


def test_test_images_that_are_not_finite_are_said_once_an_epoch():
    images, labels = noise(16)
    images[11] = math.nan
    with pytest.warns(UserWarning) as warned:
        fit(network(), (batches(16, 16), [(images, labels)]), recipe())
    said = (
        "the test loss is nan in epoch 1; train with a lower max_lr, or look for what is not "
        "finite in the test images"
    )
    assert str(warned[0].message) == said and len(warned) == 3
    assert {warning.filename for warning in warned} == {shared.__file__}


class Lying(list):
    """A loader that says it is longer than it is."""

    excess = 1

    def __len__(self):
        return super().__len__() + self.excess


@pytest.mark.parametrize(("excess", "gave"), [(-1, "more"), (1, 3)])
def test_loader_whose_length_lies_is_an_error(excess, gave):
    train = Lying(batches(16, 16, 16))
    train.excess = excess
    said = rf"says it has {3 + excess} batches and gave {gave};"
    with pytest.raises(ValueError, match=said):  # before a schedule's end in one epoch
        fit(network(), (train, batches(16)), recipe(epochs=1, peak_epoch=0.75))


def test_loader_without_a_batch_is_said_to_a_loop_of_ones_own_too():
    with pytest.raises(ValueError, match="says it has 0 batches and gave 0;"):
        epoch_of(network(), [])


def test_loader_without_a_length_is_said():
    class Stream(IterableDataset):
        def __iter__(self):
            return zip(*noise(40))

    endless, plan = DataLoader(Stream(), batch_size=16), recipe()
    for call in (
        lambda: fit(network(), (endless, batches(16)), plan),
        lambda: train_test.lr_range_test(network(), endless, plan, device=CPU),
        lambda: epoch_of(network(), endless),
    ):
        with pytest.raises(
            TypeError, match="DataLoader is no loader.* needs a __len__"
        ):
            call()


def test_without_max_lr_the_range_test_finds_it_and_leaves_the_training_as_it_is():
    free, fixed = network(dropout=0.2), network(dropout=0.2)
    found = train_test.lr_range_test(free, loaders().train, recipe(), device=CPU)
    torch.manual_seed(7)
    searched = fit(free, loaders(), recipe(max_lr=None))
    torch.manual_seed(7)
    given = fit(fixed, loaders(), recipe(max_lr=searched.max_lr))
    assert searched.max_lr == found.max_lr
    assert max(searched.learning_rates) == pytest.approx(found.max_lr)
    assert repeatable(searched) == repeatable(given)
    assert_same_state(state_of(free), state_of(fixed))


# Colab puts another malloc in glibc's place.
asks_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ,
    reason="asks glibc's malloc",
)


def train_and_ask_for_memory(precision, blocks, megabytes):
    """Ask for so many blocks of so many MB at once before each step, and free them.

    Returns, as shares of what was asked for: the new pages, in the range test or the
    training, whichever has more, and what is given back once training is over, of what was
    held at the last step and at the most.
    """
    import resource

    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, of which these were few

    class Hungry(list):
        def __iter__(self):
            for batch in super().__iter__():
                for _ in range(10):  # glibc settles after some
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                    at_once = [torch.ones(megabytes << 18) for _ in range(blocks)]
                    del at_once  # 2**18 numbers are a MB
                    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                faults.append(after - before)
                kept.append(bytes_in_memory())
                yield batch

    faults, kept = [], []
    short = recipe(max_lr=None, precision=precision, lr_test_steps=10, lr_test_seeds=1)
    fit(network(), (Hungry(batches(16, 16, 16)), batches(16)), short)
    asked = blocks * megabytes << 20
    left = bytes_in_memory()
    held = [(size - left) / asked for size in (kept[-1], max(kept))]
    searched, trained = faults[:10], faults[10:]
    new = max(statistics.median(part) for part in (searched, trained))
    return new * resource.getpagesize() / asked, *held


def in_a_new_process(*arguments):
    # Once an allocation has failed, glibc gives its thread another arena, which keeps no
    # large blocks.
    ask = f"print(*test_train_test.train_and_ask_for_memory{arguments})"
    done = python("-c", f"from tests import test_train_test; {ask}", check=True)
    return [float(one) for one in done.stdout.splitlines()[-1].split()]


@asks_glibc
@pytest.mark.parametrize(
    ("precision", "blocks", "megabytes"), [("bfloat16", 1, 64), ("float32", 8, 16)]
)
def test_step_finds_the_memory_that_the_one_before_it_freed(
    precision, blocks, megabytes
):
    new, given_back, _ = in_a_new_process(precision, blocks, megabytes)
    assert new < 1 / 16
    assert given_back > 0.7, "it isn't given back at last"


@asks_glibc
def test_training_in_float32_holds_no_large_blocks_that_it_has_freed():
    *_, most = in_a_new_process("float32", 1, 64)
    assert most < 0.3


AFTERWARDS = """
import ctypes, resource, torch
from helpers.memory import keeping_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, of which these were few

with keeping_freed_memory(torch.device("cpu"), torch.bfloat16):
    pass
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**21)  # of 4 bytes
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print((after - before) / (2**23 / resource.getpagesize()))
"""


@asks_glibc
def test_what_comes_after_training_finds_freed_memory_as_it_would_have_before():
    # In processes whose memory is in one piece, or the block may lie in a gap by chance; of
    # three, as how the system lays out a process's memory is chance too: one, of more than
    # a hundred, found all pages new.
    done = [python("-c", AFTERWARDS, check=True) for _ in range(3)]
    assert statistics.median(float(one.stdout) for one in done) < 0.5  # of its pages


# --- metrics ---------------------------------------------------------------------------


def by_hand(model, images, labels):
    logits = model(images).detach().double()
    loss = F.cross_entropy(logits, labels)
    return float(loss), float((logits.argmax(1) == labels).double().mean())


def test_size_of_the_batches_does_not_alter_the_evaluation():
    model = network()
    images, labels = noise(40)
    whole = train_test.evaluate(model, [(images, labels)], device=CPU)
    for sizes in ((16, 16, 8), (39, 1), (1, 2, 37)):
        parts = zip(images.split(sizes), labels.split(sizes), strict=True)
        split = train_test.evaluate(model, list(parts), device=CPU)
        assert split.accuracy == whole.accuracy
        assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert whole == pytest.approx(by_hand(model.eval(), images, labels), rel=1e-6)


def test_predictions_can_be_calibrated_by_a_temperature():
    found = train_test.predict(network(), batches(16), device=CPU)
    temperature = torch.ones(1, requires_grad=True)
    F.cross_entropy(found.logits / temperature, found.labels).backward()
    assert temperature.grad.isfinite().all()


def test_training_metrics_weight_each_example_alike():
    model, train = network(), batches(16, 16, 3)
    expected, correct, count = 0.0, 0.0, 35
    twin = copy.deepcopy(model).train()
    for images, labels in train:
        loss, accuracy = by_hand(twin, images, labels)
        expected += loss * len(labels) / count
        correct += accuracy * len(labels) / count
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    got = train_test.train_one_epoch(model, train, optimizer, device=CPU)
    assert got == pytest.approx((expected, correct), rel=1e-6)
    batch_means = [by_hand(twin, *batch)[0] for batch in train]
    assert abs(np.mean(batch_means) - expected) > 1e-3  # weighting makes a difference


def test_evaluation_gives_each_layer_its_mode_back_and_changes_no_statistics():
    model = network(dropout=0.5)
    model[1].eval()  # a frozen BatchNorm in a model that is being trained
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    before = state_of(model)
    results = {train_test.evaluate(model, batches(16), device=CPU) for _ in range(2)}
    assert len(results) == 1  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert_same_state(state_of(model), before)


def test_evaluation_that_fails_gives_each_layer_its_mode_back():
    model = network()
    modes = [module.training for module in model.modules()]
    wrong = [*batches(16), (torch.randn(4, 5, 8, 8), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(ValueError, match="as many in_channels"):
        train_test.evaluate(model, wrong, device=CPU)
    assert [module.training for module in model.modules()] == modes


def dtypes_of_linear(model):
    """For each pass from now on: whether it is one of training, and its precision."""
    seen = []

    def tell(layer, _, out):
        if layer is model[-1]:  # not a copy's
            seen.append((layer.training, out.dtype))

    model[-1].register_forward_hook(tell)
    return seen


def test_evaluation_computes_in_float32_unless_told_otherwise():
    model = network()
    seen = dtypes_of_linear(model)
    test = batches(16)
    train_test.evaluate(model, test, device=CPU)
    with torch.autocast("cpu", torch.bfloat16):
        rough = train_test.predict(model, test, device=CPU)
    assert seen == [(False, torch.float32), (False, torch.bfloat16)]
    assert rough.logits.dtype == torch.float32
    seen.clear()
    fit(model, (batches(16, 16), test), recipe(precision="bfloat16", epochs=2))
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}


def test_predictions_come_in_the_loaders_order():
    model = network().eval()
    test = batches(16, 5)
    got = train_test.predict(model, test, device=CPU)
    images, labels = noise(21)
    assert torch.equal(got.labels, labels)
    assert torch.allclose(got.logits, model(images).detach(), atol=1e-5)
    assert torch.allclose(got.probabilities.sum(1), torch.ones(21))
    assert got.metrics == train_test.evaluate(model, test, device=CPU)


def test_a_model_may_use_the_memory_of_its_output_again():
    class Reusing(torch.nn.Module):  # as one does that CUDA graphs replay
        def __init__(self):
            super().__init__()
            self.inner, self.kept = network(), torch.empty(16, 10)

        def forward(self, images):
            return self.kept.copy_(self.inner(images))

    model, test = Reusing().eval(), batches(16, 16)
    got = train_test.predict(model, test, device=CPU)
    assert torch.equal(
        got.logits, train_test.predict(model.inner, test, device=CPU).logits
    )


def test_nothing_to_evaluate_is_said():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        train_test.evaluate(network(), [], device=CPU)


# --- a loss that is no number ----------------------------------------------------------


def test_model_without_a_parameter_to_train_is_said():
    frozen = network().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train; give one requires_"):
        fit(frozen, (batches(16), batches(16)), recipe(peak_epoch=2))


def test_infinite_weight_is_an_error_that_tells_epoch_step_and_rate():
    model = network()
    with torch.no_grad():
        model[-1].bias[0] = math.inf
    sentence = (
        r"loss is (inf|nan) in epoch 1, step 1, at learning rate 4\.00e-04; look for what "
        "is not finite in images or model, and make the model anew"
    )
    with pytest.raises(train_test.NonFiniteLoss, match=sentence):
        fit(model, (batches(16, 16), batches(16)), recipe())


def test_loss_that_is_no_number_ends_a_cpus_epoch_at_its_step():
    drawn = []

    class Watched(list):
        def __iter__(self):
            for batch in super().__iter__():
                drawn.append(batch)
                yield batch

    train = Watched(batches(16, 16, 16))
    train[1][0].fill_(math.nan)
    with pytest.raises(train_test.NonFiniteLoss, match="nan in epoch 1, step 2"):
        fit(network(), (train, batches(16)), recipe())
    assert len(drawn) == 2


def test_huge_learning_rate_ends_training_with_an_error():
    with pytest.raises(
        train_test.NonFiniteLoss, match=r"epoch 1, step [23], .* lower max_lr"
    ):
        fit(network(), (batches(16, 16, 16), batches(16)), recipe(max_lr=1e30))


def assert_as_if_undisturbed(path, plan=None, *, dropout=0.0, workers=0, **how):
    """Going on from this checkpoint ends as a training does that had no stop."""
    plan, straight = plan or recipe(), network(dropout=dropout)
    history = fit(straight, loaders(**how), plan)
    model, pair = network(seed=9, dropout=dropout), loaders(workers=workers, **how)
    resumed = fit(model, pair, plan, checkpoint=path, resume=True)
    assert repeatable(resumed) == repeatable(history)
    assert_same_state(state_of(model), state_of(straight))


def test_failure_later_on_is_located_and_leaves_the_checkpoint_before_it(
    tmp_path, capsys
):
    path = tmp_path / "training.pt"
    rates = train_test.planned_learning_rates(recipe(), max_lr=0.01, steps_per_epoch=3)
    nans = Failing(loaders().train, lambda images: images * math.nan, epoch=2, batch=1)
    sentence = f"nan in epoch 3, step 2, at learning rate {rates[7]:.2e}"
    with pytest.raises(train_test.NonFiniteLoss, match=sentence):
        fit(network(), (nans, loaders().test), recipe(), checkpoint=path)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"NonFiniteLoss in epoch 3; go on from {path} with resume=True (--resume), with "
        "the same max_lr; for a lower one begin in another file (--out)"
    )
    assert_as_if_undisturbed(path)


@pytest.mark.parametrize("kept", [False, True])
def test_failure_is_told_as_it_is_where_no_checkpoint_can_be_named(
    kept, tmp_path, capsys
):
    place = tmp_path / "drive"
    place.symlink_to(tmp_path)

    def fail(images):
        # A place of which not even can be asked what is there.
        place.unlink()
        place.symlink_to("x" * 300)
        raise Interrupted

    train, test = loaders()
    path = place / "training.pt" if kept else None
    with pytest.raises(Interrupted):
        fit(
            network(),
            (Failing(train, fail, epoch=1), test),
            recipe(),
            checkpoint=path,
        )
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Interrupted in epoch 2; no checkpoint was kept, and")


# --- checkpoints -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "on", "epoch"),
    [
        ({}, "cpu", 1),
        ({}, "device", 2),
        ({"optimizer": "sgd"}, "device", 1),
        ({"precision": "float16"}, "device", 1),
    ],
    ids=str,
)
def test_interrupted_and_resumed_is_bit_by_bit_as_if_nothing_had_happened(
    changes, on, epoch, tmp_path
):
    plan, how = recipe(**changes), {"dropout": 0.3, "on": on}
    path = break_off(tmp_path / "training.pt", plan, epoch=epoch, **how)
    assert_as_if_undisturbed(path, plan, **how)


def test_resumed_training_does_not_depend_on_the_workers_either(interrupted_cpu):
    assert_as_if_undisturbed(interrupted_cpu, dropout=0.3, on="cpu", workers=2)


def test_resumed_training_goes_on_at_the_rate_that_was_found(tmp_path):
    plan, path = recipe(max_lr=None, precision="bfloat16"), tmp_path / "training.pt"
    train, test = loaders()
    pair = train, Failing(test, interrupt, epoch=1)  # after training, before its record
    with pytest.raises(Interrupted):
        fit(network(), pair, plan, checkpoint=path)
    assert_as_if_undisturbed(path, plan)


@pytest.fixture
def interrupted(tmp_path):
    """The checkpoint of a training by recipe() that broke off in its second epoch."""
    return break_off(tmp_path / "training.pt")


@pytest.fixture
def interrupted_cpu(tmp_path):
    """The same of one whose images two workers augmented."""
    return break_off(tmp_path / "training.pt", dropout=0.3, on="cpu", workers=2)


def test_model_of_a_training_that_was_stopped_can_be_asked():
    train, test = loaders()
    model, pair = network(), (Failing(train, interrupt, epoch=1), test)
    with pytest.raises(Interrupted):
        fit(model, pair, recipe())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("resume", [False, True])
def test_training_with_a_checkpoint_holds_its_weights_once(resume, tmp_path):
    model, gone = network(), []
    before = StorageWeakRef(model[0].weight.untyped_storage())

    def look(images):
        gone.append(before.expired())
        return images

    train, test = loaders()
    pair, path = (Failing(train, look, epoch=0), test), tmp_path / "training.pt"
    fit(model, pair, recipe(), checkpoint=path, resume=resume)
    assert gone == [True]  # channels-last took its place


def test_resumed_training_lets_go_of_what_it_has_read(interrupted, monkeypatch):
    read, gone = [], []

    def load_checkpoint(*given, **named):
        state = resume.load_checkpoint(*given, **named)
        read.append(StorageWeakRef(state["model"]["0.weight"].untyped_storage()))
        return state

    def look(images):
        gone.append(read[0].expired())
        return images

    monkeypatch.setattr(train_test, "load_checkpoint", load_checkpoint)
    train, test = loaders()
    pair = Failing(train, look, epoch=2), test
    fit(network(), pair, recipe(), checkpoint=interrupted, resume=True)
    assert gone == [True]


def test_checkpoint_in_the_way_is_an_error_and_stays(interrupted):
    content, model = interrupted.read_bytes(), network()
    before = state_of(model)
    with pytest.raises(FileExistsError, match=r"training.pt exists; .* resume=True"):
        fit(model, loaders(), recipe(), checkpoint=interrupted)
    assert interrupted.read_bytes() == content
    assert_same_state(state_of(model), before)


@pytest.mark.parametrize("resume", [False, True])
def test_place_that_takes_no_checkpoint_is_said_before_training(
    resume, tmp_path, capsys
):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "training.pt"
    with pytest.raises(OSError, match=r"the folder .*file can't be written to \("):
        fit(network(), loaders(), recipe(), checkpoint=place, resume=resume)
    assert capsys.readouterr().out == ""


def test_checkpoint_behind_a_link_is_written_where_that_leads(tmp_path):
    (drive := tmp_path / "drive").mkdir()
    link = tmp_path / "training.pt"
    link.symlink_to(drive / "mine.pt")
    history = fit(network(), loaders(), recipe(), checkpoint=link)
    assert link.is_symlink()
    assert [path.name for path in drive.iterdir()] == ["mine.pt"]
    assert train_test.read_history(link) == history


def test_checkpoint_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows'
    history = fit(network(), loaders(), recipe(), checkpoint="~/training.pt")
    assert (tmp_path / "training.pt").exists()
    assert train_test.read_history("~/training.pt") == history


def test_checkpoint_of_loaders_with_numbers_of_numpys_can_be_gone_on_with(tmp_path):
    class Batches(list):
        seed, fingerprint = np.int64(7), "as before"

    numbers = {"seed": np.int64(7), "padding": np.int64(2), "cutout": np.int64(4)}
    numbers |= {"flip": np.float64(0.5), "mean": np.full(3, 0.4)}
    somebodys = [Batches(loader) for loader in loaders()]
    for number, pair in enumerate((somebodys, loaders(**numbers))):
        plan = recipe(**({"padding": 2, "cutout": 4} if number else {}))
        path = tmp_path / f"{number}.pt"
        history = fit(network(), pair, plan, checkpoint=path)
        again = fit(network(), pair, plan, checkpoint=path, resume=True)
        assert again == history


def test_resume_without_a_checkpoint_starts_anew_and_says_so(tmp_path, capsys):
    path = tmp_path / "new" / "training.pt"
    history = fit(network(), loaders(), recipe(), checkpoint=str(path), resume=True)
    said, *_ = capsys.readouterr().out.splitlines()
    assert said == f"{path} isn't there: training begins with epoch 1"
    assert repeatable(history) == repeatable(fit(network(), loaders(), recipe()))
    assert path.exists()


def test_resumed_training_keeps_the_rate_that_it_began_with_and_says_so(
    interrupted, capsys
):
    plan, model = recipe(max_lr=0.02), network()
    said = "recipe's max_lr 2.00e-02 is ignored, as .*training.pt began with 1.00e-02; "
    with pytest.warns(UserWarning, match=said):
        resumed = fit(model, loaders(), plan, checkpoint=interrupted, resume=True)
    assert resumed.max_lr == 0.01
    assert "max_lr 1.00e-02 as it began" in capsys.readouterr().out
    assert repeatable(resumed) == repeatable(fit(network(), loaders(), recipe()))


def test_resume_with_another_number_of_threads_is_said(interrupted):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(
            UserWarning, match=rf"{threads} threads .* with {threads + 1}"
        ):
            fit(network(), loaders(), recipe(), checkpoint=interrupted, resume=True)
    finally:
        torch.set_num_threads(threads)


def test_resume_with_another_number_of_processes_is_said(interrupted):
    state = checkpoint.read_checkpoint(interrupted)
    checkpoint.save_checkpoint(interrupted, {**state, "processes": 2})
    with pytest.warns(UserWarning, match="with 2 processes and goes on with 1"):
        fit(network(), loaders(), recipe(), checkpoint=interrupted, resume=True)


def test_scale_of_float16_goes_on_where_it_was(tmp_path):
    plan, path = recipe(precision="float16"), tmp_path / "training.pt"
    straight, model, (train, test) = steep(), steep(9), loaders()
    expected = fit(straight, loaders(), plan)
    with pytest.raises(Interrupted):
        fit(steep(), (Failing(train, interrupt, epoch=1), test), plan, checkpoint=path)
    found = fit(model, loaders(), plan, checkpoint=path, resume=True)
    assert repeatable(found) == repeatable(expected)
    assert_same_state(state_of(model), state_of(straight))


def test_resume_on_a_gpu_that_computes_in_another_type_is_said(
    interrupted, monkeypatch
):
    # float16 has a scaler whose state a training in float32 hasn't left.
    monkeypatch.setattr(train_test, "choose_dtype", lambda *_: torch.float16)
    with pytest.warns(UserWarning, match="float32 precision .* with float16"):
        history = fit(
            network(), loaders(), recipe(), checkpoint=interrupted, resume=True
        )
    assert len(history.epochs) == 3


def test_resume_with_images_augmented_elsewhere_is_said(interrupted):
    elsewhere = loaders(on="cpu")
    with pytest.warns(UserWarning, match="device augmentation and goes on with cpu:"):
        history = fit(
            network(), elsewhere, recipe(), checkpoint=interrupted, resume=True
        )
    assert len(history.epochs) == 3
    # Warnings are errors here: nothing is left that could differ.
    again = fit(network(), loaders(), recipe(), checkpoint=interrupted, resume=True)
    assert repeatable(again) == repeatable(history)


def test_training_with_other_augmentation_or_normalization_is_not_gone_on_with(
    interrupted,
):
    loader = {"batch_size": 16, "device": CPU, "augment_on": "device"}
    darker = dataset.make_loaders(*IMAGES, **loader, mean=(0.4, 0.4, 0.4))
    assert "the loader's mean is (0.49" in refusal(interrupted, pair=darker)
    almost = tuple(mean * (1 + 1e-15) for mean in dataset.CIFAR10_MEAN)
    assert almost != dataset.CIFAR10_MEAN  # as another CPU may compute them
    alike = dataset.make_loaders(*IMAGES, **loader, mean=almost)
    plain = dataset.make_loaders(*IMAGES, **loader, flip=0)
    sentence = "the loader's flip is 0.5 there and 0.0 here"
    assert sentence in refusal(interrupted, pair=plain)
    flat = dataset.make_loaders(*IMAGES, **loader, std=(0.2, 0.2, 0.2))
    assert "the loader's std is" in refusal(interrupted, pair=flat)
    history = fit(network(), alike, recipe(), checkpoint=interrupted, resume=True)
    assert len(history.epochs) == 3


def test_loader_that_augments_otherwise_than_the_recipe_says_is_warned_of():
    plan = recipe(cutout=2)
    with pytest.warns(
        UserWarning, match="recipe's cutout is 2 and .* loader's 8, which"
    ):
        fit(network(), loaders(), plan)


def test_training_on_other_images_or_by_another_seed_is_not_gone_on_with(interrupted):
    assert "seed is 0 there and 1 here" in refusal(interrupted, pair=loaders(seed=1))
    others = dataset.synthetic_cifar10(train=40, test=20, seed=5)
    pair = dataset.make_loaders(
        *others, batch_size=16, device=CPU, augment_on="device", seed=0
    )
    assert "images is" in refusal(interrupted, pair=pair)
    assert "images is" in refusal(interrupted, pair=(loaders().train, pair.test))


def test_finished_training_is_not_gone_on_with(tmp_path):
    path, first, second = tmp_path / "training.pt", network(), network(seed=1)
    history = fit(first, loaders(), recipe(), checkpoint=path)
    assert list(tmp_path.iterdir()) == [path]  # the spare one is gone
    again = fit(second, loaders(), recipe(), checkpoint=path, resume=True)
    assert again == history
    assert_same_state(state_of(second), state_of(first))


def test_finished_training_of_loaders_that_do_not_tell_their_images_is_warned_of(
    tmp_path,
):
    path, pair = tmp_path / "training.pt", (batches(16, 16), batches(16))
    fit(network(), pair, recipe(), checkpoint=path)
    with pytest.warns(UserWarning, match=r"nothing is trained.* a file of its own$"):
        fit(network(), pair, recipe(), checkpoint=path, resume=True)


def test_state_that_no_checkpoint_gives_back_is_said_before_training(tmp_path):
    class Counting(Around):
        def get_extra_state(self):
            return state

    path = tmp_path / "training.pt"
    for state in (np.zeros(3), lambda: 3):
        said = (
            f"^the model's _extra_state, a {type(state).__name__}, can't be read back"
        )
        with pytest.raises(ValueError, match=said):
            fit(Counting(nn.Identity()), loaders(), recipe(), checkpoint=path)
    for name, value, said in (
        ("fingerprint", path, "^images, a list, can't be read back"),
        ("made_with", {"mean": np.zeros(3)}, "^the loader's mean, a ndarray, can't"),
        ("augment_on", path, "^the loader's augment_on, a .*Path, can't"),
    ):
        pair = loaders()
        setattr(pair.train, name, value)
        with pytest.raises(ValueError, match=said):
            fit(network(), pair, recipe(), checkpoint=path)
    assert not path.exists()


def test_layers_in_another_order_are_not_gone_on_with(tmp_path):
    class Two(nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name in names:
                setattr(self, name, nn.Linear(3 * 8 * 8, 10))

        def forward(self, x):
            return self.a(x.flatten(1)) + self.b(x.flatten(1))

    path, pair = tmp_path / "training.pt", (batches(16, 16), batches(16))
    history = fit(Two("a", "b"), pair, recipe(), checkpoint=path)
    said = refusal(path, model=Two("b", "a"), pair=pair)
    assert "layers in another order, by which the optimizer's state goes" in said
    assert train_test.read_history(path, Two("b", "a")) == history  # by their names


def test_state_that_is_no_tensor_is_resumed(tmp_path):
    class Counting(Around):
        steps = 0

        def get_extra_state(self):
            return {"steps": self.steps}

        def set_extra_state(self, state):
            self.steps = state["steps"]

    def count(logits):
        models[-1].steps += logits.requires_grad
        return logits

    path, models = tmp_path / "training.pt", [Counting(count)]
    pair = loaders().train, Failing(loaders().test, interrupt, epoch=1)
    with pytest.raises(Interrupted):
        fit(models[0], pair, recipe(), checkpoint=path)
    models.append(Counting(count))
    fit(models[1], loaders(), recipe(), checkpoint=path, resume=True)
    assert models[1].steps == 9
    assert train_test.read_history(path, models[0]) and models[0].steps == 9


def refusal(path, *, model=None, pair=None, plan=None):
    """The one sentence with which a checkpoint is refused, which names it."""
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        fit(
            model or network(),
            pair or loaders(),
            plan or recipe(),
            checkpoint=path,
            resume=True,
        )
    assert path.read_bytes() == content
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_another_recipe_is_named_field_by_field(interrupted):
    sentence = refusal(interrupted, plan=recipe(div_factor=5, padding=2))
    assert "div_factor is 25 there and 5 here" in sentence
    assert "padding is 4 there and 2 here" in sentence
    for name in set(FIELDS) - {"div_factor", "padding"}:
        assert f"{name} is" not in sentence
    for name in set(FIELDS) - {"max_lr"}:
        sentence = refusal(interrupted, plan=recipe(**{name: OTHER[name]}))
        assert f"{name} is " in sentence and sentence.count(" there and ") == 1


def test_another_model_is_an_error(interrupted):
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    before = state_of(other)
    sentence = refusal(interrupted, model=other)
    assert "comes from another model: 0.weight is" in sentence
    assert sentence.count(" there and ") == 3 and "and so on;" in sentence
    assert_same_state(state_of(other), before)


def gelu(model):
    model[2] = nn.GELU()


def frozen(model):
    model[0].requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (gelu, "the model's 2 is 'ReLU' there and 'GELU' here"),
        (frozen, "the model's 0 is 'Conv2d' there and 'Conv2d, frozen' here"),
    ],
)
def test_model_of_the_same_shapes_is_an_error_too(change, sentence, interrupted):
    other = network()
    change(other)
    assert sentence in refusal(interrupted, model=other)


def test_another_number_of_steps_is_an_error(interrupted):
    train, test = loaders()
    sentence = "steps_per_epoch is 3 there and 6 here"
    assert sentence in refusal(interrupted, pair=([*train, *train], test))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def whole_checkpoint_with_code(path, marker):
    torch.save({"format": 1, "plan": Malicious(marker)}, path)
    content = path.read_bytes()
    path.write_bytes(content + hashlib.sha256(content).digest())  # as anybody can


def weights_alone(path, marker):
    torch.save(network().state_dict(), path)


@pytest.mark.parametrize("write", [weights_alone, whole_checkpoint_with_code])
def test_foreign_file_is_an_error_and_its_code_does_not_run(write, tmp_path):
    path, marker = tmp_path / "training.pt", tmp_path / "ran"
    write(path, marker)
    # torch's own sentence recommends to run the code; that advice isn't passed on.
    assert "weights_only" not in refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
def test_failing_write_is_said_and_costs_neither_training_nor_checkpoint(
    interrupted, failing, monkeypatch
):
    content, model, straight = interrupted.read_bytes(), network(), network()
    expected = repeatable(fit(straight, loaders(), recipe()))
    with monkeypatch.context() as patched:
        patched.setattr(failing, raising(NO_SPACE))
        with pytest.warns(UserWarning, match="training.pt can't be written .*No space"):
            done = fit(model, loaders(), recipe(), checkpoint=interrupted, resume=True)
    assert repeatable(done) == expected
    assert_same_state(state_of(model), state_of(straight))
    assert list(interrupted.parent.iterdir()) == [interrupted]
    assert interrupted.read_bytes() == content
    resumed = fit(network(), loaders(), recipe(), checkpoint=interrupted, resume=True)
    assert repeatable(resumed) == expected


def test_the_only_checkpoint_that_is_left_outlives_the_training(
    interrupted, monkeypatch
):
    rename = os.replace

    def refuse(source, target):
        if Path(source).suffix == ".new":  # as a virus scanner that reads it does
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.warns(UserWarning, match="training.pt.previous is kept"):
            fit(network(), loaders(), recipe(), checkpoint=interrupted, resume=True)
    assert list(interrupted.parent.iterdir()) == [
        interrupted.with_name("training.pt.previous")
    ]
    assert_as_if_undisturbed(interrupted)


@pytest.mark.parametrize("renames", [0, 1])
def test_crash_while_a_checkpoint_is_renamed_loses_at_most_an_epoch(
    interrupted, renames, monkeypatch, capsys
):
    """What is there afterwards is gone on from, and isn't overwritten by a new start."""

    class Crash(BaseException):
        pass

    def crash(*args):
        done.append(args)
        if len(done) > renames:
            raise Crash
        return real(*args)

    done, real = [], os.replace
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(os, "replace", crash)
        fit(network(), loaders(), recipe(), checkpoint=interrupted, resume=True)
    assert "epoch   2 |" not in capsys.readouterr().out  # what is shown is kept
    with pytest.raises(FileExistsError):
        fit(network(), loaders(), recipe(), checkpoint=interrupted)
    assert_as_if_undisturbed(interrupted)


# --- precision -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_named_precision_is_taken_where_the_hardware_has_it(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for device in ("cpu", "cuda"):
        chosen = train_test.choose_dtype(name, torch.device(device))
        assert chosen is getattr(torch, name)


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        # Measured on a Xeon: matrix products at half the rate of float32.
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),  # torch may not know its name
    ],
)
def test_auto_on_a_cpu_is_bfloat16_where_that_is_the_fastest(
    capabilities, chosen, monkeypatch
):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: capabilities, raising=False
    )
    assert train_test.choose_dtype("auto", CPU) is chosen


def test_auto_on_a_cpu_is_float32_where_torch_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert train_test.choose_dtype("auto", CPU) is torch.float32


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_auto_on_a_gpu_goes_by_its_capability(capability, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert train_test.choose_dtype("auto", torch.device("cuda")) is chosen
    if chosen is torch.float16:
        with pytest.raises(ValueError, match="bfloat16, which this GPU doesn't have"):
            train_test.choose_dtype("bfloat16", torch.device("cuda"))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_first_steps_agree_with_float32_within_2_percent(precision):
    def losses(dtype):
        model = network()
        optimizer = train_test.make_optimizer(model, recipe(), lr=0.003)
        scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
        seen = dtypes_of_linear(model)
        got = [
            train_test.train_one_epoch(
                model, [batch], optimizer, device=CPU, dtype=dtype, scaler=scaler
            ).loss
            for batch in batches(16, 16, 16, 16, 16)
        ]
        assert set(seen) == {(True, dtype)}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        return got

    exact, rough = losses(torch.float32), losses(getattr(torch, precision))
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)


def test_an_epoch_that_is_done_is_seen_in_a_file_too():
    raw = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(raw, encoding="utf-8")):
        fit(network(), loaders(), recipe())
        shown = raw.getvalue().decode()
    assert shown.count("epoch ") == recipe().epochs


def test_checks_and_range_test_compile_nothing():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    model, pair = torch.compile(network(), backend=backend), loaders()
    train_test.lr_range_test(model, pair.train, recipe(), device=CPU)
    assert not compilations
    fit(model, pair, recipe())
    assert len(compilations) == 2  # for training, for evaluation


def test_what_a_compiled_model_has_learned_the_plain_one_can_go_on_with(tmp_path):
    path, plan = tmp_path / "training.pt", recipe()
    plain, other = network(), network(seed=9)
    compiled = torch.compile(plain, backend="eager")
    history = fit(compiled, loaders(), plan, checkpoint=path)
    assert train_test.read_history(path, other) == history
    assert (
        fit(network(seed=7), loaders(), plan, checkpoint=path, resume=True) == history
    )
    for name, weight in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name
