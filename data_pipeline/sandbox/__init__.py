"""The local sandbox: real shells without a container engine, on bubblewrap.

`sandbox.py` is the class that others use; `root_view.py` says what the inside sees, `limits.py` how
much it may take, `watchdog.py` ends what takes more (with `buffers.py`), `keeper.py` starts and
ends the processes, `supervisor.py` and `transfer.py` are the programs that run inside.  Standard
library only: Harbor loads this package with an interpreter of its own.
"""
