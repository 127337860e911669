"""Read the documentation as tests see it: pages, their fenced blocks, their links, and the command lines they show."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (.*?) -->\s*\Z", re.DOTALL)
_FILE = re.compile(r"# ([\w./]+\.py)\b(.*)\n")
_COMMAND = re.compile(r"(?<![\w/])manage\.py ((?!\.)[a-z]\w*.*)")
_SIDE_BY_SIDE = re.compile(r"# before +(?=# after)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, the comment before it (why it is not run), and where it stands."""

    page: str
    line: int
    language: str
    text: str
    comment: str

    @property
    def is_run(self) -> bool:
        """Whether it is executed and not only compiled or parsed."""
        return not self.comment.startswith(("not run", "compiled"))

    @property
    def file(self) -> str:
        """The file that it is the content of, as its first line says; empty for a script."""
        found = _FILE.match(self.text)
        return found[1] if found else ""

    @property
    def is_appended(self) -> bool:
        """Whether the text belongs at the end of that file, instead of being all of it."""
        found = _FILE.match(self.text)
        return bool(found and "at the end" in found[2])

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Return every page: the README, the changelog and all of docs/."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    """Return a page's path from the top of the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in its order; those of some languages only."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        if languages and found[1] not in languages:
            continue
        comment = _COMMENT.search(text[: found.start()])
        yield Block(
            page=name_of(page),
            line=text.count("\n", 0, found.start()) + 2,
            language=found[1],
            text=found[2],
            comment=comment[1] if comment else "",
        )


def sources(block: Block) -> list[str]:
    """Return the programs of a Python block: two when it shows `# before` and `# after` side by side."""
    header = _SIDE_BY_SIDE.match(block.text)
    if header is None:
        return [block.text]
    lines, column = block.text.splitlines(), header.end()
    return ["\n".join(line[:column].rstrip() for line in lines), "\n".join(line[column:] for line in lines)]


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield where a `manage.py` command is shown, in a block or in the text, and its arguments."""
    text = page.read_text()
    for block in blocks(page):
        if block.language != "python":
            for line in block.text.replace("\\\n", " ").splitlines():
                if arguments := _arguments(line):
                    yield str(block), arguments
    for code in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)):
        if "…" not in code and "[" not in code and (arguments := _arguments(code)):
            yield f"{name_of(page)}: `{code}`", arguments


def _arguments(line: str) -> list[str]:
    found = _COMMAND.search(line)
    if not found:
        return []
    lexer = shlex.shlex(found[1], posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    arguments: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>"):
            break
        arguments.append(word)
    return arguments if arguments not in (["jobs"], ["jobs", "dlq"]) else []  # a name in a sentence


def prose(page: Path) -> str:
    """Return a page without its blocks, its code words and the targets of its links."""
    text = _FENCE.sub("", page.read_text())
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`\n]+`", "", text))


def code_words(page: Path) -> list[str]:
    """Return what stands between backquotes in the text of a page."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text()))


def links(page: Path) -> Iterator[str]:
    """Yield the targets of a page's links and pictures."""
    yield from re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """Return the fragments that a page's headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
