"""The table benchmark at sizes that take no time: every stage is timed, and the table has every model's runs."""

from __future__ import annotations

from pipeline.bench import table


def test_every_stage_of_a_table_is_timed() -> None:
    models = ("avg", "lstm", "cfir")
    found = table.run(models, seeds=2, train=20, test=12, gallery=30, turns=2, dim=8, epochs=1, device="cpu")
    assert list(found["seconds"]) == ["reading", "training", "ranking", "statistics", "printing"]
    assert all(value > 0 for value in found["seconds"].values())
    assert found["runs"] == 5 and set(found["training_s"]) == set(models) and found["lines"] > 2 * len(models)
    assert set(found["predicted"]) == {"training", "ranking"} and all(
        value > 0 for value in found["predicted"].values()
    )
    assert set(found["predicted_training_s"]) == set(models) and found["predicted_training_s"]["lstm"] > 0
    assert table.render(found).count("predicted") >= 4  # training and ranking, lstm and cfir
    assert "statistics" in table.render(found) and "lstm" in table.render(found)
