"""The charts' library in the user's cache folder: kept once, checked when read, never needed."""

import pytest

from actcache.analysis.report.html import library


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """How often the library was put together, in a cache folder of the test's own."""
    calls = []

    def bundle():
        calls.append(1)
        return "let a = 'é';\n</script>"

    monkeypatch.setattr(library, "_bundle", bundle)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return calls


def read():
    """Read the library as a new process does."""
    return library.chart_library.__wrapped__()


def test_it_is_put_together_once(bundled, tmp_path):
    assert read() == read() == "let a = 'é';\n</script>"
    assert len(bundled) == 1
    (cached,) = (tmp_path / "cache" / "actcache").iterdir()
    assert cached.suffix == ".js"


@pytest.mark.parametrize("damage", [b"", b"let evil", b"// 00\nlet evil", b"\xff\xfe\n\x00"])
def test_a_damaged_file_is_written_anew(bundled, tmp_path, damage):
    read()
    (cached,) = (tmp_path / "cache" / "actcache").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage)
    assert read() == "let a = 'é';\n</script>"
    assert cached.read_bytes() == whole
    assert len(bundled) == 2


def test_another_version_has_another_file(bundled, tmp_path, monkeypatch):
    read()
    monkeypatch.setattr(library, "version", lambda _name: "0.0.1")
    read()
    assert len(bundled) == 2
    assert len(list((tmp_path / "cache" / "actcache").iterdir())) == 2


def test_a_cache_that_cannot_be_used_changes_nothing(bundled, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert read() == "let a = 'é';\n</script>"
    (tmp_path / "cache").unlink()
    read()
    (cached,) = (tmp_path / "cache" / "actcache").iterdir()
    cached.unlink()
    cached.mkdir()
    assert read() == "let a = 'é';\n</script>"
