"""Several processes train one network: real ones, under torchrun, on the CPU."""

import contextlib
import itertools
import os
import socket
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import nn

from helpers import dataset, train_test
from helpers.processes import Processes, connected
from tests import together
from tests.shared import (
    CPU,
    IMAGES,
    assert_same_state,
    loaders,
    network,
    python,
    recipe,
    untimed,
)

# Also where there is a GPU; and plain text, whatever the environment asks for.
ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}


def torchrun(processes, *arguments, restarts=0):
    command = ["-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr=127.0.0.1"]  # the host's own name may lead nowhere
    command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m"]
    return python(*command, *arguments, env={**os.environ, **ON_CPU}, timeout=300)


def epochs(found):
    return untimed(found["history"]["epochs"])


def left_by(folder, processes):
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(request.param, "tests.together", folder)
    assert done.returncode == 0, done.stderr
    return left_by(folder, request.param), done.stdout


@pytest.fixture(scope="module")
def alone():
    return together.train(Processes(), batchnorm=False)


def test_several_train_as_one_does(several, alone):
    for found in several[0]:
        for row, expected in zip(epochs(found["plain"]), epochs(alone), strict=True):
            assert row == pytest.approx(expected, rel=1e-4)
        for name, weight in alone["model"].items():
            theirs = found["plain"]["model"][name]
            assert torch.allclose(theirs, weight, rtol=1e-3, atol=1e-4), name


def test_loader_that_tells_its_share_alone_trains_as_one_does(several):
    expected, sizes = together.own(Processes())
    assert sizes == [12]
    for found in several[0]:
        theirs, sizes = found["own"]
        assert sizes == [12]  # all processes' together
        for name, weight in expected.items():
            assert torch.allclose(theirs[name], weight, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_all_end_with_the_same_weights_statistics_and_history(several, kind):
    first, *others = [found[kind] for found in several[0]]
    for other in others:
        assert_same_state(first["model"], other["model"])
        assert epochs(other) == epochs(first)


def test_each_test_image_is_counted_once_and_in_order(several):
    labels = torch.from_numpy(IMAGES[1].labels)
    for found in several[0]:
        assert torch.equal(found["plain"]["labels"], labels)
        logits = found["plain"]["logits"]
        accuracy = (logits.argmax(1) == labels).double().mean()
        assert epochs(found["plain"])[-1]["test_accuracy"] == pytest.approx(
            float(accuracy)
        )


def test_range_test_is_that_of_one_process_on_whole_batches(several):
    search = train_test.lr_range_test(
        network(norm=False), loaders().train, recipe(), device=CPU
    )
    assert {found["max_lr"] for found in several[0]} == {search.max_lr}


def test_only_the_first_prints(several):
    lines = [line for line in several[1].splitlines() if line.startswith("epoch")]
    assert len(lines) == 2 * recipe().epochs


def test_different_recipes_data_and_whole_loaders_are_refused(several):
    for rank, found in enumerate(several[0]):
        said = found["refused"]
        assert "epochs is 3 in process 0 and 4 in process 1" in said["recipe"]
        assert "max_lr is 0.01 in process 0 and 0.02 in process 1" in said["rate"]
        assert "images is ['0'," in said["data"]
        share = f"({rank}, {len(several[0])})"
        assert f"give make_loaders share={share}" in said["share"]
        assert "padding is 4 in process 0 and None in process 1" in said["transform"]


def test_no_thread_outlives_the_connection(several):
    # One that is late to drop a tensor would abort the process when all is done, and
    # torchrun would then begin again.
    for found in several[0]:
        if sys.platform == "linux":  # which tells the names
            assert [name for name in found["threads within"] if "gloo" in name]
        assert not [name for name in found["threads"] if "gloo" in name]


# Of three, each run sums in an order of its own.
@pytest.mark.parametrize("several", [2], indirect=True)
def test_killed_process_is_restarted_and_ends_as_if_nothing_had_happened(
    several, tmp_path
):
    done = torchrun(2, "tests.together", tmp_path, "killed", restarts=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "going on after epoch" in done.stdout
    for one, other in zip(left_by(tmp_path, 2), several[0], strict=True):
        assert epochs(one) == epochs(other["batchnorm"])
        assert_same_state(one["model"], other["batchnorm"]["model"])


def test_batchnorm_over_gpus_is_the_models_own_and_leaves_the_model_as_it_was(
    monkeypatch,
):
    parallel = "helpers.processes.DistributedDataParallel"
    monkeypatch.setattr(parallel, lambda model: model)
    model = network()
    kinds = [type(module) for module in model.modules()]
    trained = Processes(0, 2).wrap(model, torch.device("cuda"))
    assert [type(module) for module in model.modules()] == kinds
    assert [nn.SyncBatchNorm if kind is nn.BatchNorm2d else kind for kind in kinds] == [
        type(module) for module in trained.modules()
    ]
    theirs = trained.state_dict(keep_vars=True)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert theirs[name] is tensor, name


# --- one that fails -------------------------------------------------------------------


def test_process_that_fails_says_so_and_the_others_that_wait_for_it_end(tmp_path):
    done = torchrun(2, "tests.together", tmp_path, "failing")
    assert done.returncode == 1
    assert "ValueError: what went wrong" in done.stderr
    # torch 2.8 adds a line for each connection.
    lines = [line for line in done.stdout.splitlines() if line[:6] != "[Gloo]"]
    assert lines == ["said before"]
    assert "took leave" not in done.stderr


# --- the shares ------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["cpu", "device"])
@pytest.mark.parametrize("processes", [2, 3])
def test_shares_of_a_batch_are_the_batch(on, processes):
    def epoch(share):
        made = loaders(on=on, padding=0, flip=0, cutout=0, share=share)
        assert made.train.batch_sizes == [16, 16, 8]
        return list(made.train), list(made.test)

    whole, tested = epoch((0, 1))
    shares = [epoch((rank, processes)) for rank in range(processes)]
    for place, (images, labels) in enumerate(whole):
        parts = [train[place] for train, _ in shares]
        assert torch.equal(torch.cat([images for images, _ in parts]), images)
        assert torch.equal(torch.cat([labels for _, labels in parts]), labels)
        sizes = [len(labels) for _, labels in parts]
        assert max(sizes) - min(sizes) <= 1
    stretches = itertools.chain.from_iterable(test for _, test in shares)
    together_again = torch.cat([images for images, _ in stretches])
    assert torch.equal(together_again, torch.cat([images for images, _ in tested]))


def test_shares_of_a_batch_are_augmented_as_the_batch_is_on_the_device():
    whole = next(iter(loaders().train))[0]
    parts = [next(iter(loaders(share=(r, 3)).train))[0] for r in range(3)]
    assert torch.equal(torch.cat(parts), whole)


def test_several_processes_that_may_train_a_model_each_are_warned_of():
    model, train = network(), loaders(share=(0, 2)).train
    optimizer = train_test.make_optimizer(model, train_test.Recipe(), lr=0.1)
    with (
        pytest.warns(UserWarning, match="its own model .*DataParallel") as said,
        pytest.raises(ValueError, match="process group"),  # they aren't connected here
    ):
        train_test.train_one_epoch(model, train, optimizer, device=CPU)
    assert said[0].filename == __file__


def test_shares_of_a_batch_are_augmented_differently_by_albumentations():
    same = np.zeros((8, 32, 32, 3), np.uint8)
    same[:] = np.random.default_rng(0).integers(0, 255, (32, 32, 3))
    images = dataset.ImageSet(same, np.zeros(8, np.int64), ("a",), "one image")
    one, other = (
        dataset.make_loaders(images, images, batch_size=8, device=CPU, share=(rank, 2))
        for rank in range(2)
    )
    assert not torch.equal(next(iter(one.train))[0], next(iter(other.train))[0])


@pytest.mark.parametrize("share", [(0, 9), (2, 2), (-1, 2), (0, 0)])
def test_share_that_would_be_empty_is_refused(share):
    with pytest.raises(ValueError, match=r"share must be .* at most 8 processes"):
        dataset.make_loaders(*IMAGES, batch_size=16, device=CPU, share=share)


# --- finding each other ----------------------------------------------------------------


@contextlib.contextmanager
def taken_port():
    with socket.create_server(("localhost", 0)) as server:
        yield str(server.getsockname()[1])


def test_process_without_torchrun_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with connected() as processes:
        assert processes == Processes.current() == (0, 1)


def test_process_that_failed_alone_can_connect_again(monkeypatch):
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # whichever is free
    for name, value in {**place, "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(KeyError), connected() as processes:
            assert processes == Processes.current() == (0, 1)
            raise KeyError


@pytest.mark.parametrize("taken", [True, False])
def test_port_in_use_and_missing_process_are_one_sentence(taken, monkeypatch):
    with taken_port() as port:
        pass
    monkeypatch.setattr("helpers.processes.ARRIVAL", timedelta(seconds=1))
    held = taken_port() if taken else contextlib.nullcontext(port)
    with held as port:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for name, value in {**place, "RANK": "0", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        reason = "already in use" if taken else "[Tt]imed out"
        said = rf"processes did not find each other at localhost:{port} .*{reason}.*port, or unset WORLD_SIZE to train in one$"
        with (
            pytest.raises(ConnectionError, match=said),
            connected(),
        ):
            pass
    assert Processes.current() == (0, 1)


def test_process_that_is_not_told_where_the_others_are_is_one_sentence(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConnectionError, match=r"at \?:\? .*MASTER_ADDR"), connected():
        pass


def test_process_for_which_there_is_no_gpu_is_said(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    said = (
        r"process 1 \(from 0\) has no GPU of its own: this machine has 1; start no more"
    )
    with pytest.raises(ValueError, match=said), connected():
        pass
