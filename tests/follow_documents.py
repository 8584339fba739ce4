"""Follow what documents say, in a process of its own: run their Python, parse their commands, validate their cards.

Run: python tests/follow_documents.py < work.json
`work.json` is {"cards": [[name, kind, text]], "python": [[name, line, code]], "commands": [[name, line, words]]}.
Prints {"wrong": [[name, line, error]], "said": what the code printed}. The blocks of one document share their
variables, as they do for whoever types them in. Of a script, the arguments are parsed and no more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Parsed(Exception):
    """The arguments of a script are understood."""


def main() -> None:
    work = json.load(sys.stdin)
    wrong: list[tuple[str, int, str]] = []
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for name, kind, text in work["cards"]:
            attempt(wrong, name, 1, lambda kind=kind, text=text: validate(kind, text))
        for name, line, words in work["commands"]:
            attempt(wrong, name, line, lambda words=words: follow(words))
        spaces: dict[str, dict[str, Any]] = {}
        for name, line, code in work["python"]:
            space = spaces.setdefault(name, {"__name__": "__main__"})
            compiled = compile("\n" * line + code, name, "exec", dont_inherit=True)
            attempt(wrong, name, line, lambda compiled=compiled, space=space: exec(compiled, space))
    print(json.dumps({"wrong": wrong, "said": said.getvalue()}))


def attempt(wrong: list[tuple[str, int, str]], name: str, line: int, action: Callable[[], object]) -> None:
    try:
        action()
    except (Exception, SystemExit) as error:
        wrong.append((name, line, "".join(traceback.format_exception(error)[-3:])))


def validate(kind: str, text: str) -> None:
    """As huggingface_hub does, which also asks the Hub; what is read from the card is what it says."""
    from huggingface_hub import DatasetCard, ModelCard, SpaceCard

    card = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}[kind](text)
    card.validate(repo_type=kind)
    assert type(card)(str(card)).data.to_dict() == card.data.to_dict()


def follow(words: list[str]) -> None:
    if words[0] == "trade":
        from trade_hf.cli import main as trade

        status = trade(words[1:])
        assert status in (0, None), f"{' '.join(words)}: exit status {status}"
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), f"the Makefile has no {words[1]}"
    else:
        parse_only(ROOT / words[1], words[2:])


def parse_only(script: Path, arguments: list[str]) -> None:
    """Run a script up to where it has understood its arguments."""
    original = argparse.ArgumentParser.parse_known_args

    def parse(self, args=None, namespace=None):
        result, unknown = original(self, args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {unknown}")
        raise Parsed

    before = sys.argv, sys.path[:]
    argparse.ArgumentParser.parse_known_args = parse
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            runpy.run_path(str(script), run_name="__main__")
        raise AssertionError(f"{script.name}: it parsed no arguments")
    except Parsed:
        pass
    except SystemExit:
        raise AssertionError(f"{script.name} {' '.join(arguments)}: {said.getvalue().strip()[-300:]}") from None
    finally:
        argparse.ArgumentParser.parse_known_args = original
        sys.argv, sys.path[:] = before


if __name__ == "__main__":
    main()
