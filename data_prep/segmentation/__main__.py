"""`python -m data_prep.segmentation` is `python -m data_prep segmentation`."""

import sys

from data_prep.__main__ import main

main(["segmentation", *sys.argv[1:]])
