"""Fills the result tables of README.md, docs/*.md and mini's card from benchmarks/results/*.json.

A block between `<!-- results:NAME -->` and `<!-- /results -->` gets all tables of benchmarks/results/NAME.json, one
between `<!-- results:NAME:TABLE -->` and `<!-- /results -->` that table alone. Other text is left as it is. What the
card of the embedded model shows lies beside its weights, in evaluation.json.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from report import ROOT, Parser, Table

from backshan_diffusers import MINI
from backshan_diffusers.cards import EVALUATION
from backshan_diffusers.files import write_text

BLOCK = re.compile(
    r"(?P<begin>^<!-- results:(?P<name>[\w-]+)(?::(?P<table>[\w-]+))? -->\n)(?P<body>.*?)(?P<end>^<!-- /results -->$)",
    re.MULTILINE | re.DOTALL,
)


def main(arguments: Sequence[str]) -> None:
    """Fill the blocks, or check that they are filled."""
    parser = Parser(prog="update_docs.py", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="Markdown files (default: README.md and docs/*.md)")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON files"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    options = parser.parse_args(arguments)
    files = options.files or [
        *(path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()),
        Path(MINI) / EVALUATION,
    ]
    stale = False
    for file in files:
        is_new = file.name == EVALUATION and not file.exists()  # weights that have just been embedded have none yet
        if not (is_new or file.is_file()):
            parser.error(f"{file} is not a file: name Markdown files.")
        before = "" if is_new else file.read_text(encoding="utf-8")
        try:
            after = evaluation(options.results) if file.name == EVALUATION else filled(before, options.results)
        except (OSError, ValueError) as error:
            parser.error(f"{file}: {error}")
        if after != before:
            stale = True
            print(f"{file.name} {'is out of date: run benchmarks/update_docs.py' if options.check else 'updated'}")
            if not options.check:
                write_text(file, after)
    if options.check and stale:
        sys.exit(1)


def filled(text: str, results: Path) -> str:
    """`text` with every block filled; a block whose JSON file does not exist is emptied and says so."""
    return BLOCK.sub(
        lambda block: f"{block['begin']}{body(block['name'], block['table'], results)}{block['end']}", text
    )


def evaluation(results: Path) -> str:
    """What the card of the embedded model shows of its comparison with the baselines."""
    report = json.loads((results / "mini_quality.json").read_text(encoding="utf-8"))
    told = {name: report["results"][name] for name in ("size_px", "split", "count")}
    told["systems"] = {"generated": report["results"]["systems"]["generated"]}
    kept = {name: report[name] for name in ("command", "commit", "date", "seed")}
    return json.dumps(kept | {"results": told, "tables": report["tables"][:1]}, indent=2) + "\n"


def body(name: str, table: str | None, results: Path) -> str:
    """The text of one block."""
    path = results / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: `{name}.json` does not exist.\n"
    report = json.loads(path.read_text(encoding="utf-8"))
    chosen = [Table(**each) for each in report["tables"] if table in (None, each["name"])]
    if not chosen:
        raise ValueError(
            f"{path.name} has no table {table!r}: name one of {[each['name'] for each in report['tables']]}."
        )
    origin = f"`{report['command']}`, {report['date'][:10]}, {report['machine']['processor']}"
    return "\n".join(["", *(f"{each.markdown()}\n" for each in chosen), f"From {origin}.", "", ""])


if __name__ == "__main__":
    main(sys.argv[1:])
