"""Nothing from the network in a test, and one thread for each test that does not ask for more."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
