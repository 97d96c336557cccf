"""Orchestration functions that submit machine code to the chips of their worker; the config names it by its hashid."""

from __future__ import annotations

import echelon as ec

INPUT, OUTPUT, INOUT = ec.TensorArgType.INPUT, ec.TensorArgType.OUTPUT, ec.TensorArgType.INOUT


def scale_on_each(orch, args, config):
    """Tensor 1 becomes tensor 0 times scalar 0: its rows go to the devices in turn."""
    kernel = ec.session.get_inner_handle(config.output_prefix)
    x, out = args.tensor(0), args.tensor(1)
    for row in range(x.shape[0]):
        task = ec.TaskArgs.of((x.rows(row, 1), INPUT), (out.rows(row, 1), OUTPUT), scalars=[args.scalar(0)])
        orch.submit_next_level(kernel, task, worker=row % 2)


def scale_in_arena(orch, args, config):
    """Tensor 1 becomes tensor 0 times the square of scalar 0, by way of memory of the session's own."""
    kernel = ec.session.get_inner_handle(config.output_prefix)
    between = orch.alloc(args.tensor(0).shape, ec.DataType.INT64)
    for device, (x, out) in enumerate([(args.tensor(0), between), (between, args.tensor(1))]):
        task = ec.TaskArgs.of((x, INPUT), (out, OUTPUT), scalars=[args.scalar(0)])
        orch.submit_next_level(kernel, task, worker=device)


def report_of_each(orch, args, config):
    """Row n of tensor 0 becomes what an entry is told on the n-th device."""
    kernel = ec.session.get_inner_handle(config.output_prefix)
    out = args.tensor(0)
    for device in range(out.shape[0]):
        task = ec.TaskArgs.of((out.rows(device, 1), OUTPUT), scalars=[0, 0])
        orch.submit_next_level(kernel, task, worker=device)


def crash(orch, args, config):
    """Scalar 0 for the kernel `crash`, on device scalar 1; tensor 0 is its own."""
    kernel = ec.session.get_inner_handle(config.output_prefix)
    task = ec.TaskArgs.of((args.tensor(0), INOUT), scalars=[args.scalar(0)])
    orch.submit_next_level(kernel, task, worker=args.scalar(1))


def wrong_arguments(orch, args, config):
    """Submits what the kernel `scale` does not take."""
    kernel = ec.session.get_inner_handle(config.output_prefix)
    orch.submit_next_level(kernel, ec.TaskArgs.of((args.tensor(0), INOUT)))


def pick(orch, args, config):
    """Tensor 0 becomes one byte of the ballast of the kernel `large`."""
    kernel = ec.session.get_inner_handle(config.output_prefix)
    orch.submit_next_level(kernel, ec.TaskArgs.of((args.tensor(0), OUTPUT), scalars=[args.scalar(0)]))
