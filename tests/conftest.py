"""Nothing from the network in a test; one thread, which for tiny models is faster than two."""

import os

import jaxtyping

from tests.support.type_checks import checked

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for one another spin: on a busy machine tests of tiny models took ten times as
# long with two. Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What the import hook of `--jaxtyping-packages` puts on every function and dataclass of actcache.
jaxtyping.jaxtyped = checked  # type: ignore[assignment]
