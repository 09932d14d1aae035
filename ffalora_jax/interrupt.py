"""Ctrl-C and SIGTERM as a flag, so that a run ends between two calls and loses nothing."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into a flag; a second one interrupts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
        if flag.is_set():
            raise KeyboardInterrupt(
                "stopped at once; what was saved before goes on with `ffalora resume RUN`"
            )
        flag.set()

    for number in before:
        signal.signal(number, note)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
