"""`python -m tests.profile_table --write`: the tables of docs/profiles.md, made from firmware_profiles/."""

from __future__ import annotations

import sys
from pathlib import Path

from agent.profile import Profile, Watts, load_profile, profile_names

PAGE = Path(__file__).parents[1] / "docs" / "profiles.md"
OPEN, CLOSE = "<!-- boards: made by python -m tests.profile_table --write -->\n", "<!-- end of boards -->"
HEAD = """\
| profile | board | support | energy | idle W | load W | max W | threads | batch | MB |
|---|---|---|---|---|---|---|---|---|---|
"""


def render() -> str:
    """Return both tables: one row a board, and why some boards do not train."""
    profiles = {name: load_profile(name) for name in profile_names()}
    reasons = (f"| `{name}` | {_cell(profile.reason)} |" for name, profile in profiles.items() if profile.reason)
    rows = "\n".join(_row(name, profile) for name, profile in profiles.items())
    return f"{HEAD}{rows}\n\n| does not train | why |\n|---|---|\n" + "\n".join(reasons) + "\n"


def replaced(page: str) -> str:
    """Return the page with its tables made anew."""
    before, opened, rest = page.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not (opened and closed):
        raise ValueError(f"{PAGE}: the marks of the tables are gone: {OPEN.strip()} and {CLOSE}")
    return f"{before}{OPEN}\n{render()}\n{CLOSE}{after}"


def _row(name: str, profile: Profile) -> str:
    power, learning = profile.power, profile.learning
    energy = " + ".join([f"{profile.energy.source}", *(["corrected"] if profile.energy.correction else [])])
    watts = (_watts(power.idle_w), _watts(power.load_w), _watts(power.max_w))
    ceilings = (learning.threads or "", learning.max_batch_size or "", learning.memory_mb)
    cells = (f"`{name}`", _cell(profile.about), profile.support, energy, *watts, *ceilings)
    return f"| {' | '.join(map(str, cells))} |"


def _watts(watts: Watts | None) -> str:
    return "-" if watts is None else f"{watts.value:g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def main(words: list[str]) -> int:
    """Write the tables, or print them."""
    if words == ["--write"]:
        PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
