"""The command line: `unipo-hooks demo | view | info | validate | export | algorithms`.

What a command needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unipo_hooks.cli import algorithms
from unipo_hooks.cli.terminal import one_clear_line, progress, say, say_json, show, warn

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="See what every update of an RL run did to every token.\n\n"
    "Add [bold]UnipoCallback('runs/gsm8k')[/bold] to a GRPOTrainer's callbacks, or [bold]+unipo.path=runs/gsm8k[/bold] "
    "to verl's command, and train; then:",
    epilog="Start with [bold]unipo-hooks demo[/bold], or [bold]unipo-hooks view runs/gsm8k[/bold] on a run of yours.",
)

# `readable=False` leaves it to the commands to say that something cannot be read, in the one line they say all else in.
_BUNDLE_HELP = "The bundle: the folder with manifest.json in it."
BundlePath = Annotated[Path, typer.Argument(metavar="PATH", readable=False, help=_BUNDLE_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"unipo-hooks {version('unipo-hooks')}")
        except PackageNotFoundError:
            typer.echo("unipo-hooks (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: unipo-hooks demo runs/demo")
@one_clear_line
def demo(
    path: Annotated[Path, typer.Argument(metavar="PATH", readable=False, help="Where the bundle goes.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a small model with GRPO on this CPU, under a minute, and keep every token of it.

    Writes the bundle PATH and, beside it, PATH.html: one page that opens offline.
    Training needs TRL.

    First it writes smollm2.html beside PATH: a run of a real language model,
    SmolLM2, captured earlier, that comes with this package. Open it at once,
    for a lesson or a first look: nothing is trained for it.
    """
    from unipo_hooks.bundle.reader import open_bundle
    from unipo_hooks.cli.demo import example_page, interrupted, place, train
    from unipo_hooks.cli.summary import demo_table
    from unipo_hooks.errors import ExportError
    from unipo_hooks.export.html import export_html

    bundle = place(path)
    try:
        say(f"page    {example_page(bundle)}  a real model, SmolLM2, captured earlier: open it now, nothing to train")
    except ExportError as error:  # a source install without Node has everything but the viewer
        warn(f"no page of SmolLM2: {error}")
    try:
        say("training a small model to add digits; about a minute")
        bundle = train(path)
        say(f"bundle  {bundle}")
        try:
            with progress("writing the page") as report:
                say(f"page    {export_html(bundle, beside(bundle, '.html'), report)}")
        except ExportError as error:
            warn(f"no page: {error}")
    except KeyboardInterrupt:
        typer.echo(err=True)  # ends the line of a progress bar
        warn(interrupted(bundle))
        raise typer.Exit(130) from None
    show(demo_table(open_bundle(bundle)))
    say("Next:")
    for command in (f"view {bundle}", f"info {bundle}", f"validate {bundle}", f"export {bundle} --canonical"):
        say(f"  unipo-hooks {command}")


@app.command(
    epilog="Examples: unipo-hooks view runs/gsm8k --port 9000 · unipo-hooks view runs · unipo-hooks view runs/a runs/b"
)
@one_clear_line
def view(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            readable=False,
            help="A bundle, several, or a folder of bundles: the folders with a manifest.json directly inside it.",
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to try first; 0 for any free one.")] = 8765,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> None:
    """Open a bundle in the browser, and follow it while the run goes on. Several are shown side by side.

    Serves on 127.0.0.1 until Ctrl-C. Over SSH it prints the line to run on your own machine instead.
    """
    import os

    from unipo_hooks.cli.viewing import named, what_to_show
    from unipo_hooks.server import BundleServer, serve, ssh_line

    shown = what_to_show(paths)  # a path that holds no bundle is told here, not by an empty page

    def ready(server: BundleServer) -> None:
        if port and server.port != port:
            say(f"port {port} is taken; using {server.port}")
        say(f"{named(paths, shown)} at {server.url} (Ctrl-C ends it)")
        if connection := os.environ.get("SSH_CONNECTION"):
            say("You are on a remote machine. On your own, run this and open the address above:")
            say(f"  {ssh_line(server.port, connection)}")
        elif not no_browser:
            _open_browser(server.url)

    serve(shown, port=port, ready=ready)


@app.command(epilog="Example: unipo-hooks info runs/gsm8k --json | jq .bytes_per_token")
@one_clear_line
def info(path: BundlePath, as_json: AsJson = False) -> None:
    """Say what a bundle holds: the run, what was captured, what it cost, what was lost and why.

    Bytes a token: segment files ÷ captured tokens, each counted once for every update that trained on it.
    """
    from unipo_hooks.bundle.reader import open_bundle
    from unipo_hooks.cli.summary import facts_table, summarise

    facts = summarise(open_bundle(path))
    if as_json:
        say_json(facts)
    else:
        show(facts_table(facts))


@app.command(epilog="Example: unipo-hooks validate runs/gsm8k")
@one_clear_line
def validate(path: BundlePath, as_json: AsJson = False) -> None:
    """Check every file of a bundle; a line for each fault. Exit code 1 where there is one.

    Notes are what a running or killed run leaves behind; they are no faults.
    """
    from unipo_hooks.bundle.files import no_bundle, reason
    from unipo_hooks.bundle.verify import has_traces, verify
    from unipo_hooks.errors import BundleError

    try:
        if not as_json and not has_traces(path):
            raise BundleError(f"{path} {no_bundle(path)}")
    except OSError as error:
        raise BundleError(f"cannot read {path}: {reason(error)}") from error
    found = verify(path)
    faults = sum(fault.severity == "fault" for fault in found)
    if as_json:
        fields = ("file", "line", "severity", "message")
        say_json({"ok": not faults, "found": [{name: getattr(fault, name) for name in fields} for fault in found]})
    else:
        for fault in found:
            say(f"{'note: ' if fault.severity == 'note' else ''}{' '.join(str(fault).split())}")
        notes = len(found) - faults
        verdict = "valid" if not faults else "1 fault" if faults == 1 else f"{faults} faults"
        say(f"{path}: {verdict}" + (f", {notes} note{'s' * (notes > 1)}" if notes else ""))
    if faults:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: unipo-hooks export runs/gsm8k --html · unipo-hooks export runs/gsm8k --html to-share.html · "
    "unipo-hooks export runs/gsm8k --canonical"
)
@one_clear_line
def export(
    path: BundlePath,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", readable=False, help="Where to write; beside the bundle if not given."),
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="One page that opens offline: the viewer and the data.")] = False,
    canonical: Annotated[bool, typer.Option("--canonical", help="UNIPO's canonical run, as JSON.")] = False,
) -> None:
    """Write a bundle as one file: a page to share (--html), or JSON for other tools (--canonical)."""
    from unipo_hooks.bundle.files import validate_hint
    from unipo_hooks.bundle.reader import open_bundle
    from unipo_hooks.export.canonical import export_canonical
    from unipo_hooks.export.html import contents, export_html, size_note

    open_bundle(path)  # a path that holds no bundle is told before anything about the files
    page, run = _targets(path, files or [], html=html, canonical=canonical)
    if page:
        holds = contents(path)
        if holds.missing:
            warn(f"the page goes without {_first(holds.missing)}: missing or not readable; {validate_hint(path)}")
        if holds.damaged:
            warn(f"the page cannot show {_first(holds.damaged)}: truncated or damaged; {validate_hint(path)}")
        with progress("writing the page") as report:
            export_html(path, page, report)
        say(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
        if note := size_note(page):
            warn(note)
    if run:
        with progress("writing the canonical run") as report:
            notes = export_canonical(path, run, report)
        say(f"{run} ({run.stat().st_size / 1e6:.1f} MB)")
        for note in notes:
            warn(note)


app.add_typer(algorithms.app, name="algorithms")


def beside(bundle: Path, suffix: str) -> Path:
    """The file beside a bundle that is called like it."""
    named = bundle if bundle.name not in ("", "..") else bundle.resolve()
    return named.with_name(named.name + suffix)


def _targets(bundle: Path, files: list[Path], *, html: bool, canonical: bool) -> tuple[Path | None, Path | None]:
    """Where the page and the canonical run go; None for what was not asked for."""
    from unipo_hooks.errors import ExportError
    from unipo_hooks.export import refuse_own_files

    wanted = {".html": html, ".json": canonical}
    if not any(wanted.values()):
        raise ExportError("say what to write: --html, --canonical or both")
    given: dict[str, Path] = {}
    for file in files:
        if file.is_dir():
            raise ExportError(f"{file} is a folder: give one bundle, and files to write (.html or .json)")
        suffix = file.suffix.lower()
        if not wanted.get(suffix):
            fitting = " or ".join(suffix for suffix, asked in wanted.items() if asked)
            raise ExportError(f"{file}: name a file that ends in {fitting}")
        if suffix in given:
            raise ExportError(f"{file}: {given[suffix]} was given already; name at most one file for each kind")
        given[suffix] = file
    page = given.get(".html", beside(bundle, ".html")) if html else None
    run = given.get(".json", beside(bundle, ".canonical.json")) if canonical else None
    for target in filter(None, (page, run)):  # before the first is written
        refuse_own_files(bundle, target)
    return page, run


def _first(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if names[1:] else "")


def _open_browser(url: str) -> None:
    """Open the browser without waiting for it: text browsers only return when they are closed."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def main() -> None:
    """Entry point of `unipo-hooks`."""
    app()


__all__ = ["app", "main"]
