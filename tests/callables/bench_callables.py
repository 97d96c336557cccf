"""Callables that recorded v1 exchanges name: they do nothing."""


def noop(orch, args, cfg):
    return None


def reg_1(orch, args, cfg):
    return None
