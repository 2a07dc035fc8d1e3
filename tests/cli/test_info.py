"""`actcache info`."""

from tests.cli.commands import refused


def test_info_and_analyze_of_nothing_say_how_to_start(tmp_path, capsys):
    assert "actcache build" in refused(["info", tmp_path / "no.zarr"], capsys)
    assert "actcache build" in refused(["analyze", tmp_path / "no.zarr"], capsys)
    assert "actcache build" in refused(["info", tmp_path], capsys)
