"""Tables of the privacy pages."""

from __future__ import annotations

from tables.results import measured_on, read, table


def hidden_scores() -> str:
    """Format what sums of weighted scores hide of one client as Markdown."""
    result = read("hidden-scores")
    if result is None:
        return "Not measured yet; run `python bench/hidden_scores.py`.\n"
    rows = [
        ["shares of the sum", "AUC on single scores", "AUC on sums", "AUC on sums, with copies"],
        ["---", "--:", "--:", "--:"],
        *(
            [name, f"{result['single']:.2f}", f"{found['auc']:.2f}", f"{found['auc_with_copies']:.2f}"]
            for name, found in result["sums"].items()
        ),
    ]
    worst = max(found["error_of_two_sums"] for found in result["sums"].values())
    return (
        f"{table(rows)}\nCopies rank as their models with correlation {result['copy']:g}. Two sums of a group give a "
        f"client's scores to {worst:.0e} logits. {measured_on(result, 'python bench/hidden_scores.py')}\n"
    )
