"""The benchmarks run, count and tell; how fast anything is, is not asserted here."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from benchmarks import __main__ as bench
from benchmarks import (
    adapter,
    data,
    epoch,
    fresh,
    limits,
    steps,
    students,
    together,
    variants,
    whole,
)
from benchmarks.rows import (
    Row,
    Setup,
    Target,
    interleaved,
    ratio,
    table,
    target_table,
)
from benchmarks.targets import targets
from helpers import dataset, models, train_test, utils
from tests.shared import CPU, fit, network, raising, recipe


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_table_says_what_was_not_measured():
    rows = [
        Row(group="a", name="one", unit="s", values=[2.0, 4.0]),
        Row(group="a", name="two", unit="s", values=[4.0, 12.0], against="one"),
        Row(group="a", name="three", unit="s", note="needs a GPU", against="one"),
    ]
    *_, one, two, three = table(rows).splitlines()
    assert one.split() == ["one", "3", "2", "–", "4", "s"]
    assert two.endswith("2.50 × one")  # the median of 2 and 3, not 8 / 3
    assert three.split()[:6] == ["three", "not", "measured", "needs", "a", "GPU"]
    assert not three.endswith("one")


def test_a_target_that_was_not_measured_is_neither_met_nor_missed():
    found = [Target("x", value, "≥", 1.5) for value in (1.5, 1.4, None)]
    assert [target.verdict for target in found] == ["met", "missed", "not measured"]
    assert "not measured" in target_table(found)


def test_targets_are_read_off_their_own_rows():
    def row(group, name, value, against=""):
        unit = "images/s"
        return Row(group=group, name=name, unit=unit, values=[value], against=against)

    step = steps.group("CustomResNet", 512)
    rows = [
        row(data.GROUP, "Albumentations", 10.0),
        row(data.GROUP, data.OURS_PER_IMAGE, 20.0, "Albumentations"),
        row(data.GROUP, data.OURS_BATCHED, 90.0, "Albumentations"),
        row(step, "usual", 10.0),
        row(step, steps.OURS, 11.0, "usual"),
        row(fresh.IMPORTS, "helpers", 60.0),
    ]
    setup = Setup(device=CPU, data="synthetic", threads=1)
    found = {target.text: target for target in targets(rows, setup)}
    per_image, batched, imported = (
        found[text]
        for text in (
            "data path per image, × Albumentations",
            "data path in batches, one core, × Albumentations",
            "import helpers, ms",
        )
    )
    assert (per_image.value, per_image.verdict) == (2.0, "met")
    assert (batched.value, batched.verdict) == (9.0, "met")
    assert (imported.value, imported.verdict) == (60.0, "missed")
    (measured,) = (
        t for name, t in found.items() if name.startswith("CPU step") and t.value
    )
    assert (measured.value, measured.verdict) == (1.1, "missed")


def test_datas_share_is_of_the_step_and_cifar10_fast_is_compared_by_one_clock():
    def row(group, name, value, against=""):
        given = {"group": group, "name": name, "unit": "", "against": against}
        return Row(values=[value], **given)

    shares = zip(epoch.PARTS, (2.0, 20.0, 40.0, 18.0, 20.0), strict=True)
    clocks = [whole.CLOCK.format(name) for name in ("cifar10-fast", whole.OURS)]
    rows = [row(epoch.GROUP, *share) for share in shares]
    rows += [row(whole.GROUP, clocks[0], 12.0, clocks[1])]
    rows += [row(whole.GROUP, clocks[1], 8.0)]
    setup = Setup(device=torch.device("cuda"), data="synthetic", threads=1)
    found = {target.text: target.value for target in targets(rows, setup)}
    assert found["data's share on a GPU, %"] == 2.5
    assert found["seconds of cifar10-fast by airbench's clock, × ours"] == 1.5


def test_contenders_take_turns():
    calls = []

    def contender(name):
        return lambda: calls.append(name) or float(len(calls))

    found = interleaved({name: contender(name) for name in "AB"}, 2)
    assert "".join(calls) == "ABABAB"  # the first of each is the warm-up
    assert found == {"A": [3.0, 5.0], "B": [4.0, 6.0]}


def test_a_ratio_needs_both_rows():
    row = Row(group="a", name="one", unit="s", values=[1.0])
    assert ratio(row, None) is None
    assert ratio(row, Row(group="a", name="two", unit="s")) is None
    # One that failed in a round isn't paired with another round's.
    assert ratio(row, Row(group="a", name="two", unit="s", values=[1.0, 2.0])) is None


def test_a_group_that_fails_loses_nothing_that_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(utils, "commit", lambda: "a")
    row = Row(group="a", name="one", unit="s", values=[1.0])
    groups = {name: lambda setup, rows: [row] for name in ("data", "steps")}
    monkeypatch.setattr(bench, "GROUPS", groups)
    arguments = ["--smoke", "--out", str(tmp_path), "--only"]
    bench.main([*arguments, "steps", "data"])
    (path,) = tmp_path.glob("*.json")
    before = path.read_text()
    groups["data"] = raising(RuntimeError("no compiler"))
    with pytest.raises(SystemExit, match="nothing was measured"):
        bench.main([*arguments, "data"])
    assert path.read_text() == before
    assert "no compiler" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="not measured, for the reasons above: data"):
        bench.main([*arguments, "steps", "data"])
    parts = [row["part"] for row in json.loads(path.read_text())["rows"]]
    assert parts == ["steps"]  # all anew: of data there is nothing
    groups["data"] = lambda setup, rows: [row]
    bench.main([*arguments, "data"])
    parts = [row["part"] for row in json.loads(path.read_text())["rows"]]
    assert parts == ["data", "steps"]


def test_each_kind_of_machine_has_a_record_of_its_own():
    for name, kind in (
        ("Intel(R) Xeon(R) Processor", "intel-xeon-processor-bfloat16"),
        ("NVIDIA H100 80GB (SXM)", "nvidia-h100-80gb-sxm-bfloat16"),
    ):
        assert bench.kind_of({"device": name, "precision": "bfloat16"}) == kind


def test_groups_measured_before_stay_beside_those_measured_anew(tmp_path, capsys):
    path, record = tmp_path / "bench.json", {"commit": "a", "setup": {"threads": 1}}
    rows = [
        {"group": part, "name": "x", "unit": "s", "values": [1.0], "part": part}
        for part in ("data", "steps")
    ]
    path.write_text(json.dumps({**record, "rows": rows, "seconds": 5.0}))
    kept = bench.kept_from(path, record, ["steps"])
    assert [row.part for row in kept["rows"]] == ["data", "steps"]
    assert kept["seconds"] == 5.0
    other = {**record, "commit": "b"}  # of other code
    assert capsys.readouterr().out == ""
    assert bench.kept_from(path, other, ["steps"])["rows"] == []
    assert "is replaced, not added to" in capsys.readouterr().out
    assert bench.kept_from(path, record, list(bench.GROUPS))["rows"] == []
    for commit in ("a-dirty", "unknown"):  # it may have been changed otherwise since
        record["commit"] = commit
        path.write_text(json.dumps({**record, "rows": rows, "seconds": 5.0}))
        assert bench.kept_from(path, record, ["steps"])["rows"] == []


def test_flops_of_an_image():
    assert limits.flops_per_image(models.CustomResNet) == pytest.approx(
        2.27e9, rel=0.01
    )


def test_the_hooks_leave_nothing_behind():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clock = epoch.Clock(CPU)
    with epoch.watched(model, optimizer, clock):
        for images in epoch.WatchedLoader([torch.ones(1, 3)], clock):
            model(images).sum().backward()
            optimizer.step()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    names = [name for name, _ in clock.marks]
    assert names == ["data", "forward", "loss and backward", "optimizer", "data"]
    assert list(clock.totals()) == ["data", "forward", "loss and backward", "optimizer"]


def test_waits_are_those_between_the_first_and_the_last_step():
    events = [("Optimizer.step#AdamW.step", at) for at in (2.0, 9.0, 5.0)]
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    inside = [(name, 3.0 + place) for place, name in enumerate(waits)]
    outside = [(waits[0], 1.0), (waits[0], 10.0)]
    other = [("cudaLaunchKernel", 4.0), ("aten::copy_", 4.0)]
    assert epoch.between_steps([*outside, *events, *inside, *other]) == 3


def test_compiling_pays_back_when_what_it_saves_is_its_price():
    def rows(compiled):
        given = {"group": variants.GROUP, "unit": "images/s"}
        return [
            Row(name=variants.OURS, values=[1_000.0], **given),
            Row(
                name=variants.COMPILED,
                values=[compiled],
                against=variants.OURS,
                **given,
            ),
        ]

    found = variants.pays(rows(1_250.0), price=30.0)
    assert found.values == pytest.approx([3.0])  # an epoch takes 40 s instead of 50
    assert variants.pays(rows(1_000.0), price=30.0).note == "never: no faster"


def test_where_nothing_compiles_the_row_says_why():
    setup = Setup(
        device=CPU,
        data="synthetic",
        threads=1,
        batch_size=2,
        repeats=1,
        compiler=raising(OSError("no compiler here")),
    )
    rows = {row.name: row for row in variants.measure(setup)}
    assert not rows[variants.COMPILED].values
    assert "no compiler here" in rows[variants.COMPILED].note
    assert rows[variants.POOL].values and variants.PAYS not in rows


def test_beside_one_gpu_no_cpus_are_measured_instead_of_two(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    one = Setup(device=torch.device("cuda"), data="synthetic", threads=1)
    (row,) = together.measure(one)
    assert (list(row.values), row.note) == ([], "needs two GPUs")


def test_profiler_that_fails_costs_its_own_row_alone(monkeypatch):
    monkeypatch.setattr(epoch, "waits_in", raising(ValueError("no profiler here")))
    small = {"batch_size": 8, "steps": 2, "repeats": 1, "smoke": True}
    setup = Setup(device=CPU, data="synthetic", threads=1, **small)
    rows = {row.name: row for row in epoch.measure(setup)}
    assert rows[epoch.SYNCS].note == "ValueError: no profiler here"
    assert rows["data"].values


# Adam's first steps are as large for the noise of rounding as for a gradient: at a high
# rate, trainings that differ in the last bit part at once.
RATE = 1e-4


DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


def three_batches(device="cpu"):
    train, _ = dataset.synthetic_cifar10(train=48, test=1)
    return dataset.make_loaders(
        train, train, batch_size=16, device=device, augment_on="device"
    ).train


def our_losses(dtype, device):
    """Of the first three steps, each by train_one_epoch, channels-last."""
    torch.manual_seed(0)
    model = models.CustomResNet().to(device, memory_format=torch.channels_last)
    optimizer = train_test.make_optimizer(model, train_test.Recipe(), lr=RATE)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    options = {"device": device, "dtype": dtype, "scaler": scaler}
    return [
        train_test.train_one_epoch(model, [batch], optimizer, **options).loss
        for batch in three_batches(device)
    ]


def usual_losses():
    """The same by the usual loop, float32 and channels-first."""
    torch.manual_seed(0)
    model = models.CustomResNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    batches = [(images.contiguous(), labels) for images, labels in three_batches()]
    return [
        students.train_one_epoch(model, [batch], optimizer, scheduler, CPU)[0]
        for batch in batches
    ]


@pytest.mark.parametrize("device", DEVICES)
def test_the_fast_paths_train_as_the_usual_loop_does(device):
    usual = usual_losses()
    # On a GPU convolutions of float32 have 10 bits of mantissa.
    close = 1e-3 if device == "cpu" else 1e-2
    assert our_losses(torch.float32, device) == pytest.approx(usual, rel=close)
    fast = (
        train_test.choose_dtype("auto", device) if device == "cuda" else torch.bfloat16
    )
    assert our_losses(fast, device) == pytest.approx(usual, rel=0.02)


def short_loaders():
    train, test = dataset.synthetic_cifar10(train=960, test=500)
    return dataset.make_loaders(
        train, test, batch_size=32, device=CPU, augment_on="device", cutout=0
    )


def usual_accuracy(plan):
    """Of a short run by the usual loop."""
    model, (train, test) = network(), short_loaders()
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        plan.max_lr,
        total_steps=plan.epochs * len(train),
        pct_start=plan.peak_epoch / plan.epochs,
        cycle_momentum=False,
    )
    for number in range(plan.epochs):
        train.set_epoch(number)
        batches = [(images.contiguous(), labels) for images, labels in train]
        students.train_one_epoch(model, batches, optimizer, scheduler, CPU)
    model.eval()
    right = [(model(images).argmax(1) == labels).sum() for images, labels in test]
    return int(sum(right)) / 500


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_short_run_comes_to_the_usual_loops_accuracy(precision):
    plan = recipe(
        epochs=6,
        batch_size=32,
        peak_epoch=2,
        max_lr=0.02,
        cutout=0,
        precision=precision,
    )
    usual = usual_accuracy(plan)
    assert usual > 0.35
    ours = fit(network(), short_loaders(), plan).last.test_accuracy
    noise = (2 * usual * (1 - usual) / 500) ** 0.5  # a difference's standard error
    assert abs(ours - usual) < 3 * noise


def test_both_students_loaders_give_each_image_once_with_a_hole():
    train, _ = dataset.synthetic_cifar10(train=16, test=1)
    for make in (students.torchvision_loader, students.albumentations_loader):
        ((images, labels),) = make(train, 16)
        assert images.shape == (16, 3, 32, 32) and images.dtype == torch.float32
        assert sorted(labels.tolist()) == sorted(train.labels.tolist())
        # A hole of 8×8 of the mean colour, rounded to whole levels by one of them.
        assert ((images.abs() < 0.02).all(1).sum((1, 2)) >= 64).all()


SCRIPT = """
import sys
import numpy as np
import pandas
import torchvision
found = torchvision.datasets.CIFAR10(root="cifar10", train={train}, download=True)
assert found.data.shape == ({count}, 32, 32, 3) and len(found.targets) == {count}
assert open(sys.argv[0]).read()
for run in range(9):
    print("|   eval  |   %.4f  |   %.4f  |" % (np.float(0.5) + run / 100, 1.5 + run))
"""


@pytest.fixture
def cifar10_folder(tmp_path):
    """An image folder, of two images of a class for training and one for the test."""
    for split, count in (("train", 20), ("test", 10)):
        images, _ = dataset.synthetic_cifar10(train=count, test=1)
        for number, pixels in enumerate(images.images):
            path = tmp_path / "data" / split / dataset.CIFAR10_CLASSES[number % 10]
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path / f"{number:02}.png")
    return str(tmp_path / "data")


@pytest.mark.parametrize(("train", "count"), [(True, 20), (False, 10)])
def test_a_rival_runs_as_it_is_and_is_timed(tmp_path, cifar10_folder, train, count):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(train=train, count=count))
    rival = whole.RIVALS["airbench94"]
    first, clocks, accuracies = whole.run_rival(rival, script, cifar10_folder)
    assert first > 0
    assert (clocks, accuracies) == ([2.5, 3.5], [0.51, 0.52])  # the first is a warm-up


def test_a_rival_that_fails_is_a_row_that_says_so_and_the_next_one_runs(
    tmp_path, monkeypatch, cifar10_folder
):
    (tmp_path / "one.py").write_text("raise SystemExit(3)")
    (tmp_path / "two.py").write_text(SCRIPT.format(train=True, count=20))
    rivals = {
        name: dataclasses.replace(whole.RIVALS["airbench94"], script=f"{name}.py")
        for name in ("one", "two")
    }
    monkeypatch.setattr(whole, "RIVALS", rivals)
    setup = Setup(device=CPU, data=cifar10_folder, threads=1, rivals=tmp_path)
    failures = {}
    found = dict(whole.rivals(setup, failures))
    assert found["two, airbench's clock"] == 3.0
    assert not any(label.startswith("one") for label in found)
    found = failures["one, accuracy on the test images"]
    assert "one.py ended with status 3 after 0 of 3 trainings" in found


def test_a_rival_that_hangs_is_ended(tmp_path, monkeypatch, cifar10_folder):
    (tmp_path / "one.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setattr(whole, "LIMIT", 0.5)
    with pytest.raises(
        RuntimeError, match="was ended after 0.5 s and 0 of 3 trainings"
    ):
        whole.run_rival(whole.RIVALS["airbench94"], tmp_path / "one.py", cifar10_folder)


def test_the_programs_failure_costs_its_own_row_alone(tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # no folder, which is said at once
    setup = Setup(device=CPU, data=str(tmp_path / "file"), threads=1)
    failures = {}
    assert whole.cold(setup, failures) == []
    (label,) = failures
    assert label == whole.COLD.format(whole.OURS)
    assert failures[label] == "exit status 1"
    # Which costs that round alone.
    monkeypatch.setattr(whole.subprocess, "run", lambda *args, **options: None)
    assert dict(whole.cold(setup, failures)).keys() == {label}


def test_the_last_line_of_cifar10_fast_is_understood():
    line = "          24       1.2763       0.1955       0.9951       0.0839       0.1989       0.9402      35.0596"
    (found,) = whole.re.findall(whole.RIVALS["cifar10-fast"].end, line)
    assert found == ("0.9402", "35.0596")


def test_adapter_gives_plain_labels(tmp_path, cifar10_folder):
    given = adapter.given_images(cifar10_folder)(root=str(tmp_path / "made"))
    assert given.targets == [*range(10), *range(10)] and (tmp_path / "made").is_dir()
    assert given.classes == list(dataset.CIFAR10_CLASSES)


# What cifar10-fast takes a GPU for, without one.
NO_CUDA = """
import torch
from torch import nn
torch.cuda.synchronize()
layer, last = nn.Conv2d(3, 8, 3).to("cpu").half(), nn.Linear(8, 2).half()
images = torch.ones(2, 3, 4, 4).cuda().half()
found = layer(images)
out = last(found.mean((2, 3)))
out.sum().backward()
assert layer.weight.dtype == layer.weight.grad.dtype == out.dtype == torch.float32
assert found.dtype == {dtype} and found.is_contiguous(memory_format=torch.channels_last)
assert torch.ones(1, dtype=torch.long).cuda().dtype == torch.long
with torch.no_grad():
    layer.weight.zero_(), layer.bias.zero_()
assert not layer(images).any()  # what is learned is used
for run in range(9):
    print("|   eval  |   0.5  |   1.5  |")
"""


def test_without_a_gpu_a_rival_computes_as_fit_does(
    tmp_path, monkeypatch, cifar10_folder
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = tmp_path / "script.py"
    script.write_text(NO_CUDA.format(dtype=train_test.choose_dtype("auto", CPU)))
    rival = whole.RIVALS["airbench94"]
    assert whole.run_rival(rival, script, cifar10_folder)[1] == [1.5, 1.5]
