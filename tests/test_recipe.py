"""The recipes: what their optimizers and scales do, and where Page's is from."""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import models, train_test, utils
from helpers.checkpoint import previous
from helpers.train_test import PROFILES, RECIPES, Recipe
from tests.shared import (
    CPU,
    FIELDS,
    assert_same_state,
    break_off,
    loaders,
    network,
)
from tests.shared import recipe as tiny
from tools import readme


def named(name, **changes):
    return dataclasses.replace(Recipe(), **{**RECIPES[name], **changes})


def fit(model, recipe, **options):
    return train_test.fit(model, loaders(), recipe, device=CPU, **options)


# --- what is taken and what refused ----------------------------------------------------


def test_recipe_in_a_record_is_that_of_its_run_or_of_another_version():
    (trained, *_) = utils.read_records(readme.RESULTS, "run-ours-*.json")
    assert Recipe.from_record(trained) == named("ours")
    without = {k: v for k, v in trained["recipe"].items() if k != "flip"}
    for had, said in (
        ({**trained["recipe"], "average_epochs": 3}, "have average_epochs;"),
        ({**without, "beta2": 0.99}, "have beta2, flip; use the version that wrote"),
    ):
        with pytest.raises(ValueError, match=f"of another version.* {said}"):
            Recipe.from_record({**trained, "recipe": had})


REFUSED = {
    "a whole number from 1": {
        "epochs": [0, -1, 1.5, True, "24", None, math.nan],
        "batch_size": [0, -512, 512.0, None],
        "lr_test_seeds": [0, 2.5, False],
    },
    "a whole number from 1, or None": {
        "train_images": [0, -1, 1e3, "all"],
        "test_images": [0, -1, 1e3, True],
    },
    "a whole number of pixels from 0": {
        "padding": [-1, 4.0, None, True],
        "cutout": [-1, 8.5, "8"],
    },
    "a probability from 0 to 1": {"flip": [1.1, -0.1, math.nan, "x", None, True]},
    "one of adam, sgd": {"optimizer": ["Adam", "", None, 1]},
    "a number from 0": {"weight_decay": [-1e-4, math.nan, math.inf, None, "0"]},
    "0 to below 1": {"label_smoothing": [1, -0.1, math.nan, None, True]},
    "a number above 0": {"logit_scale": [0, -1, math.inf, None]},
    "one of cos, linear": {"anneal": ["cosine", None]},
    "a number above 0, or None for the range test": {
        "max_lr": [0, -1, math.nan, math.inf, "x", True],
    },
    "a number above 0, below epochs": {
        "peak_epoch": [0, -1, math.nan, math.inf, None, "5"],
    },
    "a number from 1": {
        "div_factor": [0.9, -25, math.nan, math.inf, None],
        "final_div_factor": [0, 0.5, math.inf, "x"],
    },
    "a whole number from 10": {"lr_test_steps": [9, 0, 100.0, None]},
    "one of auto, float32, bfloat16, float16": {
        "precision": ["half", "FLOAT32", "", None, 16, torch.float32],
    },
}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        (name, value, allowed)
        for allowed, fields in REFUSED.items()
        for name, values in fields.items()
        for value in values
    ],
)
def test_refused_value_is_named_with_its_field_and_what_is_allowed(
    name, value, allowed
):
    sentence = re.escape(f"{name} must be {allowed}, not {value!r}")
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Recipe(**{name: value})


def test_numpy_number_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"not np.float64\(0.01\); try its .item\(\)"):
        Recipe(max_lr=np.float64(0.01))


def test_no_field_goes_unchecked():
    assert {name for fields in REFUSED.values() for name in fields} == set(FIELDS)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1, "peak_epoch": 0.5},
        {"flip": 0, "padding": 0, "cutout": 0},
        {"flip": 1, "max_lr": 1, "div_factor": 1, "final_div_factor": 1.5},
        {"lr_test_steps": 10, "lr_test_seeds": 1, "batch_size": 1},
        {"train_images": 1, "test_images": 1, "precision": "float16"},
        {"weight_decay": 5, "label_smoothing": 0.99},
    ],
)
def test_values_at_the_edge_of_what_is_allowed_are_taken(changes):
    made = Recipe(**changes)
    assert {name: getattr(made, name) for name in changes} == changes


@pytest.mark.parametrize("peak", [24, 24.0, 25])
def test_peak_that_is_not_below_the_epochs_is_refused(peak):
    sentence = (
        f"peak_epoch is {peak} and must be below epochs, which is 24; lower peak_epoch"
    )
    with pytest.raises(ValueError, match=sentence):
        Recipe(peak_epoch=peak)
    with pytest.raises(
        ValueError,
        match="is 5 and must be below epochs, which is 5; lower peak_epoch, to 1.25 say",
    ):
        Recipe(epochs=5)


@pytest.mark.parametrize("name", ["quick", "smoke"])
def test_profile_differs_from_the_assignment_in_numbers_alone(name):
    profile, assignment = PROFILES[name], Recipe()
    amounts = {"epochs", "batch_size", "train_images", "test_images", "peak_epoch"}
    amounts |= {"lr_test_steps", "lr_test_seeds"}
    # What is learned with is the same everywhere.
    for field in set(FIELDS) - amounts:
        assert getattr(profile, field) == getattr(assignment, field)


def test_full_profile_is_the_assignment_and_the_others_are_smaller():
    assert PROFILES["full"] == Recipe()
    for name in ("quick", "smoke"):
        assert PROFILES[name].epochs < Recipe().epochs
        assert PROFILES[name].train_images < 50_000


def test_schedule_that_cannot_be_made_is_refused():
    def planned(*, max_lr=0.01, **changes):
        return train_test.planned_learning_rates(
            Recipe(**changes), max_lr=max_lr, steps_per_epoch=10
        )

    assert planned()[0] == pytest.approx(0.01 / 25)
    with pytest.raises(ValueError, match="max_lr is None; give a number"):
        planned(max_lr=Recipe().max_lr)
    for peak in (0.05, 0.1):
        with pytest.raises(ValueError, match="no step to rise in, as an epoch has 10"):
            planned(peak_epoch=peak)


# --- Page's, against dawn.py of github.com/davidcpage/cifar10-fast --------------------


def test_pages_schedule_is_that_of_his_code():
    # PiecewiseLinear([0, 5, 24], [0, 0.4, 0]) at (step + 1) / steps of an epoch.
    steps = (np.arange(24 * 98) + 1) / 98
    his = np.interp(steps, [0, 5, 24], [0, 0.4, 0])
    ours = train_test.planned_learning_rates(
        named("page"), max_lr=0.4, steps_per_epoch=98
    )
    assert ours == pytest.approx(his, abs=1e-6)


@pytest.mark.parametrize("batch", [4, 32])
def test_pages_step_is_that_of_his_code_for_any_batch_size(batch):
    """His loss is a sum, lr is divided and decay multiplied by the batch size."""
    torch.manual_seed(0)
    model, lr = nn.Linear(6, 3), 0.4
    images, labels = torch.randn(batch, 6), torch.randint(3, (batch,))
    weights = [p.detach().clone() for p in model.parameters()]
    speeds = [torch.zeros_like(w) for w in weights]
    optimizer = train_test.make_optimizer(model, named("page"), lr=lr)
    for _ in range(3):
        held = [w.clone().requires_grad_() for w in weights]
        loss = F.cross_entropy(F.linear(images, *held), labels)
        grads = torch.autograd.grad(batch * loss, held)
        for w, grad, v in zip(weights, grads, speeds, strict=True):
            step = -lr / batch * (grad + 5e-4 * batch * w)
            v.mul_(0.9).add_(step)
            w.add_(step + 0.9 * v)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        for ours, his in zip(model.parameters(), weights, strict=True):
            assert torch.allclose(ours, his, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"optimizer": "sgd"}, {"weight_decay": 0.5}, {"label_smoothing": 0.3}],
    ids=str,
)
def test_fit_trains_by_the_recipes_optimizer_decay_and_smoothing(change):
    plain, changed = network(), network()
    fit(plain, tiny())
    fit(changed, tiny(**change))
    assert not torch.equal(changed[-1].weight, plain[-1].weight)


# --- weight decay ----------------------------------------------------------------------


def test_adam_shrinks_weights_but_neither_biases_nor_batchnorm():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = train_test.make_optimizer(model, tiny(weight_decay=0.3), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        factor = 1 - 0.1 * 0.3 if old.ndim > 1 else 1
        assert torch.allclose(new, factor * old)


def test_without_decay_it_is_adam():
    one, other = network(), network()
    optimizers = [
        train_test.make_optimizer(one, tiny(), lr=0.01),
        torch.optim.Adam(other.parameters(), lr=0.01, fused=True),
    ]
    for model, optimizer in zip((one, other), optimizers, strict=True):
        train_test.train_one_epoch(model, loaders().train, optimizer, device=CPU)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# --- smoothing, scale, mirror images --------------------------------------------------


def test_labels_are_smoothed_in_training_alone():
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model[-1].bias.data[0] = 5.0  # sure of class 0, whatever it sees
    images, labels = torch.randn(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)
    rest = torch.optim.SGD(model.parameters(), lr=0)
    trained = train_test.train_one_epoch(
        model, [(images, labels)], rest, device=CPU, label_smoothing=0.1
    )
    sure = -math.log(math.exp(5) / (math.exp(5) + 9))
    assert trained.loss == pytest.approx(sure + 0.09 * 5, rel=1e-5)
    tested = train_test.evaluate(model, [(images, labels)], device=CPU)
    assert tested.loss == pytest.approx(sure, rel=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_logit_scale_multiplies_the_logits(name):
    def logits(scale):
        torch.manual_seed(0)
        model = models.MODELS[name](logit_scale=scale).eval()
        with torch.inference_mode():
            return model(torch.ones(1, 3, 32, 32))

    assert torch.allclose(logits(0.125), logits(1) / 8)


def test_flip_tta_is_the_mean_over_image_and_mirror_image():
    model = network()
    # It may change its images in place.
    model.register_forward_pre_hook(lambda _, given: (given[0].mul_(2),))
    images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)

    def logits(seen, **options):
        pair = seen.clone(), labels
        found = train_test.predict(model, [pair], device=CPU, **options)
        return found.logits

    both = (logits(images) + logits(images.flip(3))) / 2
    assert not torch.allclose(both, logits(images))
    assert torch.allclose(logits(images, flip_tta=True), both)
    assert torch.allclose(logits(images.flip(3), flip_tta=True), both)


# --- what a checkpoint tells -----------------------------------------------------------


def test_checkpoint_gives_history_and_the_weights_that_were_evaluated(tmp_path):
    model, path = network(), tmp_path / "training.pt"
    history = fit(model, tiny(), checkpoint=path)
    other = network(seed=9)
    assert train_test.read_history(path, other) == history
    assert_same_state(other.state_dict(), model.state_dict())
    path.rename(previous(path))  # as a stop in the middle of a write leaves it
    assert train_test.read_history(path) == history
    path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"training\.pt is damaged"):
        assert train_test.read_history(path) == history


def test_read_history_says_what_does_not_fit(tmp_path):
    path = break_off(tmp_path / "training.pt")
    with pytest.raises(FileNotFoundError, match="nothing.pt is not there"):
        train_test.read_history(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="training.pt.*comes from another model"):
        train_test.read_history(path, nn.Linear(3, 3))
    other = network(seed=5)
    other.logit_scale = 8
    with pytest.raises(ValueError, match="is 1 and the model's 8; .* recipe with 8$"):
        train_test.read_history(path, other)
    assert torch.equal(other[0].weight, network(seed=5)[0].weight)  # as it was


# --- any recipe at all -----------------------------------------------------------------

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.sampled_from(["adam", "sgd", "cos", "linear", "auto", "float32", "", "24"]),
)


@given(st.dictionaries(st.sampled_from([*Recipe.__dataclass_fields__]), anything))
def test_any_values_make_a_recipe_or_one_sentence(values):
    try:
        recipe = Recipe(**values)
    except ValueError as error:
        sentence = str(error)
        assert "\n" not in sentence
        names = [f"{name} must be " for name in values]
        if values.keys() & {"epochs", "peak_epoch"}:
            names.append("peak_epoch is ")
        assert sentence.startswith(tuple(names))
        return
    assert {name: getattr(recipe, name) for name in values} == values


@pytest.fixture
def unset_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unset_memory_is_nan")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_first_step_that_overflows_in_float16_leaves_no_trace(optimizer):
    model = network()
    spared = copy.deepcopy(model)
    for one, factors in ((model, (math.inf, 1)), (spared, (1,))):
        taken = train_test.make_optimizer(one, tiny(optimizer=optimizer), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for factor in factors:
            taken.zero_grad()
            loss = sum(factor * p.square().sum() for p in one.parameters())
            scaler.scale(loss).backward()
            scaler.step(taken)
            scaler.update()
    for found, wanted in zip(model.parameters(), spared.parameters(), strict=True):
        assert torch.equal(found, wanted)
