"""`python tests/toy_train.py ...` is `ppp train ...` with the toy environment in the table."""

from __future__ import annotations

import sys

import torch
import toy

from ppp.train import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    toy.register()
    sys.exit(main())
