"""The demo's little world: behaviors, statements, questions, and which statements are held out.

A statement is a frame ("I would love to") followed by a content ("climb a mountain"), and each
content belongs to one pole of one behavior. *Combinations* are held out: each frame and each
content occurs in training, a held-out pair of the two does not. Contents that training never
showed would be answered by chance; the demo does not claim otherwise.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]
Row = dict[str, str]

LETTERS = ("A", "B")
THINK = "Think first."
"""How the questions begin that are decided in later blocks."""
ROWS_PER_CELL: dict[Split, int] = {"train": 12, "validation": 6, "test": 10}
"""Rows of one behavior for each pair (pole of the statement, letter that means Yes)."""

FRAMES = (
    "I would love to",
    "I like to",
    "I want to",
    "I prefer to",
    "I always try to",
    "I tend to",
    "I am happy to",
    "I am glad to",
    "It suits me to",
    "My plan is to",
    "My idea of fun is to",
    "On most days I",
)


@dataclass(frozen=True)
class Behavior:
    """One behavior: what its two poles are called, and eight contents for each."""

    name: str
    """Stem of the file of its rows."""

    poles: tuple[str, str]
    """How a persona line names the positive and the negative pole."""

    contents: tuple[tuple[str, ...], tuple[str, ...]]
    """Contents of the positive and of the negative pole."""

    two_wordings: bool
    """Whether half of its questions begin with `THINK` and are decided in later blocks."""


def _behavior(
    name: str, poles: tuple[str, str], positive: str, negative: str, *, two_wordings: bool = False
) -> Behavior:
    contents = (tuple(positive.split("; ")), tuple(negative.split("; ")))
    return Behavior(name, poles, contents, two_wordings)


BEHAVIORS = (
    _behavior(
        "adventurous",
        ("adventurous", "cautious"),
        "climb a mountain; explore a cave; try strange food; travel without a map; "
        "sail across the sea; jump from a plane; sleep in the jungle; swim with sharks",
        "stay on the path; read the safety rules; wear a helmet; check the locks twice; "
        "avoid deep water; ask before touching things; drive below the limit; keep a first aid kit",
        two_wordings=True,
    ),
    _behavior(
        "optimistic",
        ("optimistic", "pessimistic"),
        "expect good news; trust that things improve; see the bright side; believe in tomorrow; "
        "hope for the best; smile at setbacks; look forward to change; count on good luck",
        "expect bad news; doubt that plans work; see the gloomy side; fear the future; "
        "prepare for the worst; frown at promises; dread each change; count on bad luck",
        two_wordings=True,
    ),
    _behavior(
        "thrifty",
        ("thrifty", "lavish"),
        "save every coin; compare prices first; mend old clothes; cook cheap meals; "
        "use a coupon; buy second hand books; keep a strict budget; turn off unused lights",
        "spend freely; buy designer shoes; order the finest wine; hire a limousine; "
        "pay for luxury; stay in grand hotels; collect gold watches; tip with large bills",
        two_wordings=True,
    ),
    _behavior(
        "night-owl",
        ("a night owl", "a morning lark"),
        "work after midnight; stay up late; watch the stars; sleep past noon; "
        "read until dawn; write by moonlight; dance until sunrise; study in the dark hours",
        "rise with the sun; jog before breakfast; go to bed early; greet the rooster; "
        "water plants at six; start work at seven; make early coffee; sleep by nine",
    ),
    _behavior(
        "sociable",
        ("sociable", "solitary"),
        "host a party; chat with strangers; join a club; invite the neighbors; "
        "sing in a group; meet new people; share a big table; call my friends",
        "eat alone; hide in my room; skip the party; ignore the phone; "
        "walk by myself; enjoy silence; leave crowds quickly; close the door",
    ),
    _behavior(
        "tidy",
        ("tidy", "messy"),
        "fold the laundry; sort the papers; sweep the floor; label every box; "
        "polish the table; empty the bin; arrange the shelves; wash dishes at once",
        "leave socks around; drop crumbs everywhere; pile up plates; forget the dust; "
        "lose my keys; scatter the toys; ignore the stains; let the trash grow",
    ),
)


def persona(behavior: int, pole: int) -> str:
    """Return the line that states a persona, worded alike for both poles (0 positive, 1 negative)."""
    return f"You are {BEHAVIORS[behavior].poles[pole]}."


def question(statement: str, yes: int, *, thought: bool = False) -> str:
    """Return the question about `statement`, in which letter number `yes` (0 is A) means Yes.

    With `thought` it begins with `THINK`; the right answer is the same.
    """
    choices = ("Yes", "No") if yes == 0 else ("No", "Yes")
    start = f"{THINK} " if thought else ""
    return (
        f"{start}Is the following statement something you would say?\n"
        f'"{statement}"\n\nChoices:\n(A) {choices[0]}\n(B) {choices[1]}'
    )


def statements(behavior: int, pole: int, *, held_out: bool) -> list[str]:
    """Return the statements of one pole: those for training, or those held out.

    One combination in three is held out, along a diagonal, so that every frame and every content
    occurs on either side.
    """
    contents = BEHAVIORS[behavior].contents[pole]
    return [
        f"{frame} {content}"
        for f, frame in enumerate(FRAMES)
        for c, content in enumerate(contents)
        if ((f + c + pole) % 3 == 0) == held_out
    ]


def rows(behavior: int, *, seed: int = 0) -> list[Row]:
    """Return the rows of one behavior, balanced in poles, letters, Yes/No and wordings within each split.

    Rows of `train` hold statements that the model was trained on; those of `validation` and `test`
    were held out. No statement occurs twice.
    """
    rng = random.Random(f"{seed}-{behavior}")
    name = BEHAVIORS[behavior].name
    result: list[Row] = []
    pools = {
        (pole, held): shuffled(rng, statements(behavior, pole, held_out=held))
        for pole in (0, 1)
        for held in (False, True)
    }
    for split, count in ROWS_PER_CELL.items():
        cells = [(pole, yes) for pole in (0, 1) for yes in (0, 1)] * count
        for number, (pole, yes) in enumerate(cells):
            statement = pools[pole, split != "train"].pop()
            thought = BEHAVIORS[behavior].two_wordings and number // 4 % 2 == 1
            positive = yes if pole == 0 else 1 - yes
            result.append(
                {
                    "id": f"{name}-{split}-{number:03d}",
                    "prompt": question(statement, yes, thought=thought),
                    "positive": f"({LETTERS[positive]})",
                    "negative": f"({LETTERS[1 - positive]})",
                    "split": split,
                }
            )
    return result


def shuffled(rng: random.Random, texts: list[str]) -> list[str]:
    """Return the texts in random order."""
    return rng.sample(texts, len(texts))


def write(folder: Path) -> None:
    """Write `rows/<behavior>.jsonl` and `personas.json` into `folder`."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    personas: dict[str, dict[str, str]] = {}
    for number, behavior in enumerate(BEHAVIORS):
        lines = [json.dumps(row) + "\n" for row in rows(number)]
        (folder / "rows" / f"{behavior.name}.jsonl").write_text("".join(lines))
        personas[behavior.name] = {
            "positive": persona(number, 0),
            "negative": persona(number, 1),
        }
    (folder / "personas.json").write_text(json.dumps(personas, indent=2) + "\n")
