"""`python -m data_prep.scenes` is `python -m data_prep scenes`."""

import sys

from data_prep.__main__ import main

main(["scenes", *sys.argv[1:]])
