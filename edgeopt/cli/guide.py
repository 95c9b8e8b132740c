"""``edgeopt guide``: the guides that come with the package, listed or printed."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.errors import InputError, did_you_mean

GUIDES = Path(__file__).parents[1] / "guides"


def list_guides() -> dict[str, str]:
    """Return each guide's name and title, the general ones last."""
    titles = {}
    for path in sorted(GUIDES.glob("*.md"), key=lambda path: (path.stem == "design", path.stem)):
        with path.open(encoding="utf-8") as file:
            titles[path.stem] = file.readline().lstrip("# ").strip()
    return titles


@click.command(name="guide")
@click.argument("name", required=False)
@click.option("--code", is_flag=True, help="Print the guide's example only, to save as my_task.py.")
def command(name: str | None, code: bool) -> None:
    """List the guides, or print the guide NAME: how to bring your own model and data, with an example each."""
    guides = list_guides()
    if name is None:
        if code:
            raise click.UsageError("--code needs the NAME of a guide.")
        width = max(map(len, guides))
        for each, title in guides.items():
            click.echo(f"{each:<{width}}  {title}")
        click.echo("\n`edgeopt guide NAME` prints one, `edgeopt guide NAME --code` only its example.")
        return
    stem = name.removesuffix(".md")
    if stem not in guides:
        raise InputError(f"there is no guide '{name}'{did_you_mean(stem, guides)}. Guides: {', '.join(guides)}.")
    text = (GUIDES / f"{stem}.md").read_text(encoding="utf-8")
    if not code:
        click.echo(text, nl=False)
        return
    examples = [block.partition("```")[0] for block in text.split("```python\n# my_task.py\n")[1:]]
    if not examples:
        raise InputError(f"the guide '{stem}' has no example. `edgeopt guide {stem}` prints its text.")
    click.echo(examples[0], nl=False)
