"""Is what ships what the scripts make, and does the evaluation run?"""

import json

import numpy as np
import pytest

from actcache import demo
from benchmarks.demo_model import data


def test_the_shipped_rows_are_those_that_the_script_writes(tmp_path):
    data.write(tmp_path)

    shipped = demo.row_files()
    assert [path.name for path in shipped] == sorted(
        path.name for path in (tmp_path / "rows").iterdir()
    )
    for path in shipped:
        assert (tmp_path / "rows" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "personas.json").read_bytes() == demo.personas_path().read_bytes()


def test_held_out_statements_use_known_frames_and_contents():
    for behavior in range(len(data.BEHAVIORS)):
        for pole in (0, 1):
            known = data.statements(behavior, pole, held_out=False)
            held_out = data.statements(behavior, pole, held_out=True)
            assert not set(known) & set(held_out)
            assert len(known) == 2 * len(held_out)
            for frame in data.FRAMES:
                assert any(statement.startswith(frame) for statement in known)


def test_the_evaluation_explains_itself(capsys):
    from benchmarks.demo_model import evaluate, train

    for module in (evaluate, train):
        with pytest.raises(SystemExit) as stopped:
            module.main(["--help"])
        assert stopped.value.code == 0
    assert "--n-random" in capsys.readouterr().out


@pytest.mark.model
def test_the_demo_answers_by_its_persona_and_can_be_steered():
    from benchmarks.demo_model.evaluate import Demo, slope

    model = Demo(demo.model_path())
    rows = [json.loads(line) for line in demo.row_files()[0].read_text("utf-8").splitlines()]
    few = [row for row in rows if row["split"] == "test"][:8]
    persona = json.loads(demo.personas_path().read_text("utf-8"))[demo.row_files()[0].stem]

    prompts = model.prompts(few, persona["positive"])
    margin, letter_probability = model.margin(prompts)
    assert ((margin > 0) == prompts.is_a).all()
    assert (letter_probability > 0.9).all()

    direction = model.direction(model.prompts([row for row in rows if row["split"] == "train"]))
    thought = [row["prompt"].startswith(data.THINK) for row in few]
    assert any(thought)
    assert not all(thought)
    slopes = slope(model.sweep(model.prompts(few), direction, [2, 3]))
    for later, (after_2, after_3) in zip(thought, slopes, strict=True):
        acts, idles = (after_3, after_2) if later else (after_2, after_3)
        assert acts > 1
        assert abs(idles) < 0.5


def test_the_slope_is_that_of_a_line():
    from benchmarks.demo_model.evaluate import MULTIPLIERS, slope

    line = 3 * np.array(MULTIPLIERS) + 1
    np.testing.assert_allclose(slope(line[None]), [3])
    np.testing.assert_allclose(slope(line[None], (1, 5)), [3])
