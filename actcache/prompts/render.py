"""From a sample's text to its token tree: system message, chat template, BOS, completions.

The prompt's tokens must be a prefix of those of prompt and completion together, and the two
completions must part at a token that both still share. Each row is checked for that here, before a
model is loaded. Knows a tokenizer; knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actcache.conventions import BOS, SPACES
from actcache.data.samples import Sample
from actcache.data.spans import Span
from actcache.errors import RenderError
from actcache.prompts.spans import span_in_text, span_in_tokens
from actcache.prompts.token_tree import Tree


@dataclass(frozen=True)
class Rendered:
    """The tokens of one sample."""

    prompt: tuple[int, ...]
    """BOS, chat template, prompt."""

    shared: tuple[int, ...] = ()
    """What both completions begin with, for example " ("; empty where they part at once."""

    positive: tuple[int, ...] = ()
    """The rest of the positive completion, from the first token that differs."""

    negative: tuple[int, ...] = ()
    """The rest of the negative completion."""

    span: tuple[int, int] | None = None
    """The marked tokens of the prompt, `[start, end)`; None where the sample marks no span."""

    @property
    def chain(self) -> tuple[int, ...]:
        """Prompt and shared start. Its last token is the fork."""
        return self.prompt + self.shared

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.chain) + max(len(self.positive), len(self.negative))

    def tree(self, n_positive: int, n_negative: int) -> Tree:
        """The chain with the first tokens of each branch."""
        return Tree(self.chain, (self.positive[:n_positive], self.negative[:n_negative]))


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How prompts become text and tokens; recorded with every store."""

    template: str = "auto"
    """`auto`: the tokenizer's chat template if it has one; `none`: plain prompts; or a file."""

    system: str | None = None
    """System message of the rows that bring none themselves."""

    space: str = "one"
    """What goes between prompt and completion, of `SPACES`."""

    bos: str = "auto"
    """BOS tokens at the start, of `BOS`."""

    def __post_init__(self) -> None:
        for name, value, known in (("space", self.space, SPACES), ("bos", self.bos, BOS)):
            if value not in known:
                raise RenderError(
                    f"{name} is '{value}', expected {', '.join(known)}. Pass one of them."
                )


class Renderer:
    """Renders samples with one tokenizer and one set of conventions.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rendering: the conventions.

    Raises:
        RenderError: the template is no file, or a system message has no place to go.
    """

    def __init__(self, tokenizer: Any, rendering: Rendering):
        self._tokenizer = tokenizer
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
        self.bos: int | None = tokenizer.bos_token_id
        self.special = frozenset(tokenizer.all_special_ids)

    def text(self, sample: Sample) -> str:
        """The prompt as the model gets it, up to where the answer begins."""
        if self.template is None:
            if sample.system is not None:
                raise RenderError(
                    f"row '{sample.id}' brings a system message, but prompts are plain: there is "
                    "no chat template to put it in. Pass --template FILE, or drop 'system'."
                )
            return self._stripped(sample.prompt)
        system = sample.system if sample.system is not None else self._system
        messages = [{"role": "user", "content": self._stripped(sample.prompt)}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # a template is a program: whatever it raises is about the row
            raise RenderError(
                f"the chat template refuses row '{sample.id}' ({error}). Pass --template none, "
                "another template, or no system message."
            ) from error
        if system is not None and system.strip() not in text:
            raise RenderError(
                f"the chat template drops the system message of row '{sample.id}'. Use a template "
                "that shows it (--template FILE), or ask for none: no --system, and of --variants "
                "base, user_pos and user_neg."
            )
        return self._stripped(str(text))

    def word(self, token: int) -> str:
        """What a token says, without the spaces around it."""
        if token not in self._words:
            self._words[token] = str(self._tokenizer.decode([token])).strip()
        return self._words[token]

    def _stripped(self, text: str) -> str:
        return text.strip() if self.rendering.space == "strip" else text

    def __call__(self, sample: Sample) -> Rendered:
        """Render one sample.

        Raises:
            RenderError: prompt and completion do not part cleanly into tokens; names the row.
        """
        text = self.text(sample)
        prompt = self._tokens(text)
        span = self._span(sample, text, prompt)
        if sample.positive is None or sample.negative is None:
            if not prompt:
                raise RenderError(f"row '{sample.id}' has no token. Give it a prompt.")
            return Rendered(tuple(prompt), span=span)
        positive = self._completed(sample, text, prompt, sample.positive)
        negative = self._completed(sample, text, prompt, sample.negative)
        shared = _common(positive, negative)
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

        def render(prompt: str) -> str:
            return self.text(replace(sample, prompt=prompt))

        found = span_in_text(render, sample.prompt, sample.span, text=text, name=sample.id)
        return span_in_tokens(self._tokenizer, prompt, found, text=text, name=sample.id)

    def _completed(
        self, sample: Sample, text: str, prompt: list[int], completion: str
    ) -> list[int]:
        whole = self._tokens(text + self.joined(text, completion))
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise RenderError(
                f"row '{sample.id}': the tokenizer merges the end of the prompt with the "
                f"completion {completion!r}, so the prompt's tokens are not a prefix. "
                "Change --space, or end the prompt where a token ends."
            )
        return whole[len(prompt) :]

    def joined(self, text: str, completion: str) -> str:
        """The completion as it follows `text`."""
        match self.rendering.space:
            case "none":
                return completion
            case "add":
                return " " + completion
            case "strip":
                return " " + completion.strip()
            case _:  # "one"
                # A plain prompt that ends in a space brings the one space itself.
                brings = self.template is None and text[-1:].isspace()
                return completion.lstrip() if brings else " " + completion.lstrip()

    def _tokens(self, text: str) -> list[int]:
        if self.rendering.bos == "tokenizer":
            ids = list(self._tokenizer(text)["input_ids"])
            return ids[: len(ids) - self._n_added_after]
        bos = self.bos
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if bos is None:
            return ids
        n_found = next((i for i, token in enumerate(ids) if token != bos), len(ids))
        if self.rendering.bos == "auto":
            wanted = int(self._adds_bos or n_found > 0)
        else:
            wanted = int(self.rendering.bos)
        return [bos] * wanted + ids[n_found:]


def longest_that_fit(
    rendered: Sequence[Rendered], context: int | None
) -> tuple[list[int], list[int]]:
    """Which rows the model can hold, and which not: `(fit, too_long)`, indices in order.

    Rows are never cut: a cut prompt is another prompt.
    """
    lengths = [row.length for row in rendered]
    limit = context if context is not None else max(lengths, default=0)
    fit = [i for i, length in enumerate(lengths) if length <= limit]
    return fit, [i for i, length in enumerate(lengths) if length > limit]


def _common(left: list[int], right: list[int]) -> tuple[int, ...]:
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
    return path.read_text(encoding="utf-8")
