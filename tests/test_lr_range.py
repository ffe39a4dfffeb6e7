"""The learning-rate range test leaves no trace, and its rule reads curves as it says."""

import contextlib
import itertools
import math
import random
import statistics
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers import lr_range, train_test
from tests.shared import (
    CPU,
    Around,
    Failing,
    Interrupted,
    batches,
    generators,
    interrupt,
    loaders,
    network,
    noise,
    recipe,
    undiverged,
)


class Drawing(Dataset):
    """Augments with every global generator that there is."""

    def __init__(self):
        self.images, self.labels = noise(40)

    def __len__(self):
        return 40

    def __getitem__(self, i):
        drawn = random.random() + np.random.random() + torch.rand(()).item()
        return self.images[i] + drawn, self.labels[i]


@pytest.fixture
def used():
    """A model and optimizer in the middle of a training, some layers frozen."""
    model = network(dropout=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for images, labels in batches(16, 16):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model[1].eval()
    return model, optimizer


@pytest.mark.parametrize("kind", ["cpu", "device", "plain"])
def test_range_test_leaves_no_trace(used, kind, capsys):
    model, optimizer = used
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    if kind == "plain":
        train = DataLoader(Drawing(), batch_size=16, shuffle=True)
    else:
        train = loaders(on=kind).train
        train.set_epoch(5)

    def traces():
        return {
            "weights": {k: v.tolist() for k, v in model.state_dict().items()},
            "gradients": [p.grad.tolist() for p in model.parameters()],
            "memory": [(p.data_ptr(), p.stride()) for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "optimizer": repr(optimizer.state_dict()),
            "generators": generators(),
            "epoch": getattr(train, "epoch", None),
        }

    before = traces()
    first = train_test.lr_range_test(model, train, recipe(), device=CPU)
    after = traces()
    for name in before:
        assert after[name] == before[name], name
    assert train_test.lr_range_test(model, train, recipe(), device="cpu") == first
    assert capsys.readouterr() == ("", "")


def test_range_test_of_a_model_that_fit_refuses_is_refused_before_its_steps():
    train = loaders().train
    with pytest.raises(ValueError, match=r"recipe's logit_scale is 0\.5 and"):
        train_test.lr_range_test(network(), train, recipe(logit_scale=0.5), device=CPU)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 10))
    with pytest.raises(ValueError, match="can't take the images"):
        train_test.lr_range_test(narrow, train, recipe(), device=CPU)
    assert train.epoch == 0


def test_gradients_of_float16_are_scaled_so_that_none_vanishes():
    largest = []

    def watched(logits):
        if logits.requires_grad:
            logits.register_hook(lambda grad: largest.append(float(grad.abs().max())))
        return logits

    for precision in ("float32", "float16"):
        plan = recipe(precision=precision, lr_test_seeds=1)
        model = Around(watched)
        train_test.lr_range_test(model, loaders().train, plan, device=CPU)
    steps = len(largest) // 2
    assert largest[steps] / largest[0] == pytest.approx(65_536, rel=0.05)


def test_gradients_that_float16_cannot_hold_are_not_taken_for_a_loss_that_scatters():
    def overflowing(logits):
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * math.nan)
        return logits

    plan = recipe(precision="float16", lr_test_steps=20)
    said = "gradients are not finite in the range test, and float16 skips such steps"
    with pytest.raises(train_test.NonFiniteLoss, match=said):
        train_test.lr_range_test(Around(overflowing), loaders().train, plan, device=CPU)


def test_range_test_does_not_depend_on_what_was_drawn_before():
    model, train = network(dropout=0.5), loaders().train

    def losses(seed):
        torch.manual_seed(seed)
        return train_test.lr_range_test(model, train, recipe(), device=CPU).losses

    assert losses(1) == losses(2)


def test_failed_range_test_puts_the_loader_back():
    train = Failing(loaders(share=(0, 2)).train, interrupt, epoch=1)
    train.set_epoch(4)
    torch.manual_seed(3)
    model, before = network(), generators()
    with pytest.raises(Interrupted):
        train_test.lr_range_test(model, train, recipe(), device=CPU)
    assert (train.epoch, train.share) == (4, (0, 2))
    assert generators() == before


def test_range_test_goes_from_nothing_to_too_much_once_a_seed():
    result = train_test.lr_range_test(
        network(), loaders().train, recipe(lr_test_seeds=3), device=CPU
    )
    rates = result.learning_rates
    assert len(rates) == 30
    assert (rates[0], rates[-1]) == pytest.approx((1e-5, 1))
    assert np.diff(np.log(rates)) == pytest.approx(np.log(1e5) / 29)
    assert len(result.losses) == len(result.smoothed) == 3
    # Other batches each time, of one model: as it was, not as the test before left it.
    first = [one[0] for one in result.losses]
    assert len(set(first)) == 3
    assert max(first) - min(first) < 0.5
    assert lr_range.choose_max_lr(rates, result.losses) == result


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"weight_decay": 5},
        {"label_smoothing": 0.3},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_range_tests_losses_are_those_of_training_at_its_rates(change):
    plan = recipe(lr_test_seeds=1, **change)
    found = train_test.lr_range_test(network(), loaders().train, plan, device=CPU)
    model, train = network().to(memory_format=torch.channels_last), loaders().train
    optimizer = train_test.make_optimizer(model, plan, lr=1)
    drawn = [*itertools.chain.from_iterable(iter(train) for _ in range(7))][:20]
    trained = train_test.train_one_epoch(
        model,
        drawn,
        optimizer,
        scheduler=LambdaLR(optimizer, found.learning_rates.__getitem__),
        device=CPU,
        dtype=train_test.choose_dtype(plan.precision, CPU),
        label_smoothing=plan.label_smoothing,
    )
    sizes = [len(labels) for _, labels in drawn]
    expected = np.average(found.losses[0][:20], weights=sizes)
    assert trained.loss == pytest.approx(expected, rel=1e-4)


class Scripted(nn.Module):
    """Two classes' logits that give these losses, one per step, to images of class 0."""

    def __init__(self, losses):
        super().__init__()
        self.losses, self.weight = losses, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        loss, *self.losses = self.losses
        logits = torch.tensor([0, math.log(math.expm1(loss))]).expand(len(x), 2)
        return logits + self.weight * 0


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        # The third is above the first, the fifth ten times the lowest, the sixth both.
        ([2.0, 1.0, 2.5, 0.01, 0.1, 2.1, 0.01], 6),
        ([3.0, 2.0, 1.0, math.nan, 1.0], 4),
    ],
)
def test_range_test_ends_where_it_diverges_or_its_loss_is_no_number(losses, steps):
    train = [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))]
    short = recipe(lr_test_steps=10, lr_test_seeds=1)
    found = train_test.lr_range_test(Scripted(losses), train, short, device=CPU)
    (got,) = found.losses
    assert got == pytest.approx(losses[:steps], rel=1e-4, nan_ok=True)


def test_range_test_that_sees_no_divergence_says_so_to_whoever_asked():
    falling = [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))]
    short = recipe(lr_test_steps=10, lr_test_seeds=1)
    losses = [2.0 - 0.1 * step for step in range(12)]
    with pytest.warns(UserWarning, match="saw no divergence") as told:
        train_test.lr_range_test(Scripted(losses), falling, short, device=CPU)
    assert [warning.filename for warning in told] == [__file__]


def test_range_test_without_its_package_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_lr_finder", None)
    sentence = "pip install torch-lr-finder, or give max_lr"
    with pytest.raises(ModuleNotFoundError, match=sentence):
        train_test.lr_range_test(network(), loaders().train, recipe(), device=CPU)


def test_range_test_of_other_kinds_of_arguments_is_said():
    train = loaders().train
    with pytest.raises(
        TypeError, match=r"must be a Recipe, not a dict; replace\(Recipe"
    ):
        train_test.lr_range_test(
            network(), train, train_test.RECIPES["ours"], device=CPU
        )
    with pytest.raises(TypeError, match="must be an nn.Module, not a type"):
        train_test.lr_range_test(nn.Identity, train, recipe(), device=CPU)


def test_range_test_without_images_is_said():
    with pytest.raises(ValueError, match="the loader has no batch"):
        train_test.lr_range_test(network(), [], recipe(), device=CPU)


@undiverged
def test_range_test_takes_a_loader_that_counts_epochs_in_its_own_way():
    class Counting(list):
        epoch = 3

    train = Counting(batches(16, 16))
    assert train_test.lr_range_test(network(), train, recipe(), device=CPU).max_lr > 0
    assert train.epoch == 3


# From 1e-5 to 1 in steps of a tenth of a decade.
RATES = [10 ** (-5 + step / 10) for step in range(51)]


def valley(rate, *, bottom=1e-2, high=2.0, low=1.0):
    """Falls to `low` at `bottom`, then climbs as fast as the whole depth in 2 decades."""
    x = math.log10(rate / bottom)
    return low + (high - low) * (x / 2 if x > 0 else x / math.log10(1e-5 / bottom))


def test_each_loss_is_averaged_with_its_neighbours_on_both_sides():
    losses = [valley(rate) for rate in RATES]
    losses[20] += 1
    (smoothed,) = lr_range.choose_max_lr(RATES, [losses]).smoothed
    assert smoothed[0] == pytest.approx(statistics.fmean(losses[:3]))
    for step in (18, 20, 22):
        around = losses[step - 2 : step + 3]
        assert smoothed[step] == pytest.approx(statistics.fmean(around))


def test_clean_valley_gives_a_third_of_where_it_is_left():
    losses = [valley(rate) for rate in RATES]
    result = lr_range.choose_max_lr(RATES, [losses])
    # A quarter of the depth is climbed half a decade beyond the bottom.
    assert result.divergence_lr == pytest.approx(10**-1.5, rel=0.3)
    assert result.divergence_lr in RATES
    bottom, start = min(result.median), result.median[0]
    assert result.rim == pytest.approx(bottom + (start - bottom) / 4)
    assert result.max_lr == pytest.approx(result.divergence_lr / 3)
    assert result.losses == [losses]


@pytest.mark.parametrize(("first", "falls"), [(0.105, False), (0.13, True)])
def test_fall_counts_from_twice_the_scatter(first, falls):
    losses = [first, *[0.1, 0.12, 0.08] * 6]
    refused = pytest.raises(ValueError, match="didn't fall")
    with contextlib.nullcontext() if falls else refused:
        lr_range.choose_max_lr(RATES[:19], [losses])


def test_few_losses_that_only_scatter_are_an_error_too():
    with pytest.raises(ValueError, match="didn't fall"):
        lr_range.choose_max_lr(RATES[:18], [[0.1, 0.12, 0.08] * 6])


def test_losses_that_scatter_beyond_the_bottom_alone_are_read():
    falling = [valley(rate, bottom=1e-3, high=1.5) for rate in RATES]
    wild = [loss + 3 * (i % 2) * (i > 20) for i, loss in enumerate(falling)]
    assert lr_range.choose_max_lr(RATES, [wild]).divergence_lr in RATES[18:24]


def test_deeper_and_shifted_valleys_are_read_alike():
    def at(**shape):
        losses = [valley(rate, **shape) for rate in RATES]
        return lr_range.choose_max_lr(RATES, [losses]).divergence_lr

    assert at(high=20, low=2) == at()
    assert at(bottom=1e-3) == pytest.approx(10**-2.5, rel=0.3)


def test_hill_before_the_bottom_is_no_divergence():
    losses = [valley(rate) for rate in RATES]
    clean = lr_range.choose_max_lr(RATES, [losses])
    losses[8:13] = [3.0] * 5
    assert lr_range.choose_max_lr(RATES, [losses]).max_lr == clean.max_lr


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_test_ends_where_its_loss_is_no_number(worst):
    falling = [valley(rate, bottom=1) for rate in RATES]
    broken = falling[:35] + [worst] + [0.1] * 15
    result = lr_range.choose_max_lr(RATES, [broken])
    assert result.divergence_lr == RATES[35]
    assert result.max_lr == pytest.approx(RATES[35] / 3)
    assert [len(one) for one in result.smoothed] == [35]


def test_test_that_was_ended_diverges_there_at_the_latest():
    ended = [valley(rate, bottom=1) for rate in RATES[:40]]
    assert lr_range.choose_max_lr(RATES, [ended]).divergence_lr == RATES[40]
    exploded = [*ended, 100.0]
    assert lr_range.choose_max_lr(RATES, [exploded]).divergence_lr <= RATES[40]


def test_two_tests_are_read_as_far_as_both_went():
    falling = [valley(rate, bottom=1) for rate in RATES]
    result = lr_range.choose_max_lr(RATES, [falling, falling[:35]])
    assert result.divergence_lr == RATES[35]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_noisy_seed_among_three_does_not_decide(place):
    clean = [valley(rate) for rate in RATES]
    noisy = [loss + 3 * (step % 7 == 0) for step, loss in enumerate(clean)]
    noisy[32:] = [8.0] * 19  # and it leaves the valley early
    tests = [clean, clean, clean]
    alone = lr_range.choose_max_lr(RATES, tests)
    tests[place] = noisy
    among = lr_range.choose_max_lr(RATES, tests)
    assert among.max_lr == alone.max_lr
    assert among.divergence_lr == alone.divergence_lr
    assert lr_range.choose_max_lr(RATES, [noisy]).max_lr < alone.max_lr


def test_loss_that_falls_to_the_end_diverges_nowhere_which_is_said():
    falling = [valley(rate, bottom=1) for rate in RATES]
    with pytest.warns(UserWarning, match="no divergence up to a learning rate of 1,"):
        result = lr_range.choose_max_lr(RATES, [falling, falling])
    assert result.divergence_lr is None
    assert result.max_lr == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "losses",
    [
        [2.3] * 51,
        [2.3 + step / 10 for step in range(51)],
        [2.3],
        [0.1, 0.12, 0.08] * 17,  # of a network that was trained before
    ],
)
def test_loss_that_does_not_fall_is_an_error_that_names_the_remedy(losses):
    sentence = (
        r"didn't fall .* between learning rates 1e-05 and 1e\+00; "
        r"make the model anew .*lr_test_steps.*max_lr"
    )
    with pytest.raises(ValueError, match=sentence):
        lr_range.choose_max_lr(RATES, [losses])


def test_images_that_are_not_finite_are_not_answered_with_more_steps():
    images, labels = noise(32)
    train = DataLoader(TensorDataset(images * math.nan, labels), batch_size=16)
    with pytest.raises(
        ValueError, match="not finite in the first step of a range test"
    ):
        train_test.lr_range_test(network(), train, recipe(), device=CPU)
