"""How steps are taken: in which precision, by which optimizer, at which learning rates."""

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from helpers.recipe import ALLOWED, Recipe


def choose_dtype(precision: str, device: torch.device | str) -> torch.dtype:
    """What to compute in: for "auto", the fastest type that the hardware really has.

    bfloat16 from CUDA capability 8 on, on CPUs with AMX, and on those with AVX512-BF16 that
    aren't Intel's; float16 on older GPUs; float32 elsewhere.

    Raises ValueError for devices of other kinds, for a precision that isn't one of
    Recipe's, and for bfloat16 on an older GPU.
    """
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):  # not one of torch's names, or no name
        kind = "unknown"
    if kind not in ("cpu", "cuda"):
        # MPS has no float64, and copies late from memory that may be another's by then.
        raise ValueError(
            f"device is {device}; give cpu or cuda, the only ones that work"
        )
    allows, allowed = ALLOWED["precision"]
    if not allows(precision):
        raise ValueError(f"precision must be {allowed}, not {precision!r}")
    if kind == "cuda" and precision in ("auto", "bfloat16"):
        # torch.cuda.is_bf16_supported() counts emulation, which is slow.
        modern = torch.cuda.get_device_capability(device) >= (8, 0)
        if precision == "bfloat16" and not modern:
            raise ValueError(
                "precision is bfloat16, which this GPU doesn't have in hardware; take "
                "float16, which auto chooses"
            )
        return torch.bfloat16 if modern else torch.float16
    if precision != "auto":
        return getattr(torch, precision)
    # An older torch doesn't tell; float32 is right everywhere.
    has = getattr(torch.cpu, "get_capabilities", dict)()
    # Some virtual machines hide a Xeon's AMX. On the one measured, AVX512-BF16 then had
    # half the rate of float32. (Cooper Lake, which never had AMX, wasn't measured.)
    intel = "Intel" in has.get("cpu_name", "")
    fast = has.get("amx_bf16") or (has.get("avx512_bf16") and not intel)
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Within, layers that gain by it compute in `dtype`; for float32 nothing changes."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


class NonFiniteLoss(FloatingPointError):
    """The loss or the gradients became NaN or infinite; the message says when."""


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Keeps float16's small gradients from vanishing; for other types it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def require_finite_gradients(scaler: torch.amp.GradScaler, when: str) -> None:
    """Raise NonFiniteLoss where float16 has skipped more steps than its scale explains."""
    # The scale begins at 65,536 and is halved at each step that is skipped.
    if scaler.is_enabled() and scaler.get_scale() < 1:
        raise NonFiniteLoss(
            f"the gradients are not finite in {when}, and float16 skips such steps; look at "
            "the model's backward pass, or compute in float32 (Recipe's precision, or dtype)"
        )


def make_optimizer(model: nn.Module, recipe: Recipe, *, lr: float) -> Optimizer:
    """The recipe's optimizer over all parameters, with learning rate `lr`, a number.

    model: on its device, and in channels-last memory if it is to be, already.

    Adam (Kingma and Ba, 2014) with its weight decay apart from the gradient (Loshchilov
    and Hutter, 2017) and none for biases and BatchNorm, or stochastic gradient descent with
    Nesterov's momentum of 0.9, whose decay is part of the gradient and reaches everything,
    as in Page's recipe.
    """
    decay, parameters = recipe.weight_decay, list(model.parameters())
    if recipe.optimizer == "sgd":
        sgd = SGD(
            parameters, lr, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
        )
        # Where float16 overflows in the first step, that is skipped, and the fused kernel
        # would go on from momenta that were never initialized (torch 2.15).
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    # Biases and BatchNorm's parameters are vectors. To shrink them only costs.
    weights = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay}
    vectors = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0}
    groups = [group for group in (weights, vectors) if group["params"]]
    return AdamW(groups, lr, fused=True)  # one pass over memory instead of ten


def require_rise(recipe: Recipe, steps_per_epoch: int) -> None:
    """Raise ValueError where the learning rate has no step to rise in."""
    if recipe.peak_epoch * steps_per_epoch <= 1:
        raise ValueError(
            f"peak_epoch {recipe.peak_epoch} leaves the learning rate no step to rise in, "
            f"as an epoch has {steps_per_epoch}; make either larger"
        )


def make_scheduler(
    optimizer: Optimizer, recipe: Recipe, *, max_lr: float, steps_per_epoch: int
) -> OneCycleLR:
    """One cycle (Smith and Topin, 2017), to be stepped after each batch.

    From max_lr / div_factor up to max_lr at the last step of peak_epoch, then down to the
    first rate / final_div_factor at the last step of all. The optimizer's rate becomes the
    first of these. steps_per_epoch: len(loader).

    Raises ValueError for a max_lr of None, as in a recipe that wants a range test, and for
    a peak_epoch that ends with the first step or before.
    """
    if max_lr is None:
        raise ValueError(
            "max_lr is None; give a number, that of lr_range_test(...).max_lr say"
        )
    require_rise(recipe, steps_per_epoch)
    return OneCycleLR(
        optimizer,
        max_lr,
        total_steps=recipe.epochs * steps_per_epoch,
        pct_start=recipe.peak_epoch / recipe.epochs,
        anneal_strategy=recipe.anneal,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
        # By default it also cycles Adam's beta1, which the assignment doesn't.
        cycle_momentum=False,
    )


def planned_learning_rates(
    recipe: Recipe, *, max_lr: float, steps_per_epoch: int
) -> list[float]:
    """The learning rate of each of the training's steps, before any is taken.

    Raises what `make_scheduler` does.
    """
    optimizer = Adam([torch.zeros(1, requires_grad=True)])
    scheduler = make_scheduler(
        optimizer, recipe, max_lr=max_lr, steps_per_epoch=steps_per_epoch
    )
    rates = []
    for _ in range(scheduler.total_steps):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return rates
