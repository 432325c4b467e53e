"""A process made ready for jobs: its threads, and the libraries' own output kept silent."""

import logging
import warnings

import torch
from transformers.utils import logging as transformers_logging


def settle(threads: int) -> None:
    """Give this process its threads, and keep the libraries silent. Numbers may depend on the threads."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
