"""The commands: one file per family."""

import os
import signal

if os.getpid() == 1:
    # The kernel keeps from the first process of a container what it has not asked for. The rest takes half a second to load.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
