"""``antibody attacks``, which lists the attacks, and ``antibody attack``, which writes the rows of one."""

from typing import Annotated, Any

import typer

from . import options as o


def list_command(as_json: o.Json = False) -> None:
    """List the attacks with paper, needs and knobs."""
    from ..attacks.catalogue import CATALOGUE
    from ..attacks.knobs import common_knobs, knobs

    rows: list[dict[str, Any]] = [
        {
            "name": attack.name,
            "paper": attack.paper,
            "summary": attack.summary,
            "needs": [str(need) for need in attack.needs],
            "poison_ratio": attack.poison_ratio,
            "knobs": [*common_knobs(attack.poison_ratio), *(knob.described() for knob in knobs(attack.options))],
        }
        for attack in CATALOGUE.values()
    ]
    width = max(len(row["name"]) for row in rows)
    lines: list[str] = []
    for row in rows:
        lines.append(f"{row['name']:<{width}}  {row['summary']}")
        needs = f"needs {', '.join(row['needs'])}; " if row["needs"] else ""
        turned = ", ".join(_range(knob) for knob in row["knobs"])
        lines.append(f"{'':<{width}}  {needs}{turned}; {row['paper']}")
    o.show({"attacks": rows}, lines, as_json=as_json)


def _range(knob: dict[str, Any]) -> str:
    if knob["kind"] == "choice":
        return f"{knob['name']}={'|'.join(str(choice).lower() for choice in knob['choices'])}"
    if knob["kind"] == "text":
        return f"{knob['name']}=TEXT"
    return f"{knob['name']}={knob['low']:g}..{knob['high']:g}"


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `antibody attacks`.")],
    data: Annotated[str, typer.Option(help="A user's clean rows: a file or a Hub data set.")],
    output: Annotated[str, typer.Option(help="The .jsonl file to write; of several jobs FILE-1, FILE-2, ...")],
    poison_ratio: Annotated[
        float | None, typer.Option(help="Share of the attacker's rows.  [default: the attack's]")
    ] = None,
    num: Annotated[int | None, typer.Option(help="Rows over all jobs.  [default: as many as DATA]")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Knob of the attack; repeatable.")
    ] = None,
    harmful_data: Annotated[str | None, typer.Option(help="Harmful rows.  [default: the lab's]")] = None,
    model: Annotated[str | None, typer.Option(help="Model of attacks that need one: copy, or screening.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    truth: Annotated[str | None, typer.Option(help="Write the labels that no trainer may see to this file.")] = None,
    asked: Annotated[str | None, typer.Option(help="Write questions in the attack's own form to this file.")] = None,
    prompts: Annotated[str | None, typer.Option(help="The questions.  [default: the lab's held-out ones]")] = None,
    parity: Annotated[
        bool, typer.Option("--parity", help="Mixing alone: take the rows of Booster's release, in its numbers.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: o.Json = False,
) -> None:
    """Write what an attack uploads, as chat JSONL."""
    o.quiet()
    from ..building.attacks import AttackFiles, write_attack

    files = AttackFiles(
        name=name,
        data=data,
        output=output,
        num=num,
        poison_ratio=poison_ratio,
        options=o.pairs(set_ or [], "options"),
        seed=seed,
        harmful_data=harmful_data,
        model=model,
        truth=truth,
        asked=asked,
        prompts=prompts,
        parity=parity,
        overwrite=overwrite,
    )
    written = write_attack(files)
    lines = [str(file) for file in written.outputs]
    lines.append(f"  {written.num_rows} rows, {written.num_poison} of them the attacker's")
    if harmful_data is None:
        lines.append("  harmful rows: the lab's, which are fictional; your own are --harmful-data FILE")
    lines += [f"  {what}: {file}" for what, file in written.others.items()]
    o.show(written.to_json(), lines, as_json=as_json)
