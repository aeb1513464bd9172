"""`python -m data_prep.gallery` is `python -m data_prep gallery`."""

import sys

from data_prep.__main__ import main

main(["gallery", *sys.argv[1:]])
