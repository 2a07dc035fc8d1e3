"""The report on steered texts: sentences that the numbers bear, tables that fit, a picture."""

from dataclasses import replace

import pytest

from actcache.analysis.generation.summary import (
    Choice,
    GenerationSummary,
    MethodScores,
    Noise,
    SiteScores,
    StrengthScores,
)
from actcache.analysis.report.generation_pages import findings, generation_page, short_tables
from actcache.analysis.report.generation_plots import plot_generation
from actcache.analysis.report.generation_tables import (
    coherence_table,
    effect_table,
    generation_tables,
    strength_tables,
    threshold_table,
)
from actcache.analysis.stats.bootstrap import Interval
from actcache.errors import FormatError, MismatchError

GRID = (-1.0, -0.5, 0.5, 1.0)


def at(strength, *, effect=0.0, ratio=1.0, nll_steered=1.0, form=1.0, **values):
    return StrengthScores(
        **{
            "strength": strength,
            "n": 20,
            "target": 1.0 + effect,
            "effect": Interval(effect, effect - 0.1, effect + 0.1),
            "nll_unsteered": 1.25,
            "nll_steered": nll_steered,
            "perplexity_ratio": ratio,
            "form": form,
            "ended": 1.0,
            "empty": 0.0,
            "refusal": 0.125,
            "tokens": 3.0,
            "n_bytes": 44.0,
            "repetition": None,
            "compression": 1.5,
            "script": 1.0,
            **values,
        }
    )


def curve(grid=GRID):
    """An effect that grows, and texts that collapse at the far ends: only the reader sees it."""
    return tuple(
        at(
            s,
            effect=s,
            ratio=40.0 if abs(s) >= 1 else 1.1,
            nll_steered=0.5 if abs(s) >= 1 else 1.0,
            form=0.2 if abs(s) >= 1 else 1.0,
        )
        for s in grid
    )


def choice(**values):
    points = curve()
    return Choice(
        **{
            "strength": 0.5,
            "reason": "",
            "validation": points[2],
            "test": points[2],
            "over_control": {"random (fixed)": Interval(0.4, 0.2, 0.6)},
            "shown": True,
            "best_on_test": points[3],
            "window": (-0.5, 0.5),
            **values,
        }
    )


def scores(behavior="tidy", method="caa", **values):
    return MethodScores(
        **{
            "behavior": behavior,
            "method": method,
            "selection": "fixed",
            "control": False,
            "unit": "multiplier",
            "identity": 0.0,
            "curves": {"validation": curve(), "test": curve()},
            "choice": choice(),
            **values,
        }
    )


def summary(*methods, **values):
    behaviors = dict.fromkeys(m.behavior for m in methods) or {"tidy": None}
    return GenerationSummary(
        **{
            "model": "demo",
            "dtype": "float32",
            "source": "out",
            "target": "read_back",
            "budget": 1.5,
            "tokens": "prompt",
            "max_new": 8,
            "samples": 1,
            "unsteered": {b: {"test": at(0.0), "validation": at(0.0)} for b in behaviors},
            "methods": methods,
            "noise": Noise(n=20, equal=19, target=0.01, nll_unsteered=0.002),
            **values,
        }
    )


RANDOM = scores(method="random", control=True, choice=None)


def test_a_shown_effect_is_said_with_its_control_its_cost_and_its_window():
    [line] = findings(summary(scores(), RANDOM))
    assert line == (
        "tidy: CAA, fixed layer at λ 0.5 has an effect of 0.50 [0.40, 0.60] (over a random vector: "
        "0.40 [0.20, 0.60]). To the unsteered model the texts are 1.1 × as perplexing. Texts "
        "keep their form and ending from λ -0.5 to λ 0.5 (tried: λ -1 to λ 1)."
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test": at(0.5)}, "its interval is not above 0"),
        (
            {"over_control": {"random": Interval(0.1, -0.1, 0.3)}},
            "the difference to a random vector has an interval that is not above 0",
        ),
        ({"over_control": {}}, "too few test rows, or a control was not run"),
    ],
)
def test_an_effect_that_is_not_shown_is_said_with_the_reason(changed, words):
    [line] = findings(summary(scores(choice=choice(shown=False, **changed))))
    assert line.startswith("tidy: no effect of CAA, fixed layer is shown. At λ 0.5")
    assert words in line


def test_turns_that_keep_form_all_the_way_round_are_said_so():
    round_ = tuple(replace(at(0.1), strength=s) for s in (90.0, 180.0, 270.0))
    whole = scores(
        unit="degrees", curves={"test": round_}, choice=choice(strength=90.0, window=(-180.0, 90.0))
    )
    assert (
        "keep their form and ending at every angle (tried: 90° to 270°)"
        in findings(summary(whole))[0]
    )
    part = replace(whole, choice=choice(strength=90.0, window=(-90.0, 90.0)))
    assert "from -90° to 90° (tried" in findings(summary(part))[0]


def test_no_strength_and_no_window_are_said():
    none = choice(
        strength=None, reason="no strength is allowed", validation=None, test=None, window=None
    )
    [line] = findings(summary(scores(choice=none)))
    assert "cannot be used: no strength is allowed" in line
    assert "No strength keeps form and ending" in line
    over = choice(test=replace(curve()[3], strength=0.5))
    assert "over the budget of 1.5 ×" in findings(summary(scores(choice=over)))[0]
    untested = choice(test=None, shown=False)
    assert "is not tested" in findings(summary(scores(choice=untested)))[0]


def test_the_control_is_beside_the_method_at_the_chosen_strength():
    table = coherence_table(summary(scores(), RANDOM))
    assert [(row["method"], row["strength"]) for row in table.cells] == [
        ("unsteered", "-"),
        ("CAA, fixed layer", "λ 0.5"),
        ("random vector, fixed layer", "λ 0.5"),
    ]
    assert table.cells[1]["compression"] == "1.5 (44 bytes)"
    assert table.cells[1]["repetition"] == "-"
    assert table.cells[1]["refusal"] == "12%"


def test_collapse_is_above_the_threshold_for_the_reader_and_hidden_from_the_writer():
    [row, _] = threshold_table(summary(scores(), RANDOM)).cells
    assert row["over, unsteered model"] == "2 of 4"
    assert row["over, steered model"] == "0 of 4"
    assert row["largest, unsteered model"] == "40 ×"


def test_each_grid_has_its_own_table_of_form():
    turned = scores(
        method="ss",
        selection="discriminative",
        unit="degrees",
        curves={"test": curve((0.0, 90.0))},
    )
    tables = strength_tables(summary(scores(), RANDOM, turned))
    assert [len(table.cells) for table in tables] == [2, 1]
    assert tables[0].cells[0]["λ -1"] == "20% / -1"
    assert list(tables[1].cells[0]) == ["texts of", "0°", "90°"]


def test_selections_norms_choices_and_sites_have_tables_where_they_are_known():
    everywhere = scores(method="ss", selection="all sites", unit="degrees", norm_error=1e-7)
    chosen = scores(method="ss", selection="discriminative", unit="degrees", choices_kept=0.9)
    sites = (
        SiteScores(site="ln1", layer=3, mean_positive=1.0, mean_negative=-1.0, discriminative=True),
    )
    titles = [
        t.title for t in generation_tables(summary(everywhere, chosen, sites={"tidy": sites}))
    ]
    assert "Operator and selection of sites: effect on test rows" in titles
    assert "Norm error in float32" in titles
    assert "Choices kept at the chosen strength (test rows)" in titles
    assert any("by site" in title for title in titles)
    plain = [t.title for t in generation_tables(summary(scores()))]
    assert not any(
        "Norm" in t or "Choices" in t or "selection" in t or "by site" in t for t in plain
    )


def test_noise_stands_under_every_table():
    noise = "written twice in batches of two sizes, 19 of 20 are the same, target differs by 0.01"
    assert all(noise in table.note for table in generation_tables(summary(scores(), RANDOM)))
    assert "Noise: not measured." in effect_page(noise=None)


def effect_page(**values):
    return generation_page(summary(scores(), **values))


def test_the_page_begins_with_findings_and_says_what_was_measured():
    page = generation_page(
        summary(
            scores(notes=("3 zero vectors were left out",)),
            RANDOM,
            judge="m, 2 of 20 texts without a verdict",
            left_out=("cast: no condition",),
        )
    )
    assert page.startswith("# Steered texts\n\n- tidy: CAA, fixed layer at λ 0.5")
    for words in (
        "Target: read_back, the projection",
        "Judge: m, 2 of 20 texts without a verdict.",
        "Left out: cast: no condition.",
        "tidy, CAA, fixed layer: 3 zero vectors were left out.",
    ):
        assert words in page


def test_short_tables_leave_out_what_is_biased():
    [table] = short_tables(summary(scores()))
    assert "best on test" not in table.columns
    assert "best on test" in effect_table(summary(scores())).columns
    assert short_tables(summary(RANDOM)) == []


def test_a_summary_survives_its_file(tmp_path):
    sites = (
        SiteScores(site="ln1", layer=3, mean_positive=1.0, mean_negative=-1.0, discriminative=True),
    )
    written = summary(scores(norm_error=1e-7), RANDOM, sites={"tidy": sites}, left_out=("x",))
    written.write(tmp_path / "summary.json")
    assert GenerationSummary.read(tmp_path / "summary.json") == written
    (tmp_path / "summary.json").write_text('{"format": 1}', encoding="utf-8")
    with pytest.raises(FormatError, match=r"expected its summary.* --overwrite") as raised:
        GenerationSummary.read(tmp_path / "summary.json")
    assert "\n" not in str(raised.value)


def panels_of(tmp_path, drawn, monkeypatch):
    figures = []
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    write = FigureCanvasAgg.print_png

    def remember_and_write(canvas, path):
        figures.append(canvas.figure)
        write(canvas, path)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", remember_and_write)
    plot_generation(tmp_path / "curve.png", drawn)
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    return figures[0].axes


def test_the_picture_has_a_panel_a_method_and_a_line_a_behavior(tmp_path, monkeypatch):
    methods = [
        scores(behavior, method, control=method == "random")
        for method in ("caa", "l2s", "w2s", "random")
        for behavior in ("tidy", "calm")
    ]
    axes = panels_of(tmp_path, summary(*methods), monkeypatch)

    titled = [a for a in axes if a.get_title()]
    assert [a.get_title() for a in titled] == [
        f"{name}, fixed layer" for name in ("CAA", "L2S", "W2S", "random vector")
    ]
    assert len(axes) == 3 * len(titled)
    effect = titled[1]
    lines = [line for line in effect.get_lines() if len(line.get_xdata()) == 5]
    assert len(lines) == 2  # four strengths and the identity, where the effect is 0
    assert list(lines[0].get_ydata()) == [-1, -0.5, 0, 0.5, 1]


def test_every_behavior_is_drawn(tmp_path, monkeypatch):
    methods = [scores(f"behavior {i}") for i in range(13)]
    axes = panels_of(tmp_path, summary(*methods), monkeypatch)

    [legend] = axes[0].figure.legends
    named = {text.get_text() for text in legend.get_texts()}
    assert named >= {f"behavior {i}" for i in range(13)}


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(MismatchError, match="Pass a summary with curves"):
        plot_generation(tmp_path / "curve.png", summary())
