"""The image tower in each format of `extract --form`, compared with the plain one."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.bench._stage1_parts import Parts


def variants(parts: Parts) -> dict[str, Callable[[], dict[str, float]]]:
    """Return one part per format, like the model's ceiling; each also gives "least_cosine" to the plain rows.

    Compilation happens before the timed part.
    """
    from pipeline.extraction.precision import FORMS, take_form

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
