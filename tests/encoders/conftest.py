import pytest

from tests.encoders.examples import KEY


@pytest.fixture
def service_environment(monkeypatch, tmp_path):
    """A key, the default cache below `tmp_path`, and retries that do not wait for long."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01, raising=False)
