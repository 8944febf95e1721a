"""Programs that use the library."""

import gc
import signal
import sys

if sys.argv[0] == "-m":  # `python -m examples.NAME` starts
    # Imports and traces make many objects that stay. With Python's default, looking for garbage
    # among them takes a fifth of the time until training begins. The first number was 700.
    gc.set_threshold(100_000, 10, 10)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # As an exception, Ctrl-C may be lost in an import, so it ends the process at once until the
        # program says otherwise.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
