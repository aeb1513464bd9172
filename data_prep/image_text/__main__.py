"""`python -m data_prep.image_text` is `python -m data_prep image_text`."""

import sys

from data_prep.__main__ import main

main(["image_text", *sys.argv[1:]])
