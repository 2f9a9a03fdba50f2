"""Commands and code that a page of the documentation shows, out of its text."""

import re
import shlex


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language, without their fences."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def shell_lines(text: str) -> list[str]:
    """Return the lines of all bash blocks, continuation lines joined, without indentation."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip()]


def shell_commands(text: str) -> list[list[str]]:
    """Return the words of every command of all bash blocks, comments dropped."""
    return [words for line in shell_lines(text) if (words := shlex.split(line, comments=True))]
