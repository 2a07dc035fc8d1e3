"""Positions: what names mean, and prompts that lack the tokens."""

import pytest

from actcache.conventions import expand_positions
from actcache.errors import ActcacheError, RenderError
from actcache.prompts.positions import check_template, of_samples
from actcache.prompts.render import Rendered


def test_template_asks_for_several_positions_at_once():
    assert expand_positions(["fork", "template:3", "mean"]) == [
        *("fork", "template_-1", "template_-2", "template_-3", "mean")
    ]
    assert of_samples(["prompt", "fork", "template_-1", "mean", "positive"], paired=False) == [
        *("prompt", "template_-1", "mean")
    ]


@pytest.mark.parametrize("names", [["template:0"], ["template"], ["first"], [], ["mean", "mean"]])
def test_an_unknown_or_repeated_position_is_refused(names):
    with pytest.raises(ActcacheError, match="template:K"):
        expand_positions(names)


def test_template_tokens_must_be_those_of_every_prompt():
    rows = [Rendered((5, 6, 7, 8)), Rendered((9, 7, 8)), Rendered((4, 7, 8))]

    check_template(rows, ["template_-1", "template_-2"])
    with pytest.raises(RenderError, match="Pass template:2"):
        check_template(rows, ["template_-1", "template_-2", "template_-3"])
    with pytest.raises(RenderError, match="--template"):
        check_template([Rendered((5,)), Rendered((6,))], ["template_-1"])


def test_last_asks_for_several_positions_whatever_the_tokens_are():
    assert expand_positions(["last:2", "prompt"]) == ["last_-1", "last_-2", "prompt"]
    rows = [Rendered((5, 6, 7)), Rendered((8, 9))]
    check_template(rows, ["last_-1", "last_-2"])
    with pytest.raises(RenderError, match="Pass last:2"):
        check_template(rows, ["last_-1", "last_-2", "last_-3"])
