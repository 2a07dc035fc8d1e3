"""Text that others wrote, made safe to print: names and messages may hold control characters."""


def printable(text: str) -> str:
    r"""Spell what cannot be printed as an escape; keep line breaks.

    Example:
        >>> print(printable(chr(27) + "[31mred"))
        \x1b[31mred
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
