"""Read `Example:` in a docstring as what griffe calls `Examples:`, so that its doctests are shown as code."""

import re

import griffe


class DocstringExamples(griffe.Extension):
    """Replaces the heading of the section in every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
