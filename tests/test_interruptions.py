"""Interrupted runs: killed, stopped, without room, damaged, divided over processes."""

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filelock import FileLock
from PIL import Image
from runs import (
    arguments,
    assert_bit_equal,
    assert_equal_to_rounding,
    digits,
    environment,
    last_state,
    numbers,
    records,
    signal_after,
    start,
    stop_at,
    train_with_few_checkpoints,
    uses_whole,
    wait_for,
)

from examples.experiments import compare, evaluate, sweep
from examples.image_classification import __main__ as entry
from examples.image_classification import program as image_program
from examples.image_classification.batches import Dataset, Stream
from examples.image_classification.config import Config
from examples.training import program as training_program
from examples.training import train as trainer
from examples.training.checkpoints import NOT_DIGESTED, TrainingError, verify_digests
from examples.training.output import LossyStream
from examples.training.progress import Stopped
from examples.training.run_folder import Diverged, RunFolder, read_config_file
from examples.training.train import train


def copy_of(whole, out):
    """A copy of the run that was not interrupted."""
    shutil.copytree(whole[0].out, out)
    return dataclasses.replace(whole[0], out=out)


def run(config, capsys, *extra):
    """Runs the trainer's command in this process. Returns its status and its errors."""
    capsys.readouterr()
    status = entry.main([*arguments(config), *extra])
    return status, capsys.readouterr().err


def only_error(printed):
    """The error in what a program has printed, a single line."""
    [line] = [line for line in printed.splitlines() if "error: " in line]
    return line


# --- Killed and stopped ---


@uses_whole
def test_a_killed_and_stopped_run_resumes_bit_equal(whole, tmp_path, capsys):
    config, history = whole
    config = dataclasses.replace(config, out=tmp_path / "run")
    process = start(config)
    wait_for(3, config, process)
    time.sleep(random.uniform(0.0, 0.3))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal_after(number, len(records(config.out)) + 3, config)
        status, printed = run(config, capsys)
        assert status == 128 + number, printed
        step = int(re.search(r"stopped after step (\d+), which is saved", printed)[1])
        assert step < 200
        assert last_state(config.out)["step"] == step

    assert numbers(train_with_few_checkpoints(config)) == numbers(history)
    assert numbers(records(config.out)) == numbers(history)
    assert_bit_equal(last_state(config.out), last_state(whole[0].out))


def test_ctrl_c_ends_a_program_at_once_until_training_begins():
    """As an exception it would be lost in some of the imports."""
    # As `python -m examples.NAME` imports the package.
    code = "import sys, os, signal; sys.argv[0] = '-m'; import examples; os.kill(os.getpid(), 2)"
    process = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True)
    assert (process.returncode, process.stderr) == (-signal.SIGINT, b"")
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL  # other imports leave it


@uses_whole
def test_a_stop_within_an_epoch_resumes_bit_equal(whole, tmp_path, monkeypatch):
    config = dataclasses.replace(whole[0], out=tmp_path / "run", steps_per_dispatch=2, epochs=2)
    stop_at(7, config, monkeypatch)
    stopped = train(config, show=False)
    straight = train(dataclasses.replace(config, out=tmp_path / "straight"), show=False)
    assert numbers(stopped) == numbers(straight)
    assert_bit_equal(last_state(config.out), last_state(tmp_path / "straight"))


def test_a_signal_during_an_evaluation_stops_the_run_after_it(tmp_path, monkeypatch):
    config = digits(tmp_path / "run", method="sgd")
    evaluate = trainer.evaluate

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(trainer, "evaluate", signalled)
    with pytest.raises(Stopped, match="stopped after step 5, which is saved"):
        train(config, show=False)
    assert len(records(config.out)) == 1
    assert last_state(config.out)["step"] == 5


def test_streamed_images_resume_bit_equal(tmp_path, monkeypatch):
    def png(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed % 5, 24, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        return {"image": file.getvalue(), "label": seed % 10}

    splits = [
        Stream([png(i) for i in range(n)], np.arange(n), np.zeros(n, np.int32), 10, side=16)
        for n in (20, 10)
    ]
    data = Dataset(*splits, np.zeros(3), np.ones(3), 10, (16, 16, 3))
    monkeypatch.setattr("examples.image_classification.data.load", lambda config: data)
    config = digits(tmp_path / "straight", method="sgd", batch_size=4)
    config = dataclasses.replace(config, epochs=2, steps_per_dispatch=2)
    straight = train(config, show=False)
    assert [record["step"] for record in straight] == [5, 10]
    assert straight[0]["train_loss"] != straight[1]["train_loss"]
    resumed = dataclasses.replace(config, out=tmp_path / "resumed")
    stop_at(2, resumed, monkeypatch)
    assert numbers(train(resumed, show=False)) == numbers(straight)
    assert_bit_equal(last_state(resumed.out), last_state(config.out))


@uses_whole
def test_a_finished_run_is_not_trained_again(whole):
    config, history = whole
    assert train(config, show=False) == history


# --- Not finite ---


def test_a_nonfinite_loss_raises_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    config = digits(tmp_path / "run", method="sgd")
    stop_at(10, config, monkeypatch)
    before = last_state(config.out)
    # The images of the rest of the run are broken.
    monkeypatch.setattr(
        image_program.ImageProgram, "_normalize", lambda self, pixels: pixels * jnp.float32(jnp.inf)
    )
    training_program._shared_program.cache_clear()
    with pytest.raises(TrainingError) as caught:
        train(config, show=False)
    training_program._shared_program.cache_clear()
    rate = 0.05 * (1 + math.cos(math.pi * 10 / 15)) / 2
    assert "step 10 is not finite" in str(caught.value)
    assert f"learning rate {rate:.4g}" in str(caught.value)
    assert f"the last good checkpoint is that of step 10 in {config.out}" in str(caught.value)
    assert_bit_equal(last_state(config.out), before)
    assert len(records(config.out)) == 2


def test_a_nonfinite_update_raises_and_is_not_saved(tmp_path, monkeypatch):
    make = training_program.make_optimizer
    spoil = optax.scale_by_schedule(lambda count: jnp.where(count == 14, jnp.inf, 1.0))
    monkeypatch.setattr(
        training_program, "make_optimizer", lambda *arguments: optax.chain(make(*arguments), spoil)
    )
    config = digits(tmp_path / "run", method="sgd", label_smoothing=0.01)
    with pytest.raises(TrainingError, match=r"step 14 is not finite.* that of step 10 "):
        train(config, show=False)
    assert last_state(config.out)["step"] == 10
    training_program._shared_program.cache_clear()


@uses_whole
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_test_loss_that_is_not_finite_fails_and_keeps_the_run(value, whole, tmp_path, capsys):
    config = copy_of(whole, tmp_path / "run")
    history = records(config.out)
    history[-1]["test_loss"] = value
    lines = "".join(json.dumps(record) + "\n" for record in history)
    (config.out / "metrics.jsonl").write_text(lines)
    status, printed = run(config, capsys)
    assert status == 1
    assert f"test_loss of the last epoch is not finite, in {config.out}" in only_error(printed)
    assert (config.out / "metrics.jsonl").read_text() == lines
    assert last_state(config.out)["step"] == 200
    with pytest.raises(Diverged):
        train(config, show=False)


# --- One program in a folder ---


def test_a_second_program_in_a_folder_is_refused(tmp_path, capsys):
    config = digits(tmp_path / "run", method="sgd", epochs=1)
    with RunFolder(config.out, config):
        status, printed = run(config, capsys)
        assert status == 2
        message = f"another program trains in {config.out}: wait for its end, or give another --out"
        assert message in only_error(printed)
        # An equal sweep does not wait either.
        words = ["--out", str(tmp_path), "--each", "--dataset digits --epochs 1", "--method sgd"]
        (tmp_path / "sgd").mkdir()
        (tmp_path / "sgd" / "seed0").symlink_to(config.out)
        assert sweep.main(words) == 2
        assert "another program trains in" in only_error(capsys.readouterr().err)
    assert not (config.out / "metrics.jsonl").exists()
    assert train(config, show=False)  # now it is free


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks"), NotImplementedError()])
def test_a_file_system_without_locks_is_used_with_a_warning(error, tmp_path, monkeypatch, capsys):
    def acquire(self):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    status, printed = run(digits(tmp_path / "run", method="sgd", epochs=1), capsys)
    assert status == 0
    assert f"warning: {tmp_path / 'run'} is on a file system without locks" in printed


def test_the_lock_ends_with_a_failed_run(tmp_path):
    config = digits(tmp_path / "run", method="sgd", epochs=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(TrainingError, match=r"run/checkpoints cannot be opened \("):
        train(config, show=False)
    (tmp_path / "run" / "checkpoints").unlink()
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(ValueError, match="holds a run with seed 0, not 1"):
        train(other, show=False)
    assert train(config, show=False)


def test_the_configuration_is_compared_before_there_is_a_checkpoint(tmp_path, capsys):
    config = digits(tmp_path / "run", epochs=1)
    with RunFolder(config.out, config):
        pass
    status, printed = run(dataclasses.replace(config, rho=0.4, seed=1), capsys)
    assert status == 2
    text = f"{config.out} holds a run with seed 0, not 1; rho 0.3, not 0.4: repeat its settings to"
    assert text in only_error(printed)
    assert json.loads((config.out / "config.json").read_text())["rho"] == 0.3


@uses_whole
def test_settings_that_are_younger_than_a_run_have_their_defaults(whole, tmp_path, capsys):
    config = copy_of(whole, tmp_path / "run")
    file = config.out / "config.json"
    saved = json.loads(file.read_text())
    for name in ("momentum", "distributed_timeout", "label_smoothing"):
        del saved[name]
    file.write_text(json.dumps(saved))
    assert read_config_file(config.out, Config) == dataclasses.replace(config, checkpoint_every=20)
    assert train(config, show=False) == whole[1]
    status, printed = run(dataclasses.replace(config, label_smoothing=0.1), capsys)
    assert status == 2
    assert "with label_smoothing 0.0, not 0.1" in only_error(printed)


@uses_whole
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object with dataset, model, method, seed, epochs"),
        ('"augmentation": null', r"augmentation must be tuple\[str, ...\], got None"),
        ('"epochs": "3"', "epochs must be int, got '3'"),
        ('"sead": 3', "sead"),
        ("\xff", "invalid start byte"),
    ],
)
def test_a_broken_configuration_is_named(text, message, whole, tmp_path, capsys):
    config = copy_of(whole, tmp_path / "run")
    file = config.out / "config.json"
    if text.startswith('"'):  # a setting
        text = json.dumps(json.loads(file.read_text()) | json.loads(f"{{{text}}}"))
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=f"{file} cannot be read: .*{message}"):
        read_config_file(config.out, Config)
    status, printed = run(config, capsys)
    assert status == 2
    assert str(config.out) in only_error(printed)
    assert last_state(config.out)["step"] == 200


def test_a_run_does_not_spill_into_the_current_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert entry.main(["--out", "."]) == 2
    assert "--out is the current folder, which holds no run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        entry.main(["--out", ""])
    assert capsys.readouterr().err == "image_classification: error: --out names no folder\n"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digits("~/x").out == tmp_path / "x"


# --- Damage ---


@uses_whole
def test_damage_of_any_file_of_a_checkpoint_is_found(whole, tmp_path, capsys):
    config = copy_of(whole, tmp_path / "run")
    folder = config.out / "checkpoints" / "200"
    files = {path for path in folder.rglob("*") if path.is_file()}
    times = {path for path in files if path.name in NOT_DIGESTED[1:]}
    assert len(files) > 5
    for path in files - times:
        if not path.stat().st_size:
            continue
        before = path.read_bytes()
        position = random.randrange(len(before))
        damaged = bytearray(before)
        damaged[position] ^= 1 << random.randrange(8)
        for text in (bytes(damaged), before[:position]):
            path.write_bytes(text)
            with pytest.raises(ValueError, match=r" is not as it was written$"):
                verify_digests(folder)
        path.write_bytes(before)
        verify_digests(folder)
    path = folder / "default" / "manifest.ocdbt"
    path.unlink()
    status, printed = run(config, capsys)
    assert status == 1
    line = only_error(printed)
    assert f"{folder} cannot be read ({path.relative_to(folder)} is not as it was written)" in line
    assert line.endswith("delete it to resume from the one before")
    # The same command resumes from the checkpoint before.
    shutil.rmtree(folder)
    assert numbers(train_with_few_checkpoints(config)) == numbers(whole[1])
    assert_bit_equal(last_state(config.out), last_state(whole[0].out))


@uses_whole
def test_damage_of_the_only_checkpoint_does_not_point_to_another(whole, tmp_path, capsys):
    config = copy_of(whole, tmp_path / "run")
    folder = config.out / "checkpoints" / "200"
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)
    sums = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(sums[1:]))
    status, printed = run(config, capsys)
    assert status == 1
    assert only_error(printed).endswith("is not as it was written): delete it to start again")


@uses_whole
def test_reading_a_checkpoint_leaves_one_that_is_being_written(whole, tmp_path):
    config = copy_of(whole, tmp_path / "run")
    writing = config.out / "checkpoints" / "205.orbax-checkpoint-tmp"
    writing.mkdir()
    before = sorted(config.out.rglob("*"))
    evaluate.restore(config.out)
    assert sorted(config.out.rglob("*")) == before


@uses_whole
def test_a_checkpoint_without_digests_is_read_with_a_warning(whole, tmp_path, capsys):
    config = copy_of(whole, tmp_path / "run")
    (config.out / "checkpoints" / "200" / "SHA256SUMS").unlink()
    status, printed = run(config, capsys)
    assert status == 0
    assert "checkpoints/200 has no SHA256SUMS to verify it by" in printed


@uses_whole
def test_digests_are_those_of_sha256sum(whole):
    folder = whole[0].out / "checkpoints" / "200"
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b": OK") >= 5


@uses_whole
def test_damaged_metrics_are_moved_aside_and_the_run_goes_on(whole, tmp_path, capsys):
    config = copy_of(whole, tmp_path / "run")
    file = config.out / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    bad = [
        b'{"step": NaN, "epoch": 3}',
        b"{]}",
        b"[1]",
        b'{"epoch": 2}',
        b'{"step": "x", "epoch": 1}',
        b"\xff}",
        b"",
        b"null",
    ]
    expected = [record for i, record in enumerate(whole[1]) if i != 4]
    cut = b'{"epoch": 41, "st'
    file.write_bytes(b"\n".join([*lines[:4], *bad, *lines[5:], cut]))
    status, printed = run(config, capsys)
    assert status == 0
    for number in range(5, 5 + len(bad)):
        assert re.search(
            rf"{re.escape(str(file))}, line {number} cannot be read: .*moved to metrics.damaged.js",
            printed,
        )
    # The run was killed while it wrote the last line.
    assert re.search("line 48 cannot be read: .*moved to metrics.damaged", printed)
    assert "the metrics of 1 epochs before step 200 are lost" in printed
    assert records(config.out) == expected
    assert (config.out / "metrics.damaged.jsonl").read_bytes().splitlines() == [*bad, cut]
    # A last line without its end, and one that is there twice.
    file.write_bytes(b"\n".join([lines[0], *lines]))
    status, printed = run(config, capsys)
    assert (status, "cannot be read" in printed, "are lost" in printed) == (0, False, False)
    assert records(config.out) == whole[1]
    file.write_text('{"step": 200, "epoch": 40}\n')
    status, printed = run(config, capsys)
    assert (status, "the metrics of 39 epochs" in printed) == (0, True)
    assert "delete" not in printed
    (config.out / "metrics.jsonl").unlink()
    status, printed = run(config, capsys)
    assert status == 0
    text = "the metrics of 40 epochs before step 200 are lost. To train the last ones again, delete"
    assert f"{text} {config.out}/checkpoints/200\n" in printed


# --- No room ---


@contextlib.contextmanager
def files_up_to(size):
    """No file may get longer, as if there were no room. Python ignores the signal."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_at_the_metrics_ends_the_run(tmp_path, capsys, monkeypatch):
    config = digits(tmp_path / "run", method="sgd", epochs=40, checkpoint_every=40)
    # Nor may the cache of compiled programs, so these come first.
    stop_at(5, dataclasses.replace(config, out=tmp_path / "compiled"), monkeypatch)
    with files_up_to(2048):
        status, printed = run(config, capsys)
    assert status == 1
    line = only_error(printed)
    assert "error: metrics could not be written (" in line
    assert line.endswith("Make room, then run the same command")
    assert not list(config.out.glob(".metrics*"))


@uses_whole
def test_a_full_disk_at_a_checkpoint_keeps_the_last_one(whole, tmp_path, monkeypatch):
    config, history = whole
    config = dataclasses.replace(config, out=tmp_path / "run")
    stop_at(10, config, monkeypatch)
    # In a process of its own: threads of orbax outlive the error, and print.
    process = start(config, before=["bash", "-c", 'ulimit -f 30; exec "$@"', "bash"])
    _, printed = process.communicate()
    assert process.returncode == 1, printed
    line = next(line for line in printed.splitlines() if "error: no checkpoint" in line)
    assert f"(File too large); the last good checkpoint is that of step 10 in {config.out}" in line
    assert "Make room, then" in line
    assert last_state(config.out)["step"] == 10
    assert numbers(train_with_few_checkpoints(config)) == numbers(history)
    assert_bit_equal(last_state(config.out), last_state(whole[0].out))


def test_another_cause_does_not_ask_for_room(tmp_path, capsys):
    config = digits(tmp_path / "run", method="sgd", epochs=1)
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    status, printed = run(config, capsys)
    assert status == 1
    line = only_error(printed)
    assert "Is a directory" in line
    assert "room" not in line


# --- Lost output ---


@contextlib.contextmanager
def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(OSError), os.fdopen(write, "w", buffering=1) as stream:
        yield stream


class FullDisk(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


STREAMS = {"pipe": broken_pipe, "disk": FullDisk, "closed": contextlib.nullcontext}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_run_ends_well_without_its_output(stream, tmp_path, monkeypatch):
    config = digits(tmp_path / "run", method="sgd", epochs=2)
    with STREAMS[stream]() as out, STREAMS[stream]() as err, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        assert entry.main(arguments(config)) == 0
        # From Python, too.
        longer = dataclasses.replace(config, out=tmp_path / "other")
        assert len(train(longer)) == 2
    assert len(records(config.out)) == 2


def test_files_do_not_get_the_number_of_a_closed_stream(tmp_path):
    code = f"""
import os, sys
os.close(2)
sys.stderr = None
from examples.training.output import lossy_output
with lossy_output():
    print("lost", file=sys.stderr)
    file = open({str(tmp_path / "file")!r}, "w")
    os.write(2, b"lost")
    assert file.fileno() > 2
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
    assert (tmp_path / "file").read_text() == ""


def test_output_before_a_break_arrives():
    read, write = os.pipe()
    with contextlib.suppress(OSError), os.fdopen(write, "w", buffering=1) as pipe:
        stream = LossyStream(pipe)
        stream.write("one\n")
        assert os.read(read, 10) == b"one\n"
        os.close(read)
        stream.write("two\n")
        stream.write("three\n")
        stream.flush()


@uses_whole
def test_a_table_piped_into_head_is_no_error(whole, tmp_path, monkeypatch):
    with broken_pipe() as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert compare.main([str(whole[0].out), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "table.md").exists()


# --- Several processes ---


def start_two(config, *others, devices=1):
    """Starts two processes of a run. The second one may have another configuration."""
    # Or XLA on CPU may start independent collectives in another order on each process.
    in_order = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(
            (config, *others)[min(index, len(others))],
            extra=["--distributed"],
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_NUM_CPU_DEVICES=str(devices),
            XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {in_order}",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]


def ends(processes):
    """What two processes have printed, and their statuses."""
    printed = [process.communicate(timeout=120) for process in processes]
    return [process.returncode for process in processes], printed


def test_two_processes_match_one_and_stop_together(tmp_path):
    sizes = {"train_size": 64, "validation_size": 0, "batch_size": 32, "epochs": 16}
    sizes |= {"evaluate_every": 16, "distributed_timeout": 10, "groups": 4}
    config = digits(tmp_path / "two", **sizes, method="xsam", fsdp=True, augmentation=("crop",))
    processes = start_two(config)
    wait_for(1, config, processes[0])
    processes[1].kill()  # one is lost, and the other ends
    statuses, printed = ends(processes)
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] in (1, -signal.SIGABRT), printed
    # What is first: a collective fails, a checkpoint, or JAX aborts.
    lost = "another process of the run (was lost|did not start or was lost)|error: no checkpoint"
    assert re.search(lost, printed[0][1])
    assert "Traceback" not in printed[0][1]

    processes = start_two(config)
    wait_for(len(records(config.out)) + 1, config, processes[0])
    processes[1].send_signal(signal.SIGINT)  # one is told, and both stop
    statuses, printed = ends(processes)
    assert statuses == [143, 130], printed
    saved = [int(path.name) for path in (config.out / "checkpoints").iterdir()]
    assert 0 < max(saved) < 32
    config = dataclasses.replace(config, checkpoint_every=16)
    statuses, printed = ends(start_two(config, devices=2))  # it resumes on four in place of two
    assert statuses == [0, 0], printed
    assert ["%" in out for out, _ in printed] == [True, False]  # one of them prints
    alone = train_with_few_checkpoints(dataclasses.replace(config, out=tmp_path / "one"))
    # Rounding grows over the steps.
    assert_equal_to_rounding(records(config.out), alone, rtol=0.05)


def test_two_processes_with_different_settings_are_refused(tmp_path):
    config = digits(tmp_path / "two", train_size=64, validation_size=0, batch_size=32)
    statuses, printed = ends(start_two(config, dataclasses.replace(config, rho=0.2)))
    assert statuses == [2, 2]
    line = only_error(printed[0][1])
    assert "rho is 0.2 on process 1 and 0.3 on process 0: start all processes with" in line
    assert not config.out.exists()


def test_a_process_that_never_starts_ends_the_other_with_a_line(tmp_path):
    """As one that is lost: JAX aborts with a stack trace."""
    config = digits(tmp_path / "two", distributed_timeout=2)
    first, second = start_two(config)
    second.kill()
    second.communicate()
    begin = time.monotonic()
    _, printed = first.communicate()
    assert first.returncode < 0
    assert time.monotonic() - begin < 60
    assert printed.splitlines()[-1].startswith(
        "this process was killed, or another process of the run did not start or was lost for 2 s "
    )
