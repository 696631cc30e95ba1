"""Every code block of the README and the docs runs; links lead somewhere; the Japanese README says the same."""

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from backshan_diffusers import cli
from backshan_diffusers.pictures import save_picture

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
EXTRAS = re.search(r"^EXTRAS = \((.+?)\)", (ROOT / "setup.py").read_text(encoding="utf-8"), re.M)[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
MARK = re.compile(r"^<!-- not run", re.M)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
PRINTS = re.compile(r"^print\(.+\)  # prints (.+)$", re.M)
NOT_RUN = 12
"""Blocks that are marked as not run; another one should be a decision."""


@dataclass
class Block:
    """A fenced block of a page."""

    name: str
    language: str
    code: str
    reason: str | None

    @property
    def runs(self) -> bool:
        """Whether it is code, and not marked as not run."""
        return self.reason is None and self.language in ("python", "bash")


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [
        Block(f"{page.name}-{number}", match["language"], match["code"], match["reason"])
        for number, match in enumerate(found, start=1)
    ]


EVERY = [block for page in PAGES for block in blocks(page)]


@pytest.fixture
def folder_of_a_reader(tmp_path, monkeypatch, drawn_backs, datasets_cache):
    """The current folder has what the pages speak of: the repository's folders, and some pictures."""
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("photos", "more"):
        (tmp_path / name).mkdir()
    save_picture(drawn_backs[0], tmp_path / "back.png")
    (tmp_path / "demo/backs").mkdir(parents=True)  # as `make demo` leaves them
    save_picture(drawn_backs[0], tmp_path / "demo/backs/person_1.png")
    save_picture(drawn_backs[1], tmp_path / "photos/one.png")
    drawn_backs[2].save(tmp_path / "more/two.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=lambda page: page.name
)
def test_blocks_of_the_page_run_from_top_to_bottom(page, folder_of_a_reader):
    names = {"__name__": page.stem}
    for block in (block for block in blocks(page) if block.runs):
        if block.language == "python":
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(compile(block.code, block.name, "exec"), names)
            check_output(block, printed.getvalue())
        else:
            for line in block.code.replace("\\\n", " ").splitlines():
                run_command(shlex.split(line, comments=True))


def told_by(script: Path, *arguments: str) -> str:
    """What a script prints and ends well with, here, where everything is imported already."""
    printed, before = io.StringIO(), (sys.argv, sys.path)
    sys.argv, sys.path = [str(script), *arguments], [str(script.parent.resolve()), *sys.path]
    try:
        with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path = before
    assert ended.value.code == 0, f"{script} {shlex.join(arguments)}"
    return printed.getvalue()


def check_output(block: Block, printed: str) -> None:
    """Compares what a block printed with the comment that follows each `print`, where `...` stands for anything."""
    told = PRINTS.findall(block.code)
    assert len(told) == block.code.count("print("), f"{block.name}: say behind each print what it prints"
    expected = "".join(f"{line}\n" for line in told)
    assert OutputChecker().check_output(expected, printed, ELLIPSIS), f"{block.name} prints {printed!r}"


def run_command(words: list[str]) -> None:
    """Runs a command of a page, or the part of it that is quick: `make` and training run for minutes or hours."""
    match words:
        case []:
            pass
        case ["make", *targets]:
            assert targets
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.M), f"make {target} does not exist"
        case ["backshan", *arguments] | ["python", "-m", "backshan_diffusers", *arguments]:
            try:
                code = cli.main(arguments)
            except SystemExit as ended:
                code = ended.code
            assert not code
            if "--help" not in arguments:
                assert Path(cli.build_parser().parse_args(arguments).out).exists()
        case ["accelerate", "launch", "--config_file", file, "--num_processes", _, *command]:
            load_config_from_file(file)  # it speaks of devices that may not be here
            run_command(["accelerate", "launch", *command])
        case ["accelerate", "launch", script, *arguments]:
            launch_command_parser().parse_args([script, *arguments])
            assert told_by(Path(script), *arguments, "--dry_run")
        case ["python", script, *arguments] if script.startswith("benchmarks/"):  # their own tests run them
            told = told_by(Path(script), "--help")
            for option in (word for word in arguments if word.startswith("--")):
                assert re.search(rf"{option}\b", told), f"{script} has no {option}"
        case ["pip", "install", "-c", "constraints.txt", "-e", requirement]:
            extras = re.fullmatch(r"\.\[([\w,]+)\]", requirement)[1].split(",")
            assert set(extras) <= set(re.findall(r'"(\w+)"', EXTRAS)), requirement
        case ["source", activate]:
            assert re.search(rf"^VENV := {re.escape(activate.removesuffix('/bin/activate'))}$", MAKEFILE, re.M)
        case ["mkdir", *_]:
            pass
        case _:
            raise AssertionError(
                f"the test does not know how to run {shlex.join(words)!r}: teach it, or mark the block"
            )


def test_blocks_that_are_not_run_are_counted():
    assert sum(block.reason is not None for block in EVERY) == NOT_RUN
    assert sum(len(MARK.findall(page.read_text(encoding="utf-8"))) for page in PAGES) == NOT_RUN


def test_every_block_names_its_language():
    for block in EVERY:
        assert block.language in ("python", "bash", ""), block.name
        if not block.language:  # diagrams and listings
            assert not re.search(r"^(import|from|make|backshan|python|accelerate|pip)\b", block.code, re.M), block.name


def test_the_readme_shows_what_matters():
    codes = [block.code for block in blocks(ROOT / "README.md") if block.runs]
    for command in ("make demo", "make test", "backshan generate", "from_pretrained(MINI)", "accelerate launch"):
        assert any(command in code for code in codes), command


def test_the_japanese_readme_has_the_same_code_and_pictures():
    english, japanese = ROOT / "README.md", ROOT / "README.ja.md"
    assert [block.code for block in blocks(japanese)] == [block.code for block in blocks(english)]
    texts = [page.read_text(encoding="utf-8") for page in (english, japanese)]
    pictures = [re.findall(r"!\[.*?\]\((.+?)\)", text) for text in texts]
    assert pictures[0] == pictures[1]
    assert [text.count("\n## ") for text in texts] == [texts[0].count("\n## ")] * 2


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.ja.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in (match["target"] for match in LINK.finditer(BLOCK.sub("", page.read_text(encoding="utf-8")))):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings]


def test_every_page_is_reached_from_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in contents, page.name
