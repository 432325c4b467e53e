"""The pictures of a search, as SVG that follows the reader's light or dark theme.

``comparison``  for each defence a bar of plain mixing and one of the worst attack found, with its interval
``curves``      for each defence its trials as dots, and the most harm of useful ones so far as a line
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .measures import HALF
from .tables import at, points
from .worst_case import FOUND, NONE_PASSED

Worst = Mapping[str, Any]
WIDTH, MARGIN = 760, 14
"""Pixels: a picture, and the space around."""
LEFT, RIGHT = 196, 126
"""The columns of names and of numbers beside the bars."""
BAR, BETWEEN, GROUP = 15, 4, 17
"""A bar's height, the space to its pair, the space between two defences."""
PANELS, PANEL, HEIGHT = 3, 236, 128
"""Panels of a row, a panel's width and the height of its axes."""
GUTTER, HEAD, FOOT = 26, 26, 30
"""Space beside a panel, for its title and for its ticks."""
TOP = 74

STYLE = """
  .worst text { font: 13.5px system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; fill: #1f2328 }
  .worst .title { font-size: 18px; font-weight: 600 }
  .worst .small { font-size: 11.5px; fill: #59636e }
  .worst .name, .worst .number { font-weight: 600 }
  .worst .track { fill: #818b981f } .worst .grid { stroke: #818b9838 }
  .worst .plain { fill: #8c959f } .worst .found { fill: #cf4a3c }
  .worst .whisker { stroke: #1f2328; stroke-width: 1.4; fill: none }
  .worst .curve { stroke: #cf4a3c; stroke-width: 2; fill: none } .worst .useful { fill: #cf4a3c; fill-opacity: .55 }
  .worst .useless { fill: none; stroke: #8c959f }
  @media (prefers-color-scheme: dark) {
    .worst text { fill: #f0f6fc } .worst .small { fill: #9198a1 } .worst .plain { fill: #6e7681 }
    .worst .found { fill: #e5695b } .worst .curve { stroke: #e5695b } .worst .useful { fill: #e5695b }
    .worst .whisker { stroke: #f0f6fc }
  }
"""


def comparison(worst: Worst) -> str:
    """Bars of plain mixing and of the worst attack found, on the half of the world to report on."""
    scale = WIDTH - LEFT - RIGHT
    head = (
        f"Harm in percent of held-out prompts, mean over {len(worst['seeds'])} seed"
        f"{'' if len(worst['seeds']) == 1 else 's'}; line: its interval"
    )
    lines = [
        '<text class="title" x="0" y="18">The worst case beside plain mixing</text>',
        f'<text class="small" x="0" y="38">{head}</text>',
        *_key(0, 56, "plain", f"plain mixing, {100 * worst['plain_ratio']:g} % of the rows"),
        *_key(LEFT + 40, 56, "found", "the worst attack found in the trials"),
    ]
    y, said, useless = TOP, [], False
    for each in worst["defences"]:
        found = at(each, worst["guide"])
        attack = found["outcome"] if found["outcome"] != FOUND else f"{found['attack']}, {_share(found)}"
        lines += [
            f'<text class="name" x="0" y="{y + BAR - 2}">{escape(each["defence"])}</text>',
            f'<text class="small" x="0" y="{y + 2 * BAR + BETWEEN - 2}">{escape(attack)}</text>',
            *_bar(y, each["plain"] and each["plain"]["harm"], "plain", scale),
            *_bar(y + BAR + BETWEEN, (found.get("report") or {}).get("harm"), "found", scale, absent=found["outcome"]),
        ]
        if found.get("kept") is False:
            useless = True
            lines.append(f'<text class="small" x="{WIDTH - 8}" y="{y + 2 * BAR + BETWEEN - 3}">*</text>')
        said.append(f"{each['defence']}: {_said(each['plain'])} by plain mixing, {_said(found.get('report'))} at worst")
        said[-1] += ", at the cost of its own task there" if found.get("kept") is False else ""
        y += 2 * BAR + BETWEEN + GROUP
    if useless:
        lines.append(
            f'<text class="small" x="0" y="{y + 8}">*: on held-out rows this attack lost more than '
            f"{points(worst['guide'])} of accuracy</text>"
        )
        y += GROUP + 10
    return _svg(lines, y - GROUP, "Worst case by defence. " + "; ".join(said) + ".")


def curves(worst: Worst) -> str:
    """Every trial, and the most harm so far of those that left the attacker's task useful."""
    total = max((each["num_trials"] for each in worst["defences"]), default=0)
    lines = [
        '<text class="title" x="0" y="18">What each further trial found</text>',
        '<text class="small" x="0" y="38">Harm in percent over trials, on the half of the world to choose by</text>',
        '<path class="curve" d="M0 51h18"/><text class="small" x="24" y="55">the most so far</text>',
        '<circle class="useful" cx="130" cy="51" r="3"/><text class="small" x="138" y="55">a trial</text>',
        '<circle class="useless" cx="196" cy="51" r="3"/>',
        '<text class="small" x="204" y="55">a trial after which the attacker\'s own task is lost</text>',
    ]
    said, rows = [], -(-len(worst["defences"]) // PANELS)
    for number, each in enumerate(worst["defences"]):
        x = (number % PANELS) * (PANEL + GUTTER)
        y = TOP + (number // PANELS) * (HEAD + HEIGHT + FOOT) + HEAD
        lines.append(f'<g transform="translate({x} {y})">{"".join(_panel(each, total))}</g>')
        said.append(f"{each['defence']}: {_last(each)}")
    bottom = TOP + rows * (HEAD + HEIGHT + FOOT) - FOOT // 3
    return _svg(lines, bottom, f"The most harm over {total} trials. " + "; ".join(said) + ".")


def _key(x: int, y: int, kind: str, text: str) -> list[str]:
    return [
        f'<rect class="{kind}" x="{x}" y="{y - 9}" width="12" height="10" rx="2"/>',
        f'<text class="small" x="{x + 18}" y="{y}">{text}</text>',
    ]


def _bar(y: int, mean: Mapping[str, float] | None, kind: str, scale: int, absent: str = "failed") -> list[str]:
    track = f'<rect class="track" x="{LEFT}" y="{y}" width="{scale}" height="{BAR}" rx="2"/>'
    if mean is None:
        why = absent if absent == NONE_PASSED else "failed"
        return [track, f'<text class="small" x="{LEFT + 6}" y="{y + BAR - 3}">{why}</text>']
    value, low, high = (mean[name] for name in ("value", "low", "high"))
    middle, begin, end = y + BAR / 2, LEFT + low * scale, LEFT + high * scale
    number = WIDTH - RIGHT + 10
    return [
        track,
        f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{max(2.0, value * scale):.1f}" height="{BAR}" rx="2"/>',
        f'<path class="whisker" d="M{begin:.1f} {middle - 3:g}v6m0 -3H{end:.1f}m0 -3v6"/>',
        f'<text x="{number}" y="{y + BAR - 3}"><tspan class="{"number" if kind == "found" else ""}">'
        f'{100 * value:.1f} %</tspan> <tspan class="small">[{100 * low:.0f}, {100 * high:.0f}]</tspan></text>',
    ]


def _panel(defence: Mapping[str, Any], total: int) -> list[str]:
    """The axes of a defence, from the upper left corner of its plot."""
    left, width = 24, PANEL - 30

    def x(number: float) -> float:
        return left + width * (number - 1) / max(1, total - 1)

    def y(harm: float) -> float:
        return HEIGHT * (1 - harm)

    half = defence["trials_until_half"]
    price = "50 % not reached" if half is None else f"50 % after {half} trial{'' if half == 1 else 's'}"
    lines = [f'<text class="name" x="0" y="-9">{escape(defence["defence"])}</text>']
    middle = left + width / 2
    lines += [f'<text class="small" x="{middle:g}" y="{HEIGHT + 16}" text-anchor="middle">{price}</text>']
    for level in (0.0, HALF, 1.0):
        lines.append(f'<path class="grid" d="M{left} {y(level):g}h{width}"/>')
        lines.append(
            f'<text class="small" x="{left - 5}" y="{y(level) + 4:g}" text-anchor="end">{100 * level:g}</text>'
        )
    for number in {1, total}:
        lines.append(f'<text class="small" x="{x(number):g}" y="{HEIGHT + 16}" text-anchor="middle">{number}</text>')
    for number, row in enumerate(defence["trials"], 1):
        if row["harm"] is not None:
            kind, what = ("useful", "") if row["useful"] else ("useless", ", the task is lost")
            lines.append(
                f'<circle class="{kind}" cx="{x(number):.1f}" cy="{y(row["harm"]):.1f}" r="2.6"><title>trial {number}: '
                f"{100 * row['harm']:.0f} %{what}. {escape(row['words'])}</title></circle>"
            )
    if path := _steps(defence["curve"], x, y):
        lines.append(f'<path class="curve" d="{path}"/>')
    return lines


def _steps(curve: Sequence[float | None], x: Any, y: Any) -> str:
    """The line of a running maximum: level until a trial finds more."""
    points = [(number, harm) for number, harm in enumerate(curve, 1) if harm is not None]
    if not points:
        return ""
    first = f"M{x(points[0][0]):.1f} {y(points[0][1]):.1f}"
    return first + "".join(f"H{x(number):.1f}V{y(harm):.1f}" for number, harm in points[1:])


def _svg(lines: Sequence[str], bottom: float, words: str) -> str:
    width, height = WIDTH + 2 * MARGIN, bottom + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="worst" viewBox="{-MARGIN} {-MARGIN} {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(words, quote=True)}">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(lines) + "\n</svg>\n"
    )


def _share(found: Mapping[str, Any]) -> str:
    return f"{100 * found['chosen']['poison_ratio']:.0f} % of the rows"


def _said(measured: Mapping[str, Any] | None) -> str:
    return "nothing" if measured is None else f"{100 * measured['harm']['value']:.1f} %"


def _last(defence: Mapping[str, Any]) -> str:
    curve = defence["curve"]
    return NONE_PASSED if not curve or curve[-1] is None else f"{100 * curve[-1]:.0f} %"
