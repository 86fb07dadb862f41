"""How many images C7 needs: known curves, known numbers, and the command."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.styles import OWN, even, styles_tables
from tools.__main__ import main
from visdepth_utils.claims.power import images_for, power_curve, power_text
from visdepth_utils.runs.records import known_power


def curve_of(**shares):
    rows = [(int(n[1:]), share, 0.0) for n, share in shares.items()]
    return pd.DataFrame(rows, columns=["images", "supported", "refuted"])


def test_numbers_by_hand():
    curve = curve_of(n100=0.2, n400=0.8, n1600=1.0)
    assert images_for(curve, 0.8) == 400
    assert images_for(curve, 0.5) == 200  # half the way from 0.2 to 0.8, and from 100 to 400
    assert images_for(curve, 0.9) == 800
    assert images_for(curve, 0.1) == 100  # the smallest that was tried
    assert images_for(curve_of(n100=0.2, n400=0.6), 0.8) is None
    assert images_for(curve_of(n100=0.9, n200=0.7), 0.8) == 100  # noise never asks for more
    assert power_text("C7", curve, 200) == (
        "C7 at 200 images: 50% power; 400 images for 80%, 800 images for 90%"
    )
    assert "more than 400 images for 80%" in power_text("C7", curve_of(n100=0.2, n400=0.6), 100)


def test_a_model_that_guesses_well_needs_more_images():
    needed = {}
    for name, options in {"low": {}, "own": OWN}.items():
        table, controls = styles_tables({"direct": even, "long": even}, n=400, **options)
        curve = power_curve("C7", table, controls, sizes=(96, 400, 1600), simulations=12)
        needed[name] = curve.set_index("images")
        assert curve["refuted"].max() <= 0.2
    assert needed["low"].loc[96, "supported"] >= 0.7
    assert needed["own"].loc[96, "supported"] <= 0.5
    again = power_curve("C7", table, controls, sizes=(96, 400, 1600), simulations=12)
    pd.testing.assert_frame_equal(again, curve)


def test_without_a_gain_no_number_helps():
    same = {style: 0.4 for style in ("direct", "long")}
    options = {"full": same, "blind": same, "other": same}
    table, controls = styles_tables({"direct": even, "long": even}, n=60, **options)
    curve = power_curve("C7", table, controls, sizes=(96, 400), simulations=6)
    assert curve["supported"].max() <= 0.2 and images_for(curve, 0.8) is None


@pytest.fixture
def run(tmp_path):
    tmp_path = tmp_path / "a-quick"
    (tmp_path / "tables").mkdir(parents=True)
    (tmp_path / "claims.json").write_text("[]")
    (tmp_path / "provenance.json").write_text('{"settings": {"model": "m/a"}}')
    table, controls = styles_tables({"direct": even, "long": even}, n=100)
    for style, part in table.groupby("style"):
        part.to_parquet(tmp_path / "tables" / f"c7_{style}_remove-aa.parquet")
    controls["conditions"].to_parquet(tmp_path / "tables" / "c7_conditions-aa.parquet")
    return tmp_path


def test_the_command_writes_a_number_and_a_figure(run, capsys):
    assert main(["power", "C7", str(run)]) == 0
    assert capsys.readouterr().out.startswith("C7 at 100 images: ")
    kept = json.loads((run / "power-C7.json").read_text())
    assert kept["claim"] == "C7" and set(kept["images"]) == {"0.8", "0.9"}
    assert np.all(np.diff([row["images"] for row in kept["curve"]]) > 0)
    assert (run / "power-C7.png").stat().st_size > 1000
    for model, n, said in (("m/a", None, "C7 at 96 images: "), ("m/a", 48, "C7 at 48 images: ")):
        (line,) = known_power(run.parent, model, n)
        assert line.startswith(said)
    assert known_power(run.parent, "m/b", None) == []
    assert main(["power", "C4", str(run)]) == 2
    assert "power is not available for C4: it can be had for C7" in capsys.readouterr().err
    (run / "tables" / "c7_conditions-aa.parquet").unlink()
    assert main(["power", "C7", str(run)]) == 2
    assert "holds no table c7_conditions" in capsys.readouterr().err
