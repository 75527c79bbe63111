"""``python -m kvloom.daemon.cli``: the ``kvloom`` command without an installed script."""

from . import main

main()
