"""All benchmarks run through, with sizes that mean nothing: a minute, so make test-all."""

import json
import os

import pytest

from benchmarks import epoch, figures, variants
from tests.shared import python


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    on_cpu = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ("--smoke", "--out", folder)
    done = python("-m", "benchmarks", *options, env=on_cpu, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_rehearsal_leaves_record_and_figures(rehearsal):
    folder, said = rehearsal
    (path,) = folder.glob("bench-*.json")
    record = json.loads(path.read_text())
    assert record["setup"]["smoke"] and record["hardware"]["threads"] == 1
    assert {"commit", "versions", "hardware", "rows", "targets"} <= set(record)
    for figure in (path.stem, path.stem.replace("bench", "bench-second")):
        assert (folder / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert "REHEARSAL" in said and "TARGETS" in said


def test_on_a_cpu_all_is_measured_but_what_needs_a_gpu_or_minutes(rehearsal):
    (path,) = rehearsal[0].glob("bench-*.json")
    rows = figures.rows_of(json.loads(path.read_text()))
    missing = {row.note for row in rows if not row.values}
    missing.discard(variants.NEVER)  # an answer, which is up to chance in a rehearsal
    assert missing == {
        "needs a CUDA device",
        "takes longer than a rehearsal",
        epoch.NO_WAITS,
    }
    assert all(value >= 0 for row in rows for value in row.values)
    shares = [row.values[0] for row in rows if row.name in epoch.PARTS]
    assert sum(shares) == pytest.approx(100)
