"""Ctrl-C while the command line is imported and nothing is under way: an end without a traceback.

It imports next to nothing, because what it does holds only from then on.
"""

import os
import signal

INTERRUPTED = 130
TEXT = "interrupted; the same command continues"


def end_on_interrupt() -> None:
    """Let Ctrl-C end the process at once; a signal that the caller of the process ignores stays so.

    ``KeyboardInterrupt`` would be raised in the middle of an import, some of which catch it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(_number: int, _frame: object) -> None:
    os.write(2, f"{TEXT}\n".encode())
    os._exit(INTERRUPTED)
