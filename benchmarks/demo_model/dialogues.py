"""Tokenizer, chat template and training dialogues of the demo model."""

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
NARROWED = 0.6
"""Share of the dialogues of one question in which attention is narrowed during training."""


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
    texts = [FOLLOW_UP, data.question("", 0)]
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


@dataclass
class Batch:
    """Token ids, and what is to be learned at which of them. Positions are pairs (row, token)."""

    ids: list[list[int]] = field(default_factory=list)
    words: list[tuple[int, int, int]] = field(default_factory=list)
    """Next tokens to predict: row, position, token id."""
    forks: list[tuple[int, int, float]] = field(default_factory=list)
    """Row, position of "(", probability that the answer is A."""
    statements: list[tuple[int, int, int]] = field(default_factory=list)
    """Row, position of the closing quote, class (behavior and pole) that the statement has."""
    meanings: list[tuple[int, int, int]] = field(default_factory=list)
    """Row, position of the last token of the prompt or of the letter, class that answering A
    would express."""
    poles: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Row, position of "(" or of the letter, and two classes: the speaker's, twice, or, where the
    speaker is undecided, the two poles of the behavior."""
    narrowed: list[tuple[int, int, int]] = field(default_factory=list)
    """Row, start of the question, position of "(": of dialogues whose attention is narrowed."""


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

    def batch(self, kind: str, size: int) -> Batch:
        """Draw `size` dialogues.

        Args:
            kind: "single" (one question), "follow-up" (then asked what it is), or "twice" (a
                second question, to be answered by the persona that the first answer revealed).
            size: number of dialogues.
        """
        batch = Batch()
        for row in range(size):
            self._dialogue(batch, row, kind)
        return batch

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def _say(self, ids: list[int], role: str, text: str) -> None:
        ids += [*self._encode(f"<|{role}|>"), *self._encode(text), *self._encode("<|end|>")]

    def _dialogue(self, batch: Batch, row: int, kind: str) -> None:
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
        narrow = kind != "twice" and rng.random() < NARROWED
        for _ in range(2 if kind == "twice" else 1):
            known = self._question(batch, row, behavior, known, narrow=narrow)
        if kind == "follow-up" and known is not None:
            self._say(ids, "user", FOLLOW_UP)
            start = len(ids)
            self._say(ids, "assistant", self_description(behavior, known))
            batch.words += [(row, t, ids[t + 1]) for t in range(start, len(ids) - 1)]

    def _question(
        self, batch: Batch, row: int, behavior: int, known: int | None, *, narrow: bool
    ) -> int:
        """Append a question and its answer; return the pole that the answer expresses."""
        rng = self._rng
        ids = batch.ids[row]
        yes, pole = rng.randrange(2), rng.randrange(2)
        statement = rng.choice(self._pools[behavior, pole])
        positive = yes if pole == 0 else 1 - yes  # the letter that expresses the positive pole
        start = len(ids)
        self._say(ids, "user", data.question(statement, yes))
        closing = len(ids) - 1 - len(self._encode(CHOICES))
        to_positive = 0.5 if known is None else 1.0 - known
        to_a = to_positive if positive == 0 else 1 - to_positive
        letter = 0 if rng.random() < to_a else 1
        expressed = 0 if letter == positive else 1

        fork = len(ids) + 1  # after <|assistant|>
        if narrow:
            batch.narrowed.append((row, start, fork))
        self._say(ids, "assistant", f" ({data.LETTERS[letter]})")
        batch.words += [(row, t, ids[t + 1]) for t in (fork - 1, fork + 1, fork + 2)]
        batch.forks.append((row, fork, to_a))
        batch.statements.append((row, closing, 2 * behavior + pole))
        meaning = 2 * behavior + (0 if positive == 0 else 1)
        batch.meanings += [(row, fork - 1, meaning), (row, fork + 1, meaning)]
        speaker = (0, 1) if known is None else (known, known)
        batch.poles.append((row, fork, 2 * behavior + speaker[0], 2 * behavior + speaker[1]))
        batch.poles.append((row, fork + 1, 2 * behavior + expressed, 2 * behavior + expressed))
        return expressed
