"""Draw docs/architecture.png: the wings of the package on their floors, from the imports as they are.

Run as ``make architecture``. A wing stands one floor above the highest wing that it imports.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import grimp
import matplotlib
import matplotlib.pyplot as plt
import networkx as nx

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "captum_attn_lime"
# Of a box, and of the space between boxes, in the picture's units.
WIDTH, HEIGHT, GAP = 1.9, 0.62, 0.35


def wings() -> nx.DiGraph:
    """Return the wings with their lines and files; an edge leads from a wing to one that it imports."""
    imports = grimp.build_graph(PACKAGE, cache_dir=None)
    house = nx.DiGraph()
    for wing in sorted(imports.find_children(PACKAGE)):
        name = wing.removeprefix(f"{PACKAGE}.")
        place = ROOT / PACKAGE / name
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        house.add_node(
            name, files=len(files), lines=sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)
        )
    for above in house:
        for below in house:
            if above != below and imports.chain_exists(f"{PACKAGE}.{above}", f"{PACKAGE}.{below}", as_packages=True):
                house.add_edge(above, below)
    return house


def floors(house: nx.DiGraph) -> dict[str, int]:
    """Return each wing's floor; the ground is 0.

    Raises:
        networkx.NetworkXUnfeasible: Wings import each other in a circle.
    """
    floor: dict[str, int] = {}
    for wing in reversed(list(nx.topological_sort(house))):
        floor[wing] = max((floor[below] + 1 for below in house.successors(wing)), default=0)
    return floor


def draw(house: nx.DiGraph) -> plt.Figure:
    """Return the picture. Arrows that follow from others are left out."""
    floor = floors(house)
    needed = nx.transitive_reduction(house)
    levels = [sorted(w for w in house if floor[w] == k) for k in range(max(floor.values()) + 1)]
    widest = max(len(level) for level in levels) * (WIDTH + GAP)
    figure, ax = plt.subplots(figsize=(widest + 0.4, len(levels) * 1.25), layout="constrained")
    place: dict[str, tuple[float, float]] = {}
    for k, level in enumerate(levels):
        left = (widest - len(level) * (WIDTH + GAP) + GAP) / 2
        # Each wing stands above what it imports, so that few arrows cross.
        level.sort(key=lambda wing: mean([place[below][0] for below in needed.successors(wing)] or [0.0]))
        for i, wing in enumerate(level):
            place[wing] = (left + i * (WIDTH + GAP) + WIDTH / 2, k * 1.25)
    for above, below in needed.edges:
        (x1, y1), (x2, y2) = place[above], place[below]
        ax.annotate(
            "",
            (x2, y2 + HEIGHT / 2),
            (x1, y1 - HEIGHT / 2),
            arrowprops={"arrowstyle": "-|>", "color": "0.6", "linewidth": 0.9, "connectionstyle": "arc3,rad=0.05"},
            zorder=1,
        )
    for wing, (x, y) in place.items():
        ax.add_patch(
            plt.Rectangle(
                (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, facecolor="#eef3f8", edgecolor="#35618f", zorder=2
            )
        )
        size = house.nodes[wing]
        files = "1 file" if size["files"] == 1 else f"{size['files']} files"
        ax.text(x, y + 0.09, wing, ha="center", va="center", fontsize=11, fontweight="bold")
        ax.text(x, y - 0.16, f"{files}, {size['lines']:,} lines", ha="center", va="center", fontsize=8, color="0.3")
    ax.set_xlim(-0.1, widest + 0.1)
    ax.set_ylim(-HEIGHT, (len(levels) - 1) * 1.25 + HEIGHT)
    ax.set_aspect("equal")
    ax.axis("off")
    return figure


def main() -> None:
    """Write the picture, and print what stands on each floor."""
    matplotlib.use("Agg")
    house = wings()
    draw(house).savefig(ROOT / "docs" / "architecture.png", dpi=110)
    floor = floors(house)
    for wing in sorted(house, key=lambda wing: (-floor[wing], wing)):
        size = house.nodes[wing]
        print(f"floor {floor[wing]}  {wing:<12} {size['files']:>3} files {size['lines']:>6,} lines")
    total = sum(size for _, size in house.nodes(data="lines"))
    print(f"{len(set(floor.values()))} floors, {total:,} lines in the wings")


if __name__ == "__main__":
    main()
