"""Tables in plain text, for what must print without further packages."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = ()) -> str:
    """Columns as wide as their widest cell, two spaces apart, a line under the head.

    Args:
        head: Name of each column.
        rows: Cells, as many in each row as there are columns.
        left: Places of the columns that are set to the left; the others are numbers, set to the right.
    """
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join((line(head), line(["─" * width for width in widths]), *map(line, rows)))
