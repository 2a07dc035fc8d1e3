"""Metrics of a text as plain loops, and the choice of a strength written out."""

import math
import unicodedata
import zlib


def repetition(text):
    words = text.split()
    seen, n_again, n = set(), 0, 0
    for i in range(len(words) - 3):
        gram = (words[i], words[i + 1], words[i + 2], words[i + 3])
        n += 1
        if gram in seen:
            n_again += 1
        seen.add(gram)
    return None if n == 0 else n_again / n


def compression(text):
    raw = text.encode("utf-8")
    if not raw:
        return None
    compressor = zlib.compressobj(level=9)
    return len(compressor.compress(raw) + compressor.flush()) / len(raw)


def script_consistency(text, scripts):
    n, n_expected = 0, 0
    for character in unicodedata.normalize("NFC", text):
        if not character.isalpha() or unicodedata.category(character) == "Lm":
            continue
        n += 1
        first = unicodedata.normalize("NFKC", character)[0]
        # Python has no name for some letters: Tangut's, for example.
        if unicodedata.name(first, "NONE").split(" ")[0] in scripts:
            n_expected += 1
    return None if n == 0 else n_expected / n


def has_phrase(text, phrases, within=None):
    def plain(words):
        for curly in "’‘ʼ＇":
            words = words.replace(curly, "'")
        return " ".join(words.lower().split())

    text = plain(text)
    if within is not None:
        text = text[:within]
    for phrase in phrases:
        for i in range(len(text)):
            if text[i : i + len(plain(phrase))] == plain(phrase):
                return True
    return False


def chosen_strength(rows, *, identity, budget, loss):
    """The strength by definition, from `{strength: [row, ...]}` of validation rows alone.

    A row is a dict of target, nll, form and ended; `rows[None]` are the unsteered texts, in the same
    order. Returns None where no strength is allowed.
    """
    best, best_effect = None, -math.inf
    unsteered = rows[None]
    for strength in sorted((s for s in rows if s not in (None, identity)), key=abs):
        steered = rows[strength]
        n = len(steered)
        ratio = math.exp(
            sum(a["nll"] - b["nll"] for a, b in zip(steered, unsteered, strict=True)) / n
        )
        lost = max(
            sum(b[name] - a[name] for a, b in zip(steered, unsteered, strict=True)) / n
            for name in ("form", "ended")
        )
        effect = sum(a["target"] - b["target"] for a, b in zip(steered, unsteered, strict=True)) / n
        if ratio <= budget and lost <= loss + 1e-9 and effect > best_effect:
            best, best_effect = strength, effect
    return best
