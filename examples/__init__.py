"""Programs that use the library."""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m examples.NAME` starts. As an exception, Ctrl-C may be lost in an import, so it ends
    # the process at once until the program says otherwise.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
