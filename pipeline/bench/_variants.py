"""The image tower in the forms that `extract --form` offers, beside the plain one."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.bench._stage1_parts import Parts


def variants(parts: Parts) -> dict[str, Callable[[], dict[str, float]]]:
    """Parts like the model's ceiling, one a form; each also gives "least_cosine" to the plain form's rows.

    Compiling is done here, once, and is no part of what is timed.
    """
    from pipeline.extraction.tower_format import FORMS, take_form

    plain = parts.extractor.begin("image", parts.synthetic()).numpy().astype("float64")

    def part(form: str) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            undo = take_form(parts.extractor, form)
            try:
                found = parts.extractor.begin("image", parts.synthetic()).numpy().astype("float64")
                norms = (plain**2).sum(1) ** 0.5 * (found**2).sum(1) ** 0.5
                return parts.model_ceiling() | {"least_cosine": float(((plain * found).sum(1) / norms).min())}
            finally:
                undo()

        return run

    made = {form: part(form) for form in FORMS[1:]}
    for run in made.values():
        run()
    return made
