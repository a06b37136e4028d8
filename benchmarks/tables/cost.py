"""Tables of how cost scales, of its model, and of what follows from that."""

from __future__ import annotations

from harness.results import newest
from harness.spreads import spread
from tables.markdown import caption, table


def scale() -> str:
    lines = [line for line in newest("scale", "bench", "quantity") if "fit" in line]
    rows = []
    for line in lines:
        fit = line["fit"]
        points = list(line["us"].items())
        ends = [f"{value}: {spread(us)}" for value, us in (points[0], points[-1])]
        control = spread(line["a_over_a"], 2) if "a_over_a" in line else "-"
        what = "op" if line["bench"] == "scale op" else "step"
        slope = spread(fit["slope"], 4)
        rows.append((what, line["quantity"], *ends, slope, f"{fit['r2']:.3f}", control))
    head = ("", "against", "us at the least", "us at the most", "us for each more", "R2", "A/A")
    return table(head, rows, f"Median [p20, p80]. {caption(lines)}")


def cost_model() -> str:
    lines = [line for line in newest("scale", "bench", "quantity") if "models" in line]
    rows = []
    for line in lines:
        for name, (call, row, byte) in line["models"].items():
            checks = ", ".join(
                f"D = {check['D']}: {check['predicted']:.1f} for {check['us']:.1f}"
                for check in line["checks"]
                if check["op"] == name
            )
            rows.append((name, f"{call:.2f}", f"{row:.4f}", f"{1e6 * byte:.2f}", checks))
    head = ("op", "call, us", "row, us", "byte, us a MB", "N = 64, not fitted to: us predicted for us measured")  # fmt: skip
    return table(head, rows, caption(lines))


def predictions() -> str:
    lines = [line for line in newest("scale", "bench", "quantity") if "predictions" in line]
    rows = []
    for line in lines:
        for one in line["predictions"]:
            device = line["device"] if one["device"] == "this machine" else one["device"]
            rows.append(
                (
                    device, one["model"], one["ranks"], one["batch"], f"{one['added_us']:.1f}",
                    f"{one['weights_us'] / 1e3:.2f}", f"{one['share']:.3%}",
                )
            )  # fmt: skip
    head = ("machine", "model, bfloat16", "tensor parallel", "batch", "steering every layer adds, us", "reading the weights takes, ms", "share")  # fmt: skip
    return table(head, rows, f"Computed from the model of cost above, not measured. {caption(lines)}")  # fmt: skip
