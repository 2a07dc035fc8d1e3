"""Does a build's memory grow by its texts, tokens and columns alone?"""

import json

import pytest

from benchmarks.build import traced
from tests.support.processes import run_code


@pytest.mark.long
@pytest.mark.model
def test_a_build_grows_by_texts_tokens_and_columns_alone():
    # In a process of its own: what other tests left to the garbage collector and to caches is
    # counted too where it changes meanwhile.
    done = run_code("from benchmarks.build import traced; traced.main([])")

    document = json.loads(done.stdout.splitlines()[-1])
    named = sum(document[f"{name}, MB per 1,000 rows"] for name in traced.SOURCES)
    grown = document["peak, MB per 1,000 rows more"]
    assert 0.5 * grown < named
    assert document["anything else, MB per 1,000 rows"] < 0.3
    assert grown < 1.5 * named  # at the peak too, not only at the end
