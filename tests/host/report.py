"""The report at the end of a verification: what was found, what is wrong, and what to do."""

import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

# note(subject, text): something found, for the report.
Note = Callable[[str, str], None]

WIDTH = 120


@dataclass(frozen=True)
class Problem:
    machine: str
    text: str
    test: str


@dataclass
class Report:
    """machines: name -> its roles. notes: machine -> subject -> what was found. logs: unit -> the end of its log."""

    title: str
    machines: dict[str, str]
    notes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    passed: int = 0

    def note(self, machine: str, subject: str, text: str) -> None:
        texts = self.notes.setdefault(machine, {}).setdefault(subject, [])
        if text not in texts:
            texts.append(text)

    def problem(self, machine: str, text: str, test: str) -> None:
        """Add a problem; the same one, found by several tests, is listed once."""
        if not any((each.machine, each.text) == (machine, text) for each in self.problems):
            self.problems.append(Problem(machine, text, test))

    def lines(self) -> list[str]:
        lines = [self.title]
        for machine, roles in self.machines.items():
            lines += ["", f"{machine}: {roles}"]
            for subject, texts in self.notes.get(machine, {}).items():
                for number, text in enumerate(texts):
                    lines += _wrapped(f"  {subject if number == 0 else '':<13} ", text)
        lines.append("")
        for reason, count in Counter(self.skipped).items():
            lines += _wrapped("Not checked: ", f"{reason} ({count} check{'' if count == 1 else 's'})")
        if not self.problems:
            return [*lines, f"Nothing is wrong: {self.passed} checks passed."]
        count = len(self.problems)
        lines += [f"{count} thing{' is' if count == 1 else 's are'} wrong ({self.passed} checks passed):", ""]
        # Services that do not run come first: they cause many of the other problems.
        for number, each in enumerate(sorted(self.problems, key=lambda each: "::test_runs[" not in each.test), 1):
            head, *rest = map(str.strip, each.text.splitlines())
            lines += _wrapped(f"{number:3}. ", f"{each.machine}: {head}")
            lines += [line for more in rest for line in _wrapped("     ", more)]
            lines += [f"     ({each.test})", ""]
        for unit, log in self.logs.items():
            lines += [unit, *(f"    {line}" for line in log.splitlines()[-5:]), ""]
        return lines[:-1]


def _wrapped(first: str, text: str) -> list[str]:
    indent = " " * len(first)
    # Long words are commands or names, which must not be broken.
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]
