"""Settings: read once, bounded, and every one of them documented."""

from pathlib import Path

import pytest

from service.config import PREFIX, Settings, load_settings
from service.errors import ConfigurationError

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_an_unknown_setting_stops_the_start_and_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"PREDICT_TTL_SECOND\. Did you mean PREDICT_TTL_SECONDS\?"):
        load_settings({"PREDICT_TTL_SECOND": "5"})


def test_a_value_out_of_bounds_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"PREDICT_PORT='70000'"):
        load_settings({"PREDICT_PORT": "70000"})


def test_other_variables_are_none_of_our_business() -> None:
    assert load_settings({"HOME": "/x", "PREDICT_PORT": "9000"}).port == 9000


def test_a_secret_is_never_shown() -> None:
    settings = load_settings({"PREDICT_CACHE_SECRET": "hunter2", "PREDICT_ADMIN_TOKEN": "hunter3"})
    assert "hunter" not in repr(settings)
    assert "hunter" not in str(settings.model_dump())


@pytest.mark.parametrize(("setting", "given"), [("LOG_LEVEL", "INFO"), ("DEVICE", "CPU"), ("CACHE_CONTROL", "Private")])
def test_a_choice_may_be_written_in_any_case(setting: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + setting, given)
    for settings in (load_settings(), load_settings({PREFIX + setting: given})):
        assert getattr(settings, setting.lower()) == given.lower()


@pytest.mark.parametrize("secret", ["", " "])
def test_an_empty_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PREDICT_CACHE_SECRET=.*empty secret"):
        load_settings({"PREDICT_CACHE_SECRET": secret})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_in_the_readme_with_its_description(name: str) -> None:
    field = Settings.model_fields[name]
    line = next((line for line in README.splitlines() if line.startswith(f"| `{PREFIX}{name.upper()}` |")), "")
    assert field.description and field.description in line
