"""Chips: machine code on devices that a worker process each owns. Platform `cpu` needs a C compiler and no accelerator.

The first half runs on two devices of this process's own worker; the second on two devices of a remote session, whose
orchestration function submits to them.
"""

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import echelon as ec
import numpy as np

HERE = Path(__file__).resolve().parent


def build(source):
    """The machine code of a C file."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "chip.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-I", ec.include_dir(), "-o", str(built), str(source)]
        subprocess.run(command, check=True)
        return ec.ChipCallable.from_file(built, name=source.stem)


def saxpy(a, x, y):
    """Arguments for the kernel: scalars and tensors keep their own order."""
    (bits,) = struct.unpack("<Q", struct.pack("<d", a))
    return ec.TaskArgs.of((x, ec.TensorArgType.INPUT), (y, ec.TensorArgType.INOUT), scalars=[bits])


def on_two_chips(orch, args, cfg):
    """Runs in a remote session: half of y on each of its devices. Tensors x, y; config: the kernel's hashid."""
    kernel = ec.session.get_inner_handle(cfg.output_prefix)
    x, y = args.tensor(0), args.tensor(1)
    half = x.shape[0] // 2
    for device in range(2):
        part = saxpy(2.0, x.rows(device * half, half), y.rows(device * half, half))
        orch.submit_next_level(kernel, part, worker=device)


def main():
    chip = build(HERE / "chip_saxpy.c")
    x, y = np.arange(1024, dtype="f4"), np.ones(1024, dtype="f4")

    with ec.Worker(level=3, device_ids=[0, 1]) as worker:
        kernel = worker.register(chip)

        def halves(orch, args, cfg):
            orch.submit_next_level(kernel, saxpy(3.0, x[:512], y[:512]), worker=0)
            orch.submit_next_level(kernel, saxpy(3.0, x[512:], y[512:]), worker=1)

        report = worker.run(halves)
    print(report.tasks_per_worker)
    assert np.array_equal(y, 1 + 3 * x)

    with ec.LocalCluster(remote=1, device_ids=[0, 1], pythonpath=[str(HERE)]) as cluster:
        worker, (remote,) = cluster.worker, cluster.remote_ids
        kernel = worker.register(chip, workers=[remote], inner=True)
        orchestrate = worker.register(ec.RemoteCallable("chips:on_two_chips"), workers=[remote])
        worker.init()
        sent, result = worker.remote_malloc(remote, x.nbytes), worker.remote_malloc(remote, y.nbytes)
        worker.remote_copy_to(sent, x)
        worker.remote_copy_to(result, y)

        def graph(orch, args, cfg):
            task = ec.TaskArgs()
            task.add_tensor(ec.RemoteTensorRef(sent, shape=(1024,), dtype="float32"), ec.TensorArgType.INPUT)
            task.add_tensor(
                ec.RemoteTensorRef(result, shape=(1024,), dtype="float32"), ec.TensorArgType.INOUT
            )
            orch.submit_next_level(orchestrate, task, ec.CallConfig(output_prefix=kernel.hashid))

        worker.run(graph)
        worker.remote_copy_from(result, y)
    assert np.array_equal(y, 1 + 5 * x)
    print("y ends with", y[-1])


if __name__ == "__main__":
    if shutil.which("cc"):
        main()
    else:
        print("skipped: there is no C compiler, cc, on the PATH")
