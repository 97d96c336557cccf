"""Sub and orchestration callables of the tests of the Python package; importable by children and sessions."""

from __future__ import annotations

import os
import signal
import sys
import time


def double(args):
    """Doubles tensor 0 in place."""
    view = args.tensor(0).numpy()
    view *= 2


def add_scalar(args):
    """Adds scalar 0 to tensor 0."""
    view = args.tensor(0).numpy()
    view += args.scalar(0)


def copy_into(args):
    """Tensor 1 becomes tensor 0."""
    args.tensor(1).numpy()[...] = args.tensor(0).numpy()


def fill(args):
    """Fills tensor 0, an OUTPUT, with scalar 0."""
    args.tensor(0).numpy()[...] = args.scalar(0)


def noop(args):
    """Does nothing."""


def fail(args):
    """Raises with a cause."""
    try:
        raise KeyError("inner cause")
    except KeyError as cause:
        raise ValueError("ärger: the task is broken") from cause


def fail_plainly(args):
    """Raises, with nothing chained."""
    raise LookupError("plain")


def half_then_fail(args):
    """Writes tensor 0 and raises."""
    args.tensor(0).numpy()[...] = 99
    raise RuntimeError("after writing")


kept: list = []


def keep_view(args):
    """Keeps a view of tensor 0 after the task."""
    kept.append(args.tensor(0).numpy())


def check_kept(args):
    """The kept view still has the bytes of scalar 0; then it goes."""
    assert (kept.pop() == args.scalar(0)).all()


def write_input(args):
    """Tries to write an INPUT."""
    args.tensor(0).numpy()[...] = 1


def die(args):
    """Ends the process without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def forever(args):
    """Runs until it is killed; the file named by the bytes of tensor 0 says that it has begun."""
    path = bytes(memoryview(args.tensor(0))).rstrip(b"\0").decode()
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(0.05)


def wait_for_file(args):
    """Returns when the file named by the bytes of tensor 0 exists."""
    path = bytes(memoryview(args.tensor(0))).rstrip(b"\0").decode()
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.002)


def report_process(args):
    """Writes what the child sees of its surroundings into the file named by tensor 0."""
    import json

    path = bytes(memoryview(args.tensor(0))).rstrip(b"\0").decode()
    main = sys.modules["__main__"]
    seen = {
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "path": sys.path,
        "main": getattr(main, "__file__", None),
        "marker": getattr(main, "MARKER", None),
        "environment": [os.environ.get(n) for n in ("ECHELON_CHILD_PATHS", "PYTHONPATH")],
        "stdin": os.readlink("/proc/self/fd/0"),
    }
    with open(path, "w") as file:
        json.dump(seen, file)


class Group:
    """A namespace, for qualified names with dots."""

    @staticmethod
    def double(args):
        """As `double`."""
        double(args)


def orch_double(orch, args, config):
    """Orchestration callable: doubles tensor 0 in its own process."""
    double(args)


def orch_forward(orch, args, config):
    """Orchestration callable: hands tensor 0 on to a sub worker that started earlier."""
    import echelon as ec

    inner = ec.TaskArgs()
    inner.add_tensor(args.tensor(0), ec.TensorArgType.INOUT)
    orch.submit_sub(ec.session.get_inner_handle("py_tasks:double"), inner)


def orch_input_is_read_only(orch, args, config):
    """Orchestration callable: tries every way to write tensor 0, an INPUT, and hands all of args on to a sub worker."""
    import echelon as ec
    import numpy as np

    given, tags = args.tensor(0), ec.TensorArgType
    assert args.tag(0) == tags.INPUT and args.tag(1) == tags.INOUT, (args.tag(0), args.tag(1))
    view = given.numpy()
    assert not view.flags.writeable and args.tensor(1).numpy().flags.writeable

    def assign():
        view[...] = 1

    attempts = [assign, lambda: view.setflags(write=True), lambda: orch.copy(given, np.ones(4))]
    for source in (given, view, given.rows(0, 2)):
        for tag in (tags.OUTPUT, tags.INOUT, tags.OUTPUT_EXISTING, tags.NO_DEP):
            attempts.append(lambda source=source, tag=tag: ec.TaskArgs().add_tensor(source, tag))
    for number, attempt in enumerate(attempts):
        try:
            attempt()
        except ValueError as error:
            assert "read-only" in str(error) or "WRITEABLE" in str(error), error
        else:
            raise AssertionError(f"attempt {number} wrote into an INPUT")
    # As they came, with the tags they came with.
    orch.submit_sub(ec.session.get_inner_handle("py_tasks:input_is_read_only"), args)


def input_is_read_only(args):
    """Leaf: tensor 0 cannot be written; tensor 1 becomes twice what it was."""
    view = args.tensor(0).numpy()
    try:
        view[...] = 1
    except ValueError:
        args.tensor(1).numpy()[...] *= 2
    else:
        raise AssertionError("an INPUT was written")


def orch_fail(orch, args, config):
    """Orchestration callable that raises."""
    raise ValueError("remote trouble")


def orch_sum(orch, args, config):
    """Orchestration callable: tensor 1 becomes the sum of tensor 0 plus block_dim of the configuration."""
    args.tensor(1).numpy()[...] = args.tensor(0).numpy().sum() + config.block_dim


def put_pid(args):
    """Tensor 0 becomes this process's id."""
    args.tensor(0).numpy()[...] = os.getpid()


def orch_forever(orch, args, config):
    """Orchestration callable: has a sub worker run `forever`, and so never ends."""
    import echelon as ec

    orch.submit_sub(ec.session.get_inner_handle("py_tasks:forever"), args)


def orch_begin_and_wait(orch, args, config):
    """Orchestration callable: creates the file that tensor 0 names and waits for the one that tensor 1 names."""
    begun, go = (bytes(args.tensor(at).numpy()).decode() for at in (0, 1))
    with open(begun, "x"):
        pass
    while not os.path.exists(go):
        time.sleep(0.01)


def orch_noop(orch, args, config):
    """Orchestration callable that does nothing."""


def die_until(args):
    """Notes that it began in the file that tensor 0 names; dies the first times, as many as scalar 0; tensor 1 becomes the
    number of begins.
    """
    path = bytes(args.tensor(0).numpy()).decode()
    with open(path, "a") as log:
        log.write("x")
    begun = os.path.getsize(path)
    if begun <= args.scalar(0):
        os.kill(os.getpid(), signal.SIGKILL)
    args.tensor(1).numpy()[...] = begun


def sleep_long(args):
    """Takes ten minutes."""
    time.sleep(600)


def orch_wait_for_file(orch, args, config):
    """Orchestration callable: `wait_for_file` in its own process."""
    wait_for_file(args)


def add_scalars(args):
    """Adds all scalars to tensor 0."""
    view = args.tensor(0).numpy()
    view += sum(args.scalars)


def nothing_below(orch, args, config):
    """An orchestration function that submits nothing."""
