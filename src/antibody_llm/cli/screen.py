"""The table that ``antibody screen`` prints."""

from typing import Any

from ..text import escaped


def print_result(result: Any) -> None:
    """Print a screening as a table for a reader."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..screening.posterior import Finding  # here: it brings torch, which --help need not wait for

    console = Console()
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    colours = {Finding.HARM: "bold red", Finding.NO_HARM: "bold green", Finding.CANNOT_TELL: "bold yellow"}
    table.add_row("verdict", Text(result.verdict, style=colours.get(result.verdict, "bold")))
    if result.verdict is Finding.NO_HARM:
        table.add_row("", Text("less than 1 % can be missed: look at the first rows of the report"))
    if not result.measure.needs_answers and result.num_spans is None:
        table.add_row("", Text("only prompts are read: harmful answers to harmless prompts are not seen"))
    if result.interval is None:
        table.add_row("harmful share", Text("not known: rows are only ranked"))
    else:
        low, high = map(_percent, result.interval)
        share = result.estimated_harmful_share
        table.add_row(
            "harmful share",
            Text(f"cannot tell: {low} to {high} %" if share is None else f"{_percent(share)} %  ({low} to {high} %)"),
        )
    if result.harmful_answers is not None and result.answers_interval is not None:
        low, high = map(_percent, result.answers_interval)
        table.add_row("harmful answers", Text(f"{_percent(result.harmful_answers)} %  ({low} to {high} %)"))
        table.add_row("", Text(f"in {result.num_spans} rows a span reads as harm"))
    if result.num_likely_harmful is not None:
        table.add_row("likely harmful", Text(f"{result.num_likely_harmful} rows"))
    table.add_row("rows", Text(str(result.num_rows)))
    for flag, num in result.flags.items():
        if num:
            table.add_row(f"  {flag}", Text(f"{num}{_MEANING.get(flag, '')}"))
    if result.label_first:
        lines = ", ".join(map(str, result.label_first))
        table.add_row("label first", Text(f"lines {lines}; then antibody anchors --model MODEL --anchor-... FILE"))
    table.add_row("evidence", Text(result.measure))
    table.add_row("seconds", Text(f"{result.seconds:.1f}"))
    console.print(table)
    console.print(f"Open {escaped(str(result.output / 'report.html'))}", highlight=False, soft_wrap=True, markup=False)


_MEANING = {
    "empty": ": not scored",
    "too long": ": not scored",
    "unfamiliar": ": unlike every anchor, harmful or benign",
    "control tokens": " spell control tokens, which were read as text",
}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= 0.01 or share == 0 else f"{100 * share:.2f}"
