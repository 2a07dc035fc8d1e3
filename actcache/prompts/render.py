"""Rendering of samples as tokens: system message, chat template, BOS, completions.

The prompt's tokens must be a prefix of those of prompt and completion together, and both
completions must differ in a token before the shorter one ends. Each row is checked for that here,
before a model is loaded.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actcache.conventions import BOS, SPACES
from actcache.data.samples import Sample
from actcache.data.spans import Span
from actcache.errors import RenderError
from actcache.prompts.spans import span_in_text, span_in_tokens
from actcache.prompts.templates import TemplateError, TemplateProcess, shared_process
from actcache.prompts.token_tree import Tree
from actcache.settings import check_word


@dataclass(frozen=True)
class Rendered:
    """The tokens of one sample."""

    prompt: tuple[int, ...]
    """BOS, chat template, prompt."""

    shared: tuple[int, ...] = ()
    """What both completions begin with, for example " ("; empty if they differ at once."""

    positive: tuple[int, ...] = ()
    """The rest of the positive completion, from the first token that differs."""

    negative: tuple[int, ...] = ()
    """The rest of the negative completion."""

    span: tuple[int, int] | None = None
    """The marked tokens of the prompt, `[start, end)`; None if the sample marks no span."""

    control_span: tuple[int, int] | None = None
    """As many tokens elsewhere in the prompt; None where they are not read."""

    @property
    def chain(self) -> tuple[int, ...]:
        """Prompt and shared start; the last token is the fork."""
        return self.prompt + self.shared

    @property
    def length(self) -> int:
        """Number of tokens of the longer of the two sequences."""
        return len(self.chain) + max(len(self.positive), len(self.negative))

    def tree(self, n_positive: int, n_negative: int) -> Tree:
        """Build the token tree, with only the first tokens of each branch."""
        return Tree(self.chain, (self.positive[:n_positive], self.negative[:n_negative]))


PARTS = ("prompt", "shared", "positive", "negative")
"""The token fields of `Rendered`; a store has each as the ragged column `<part>_tokens`."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """The settings by which prompts become tokens; recorded with every store."""

    template: str = "auto"
    """`auto`: the tokenizer's chat template if it has one; `none`: plain prompts; or a file."""

    system: str | None = None
    """System message of the rows that have none."""

    space: str = "one"
    """What goes between prompt and completion, of `SPACES`."""

    bos: str = "auto"
    """BOS tokens at the start, of `BOS`."""

    def __post_init__(self) -> None:
        check_word("space", self.space, SPACES, error=RenderError)
        check_word("bos", self.bos, BOS, error=RenderError)


class Renderer:
    """Renders samples with one Hugging Face tokenizer and one set of conventions."""

    def __init__(
        self, tokenizer: Any, rendering: Rendering, *, process: TemplateProcess | None = None
    ):
        self._tokenizer = tokenizer
        self._process = process or shared_process()
        self._stopped = ""
        self.rendering = rendering
        self._system = rendering.system or None  # an empty one is none
        self.template = _template(tokenizer, rendering.template)
        if self._system is not None and self.template is None:
            raise RenderError(
                "a system message is given, but prompts are plain: there is no chat template to "
                "put it in. Pass --template FILE, or --system '' for none."
            )
        default = tokenizer("a")["input_ids"]
        self._adds_bos = bool(default) and default[0] == tokenizer.bos_token_id
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._n_added_after = next(
            (n for n in range(len(default)) if default[: len(default) - n][-len(bare) :] == bare), 0
        )
        self._words: dict[int, str] = {}
        self._ids: dict[int, int] = {}
        self.bos: int | None = tokenizer.bos_token_id
        self.special = frozenset(tokenizer.all_special_ids)

    def text(self, sample: Sample) -> str:
        """Render the prompt as text, up to where the answer begins."""
        if self.template is None:
            if sample.system is not None:
                raise RenderError(
                    f"row '{sample.id}' has a system message, but prompts are plain: there is "
                    "no chat template to put it in. Pass --template FILE, or drop 'system'."
                )
            if sample.history:
                raise RenderError(
                    f"row '{sample.id}' has earlier turns, but prompts are plain: there is no chat "
                    "template to put them in. Pass --template FILE, or give 'prompt' alone."
                )
            return self._stripped(sample.prompt)
        system = sample.system if sample.system is not None else self._system
        turns = (*sample.history, ("user", self._stripped(sample.prompt)))
        messages = [{"role": role, "content": content} for role, content in turns]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        if self._stopped:  # it would be for every row
            raise RenderError(self._stopped)
        try:
            text = self._process.render(self.template, messages, self._tokenizer.special_tokens_map)
        except TemplateError as error:
            refusal = (
                f"the chat template refuses row '{sample.id}' ({error}). Pass --template none, "
                "another template, or no system message."
            )
            if error.stopped:
                self._stopped = refusal
            raise RenderError(refusal) from error
        if messages[-1]["content"].strip() not in text:
            raise RenderError(
                f"the chat template renders {'no text' if not text.strip() else 'other text'} for "
                f"row '{sample.id}', without its whole prompt. Use a template that shows it "
                "(--template FILE), or --template none."
            )
        if system is not None and system.strip() not in text:
            raise RenderError(
                f"the chat template drops the system message of row '{sample.id}'. Use a template "
                "that shows it (--template FILE), or ask for none: no --system, and of --variants "
                "base, user_pos and user_neg."
            )
        if not all(content.strip() in text for _, content in sample.history):
            raise RenderError(
                f"the chat template drops an earlier turn of row '{sample.id}'. Use a template "
                "that shows all (--template FILE), or give 'prompt' alone."
            )
        return self._stripped(text)

    def word(self, token: int) -> str:
        """Decode one token, without the spaces around it."""
        if token not in self._words:
            self._words[token] = str(self._tokenizer.decode([token])).strip()
        return self._words[token]

    def _stripped(self, text: str) -> str:
        return text.strip() if self.rendering.space == "strip" else text

    def __call__(self, sample: Sample) -> Rendered:
        """Render one sample; refuse it if prompt and completion share a token."""
        text = self.text(sample)
        prompt = self._tokens(text)
        span = self._span(sample, text, prompt)
        if sample.positive is None or sample.negative is None:
            if not prompt:
                raise RenderError(f"row '{sample.id}' has no token. Give it a prompt.")
            return Rendered(tuple(prompt), span=span)
        positive = self._completed(sample, text, prompt, sample.positive)
        negative = self._completed(sample, text, prompt, sample.negative)
        shared = _shared_start(positive, negative)
        if len(shared) == min(len(positive), len(negative)):
            raise RenderError(
                f"row '{sample.id}': in tokens one completion continues the other "
                f"({sample.positive!r}, {sample.negative!r}), so no token tells them apart. "
                "Give completions that differ before the shorter one ends."
            )
        n = len(shared)
        return Rendered(tuple(prompt), shared, tuple(positive[n:]), tuple(negative[n:]), span)

    def _span(self, sample: Sample, text: str, prompt: list[int]) -> Span | None:
        if sample.span is None:
            return None

        in_system = sample.span_part == "system"

        def render(part: str) -> str:
            changed = replace(sample, system=part) if in_system else replace(sample, prompt=part)
            return self.text(changed)

        part = sample.system or "" if in_system else sample.prompt
        characters = span_in_text(render, part, sample.span, text=text, name=sample.id)
        return span_in_tokens(self._tokenizer, prompt, characters, text=text, name=sample.id)

    def _completed(
        self, sample: Sample, text: str, prompt: list[int], completion: str
    ) -> list[int]:
        joined = self.joined(text, completion)
        whole = self._tokens(text + joined)
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise RenderError(
                f"row '{sample.id}': the tokenizer merges the end of the prompt with the "
                f"completion {completion!r}: the tokens of {(text + joined)[-40:]!r} do not begin "
                "with those of the prompt. Change --space, or end the prompt where a token ends."
            )
        return whole[len(prompt) :]

    def joined(self, text: str, completion: str) -> str:
        """Render the completion as it follows `text`."""
        match self.rendering.space:
            case "none":
                return completion
            case "add":
                return " " + completion
            case "strip":
                return " " + completion.strip()
            case _:  # "one"
                # A plain prompt that ends in a space already has the one space.
                # A line break is no space: after "\n" a model reads " yes", not "yes".
                has_space = self.template is None and text.endswith(" ")
                return completion.lstrip() if has_space else " " + completion.lstrip()

    def _tokens(self, text: str) -> list[int]:
        ids = self._token_ids(text)
        # One object for each id of the vocabulary: all rows are in memory, and the integers that a
        # tokenizer makes are larger than the tuples that hold them.
        return list(map(self._ids.setdefault, ids, ids))

    def _token_ids(self, text: str) -> list[int]:
        if self.rendering.bos == "tokenizer":
            ids = list(self._tokenizer(text)["input_ids"])
            return ids[: len(ids) - self._n_added_after]
        bos = self.bos
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if bos is None:
            return ids
        n_in_text = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        if self.rendering.bos == "auto":
            n_bos = int(self._adds_bos or n_in_text > 0)
        else:
            n_bos = int(self.rendering.bos)
        return [bos] * n_bos + ids[n_in_text:]


def _shared_start(left: list[int], right: list[int]) -> tuple[int, ...]:
    n = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b),
        min(len(left), len(right)),
    )
    return tuple(left[:n])


def _template(tokenizer: Any, choice: str) -> str | None:
    if choice == "none":
        return None
    if choice == "auto":
        template = tokenizer.chat_template
        return str(template) if template is not None else None
    path = Path(choice)
    if not path.is_file():
        raise RenderError(
            f"no chat template at '{choice}', expected auto, none or a Jinja file. Pass one of "
            "them."
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RenderError(
            f"the chat template at '{choice}' cannot be read ({error}), expected a text in UTF-8. "
            "Pass another."
        ) from error
