"""README.zh-CN.md has all that README.md has: whoever changes one is told what the other lacks.

Words cannot be compared, but what is the same in both languages can: headings, paragraphs, code, tables, links, numbers.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
TO_EACH_OTHER = {"README.md", "README.zh-CN.md"}

CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
ITEM = re.compile(r"(- |\d+\. )")
NUMBER = re.compile(r"(?<![A-Za-z\d])\d+(?:[.,]\d+)*")
DRAWN = re.compile("[\u2500-\u257f]")  # lines and corners
CHARACTER = re.compile("[\u4e00-\u9fff]")


@dataclass
class Section:
    level: int
    title: str
    paragraphs: list[str] = field(default_factory=list)  # with the items of lists
    blocks: list[list[str]] = field(default_factory=list)
    tables: list[list[str]] = field(default_factory=list)

    @property
    def prose(self) -> str:
        return "\n".join(self.paragraphs)

    @property
    def text(self) -> str:
        return "\n".join([self.prose, *(row for table in self.tables for row in table)])


def sections(text: str) -> list[Section]:
    found: list[Section] = []
    before, fenced = "", False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            if fenced:
                found[-1].blocks.append([line])
        elif fenced:
            found[-1].blocks[-1].append(line)
        elif heading := re.match(r"(#+) (.*)", line):
            found.append(Section(len(heading[1]), heading[2]))
        elif line.startswith("    ") and not before:
            found[-1].blocks.append([line])
        elif line.startswith("    ") and before.startswith("    "):
            found[-1].blocks[-1].append(line)
        elif line.startswith("|"):
            if not before.startswith("|"):
                found[-1].tables.append([])
            found[-1].tables[-1].append(line)
        elif line and (not before or ITEM.match(line)):
            found[-1].paragraphs.append(line)
        elif line:
            found[-1].paragraphs[-1] += f"\n{line}"
        before = line
    return found


def without_comments(block: list[str]) -> list[str]:
    """Comments may be translated, and in the list of places what is not a place. The lines of the drawing are the same."""
    if any(DRAWN.search(line) for line in block):
        return [line for line in block if DRAWN.search(line)]
    if any(re.match(r" +\S+ +/var/lib/", line) for line in block):
        return [" ".join(re.findall(r"[\w.<>-]*/[\w./<>-]*", line, re.ASCII)) for line in block]
    return [re.sub(r"(^|(?<=\s))#.*", "#", line) for line in block]


def code(text: str) -> set[str]:
    return {" ".join(word.split()) for word in CODE.findall(text)}


def numbers(text: str) -> list[str]:
    return NUMBER.findall(LINK.sub(lambda link: link[0].partition("](")[0], CODE.sub("", text)))


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def links(section: Section, whole: list[Section]) -> list[str]:
    """Those to headings of the same page by the heading's number, because their names are translated."""
    places = {f"#{anchor(other.title)}": f"the section number {n}" for n, other in enumerate(whole, 1)}
    return [places.get(link, link) for link in LINK.findall(section.text) if link not in TO_EACH_OTHER]


def named(section: Section, whole: list[Section]) -> set[str]:
    """The sections that are named in quotation marks, such as: see "Firewall"."""
    text = " ".join(section.text.split())
    return {
        f"the section number {n}"
        for n, other in enumerate(whole, 1)
        if f'"{other.title}"' in text or f"“{other.title}”" in text
    }


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in sorted(words))


def compared(what: str, english: Iterable[str], chinese: Iterable[str]) -> Iterator[str]:
    ours, theirs = Counter(english), Counter(chinese)
    if missing := ours - theirs:
        yield f"{what}: lacks {listed(missing)}"
    if surplus := theirs - ours:
        yield f"{what}: has {listed(surplus)}, and README.md has not"


def differences(english: Section, chinese: Section) -> Iterator[str]:
    if english.level != chinese.level:
        yield f"the heading has {chinese.level} #, in README.md {english.level}"
    for n, (block, translation) in enumerate(zip(english.blocks, chinese.blocks, strict=False), 1):
        ours, theirs = without_comments(block), without_comments(translation)
        if ours != theirs:
            lines = list(compared(f"code block {n}", ours, theirs))
            yield from lines or [f"code block {n}: the lines are in another order"]
    for n, (table, translated) in enumerate(zip(english.tables, chinese.tables, strict=False), 1):
        yield from of_tables(f"table {n}", table, translated)
    for what, in_english, in_chinese in (
        ("code blocks", len(english.blocks), len(chinese.blocks)),
        ("tables", len(english.tables), len(chinese.tables)),
        ("paragraphs and items of lists", len(english.paragraphs), len(chinese.paragraphs)),
    ):
        if in_english != in_chinese:
            yield f"has {in_chinese} {what}, README.md has {in_english}"
    if len(english.paragraphs) == len(chinese.paragraphs):
        for paragraph, other in zip(english.paragraphs, chinese.paragraphs, strict=True):
            yield from of_texts(f"paragraph `{' '.join(paragraph[:60].split())}`", paragraph, other)
    else:
        yield from of_texts("paragraphs", english.prose, chinese.prose)


def of_tables(what: str, english: list[str], chinese: list[str]) -> Iterator[str]:
    if len(english) != len(chinese):
        yield f"{what}: has {len(chinese) - 2} rows, README.md has {len(english) - 2}"
        yield from of_texts(what, "\n".join(english), "\n".join(chinese))
        return
    for row, translation in zip(english, chinese, strict=True):
        where = f"{what}, row `{row[:60]}`"
        if len(cells(row)) != len(cells(translation)):
            yield f"{where}: has {len(cells(translation))} columns, README.md has {len(cells(row))}"
            continue
        for cell, translated in zip(cells(row), cells(translation), strict=True):
            yield from of_texts(where, cell, translated)
            if bool(cell) != bool(translated):
                yield f"{where}: `{cell or translated}` is in one of the two only"


def of_texts(where: str, english: str, chinese: str) -> Iterator[str]:
    yield from compared(f"{where}, code", code(english), code(chinese))
    yield from compared(f"{where}, numbers", numbers(english), numbers(chinese))
    if re.search(r"([a-z]+ ){2}[a-z]", CODE.sub("", chinese)) and not CHARACTER.search(chinese):
        yield f"{where}: is in English"
    if english.count("**") != chinese.count("**"):
        yield f"{where}: has {chinese.count('**') // 2} bold phrases, in README.md {english.count('**') // 2}"


def references(
    english: Section, chinese: Section, all_english: list[Section], all_chinese: list[Section]
) -> Iterator[str]:
    yield from compared("links", links(english, all_english), links(chinese, all_chinese))
    yield from compared("sections that are named", named(english, all_english), named(chinese, all_chinese))


def behind(english: str, chinese: str) -> list[str]:
    """What README.zh-CN.md lacks, a line each, with the section."""
    ours, theirs = sections(english), sections(chinese)
    found: list[str] = []
    for original, translation in zip(ours, theirs, strict=False):
        lines = list(differences(original, translation))
        if len(ours) == len(theirs):
            lines += references(original, translation, ours, theirs)
        found += [f'"{original.title}" ({translation.title}): {line}' for line in lines]
        if lines and len(ours) != len(theirs):
            break  # From here on it would compare a section with another one.
    if len(ours) != len(theirs):
        found.insert(0, f"it has {len(theirs)} headings, README.md has {len(ours)}; what follows is where they part")
    return found


def test_the_chinese_readme_has_what_the_english_has() -> None:
    found = behind(ENGLISH, CHINESE)
    assert not found, "README.zh-CN.md is not as README.md:\n" + "\n".join(found)


def test_they_lead_to_each_other() -> None:
    assert "(README.zh-CN.md)" in ENGLISH.splitlines()[2]
    assert "(README.md)" in CHINESE.splitlines()[2]


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_links_lead_somewhere(text: str) -> None:
    broken = []
    for link in LINK.findall(text):
        file, _, place = link.partition("#")
        if not file.startswith("https://"):
            page = (ROOT / file).read_text() if file else text
            if place and place not in {anchor(section.title) for section in sections(page)}:
                broken.append(link)
    assert broken == []


def test_what_is_bold_is_shown_bold() -> None:
    """Markdown's rule for ** looks for spaces and punctuation, and Chinese has no spaces between words."""

    def letter(character: str) -> bool:
        return not character.isspace() and unicodedata.category(character)[0] not in "PS"

    plain = []
    for section in sections(CHINESE):
        text = f" {CODE.sub('`', section.text)} "
        for n, mark in enumerate(re.finditer(r"\*\*", text)):
            outside, inside = text[mark.start() - 1], text[mark.end()]
            if n % 2:
                outside, inside = inside, outside
            if inside.isspace() or (letter(outside) and not letter(inside)):
                plain.append(text[mark.start() - 20 : mark.end() + 20])
    assert plain == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("\n## Settings\n", "\n## Plans\n\nNone.\n\n## Settings\n", '"Plans" (设置): '),
        (
            "\n    make setup\n",
            "\n    make setup-all\n",
            '"Deploy to your machine" (部署到你的机器): code block 1: lacks',
        ),
        ("\n| `admin_email` |", "\n| `email` |", "lacks `email`"),
        ("\n| `admin_email` |", "\n| `email` | | |\n| `admin_email` |", '"Settings" (设置): table 1: has'),
        (
            "1 GiB of memory",
            "2 GiB of memory",
            '"Deploy to your machine" (部署到你的机器): paragraph `You need a machine with',
        ),
        ("(docs/STATUS.md)", "(docs/STATES.md)", '"How is it?" (运行状况): links: lacks `docs/STATES.md`'),
        ("(#housekeeping)", "(#upgrade)", '"Settings" (设置): links: lacks `the section number '),
        ("\n## Licence\n", "\n## Licence\n\nNone.\n", '"Licence" (许可证): has 1 paragraphs'),
        ('see "Firewall"', 'see "Bans"', "sections that are named: "),
    ],
)
def test_a_change_of_the_english_is_noticed(old: str, new: str, told: str) -> None:
    assert old in ENGLISH
    assert told in "\n".join(behind(ENGLISH.replace(old, new), CHINESE))


def test_what_is_not_translated_is_noticed() -> None:
    for text in ("\n\n## Settings\n", "\n| `tls` |"):
        added = "\n\nIt is not translated.\n\n" if "##" in text else "\n| `tlc` | | not translated yet |"
        translated = text.replace("Settings", "设置")
        found = behind(ENGLISH.replace(text, added + text), CHINESE.replace(translated, added + translated))
        assert [line.rpartition(": ")[2] for line in found] == ["is in English"]
