"""``python -m fe_adapter`` is ``fe-adapter``: what ``accelerate launch`` and ``torchrun`` are given."""

from fe_adapter.cli.app import main

main()
