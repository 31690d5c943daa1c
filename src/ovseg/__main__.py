"""Run the command line: `python -m ovseg`."""

from ovseg.cli.main import main

main()
