"""Callables that fail, as recorded v1 exchanges and our own cases name them."""

notcallable = 3


def boom_long(orch, args, cfg):
    """Over twice the 4,096 bytes that an error message may have."""
    raise RuntimeError("x" * 9000)


def boom_unicode(orch, args, cfg):
    """Under 4,096 characters and far over 4,096 bytes: a cut by characters would not fit."""
    raise RuntimeError("ä€𝄞" * 1200)
