"""``python -m whit`` is the ``whit`` command."""

from .console import main

main()
