"""Tables of the roofline and of how cost scales."""

from __future__ import annotations

from results_of import caption, newest, spread, table


def roofline() -> str:
    lines = newest("roofline", "op", "form", "dtype", "N")
    rows = [
        (
            f"`{line['op']}`", line["form"], line["dtype"], line["N"], f"{line['bytes'] / 1e6:.3g}",
            spread(line["us"]["op"]), spread(line["floor"]), line["bound"], spread(line["over_floor"], 2),
            f"{line['bytes_per_second'] / 1e9:.1f}", spread(line["a_over_a"], 2),
        )
        for line in lines
    ]  # fmt: skip
    head = (
        "op, D = 4096", "form", "dtype", "rows N", "MB moved", "op, us", "floor, us", "bound by", "op / floor",
        "GB/s", "A/A",
    )  # fmt: skip
    memory = ", ".join(sorted({f"{line['memory'] / 1e9:.1f} GB/s" for line in lines}))
    note = (
        f"Median [p20, p80] of {lines[0]['rounds']} rounds. A copy that no cache holds reads and writes {memory} "
        f"here. {caption(lines)}"
    )
    return table(head, rows, note)


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
