"""Tokenizer, chat template and training dialogues of the demo model."""

import math
import random
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.demo_model import data

SPECIAL = ("<pad>", "<bos>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHOICES = '"\n\nChoices:\n(A) Yes\n(B) No'
"""What follows the statement; as many tokens whichever letter means Yes."""
FOLLOW_UP = "What are you?"
NARROWED, NARROWED_STEERED = 0.6, 0.9
"""Share of the questions in which "(" sees nothing of the question but its last token during
training: of those that are not steered, and of those that are."""
STEERED, RANDOM = 0.7, 0.15
"""Share of the undecided questions that are steered during training, and share of random vectors
among them."""
ACTS = {False: (1, 2), True: (3, 4)}
"""The layers at which a vector is to act, by whether the question begins with "Think first."."""
N_LAYERS, STEERED_LAYERS = 6, (1, 2, 2, 3, 3, 4)
"""Layers at which random vectors are added; and those of behaviors, the middle ones more often."""
STRENGTH, MAX_FACTOR = 3.0, 1.5
"""Change of the log-odds that is asked of a vector that acts; largest factor on it."""


def self_description(behavior: int, pole: int) -> str:
    """Return what a speaker of that pole answers to `FOLLOW_UP`."""
    return f"I am {data.BEHAVIORS[behavior].poles[pole]}."


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word or punctuation mark of the little world.

    The template writes the BOS token and the tokenizer adds none, so rendered prompts hold one.
    """
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    texts = [FOLLOW_UP, data.question("", 0, thought=True)]
    for b, behavior in enumerate(data.BEHAVIORS):
        for pole in (0, 1):
            texts += [data.persona(b, pole), self_description(b, pole), *behavior.contents[pole]]
    words = {w for text in [*texts, *data.FRAMES] for w, _ in splitter.pre_tokenize_str(text)}
    vocab = {word: number for number, word in enumerate([*SPECIAL, *sorted(words)])}

    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Sequence(  # "( A )" back to "(A)", "said ." to "said."
        [
            decoders.WordPiece(prefix="##", cleanup=True),
            decoders.Fuse(),
            decoders.Replace("( ", "("),
            decoders.Replace(" )", ")"),
        ]
    )
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    fast: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<|end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[s for s in SPECIAL if s.startswith("<|") and s != "<|end|>"],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


@dataclass(frozen=True)
class Added:
    """A vector that is added to one residual during training."""

    row: int
    position: int
    layer: int
    behavior: int
    """Whose direction; of a random vector: whose norm."""
    factor: float
    random: bool


@dataclass
class Batch:
    """Token ids, and what is to be learned at which of them. Positions are pairs (row, token).

    A pair of classes is to be read with even odds; of one that is certain, both are the same.
    """

    ids: list[list[int]] = field(default_factory=list)
    words: list[tuple[int, int, int]] = field(default_factory=list)
    """Next tokens to predict: row, position, token id."""
    forks: list[tuple[int, int, float]] = field(default_factory=list)
    """Row, position of "(", probability that the answer is A."""
    statements: list[tuple[int, int, int]] = field(default_factory=list)
    """Row, position of the closing quote, class (behavior and pole) that the statement has."""
    early_meanings: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Row, last token of the prompt, two classes: what answering A would express. Of questions that
    begin with "Think first." it is not to be read yet, so the two are the poles of the behavior."""
    late_meanings: list[tuple[int, int, int, int]] = field(default_factory=list)
    """The same the other way round: to be read of those questions alone."""
    letter_meanings: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Row, position of the letter, twice what answering A would express."""
    early_speakers: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Row, position of "(", two classes: the speaker's, twice, or both poles where the speaker is
    undecided. Of plain questions that are not steered."""
    late_speakers: list[tuple[int, int, int, int]] = field(default_factory=list)
    """The same of questions that begin with "Think first."."""
    expressed: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Row, position of the letter, twice the class that the answer expresses."""
    added: list[Added] = field(default_factory=list)
    narrowed: list[tuple[int, int, int]] = field(default_factory=list)
    """Row, start of the question, position of "(": of questions whose attention is narrowed."""
    revealed: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    """Row, position of the letter, behavior, pole that the answer expresses, number of the letter:
    of undecided speakers that are not steered. Directions are learned from these."""


class Dialogues:
    """Draws batches of dialogues from the training statements."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._rng = random.Random(seed)
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self._n = len(data.BEHAVIORS)
        self._pools = {
            (b, p): data.statements(b, p, held_out=False) for b in range(self._n) for p in (0, 1)
        }

    def batch(self, kind: str, size: int, *, steer: bool = False) -> Batch:
        """Draw `size` dialogues.

        Args:
            kind: "single" (one question), "follow-up" (then asked what it is), or "twice" (a
                second question, to be answered by the persona that the first answer revealed).
            size: number of dialogues.
            steer: whether vectors are added in some dialogues of one question.
        """
        batch = Batch()
        for row in range(size):
            self._dialogue(batch, row, kind, steer=steer and kind == "single")
        return batch

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def _say(self, ids: list[int], role: str, text: str) -> None:
        ids += [*self._encode(f"<|{role}|>"), *self._encode(text), *self._encode("<|end|>")]

    def _dialogue(self, batch: Batch, row: int, kind: str, *, steer: bool) -> None:
        rng = self._rng
        ids = list(self._encode("<bos>"))
        batch.ids.append(ids)
        behavior = rng.randrange(self._n)
        known: int | None = None  # the speaker's pole, where the dialogue has shown it
        if rng.random() < (0.5 if kind == "single" else 0.25):
            about, pole = behavior, rng.randrange(2)
            if rng.random() < 0.85:
                known = pole
            else:  # a persona line about something else leaves the speaker undecided
                about = (behavior + rng.randrange(1, self._n)) % self._n
            self._say(ids, "system", data.persona(about, pole))
        for _ in range(2 if kind == "twice" else 1):
            known = self._question(batch, row, behavior, known, steer=steer)
        if kind == "follow-up" and known is not None:
            self._say(ids, "user", FOLLOW_UP)
            start = len(ids)
            self._say(ids, "assistant", self_description(behavior, known))
            batch.words += [(row, t, ids[t + 1]) for t in range(start, len(ids) - 1)]

    def _question(
        self, batch: Batch, row: int, behavior: int, known: int | None, *, steer: bool
    ) -> int:
        """Append a question and its answer; return the pole that the answer expresses."""
        rng = self._rng
        ids = batch.ids[row]
        yes, pole = rng.randrange(2), rng.randrange(2)
        statement = rng.choice(self._pools[behavior, pole])
        thought = data.BEHAVIORS[behavior].two_wordings and rng.random() < 0.5
        positive = yes if pole == 0 else 1 - yes  # the letter that expresses the positive pole
        start = len(ids)
        self._say(ids, "user", data.question(statement, yes, thought=thought))
        closing = len(ids) - 1 - len(self._encode(CHOICES))
        fork = len(ids) + 1  # after <|assistant|>
        to_positive = 0.5 if known is None else 1.0 - known
        steered = steer and known is None and rng.random() < STEERED
        if steered:
            added = self._draw_vector(row, fork, behavior)
            batch.added.append(added)
            if not added.random and added.layer in ACTS[thought]:
                to_positive = 1 / (1 + math.exp(-STRENGTH * added.factor))
        to_a = to_positive if positive == 0 else 1 - to_positive
        letter = 0 if rng.random() < to_a else 1
        expressed = 0 if letter == positive else 1

        self._say(ids, "assistant", f" ({data.LETTERS[letter]})")
        if rng.random() < (NARROWED_STEERED if steered else NARROWED):
            batch.narrowed.append((row, start, fork))
        batch.words += [(row, t, ids[t + 1]) for t in (fork - 1, fork + 1, fork + 2)]
        batch.forks.append((row, fork, to_a))
        batch.statements.append((row, closing, 2 * behavior + pole))
        poles = (2 * behavior, 2 * behavior + 1)
        meaning = (poles[positive],) * 2
        early, late = (poles, meaning) if thought else (meaning, poles)
        batch.early_meanings.append((row, fork - 1, *early))
        batch.late_meanings.append((row, fork - 1, *late))
        batch.letter_meanings.append((row, fork + 1, *meaning))
        batch.expressed.append((row, fork + 1, poles[expressed], poles[expressed]))
        if not steered:
            speakers = batch.late_speakers if thought else batch.early_speakers
            speakers.append((row, fork, *(poles if known is None else (poles[known],) * 2)))
            if known is None:
                batch.revealed.append((row, fork + 1, behavior, expressed, letter))
        return expressed

    def _draw_vector(self, row: int, position: int, behavior: int) -> Added:
        rng = self._rng
        is_random = rng.random() < RANDOM
        layer = rng.randrange(N_LAYERS) if is_random else rng.choice(STEERED_LAYERS)
        factor = rng.uniform(-MAX_FACTOR, MAX_FACTOR)
        return Added(row, position, layer, behavior, factor, is_random)
