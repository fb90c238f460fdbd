"""The command line of algorithms: `unipo-hooks algorithms` and its `show ID`, `diff A B` and `words`.

What they know is in `unipo_hooks.cli.algorithm_facts`, what they show in `algorithm_tables`; both are imported when a
command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unipo_hooks.cli.terminal import one_clear_line, say, say_json, show

if TYPE_CHECKING:
    from unipo_hooks.algorithm_spec import AlgorithmSpec

app = typer.Typer(
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Added = Annotated[
    list[Path] | None,
    typer.Option(
        "--add",
        metavar="FILE_OR_DIR",
        readable=False,
        help="Know these algorithms too: a JSON file, or every one of a folder. May be repeated.",
    ),
]
_ID_HELP = "Id of an algorithm, or a JSON file of yours."


@app.callback(
    invoke_without_command=True,
    epilog="Examples: unipo-hooks algorithms --family clip · unipo-hooks algorithms show gspo · "
    "unipo-hooks algorithms diff grpo dapo · unipo-hooks algorithms --json | jq .grpo.confirmations",
)
@one_clear_line
def algorithms(
    context: typer.Context,
    family: Annotated[str | None, typer.Option(metavar="NAME", help="Only this family; part of its name will do.")] = (
        None
    ),
    needs: Annotated[
        str | None, typer.Option(metavar="INPUT", help="Only what needs this input, such as ref_log_probs.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only what is exact.")] = False,
    add: Added = None,
    as_json: AsJson = False,
) -> None:
    """List the algorithms; explain one (show), say how two of them differ (diff), or what the words mean (words).

    An algorithm has a part in each slot: what a reward is compared with, how far the policy may move, and so on.

    The list says what each fills in another way than the one it came from, and what it needs beside the usual inputs.

    "Compared with" names the running code that gave the same numbers; of what is "not exact", show says why.

    Your own are JSON files: name one in place of an id, pass --add, or name folders in UNIPO_ALGORITHMS.
    """
    from unipo_hooks.cli.algorithm_facts import facts, selected
    from unipo_hooks.cli.algorithm_tables import list_table, summary
    from unipo_hooks.errors import AlgorithmError

    _register(add)
    if context.invoked_subcommand is not None:
        if family or needs or exact:
            raise AlgorithmError(
                f"--family, --needs and --exact choose from the list; {context.invoked_subcommand} has none"
            )
        context.obj = as_json
        return
    chosen = selected(family, needs, exact)
    if as_json:
        say_json({spec.id: facts(spec) for spec in chosen})
        return
    if chosen:
        show(list_table(chosen))
        say("")
    for line in summary(chosen):
        say(line)


@app.command(
    "show",
    epilog="Examples: unipo-hooks algorithms show dapo · unipo-hooks algorithms show examples/my_algorithm.json",
)
@one_clear_line
def explain(
    context: typer.Context,
    algorithm: Annotated[str, typer.Argument(metavar="ID", help=_ID_HELP)],
    add: Added = None,
    as_json: AsJson = False,
) -> None:
    """Explain one algorithm: where it comes from, what it changed, and what each of its parts does.

    Formulas are LaTeX. An input it needs is named with the way to capture it, a comparison with its largest error.
    """
    from unipo_hooks.cli.algorithm_facts import explanation
    from unipo_hooks.cli.algorithm_tables import heading_table, pages

    _register(add)
    spec = _resolved(algorithm)
    if as_json or context.obj:
        say_json(explanation(spec))
        return
    for heading, table in pages(spec):
        if heading:
            say("")
            show(heading_table(heading))
        show(table)


@app.command(
    "diff",
    epilog="Examples: unipo-hooks algorithms diff grpo gspo · unipo-hooks algorithms diff dapo my_algorithm.json",
)
@one_clear_line
def differences(
    context: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help=_ID_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    add: Added = None,
    as_json: AsJson = False,
) -> None:
    """Say in which slots two algorithms differ, with both values, and which they share."""
    from unipo_hooks.cli.algorithm_facts import comparison
    from unipo_hooks.cli.algorithm_tables import diff_table, shared

    _register(add)
    first, second = _resolved(a), _resolved(b)
    compared = comparison(first, second)
    if as_json or context.obj:
        say_json(compared)
    elif compared["identical"]:
        say(f"{first.id} and {second.id} are identical: the same parts with the same hyper-parameters")
    else:
        show(diff_table(first, second))
        say("")
        show(shared(compared))


@app.command("words", epilog="Example: unipo-hooks algorithms words")
@one_clear_line
def words(context: typer.Context, as_json: AsJson = False) -> None:
    """Say what the words mean that algorithms are explained in: ratio, advantage, clip and so on."""
    from unipo_hooks.cli.algorithm_tables import words_table
    from unipo_hooks.cli.words import WORDS

    if as_json or context.obj:
        say_json(WORDS)
    else:
        show(words_table())


def _register(paths: list[Path] | None) -> None:
    from unipo_hooks.algorithms import registered
    from unipo_hooks.errors import AlgorithmError

    for path in paths or []:
        if not registered(path):
            raise AlgorithmError(f"{path}: no *.json in this folder")


def _resolved(argument: str) -> AlgorithmSpec:
    """The algorithm of an id or a file; an id goes first where a file is called like it."""
    from unipo_hooks.algorithms import chosen, get, ids

    is_path = argument.endswith(".json") or os.sep in argument or Path(argument).is_file()
    return chosen(Path(argument)) if is_path and argument not in ids() else get(argument)
